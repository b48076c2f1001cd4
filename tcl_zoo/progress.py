"""How long things take: one progress bar for all over two seconds, quiet in a log file; and times in words."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm


def progress(total: int, desc: str, unit: str, **kwargs: Any) -> tqdm[Any]:
    """tqdm with our habits: shown after 2 s, redrawn twice a second in a terminal and twice a minute elsewhere."""
    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(
        total=total, desc=desc, unit=unit, mininterval=interval, maxinterval=60.0, dynamic_ncols=True, delay=2, **kwargs
    )


def duration(seconds: float) -> str:
    """``42 s``, ``7 min``, ``2.3 h`` or ``3.1 days``."""
    for unit, size, digits in (("days", 86400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"
