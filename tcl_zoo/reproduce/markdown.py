"""A table or figure as Markdown: what was trained, ours beside the thesis's, and what the intervals say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cards.text import CACHED
from ..runs import write_text
from .plan import MISSING, Plan

Row = dict[str, Any]
MEASURES = {"top1": "top-1", "positives": "response of positives", "negatives": "response of negatives"}
_RESPONSES = (
    "Positives, negatives: mean gradient magnitude per anchor from all positives and from all negatives, without the "
    "common factor 1/temperature (`tcl_zoo.analysis.gradient_responses`), averaged over the training's steps."
)


def scale_note(plan: Plan) -> str:
    """What a scaled result was trained with, in one line; "" at full scale."""
    if not plan.scale.label:
        return ""
    jobs = plan.jobs()
    sizes = list(dict.fromkeys(f"{job.recipe.epochs} epochs of {job.used:,} images" for job in jobs))
    batches = sorted({job.recipe.batch_views for job in jobs})
    several = f"{batches[0]} to {batches[-1]}" if len(batches) > 1 else f"{batches[0]}"
    text = ", ".join(sizes[:2]) + (", ..." if len(sizes) > 2 else "") + f", {several} views a step"
    encoders = sorted({job.recipe.encoder for job in jobs})
    where = plan.scale.dataset and f" on {plan.scale.dataset}"
    steps = "" if plan.scale.factor == 1 else f"{plan.scale.factor:g} of the training steps, "
    return f"SCALED: {steps}{'/'.join(encoders)}{where}, {text}"


def write_markdown(
    plan: Plan,
    rows: list[dict[str, Any]],
    pairs: list[dict[str, Any]],
    picture: str,
    path: Path,
    more: Sequence[str] = (),
) -> None:
    """Writes the page.

    Args:
        plan: which table or figure, at which scale.
        rows: of :func:`tcl_zoo.reproduce.results.summary`.
        pairs: of :func:`tcl_zoo.reproduce.results.pairs`.
        picture: file name of the picture, or "".
        path: of the page.
        more: lines at its end.
    """
    note, grid = scale_note(plan), plan.grid
    done, wanted = sum(row["n"] for row in rows), plan.seeds * len(rows)
    lines = [f"# {plan.stem}: {grid.title}", ""]
    if note:
        same = "the linear classifier is fitted on the same images. " if plan.scale.factor != 1 else ""
        lines += [f"**{note}.** Not the thesis's setting; {same}Compare within the table only.", ""]
    lines += [f"    {plan.command}", "", f"The thesis: {grid.expected}. Runs finished: {done} of {wanted}.", ""]
    lines += [f"![{plan.stem}: {grid.title}]({picture})", ""] if picture else []
    tested = {row["test_images"] for row in rows if row["test_images"]}
    coarse = f" One test image is {100 / max(tested):.2f} points." if tested and max(tested) < 2000 else ""
    how = sorted({row["protocol"] for row in rows if row["protocol"]})
    by = f" ({'; '.join(how)})" if how else ""
    lines += [f"Top-1 in percent of the test split{by}; interval: 95 %, Student's t over runs (seeds).{coarse}", ""]
    if not note and any("cached" in row["protocol"] for row in rows):
        lines += [f"{CACHED} (`--protocol thesis` does.)", ""]
    lines += _table(rows, grid.axis, grid.kind == "gradients")
    if pairs and any(pair["n"] for pair in pairs):
        lines += ["", "Differences, paired by seed:", "", *_pairs(pairs)]
    if grid.kind == "gradients":
        lines += ["", _RESPONSES]
    lines += more
    text = "\n".join(lines) + "\n"
    write_text(path, text)


def _table(rows: list[Row], axis: str, gradients: bool) -> list[str]:
    head = ["" if gradients else axis, "", "thesis", "ours (mean)", "n", "95 % interval"]
    whole = all(row["scale"] == "full" for row in rows)
    head += ["difference"] if whole else []
    head += ["positives", "negatives"] if gradients else []
    lines = [table_line([*head, "test images", "status"]), table_line(["---"] * (len(head) + 2))]
    for row in rows:
        values = [row["row"], row["series"], number(row["thesis"]), number(row["ours"], 2), str(row["n"])]
        values += [spread(row["ci95"], 2)] + ([number(row["difference"], 2, "+")] if whole else [])
        if gradients:
            values += [f"{number(row[k], 3)} {spread(row[k + '_ci95'], 3)}".strip() for k in ("positives", "negatives")]
        status = MISSING if row["status"].startswith(MISSING) else row["status"]
        lines.append(table_line([*values, number(row["test_images"], 0), status]))
    return lines


def _pairs(pairs: list[Row]) -> list[str]:
    lines = [
        table_line(["", "minus", "of", "thesis", "ours (mean)", "n", "95 % interval", "is"]),
        table_line(["---"] * 8),
    ]
    for pair in pairs:
        digits = 2 if pair["measure"] == "top1" else 3
        what = [pair["first"], pair["second"], MEASURES[pair["measure"]]]
        values = [number(pair["thesis"], 2, "+"), number(pair["difference"], digits, "+"), str(pair["n"])]
        lines.append(table_line([*what, *values, spread(pair["ci95"], digits), pair["verdict"]]))
    return lines


def table_line(values: list[str]) -> str:
    return "| " + " | ".join(value.replace("|", "/") for value in values) + " |"


def number(value: float | None, digits: int | None = None, sign: str = "") -> str:
    """A number for a table, ``-`` for None."""
    if value is None:
        return "-"
    if digits is None:  # as the thesis prints it
        digits = 1 if round(value, 1) == value else 2
    return f"{value:{sign},.{digits}f}"


def spread(half: float | None, digits: int) -> str:
    """``± 0.23``, or nothing for None."""
    return "" if half is None else f"± {half:.{digits}f}"
