"""Table 5.2 at the scale of a laptop: what ``scripts/benchmark.py ssl`` measured, beside the thesis's figures."""

from __future__ import annotations

import csv
from pathlib import Path

from .grids import GRIDS
from .markdown import number, table_line

NAME = "table-5.2"
RANDOM = "random encoder"
_THESIS_VIEWS = "3 views"  # of tcl_ssl in Table 5.2
_LEGEND = (
    "linear: logistic regression on all labels; few: on 10 labels of each class, mean of 5 draws; above random: linear "
    "minus that of the untrained encoder. s/epoch: wall time, with whatever else the machine did; CPU s: of the whole "
    "training, the steadier figure; MB: memory beyond the data's. "
    "One seed, so differences of a few images say nothing."
)


def small_scale(benchmarks: Path) -> list[str]:
    """Markdown lines for every ``ssl_<dataset>.csv`` in a folder; none where there is no such file.

    Args:
        benchmarks: the folder into which ``scripts/benchmark.py`` writes.
    """
    lines: list[str] = []
    for file in sorted(benchmarks.glob("ssl_*.csv")):
        with file.open(newline="", encoding="utf-8") as handle:
            lines += ["", *_table(file.stem.partition("_")[2], list(csv.DictReader(handle)))]
    return lines


def _table(dataset: str, rows: list[dict[str, str]]) -> list[str]:
    setting = next(row for row in rows if row["method"] != RANDOM)
    chance = 100 / float(setting["test_images"])
    note = (
        f"**SMALL SCALE: {setting['encoder']} on {dataset} at {setting['side']} px, {setting['epochs']} epochs of "
        f"{int(setting['train_images']):,} images, {setting['batch_images']} a step, the augmentation "
        f"{setting['augmentation']} for all.** Not the thesis's setting; compare within the table's own columns only. "
        f"{int(setting['test_images']):,} test images: one is {chance:.2f} points. {_LEGEND}"
    )
    thesis = _thesis()
    places = list(next(iter(thesis.values())))
    own = ["linear", "above random", "few", "kNN (20)", "s/epoch", "CPU s", "MB"]
    head = ["method", *(f"thesis: {place}" for place in places), *own]
    lines = [note, "", "    python scripts/benchmark.py ssl", "", table_line(head), table_line(["---"] * len(head))]
    for row in rows:
        method, _, variant = row["method"].partition(", ")
        theirs = thesis.get(method, {}) if variant in ("", _THESIS_VIEWS) else {}
        values = [number(theirs.get(place)) for place in places]
        for column, digits in (("linear", 2), ("gain", 2), ("few", 2), ("knn20", 2), ("seconds_per_epoch", 2),
                               ("cpu_seconds", 0), ("peak_mb", 0)):  # fmt: skip
            sign = "+" if column == "gain" else ""
            values.append(number(float(row[column]) if row[column] else None, digits, sign))
        lines.append(table_line([row["method"], *values]))
    return lines


def _thesis() -> dict[str, dict[str, float | None]]:
    """Objective -> data set -> figure of Table 5.2; of two projector sizes the larger one's."""
    found: dict[str, dict[str, float | None]] = {}
    for cell in GRIDS[NAME].cells:
        objective, _, rest = cell.name.partition("_resnet18_")
        if "." not in rest:
            found.setdefault(objective, {})[cell.series] = cell.thesis
    return found
