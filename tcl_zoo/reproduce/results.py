"""From finished runs to ``results/<name>.csv``, ``.md`` and ``.png``: means, 95 % intervals, paired differences.

Intervals are Student's t over runs, two-sided, 95 %. Cells are compared seed by seed: runs of one seed share the order
of the images, the augmentation and the initial weights, so their difference varies less than either.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..intervals import mean_interval, verdict
from ..runs import read_jsonl, write_atomically
from .figures import gradient_figure, top1_figure
from .grids import Cell
from .markdown import write_markdown
from .plan import Plan
from .runner import State, Store
from .scale import Job
from .small import NAME, small_scale

Row = dict[str, Any]


@dataclass
class Measured:
    """What the runs of a cell gave, by seed."""

    cell: Cell
    states: dict[int, State]
    why: str
    values: dict[str, dict[int, float]]  # measure -> seed -> value
    curves: dict[int, list[dict[str, Any]]]  # seed -> lines of gradients.jsonl
    logged: bool = False  # whether there should be curves

    @property
    def status(self) -> str:
        """In a few words, failures with their reason."""
        if self.why:
            return self.why
        done = sum(state.status == "done" for state in self.states.values())
        text = "done" if done == len(self.states) else f"{done} of {len(self.states)} done" if done else "to do"
        unlogged = [seed for seed in self.values["top1"] if seed not in self.curves] if self.logged else []
        if unlogged:
            text += f"; seed {', '.join(map(str, unlogged))} trained without a log of its gradients"
        failures = [state.message for state in self.states.values() if state.status == "failed"]
        if failures:
            text += f"; {len(failures)} failed: {failures[0]}"
        elif not done and any(state.status == "part" for state in self.states.values()):
            text = "begun"
        return text


def measure(plan: Plan, store: Store) -> list[Measured]:
    """Everything that is known of a plan's cells, in their order."""
    found = {
        (c.row, c.series): Measured(c, {}, "", {"top1": {}}, {}, plan.grid.kind == "gradients") for c in plan.grid.cells
    }
    for entry in plan.entries:
        item = found[entry.cell.row, entry.cell.series]
        if entry.job is None:
            item.why = entry.why
            continue
        state = item.states[entry.seed] = store.state(entry.job)
        if state.status != "done" or state.top1 is None:
            continue
        item.values["top1"][entry.seed] = state.top1
        log = state.folder / "gradients.jsonl"
        if plan.grid.kind == "gradients" and log.is_file():
            lines = item.curves[entry.seed] = read_jsonl(log)
            for which in ("positives", "negatives"):
                item.values.setdefault(which, {})[entry.seed] = statistics.fmean(line[which] for line in lines)
    return list(found.values())


def _measures(plan: Plan) -> tuple[str, ...]:
    return ("positives", "negatives", "top1") if plan.grid.kind == "gradients" else ("top1",)


def summary(plan: Plan, items: list[Measured]) -> list[Row]:
    """A row for each cell: the thesis's figure, ours, n, interval, difference, and what was trained."""
    jobs = {(e.cell.row, e.cell.series): e.job for e in reversed(plan.entries)}
    rows = []
    for item in items:
        job, top1 = jobs[item.cell.row, item.cell.series], item.values["top1"]
        row: Row = {"row": item.cell.row, "series": item.cell.series, "thesis": item.cell.thesis}
        row |= dict.fromkeys(("ours", "n", "ci95", "difference"))
        row["n"] = len(top1)
        if top1:
            row["ours"], row["ci95"] = mean_interval(list(top1.values()))
            if item.cell.thesis is not None and not plan.scale.label:  # what is scaled is no measure of the thesis
                row["difference"] = row["ours"] - item.cell.thesis
        for which in _measures(plan)[:-1]:
            values = list(item.values.get(which, {}).values())
            row[which], row[f"{which}_ci95"] = mean_interval(values) if values else (None, None)
        row["status"] = item.status
        row["test_images"] = next((state.n for state in item.states.values() if state.n), None)
        row["protocol"] = "; ".join(sorted({state.protocol for state in item.states.values() if state.protocol}))
        row["recipe"], row["settings"] = (job.recipe.name if job else item.cell.name), _settings(item.cell, job)
        row["epochs"], row["train_images"] = (job.recipe.epochs, job.used) if job else (None, None)
        row["scale"] = plan.scale.label or "full"
        row["top1_by_seed"] = " ".join(f"{seed}:{value:.4f}" for seed, value in sorted(top1.items()))
        rows.append(row)
    return rows


