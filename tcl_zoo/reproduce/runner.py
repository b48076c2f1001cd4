"""The runs behind the tables and figures: which are done, and training those that are not.

Everything is in plain files under one folder, a run folder for each job and ``<job>.failed`` beside it where it
failed. Several processes and machines share the work without a coordinator: each takes its shard, skips what is done
and what another one holds, and whoever has all folders in one place can render.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RunInUseError, TrainingError, one_line
from ..recipes import Recipe
from ..runs import read_jsonl
from ..stopping import Stop
from .scale import Job, balanced

# Points of a gradient curve over a whole training.
_POINTS = 200


@dataclass(frozen=True)
class State:
    """Where a job stands.

    Attributes:
        status: ``done``, ``part`` (a checkpoint is there), ``failed`` or ``to do``.
        top1: percent on the test split, once done.
        n: test images, once done.
        protocol: of the linear probe, once done.
        views: views trained so far.
        seconds: of training so far.
        message: why it failed.
        folder: the run folder, or the released card it was taken from.
    """

    status: str
    folder: Path
    top1: float | None = None
    n: int | None = None
    protocol: str = ""
    views: int = 0
    seconds: float = 0.0
    message: str = ""


@dataclass(frozen=True)
class Store:
    """Where runs and cards are.

    Attributes:
        runs: folder of run folders.
        cards: folder of releases (``model_cards``): a job at full scale that has a card is done.
    """

    runs: Path
    cards: Path

    def folder(self, job: Job) -> Path:
        """The run folder."""
        return self.runs / job.key

    def state(self, job: Job) -> State:
        """Where a job stands, from its files alone."""
        folder = self.folder(job)
        views, seconds = progress_of(folder)
        stored, results = _json(folder / "recipe.json"), _json(folder / "results.json")
        if stored is not None and (other := _others(job, stored.get("recipe", {}))):
            return State("failed", folder, message=f"{folder} is a run of other settings: {other}")
        if results is not None:
            return State("done", folder, results["top1"], results["n"], results["protocol"], views, seconds)
        card = self._card(job)
        if card is not None:
            done, folder = card["results"], self.cards / job.recipe.name
            return State("done", folder, done["top1"], done["n"], done["protocol"], job.views, card["seconds"])
        failed = self._failed(job)
        if failed.is_file():
            return State("failed", folder, views=views, seconds=seconds, message=failed.read_text("utf-8").strip())
        return State("part" if views else "to do", folder, views=views, seconds=seconds)

    def measured(self, job: Job, protocol: str) -> bool:
        """Whether a job is done, and its classifier was fitted by a protocol (or, by cross-entropy, trained)."""
        state = self.state(job)
        fitted = state.protocol.startswith("linear probe")
        return state.status == "done" and (not fitted or state.protocol.endswith(protocol))

    def failed(self, job: Job, error: Exception | None) -> None:
        """Notes why a job failed, or that it did not."""
        if error is None:
            self._failed(job).unlink(missing_ok=True)
            return
        self.runs.mkdir(parents=True, exist_ok=True)
        text = one_line(error)
        self._failed(job).write_text(text + "\n", encoding="utf-8")

    def _failed(self, job: Job) -> Path:
        return self.runs / f"{job.key}.failed"

    def _card(self, job: Job) -> dict[str, Any] | None:
        """What a release says of itself, where it was trained as the job asks."""
        config = _json(self.cards / job.recipe.name / "config.json")
        if config is None or job.images or "tcl_zoo" not in config:
            return None
        facts: dict[str, Any] = config["tcl_zoo"]
        return None if _others(job, facts["recipe"]) else facts


def _others(job: Job, trained: dict[str, Any]) -> str:
    """Which values of a trained recipe are not the job's."""
    ours = job.recipe.to_dict()
    return ", ".join(f"{key} {value}" for key, value in trained.items() if ours.get(key) != value)


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value


def progress_of(folder: Path) -> tuple[int, float]:
    """Views and seconds of training that a run folder's ``metrics.jsonl`` tells of."""
    lines = [line for line in read_jsonl(folder / "metrics.jsonl") if line.keys() >= {"views", "seconds"}]
    return (int(lines[-1]["views"]), float(lines[-1]["seconds"])) if lines else (0, 0.0)


def rates(store: Store) -> dict[tuple[str, str, str], float]:
    """Measured seconds per view by (objective, encoder, data set), from every run that has finished an epoch."""
    sums: dict[tuple[str, str, str], list[float]] = {}
    for file in store.runs.glob("*/recipe.json"):
        stored = _json(file)
        views, seconds = progress_of(file.parent)
        if stored is None or not views:
            continue
        fields = stored["recipe"]
        total = sums.setdefault((fields["objective"], fields["encoder"], fields["dataset"]), [0.0, 0.0])
        total[0], total[1] = total[0] + seconds, total[1] + views
    return {key: seconds / views for key, (seconds, views) in sums.items()}


