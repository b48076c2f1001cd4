"""95 % intervals: of a rate over images, of two rates over the same images, and of a mean over runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def rate_interval(percent: float, n: int) -> tuple[float, float]:
    """Wilson's interval (low, high) of a rate in percent, measured on ``n`` images."""
    p, z = percent / 100, 1.959964
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return 100 * (centre - half) / (1 + z * z / n), 100 * (centre + half) / (1 + z * z / n)


def paired_interval(first: int, second: int, n: int) -> tuple[float, float]:
    """Difference in points of two rates on the same ``n`` images, and half the width of its 95 % interval.

    By Agresti and Min (2005): Wald's for matched pairs, with half an image more in each cell of the table, so that the
    difference is n / (n + 2) of the one observed.

    Args:
        first, second: images that the first has right and the second wrong, and the other way round.
        n: all images.
    """
    alone, gap = first + second + 1, first - second
    return 100 * gap / (n + 2), 100 * 1.959964 * math.sqrt(alone - gap * gap / (n + 2)) / (n + 2)


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half width of its interval by Student's t, two-sided; None for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None

    from scipy.stats import t

    return mean, float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def verdict(mean: float, half: float | None, n: int) -> str:
    """What an interval of differences over ``n`` runs says."""
    if half is None:
        return "one run: no interval" if n else "not run"
    if half < 1e-9:
        return "the same in every run: no interval"
    if mean - half > 0:
        return "above"
    return "below" if mean + half < 0 else "no difference seen (the interval has 0)"
