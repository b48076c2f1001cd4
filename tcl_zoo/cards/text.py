"""What several cards and reports say in the same words."""

from __future__ import annotations

import math
from typing import Any

CACHED = (
    "`cached` is a logistic regression (L2, C = 1) on the features of the training images as they are; the thesis "
    "trains its linear layer by SGD on augmented ones."
)


def interval(percent: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate in percent, measured on ``n`` images."""
    p, z = percent / 100, 1.959964
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return 100 * (centre - half) / (1 + z * z / n), 100 * (centre + half) / (1 + z * z / n)


def class_list(config: dict[str, Any]) -> str:
    """The first twenty class names of a ``config.json``."""
    labels = config["pretrained_cfg"]["label_names"]
    shown = ", ".join(labels[:20])
    return shown if len(labels) <= 20 else f"{shown}, ... ({len(labels)} in `config.json`)"


def transfer_section(rows: list[dict[str, Any]] | None, own: str = "") -> str:
    """What the frozen features are worth on other images, as a section of the card; "" where it was not measured.

    Args:
        rows: ``transfer`` of the release's ``config.json``: ``dataset``, ``classifier``, ``shots``, ``mean``, ``std``,
            ``draws`` and ``test_images`` of each setting.
        own: the data set that the encoder was trained on.
    """
    if not rows:
        return ""
    shots = sorted({row["shots"] for row in rows}, key=lambda number: (number == 0, number))
    lines = ["| data set | classifier | " + " | ".join(str(number or "all") for number in shots) + " | test images |"]
    lines.append("|---|---|" + "---|" * (len(shots) + 1))
    for dataset, kind in dict.fromkeys((row["dataset"], row["classifier"]) for row in rows):
        mine = {row["shots"]: row for row in rows if (row["dataset"], row["classifier"]) == (dataset, kind)}
        cells = []
        for number in shots:
            row = mine.get(number)
            spread = f" ± {row['std']:.1f}" if row and row["draws"] > 1 else ""
            cells.append(f"{row['mean']:.1f}{spread}" if row else "-")
        lines.append(f"| {dataset} | {kind} | {' | '.join(cells)} | {next(iter(mine.values()))['test_images']:,} |")
    draws = max(row["draws"] for row in rows)
    seen = (
        f" The encoder itself was trained on all training images of {own}."
        if own in {row["dataset"] for row in rows}
        else ""
    )
    return (
        "## Few labels and transfer\n\nTop-1 (%) on frozen features by training images per class, mean ± standard "
        f"deviation over {draws} draws of them\n(`tcl-zoo probe`).{seen}\n\n" + "\n".join(lines) + "\n\n"
    )
