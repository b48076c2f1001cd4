"""What several cards and reports say in the same words."""

from __future__ import annotations

from typing import Any

from ..intervals import mean_interval

CACHED = (
    "`cached` is a logistic regression (L2, C = 1) on the features of the training images as they are; the thesis "
    "trains its linear layer by SGD on augmented ones."
)


def by_seed(facts: dict[str, Any]) -> dict[int, float]:
    """Seed -> top-1 in percent of all trainings that a release's ``tcl_zoo`` facts know of, its own first."""
    results = facts["results"]
    return {results["seed"]: results["top1"]} | {run["seed"]: run["top1"] for run in facts.get("seeds", ())}


def over_seeds(facts: dict[str, Any]) -> str:
    """``mean ± half width`` of their 95 % interval; "" of a single one."""
    mean, half = mean_interval(list(by_seed(facts).values()))
    return "" if half is None else f"{mean:.2f} ± {half:.2f}"


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