def _settings(cell: Cell, job: Job | None) -> str:
    """What the cell sets, and what else differs from the recipe but for what has a column of its own."""
    changes = job.changes if job else {}
    own = {key: value for key, value in changes.items() if key not in ("seed", "epochs")}
    return " ".join(f"{key}={value}" for key, value in (dict(text.split("=") for text in cell.settings) | own).items())


def pairs(plan: Plan, items: list[Measured]) -> list[Row]:
    """A row for each cell that has another to be compared with, and each measure: the paired difference."""
    by_place = {(item.cell.row, item.cell.series): item for item in items}
    rows = []
    for item in items:
        if item.cell.against is None or item.why or by_place[item.cell.against].why:
            continue
        other = by_place[item.cell.against]
        for which in _measures(plan):
            a, b = item.values.get(which, {}), other.values.get(which, {})
            seeds = sorted(a.keys() & b.keys())
            mean, half = mean_interval([a[seed] - b[seed] for seed in seeds]) if seeds else (None, None)
            both = (item.cell.thesis, other.cell.thesis)
            thesis = both[0] - both[1] if which == "top1" and None not in both else None  # type: ignore[operator]
            row: Row = {"first": _label(plan, item.cell), "second": _label(plan, other.cell), "measure": which}
            row |= {"thesis": thesis, "difference": mean, "ci95": half, "n": len(seeds)}
            rows.append(row | {"verdict": verdict(mean or 0.0, half, len(seeds))})
    return rows


def _label(plan: Plan, cell: Cell) -> str:
    """A cell's row and series: ``k1 = 10, k2 = 1``, ``CIFAR-10 (R50), TCL``."""
    row = f"{plan.grid.axis.partition(' (')[0]} = {cell.row}" if plan.grid.numeric else cell.row
    return ", ".join(filter(None, (row, cell.series)))


def curves(items: list[Measured]) -> list[Row]:
    """The gradient responses over the steps: mean and interval over the seeds."""
    rows = []
    for item in items:
        by_seed = [{line["step"]: line for line in lines} for lines in item.curves.values()]
        for step in sorted(set.intersection(*(set(lines) for lines in by_seed))) if by_seed else ():
            row: Row = {"series": item.cell.series, "step": step, "n": len(by_seed)}
            for which in ("positives", "negatives"):
                row[which], row[f"{which}_ci95"] = mean_interval([lines[step][which] for lines in by_seed])
            rows.append(row)
    return rows


def render(plan: Plan, store: Store, folder: Path, overwrite: bool = True) -> list[Path]:
    """Writes a plan's table and picture from the runs that are finished.

    Args:
        plan: which table or figure, at which scale.
        store: where the runs and the releases are.
        folder: ``results``; made if it does not exist.
        overwrite: also where the table there is of more runs.

    Returns:
        The files; the picture only where something of ours is in it. None where those there were left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    items = measure(plan, store)
    rows, compared, over_steps = summary(plan, items), pairs(plan, items), curves(items)
    if not overwrite and _runs(folder / f"{plan.stem}.csv") > sum(row["n"] for row in rows):
        return []
    for suffix in ("pairs.csv", "curves.csv", "png"):  # of an earlier rendering
        (folder / f"{plan.stem}.{suffix}").unlink(missing_ok=True)
    files = [folder / f"{plan.stem}.csv"]
    _write_csv(files[0], rows)
    for suffix, more in (("pairs", compared), ("curves", over_steps)):
        if more and any(row["n"] for row in more):
            files.append(folder / f"{plan.stem}.{suffix}.csv")
            _write_csv(files[-1], more)
    picture = folder / f"{plan.stem}.png"
    if over_steps:
        gradient_figure(plan, over_steps, picture)
    elif any(row["n"] for row in rows) and plan.grid.kind == "top1":
        top1_figure(plan, rows, picture)
    if picture.is_file():
        files.append(picture)
    files.append(folder / f"{plan.stem}.md")
    small = small_scale(folder.parent / "benchmarks") if plan.stem == NAME else []
    write_markdown(plan, rows, compared, picture.name if picture in files else "", files[-1], small)
    return files


def _runs(table: Path) -> int:
    """How many runs a table that was written before is of."""
    if not table.is_file():
        return 0
    with table.open(newline="", encoding="utf-8") as file:
        return sum(int(row["n"] or 0) for row in csv.DictReader(file))


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)

    write_atomically(path, write)