def seconds_left(job: Job, state: State, measured: dict[tuple[str, str, str], float]) -> float | None:
    """Estimate of the training time left: a job's own pace, else that of runs alike; None where nothing is measured."""
    if state.status == "done":
        return 0.0
    left = max(0, job.views - state.views)
    if state.views:
        return left * state.seconds / state.views
    recipe = job.recipe
    alike = [
        rate
        for (objective, encoder, dataset), rate in measured.items()
        if (encoder, dataset) == (recipe.encoder, recipe.dataset) and (objective == "ce") == (recipe.objective == "ce")
    ]
    return left * sum(alike) / len(alike) if alike else None


def shard(jobs: Iterable[Job], index: int, count: int) -> list[Job]:
    """Every ``count``-th group of jobs, from the ``index``-th (counted from 1), each job once.

    A group is of up to three jobs that differ by what they minimise alone. So a comparison of objectives comes from one
    machine, and no machine has all runs of one objective; a sweep over k1 and k2 is spread.
    """
    alike: dict[tuple[object, ...], list[Job]] = {}
    for job in {job.key: job for job in jobs}.values():
        of = job.recipe
        alike.setdefault((of.encoder, of.dataset, of.variant, of.seed, job.images), []).append(job)
    groups = [jobs[i : i + 3] for jobs in alike.values() for i in range(0, len(jobs), 3)]
    return [job for group in groups[index - 1 :: count] for job in group]


def run_job(
    job: Job,
    store: Store,
    data_dir: str | None,
    *,
    precision: str = "auto",
    time_limit: float | None = None,
    download: bool = False,
    cpu: bool = False,
    protocol: str = "cached",
    workers: int = 2,
) -> bool:
    """Trains a job, or goes on, and measures its top-1; False where the time limit or a signal stopped it.

    Args:
        job: what to train.
        store: where its run folder is.
        data_dir: where the data sets are.
        precision, time_limit, download, cpu, workers: as for :func:`tcl_zoo.train.train`.
        protocol: of the linear probe.

    Raises:
        TclZooError: as of :func:`tcl_zoo.train.train` and :func:`tcl_zoo.evaluate.evaluate_run`.
    """
    from ..datasets import load
    from ..evaluate import evaluate_run
    from ..processes import main_first, on_main
    from ..train import train

    split = main_first(lambda: load(job.recipe.dataset, data_dir, "train", download=download))
    if job.images:
        split = balanced(split, job.images)
    folder = store.folder(job)
    result = train(
        job.recipe,
        data_dir,
        folder,
        split=split,
        precision=precision,
        time_limit=time_limit,
        cpu=cpu,
        workers=workers,
        log_gradients=_every(job.recipe, len(split)),
    )
    if result.finished:
        device = "cpu" if cpu else None
        on_main(lambda: evaluate_run(folder, data_dir, protocol=protocol, device=device, train=split, workers=workers))
    return result.finished


def _every(recipe: Recipe, images: int) -> int:
    """Steps between two points of the gradient curves; 0 for objectives that have none."""
    if recipe.objective not in ("tcl", "supcon"):
        return 0
    return max(1, recipe.epochs * (images // recipe.batch_images) // _POINTS)


def run_all(
    jobs: list[Job], store: Store, data_dir: str | None, time_limit: float | None = None, **settings: Any
) -> tuple[bool, list[str]]:
    """Runs what is not done, one job after the other; a failed job does not stop the others.

    Args:
        jobs: in the order they are run.
        store: where their folders are.
        data_dir: where the data sets are.
        time_limit: seconds for all of them together.
        settings: as of :func:`run_job`.

    Returns:
        Whether the end was reached (False: stopped before, or another process holds some), and a line for each job
        that failed.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    process, stop = PartialState(cpu=bool(settings.get("cpu"))), Stop(time_limit)
    notes: list[str] = []
    reached = True
    for number, job in enumerate(jobs, 1):
        # One process decides for all: their clocks, and what they see of the folders, may differ.
        skip = store.measured(job, settings.get("protocol", "cached"))
        what = ["skip" if skip else "stop" if stop() else "run"]
        broadcast_object_list(what)
        if what[0] == "stop":
            return False, notes
        if what[0] == "skip":
            continue
        process.print(f"[{number}/{len(jobs)}] {job.key}")
        try:
            left = None if time_limit is None else max(0.0, stop.left())
            finished = run_job(job, store, data_dir, time_limit=left, **settings)
        except RunInUseError:
            process.print("another process is at it")
            reached = False
            continue
        except Exception as error:  # whatever it is, the other jobs are run and this one is reported
            notes.append(f"{job.key}: {one_line(error)}")
            process.print(f"failed: {notes[-1]}")
            if process.is_main_process:
                store.failed(job, error)
            continue
        if not finished:
            return False, notes
        if process.is_main_process:
            store.failed(job, None)
    return reached, notes


def checked_shard(text: str) -> tuple[int, int]:
    """``i/n`` as two numbers, 1 <= i <= n.

    Raises:
        TrainingError: it is not.
    """
    index, slash, count = text.partition("/")
    if slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count):
        return int(index), int(count)
    raise TrainingError(f"--shard takes i/n with 1 <= i <= n, such as 1/4, got {text!r}")
