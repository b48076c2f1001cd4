"""A table or figure at a scale and a number of seeds: its jobs, and how they stand."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import RecipeError
from ..progress import duration
from ..recipes import DATA
from .grids import Cell, Grid
from .runner import State, Store, rates, seconds_left
from .scale import Job, Scale, moved, scaled

MISSING = "not available yet"
_MOST_SEEDS = 100  # that are looked for


@dataclass(frozen=True)
class Entry:
    """A cell at a seed; ``job`` is None, and ``why`` says so, where no recipe has its name yet."""

    cell: Cell
    seed: int
    job: Job | None
    why: str = ""


@dataclass(frozen=True)
class Plan:
    """What stands behind one table or figure.

    Attributes:
        grid: with the rows and the title of the scale.
        scale: what makes it smaller than the thesis's.
        seeds: runs of each cell.
        entries: every cell at every seed, seed by seed, so that a part of them is already a balanced result.
    """

    grid: Grid
    scale: Scale
    seeds: int
    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, grid: Grid, scale: Scale, seeds: int | None = None) -> Plan:
        """The plan of a grid; ``seeds`` as many as the thesis has where not given.

        Raises:
            RecipeError: a scale that is out of range, or that this grid cannot have.
        """
        if not 0 < scale.factor <= 1:
            raise RecipeError(f"--scale takes a share of the training steps above 0 and at most 1, got {scale.factor}")
        if scale.dataset and not scale.encoder:
            scale = dataclasses.replace(scale, encoder=DATA[scale.dataset].thesis_encoder)
        grid, seeds = moved(grid, scale), seeds or grid.seeds
        entries = []
        for seed in range(seeds):
            for cell in grid.cells:
                try:
                    entries.append(Entry(cell, seed, scaled(cell, scale, seed)))
                except RecipeError as error:
                    entries.append(Entry(cell, seed, None, f"{MISSING}: {str(error).split(';')[0]}"))
        return cls(grid, scale, seeds, tuple(entries))

    @classmethod
    def found(cls, grid: Grid, scale: Scale, store: Store) -> Plan:
        """The plan up to the highest seed that has a finished run; where none has, with the seeds of the thesis."""
        every = cls.of(grid, scale, max(grid.seeds, _MOST_SEEDS))
        done = [e.seed for e in every.entries if e.job and store.state(e.job).status == "done"]
        return cls.of(grid, scale, max(done) + 1 if done else None)

    @property
    def stem(self) -> str:
        """Name of the result files: the grid's, with the scale's label where it is scaled."""
        return f"{self.grid.name}_{self.scale.label}" if self.scale.label else self.grid.name

    @property
    def command(self) -> str:
        """What a reader types to run it."""
        parts = ["python scripts/reproduce.py", self.grid.name, "--data-dir data"]
        parts += [f"--scale {self.scale.factor:g}"] if self.scale.factor != 1 else []
        parts += [f"--encoder {self.scale.encoder}"] if self.scale.encoder else []
        parts += [f"--dataset {self.scale.dataset}"] if self.scale.dataset else []
        parts += [f"--seeds {self.seeds}"] if self.seeds != self.grid.seeds else []
        return " ".join(parts)

    def jobs(self) -> list[Job]:
        """Every job once."""
        return list({entry.job.key: entry.job for entry in self.entries if entry.job}.values())

    def listing(self, store: Store, jobs: Iterable[Job]) -> str:
        """The runs among ``jobs``, how they stand, and an estimate of the training time left."""
        wanted, seen, measured = {job.key for job in jobs}, set(), rates(store)
        lines, total, unknown, done = [f"{self.stem}: {self.grid.title}"], 0.0, 0, 0
        for entry in self.entries:
            place = ", ".join(filter(None, (entry.cell.row, entry.cell.series, f"seed {entry.seed}")))
            if entry.job is None:
                lines.append(f"  {'missing':8} {'-':>9}  {place}: {entry.why}")
                continue
            if entry.job.key in seen or entry.job.key not in wanted:
                continue
            seen.add(entry.job.key)
            state = store.state(entry.job)
            left = seconds_left(entry.job, state, measured)
            total, unknown, done = total + (left or 0), unknown + (left is None), done + (state.status == "done")
            lines.append(f"  {_status(entry.job, state):8} {'?' if left is None else duration(left):>9}  {place}")
            lines.append(f"  {'':8} {'':9}  {state.folder.name}")
            if state.message:
                lines.append(f"  {'':8} {'':9}  {state.message}")
        rest = f"; {unknown} of unknown pace: none like them has finished an epoch" if unknown else ""
        lines.append(f"  {done} of {len(seen)} runs done, about {duration(total)} of training left{rest}")
        return "\n".join(lines)


def _status(job: Job, state: State) -> str:
    if state.status == "part":
        return f"{100 * state.views // max(1, job.views)} %"
    if state.status == "done":
        return f"{state.top1:.2f} %"
    return state.status
