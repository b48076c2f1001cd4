"""What every training on accelerate shares: the accelerator, checkpoints of a run folder, what it ran on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor
from tqdm.auto import tqdm

from . import __version__
from .batches import Batches, Views
from .errors import TrainingError
from .runs import Run, writing
from .stopping import Stop, agreed

LOOK_EVERY = 20  # steps between two looks at the losses: a look waits for the device
PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


class Session(ABC):
    """Where a training stands: ``epoch`` and ``step_done``, the training time, the losses of the epoch under way.

    Attributes:
        batches: of every epoch.
        losses: [steps of an epoch] of this process, on the device until somebody looks.
        state: names of the attributes that a checkpoint holds beside what accelerate knows; JSON's types.
    """

    state: tuple[str, ...] = ("epoch", "step_done", "seconds")
    accelerator: Accelerator
    batches: Batches
    epoch: int = 0
    step_done: int = 0
    seconds: float = 0.0
    losses: Tensor

    @abstractmethod
    def step(self, views: Views, labels: Tensor) -> Tensor:
        """Forward, backward, update; returns the detached loss."""

    @abstractmethod
    def suggestion(self) -> str:
        """What to try where the loss is not finite."""

    def save(self, folder: Path) -> None:
        """Writes everything to go on bit for bit, through accelerate; every process calls it."""
        self.accelerator.save_state(str(folder))
        losses = self.batch_losses(self.step_done)
        if self.accelerator.is_main_process:
            values = {name: getattr(self, name) for name in self.state} | {"losses": losses.tolist()}
            (folder / "state.json").write_text(json.dumps(values), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Reads what :meth:`save` wrote."""
        values = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        self.accelerator.load_state(str(folder))
        self.losses[: values["step_done"]] = torch.tensor(values["losses"])
        for name in self.state:
            setattr(self, name, values[name])

    def batch_losses(self, upto: int) -> Tensor:
        """Losses [upto] of the whole batches: the mean over the processes, all of which ask at the same steps."""
        losses = self.losses[:upto]
        if self.accelerator.num_processes > 1:
            losses = self.accelerator.reduce(losses.clone(), "mean")  # type: ignore[assignment]
        return losses

    def check(self, upto: int) -> float:
        """Mean loss of the epoch's steps before ``upto``; waits for the device and the other processes.

        Raises:
            TrainingError: a loss is NaN or infinite; names the epoch and the first such step.
        """
        losses = self.batch_losses(upto)
        mean = float(losses.mean())
        if not math.isfinite(mean):
            bad = int((~losses.isfinite()).nonzero()[0])
            raise TrainingError(
                f"the loss became {float(losses[bad])} at epoch {self.epoch + 1}, step {bad + 1}; {self.suggestion()}"
            )
        return mean


def create_accelerator(
    precision: str, cpu: bool, log_with: str | None = None, run_dir: Path | None = None, partial: bool = False
) -> Accelerator:
    """The accelerator of one training; ``auto`` is bf16 on a GPU that has it, else fp32. Turns TF32 off.

    Args:
        precision: ``fp32``, ``bf16``, ``fp16`` or ``auto``.
        cpu: stay on the CPU.
        log_with: a tracker of accelerate's.
        run_dir: where it writes, if it writes files.
        partial: parts of the network may be without gradients at times.

    Raises:
        TrainingError: unknown precision or tracker, or accelerate refuses.
    """
    if precision == "auto":
        gpu = torch.cuda.is_available() and not cpu
        precision = "bf16" if gpu and torch.cuda.is_bf16_supported() else "fp32"
    if precision not in PRECISIONS:
        raise TrainingError(f"unknown precision {precision!r}; known: auto, {', '.join(PRECISIONS)}")
    if log_with and log_with not in map(str, get_available_trackers()):
        raise TrainingError(f"{log_with} is not installed: pip install {log_with}")
    torch.backends.cudnn.allow_tf32 = False  # torch's default rounds the convolutions of fp32 to 10 bits
    # accelerate remembers precision and device of the process's first Accelerator; a second training may want others.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    PartialState(cpu=cpu)
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)] if partial else []
    try:
        return Accelerator(
            mixed_precision=PRECISIONS[precision], cpu=cpu, log_with=log_with, project_dir=run_dir,
            kwargs_handlers=handlers,
        )  # fmt: skip
    except (ValueError, ImportError) as error:
        raise TrainingError(f"accelerate refuses these settings: {error}") from None


@contextlib.contextmanager
def within_memory(accelerator: Accelerator, batch: str, *ways: str) -> Iterator[None]:
    """A step that needs more memory than there is becomes a ``TrainingError`` that says what to change.

    Args:
        accelerator: of the training.
        batch: what a step holds: ``128 views``.
        ways: options that make it need less.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
            raise
        ways = (*ways, "--precision bf16") if accelerator.mixed_precision == "no" else ways
        raise TrainingError(
            f"a step of {batch} does not fit into the memory of {accelerator.device}; try {' or '.join(ways)}"
        ) from None


def resume(trainer: Session, run: Run) -> None:
    """Loads the newest checkpoint that every process can read; sets those aside that are newer.

    Raises:
        TrainingError: there are checkpoints, and none can be read.
    """
    accelerator, damaged, saved = trainer.accelerator, [], run.saved()
    for folder in saved:
        failure = ""
        try:
            run.check(folder)
            trainer.load(folder)
        except Exception as error:
            failure = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if not agreed(accelerator, bool(failure), True):
            break
        accelerator.print(f"{folder.name} cannot be read ({failure or 'by another process'}); trying the one before")
        damaged.append(folder)
    if saved and len(damaged) == len(saved):
        raise TrainingError(
            f"none of the checkpoints in {run.checkpoints} can be read; start again in another run folder (--run-dir)"
        )
    if accelerator.is_main_process:
        for folder in damaged:
            run.set_aside(folder)
        run.rewind_metrics(trainer.epoch)
    accelerator.wait_for_everyone()


def run_epoch(session: Session, stop: Stop, bar: tqdm[Any], note: Callable[[float, float], str]) -> bool:
    """Runs the rest of an epoch; False where it was stopped.

    Args:
        session: what trains.
        stop: asked after every step; with several processes every ``LOOK_EVERY`` steps.
        bar: of steps.
        note: of the mean loss of the epoch so far and the steps a second, what stands behind the bar.

    Raises:
        TrainingError: a loss is NaN or infinite. A single process on a CPU looks at every step.
    """
    accelerator, start, steps = session.accelerator, session.step_done, session.batches.steps
    every_step = accelerator.device.type == "cpu" and accelerator.num_processes == 1
    first = clock = time.monotonic()
    for views, labels in session.batches.epoch(session.epoch, start):
        session.losses[session.step_done] = session.step(views, labels)
        session.step_done += 1
        now = time.monotonic()
        session.seconds, clock = session.seconds + now - clock, now
        bar.update()
        if every_step and not session.losses[session.step_done - 1].isfinite():
            session.check(session.step_done)
        look, last = session.step_done % LOOK_EVERY == 0, session.step_done == steps
        if look or last:
            rate = (session.step_done - start) / (now - first)
            bar.set_postfix_str(note(session.check(session.step_done), rate), False)
        if not last and agreed(accelerator, stop(), look):
            session.check(session.step_done)
            return False
    session.seconds += time.monotonic() - clock  # the last look waited for the device
    return True


def checkpoint(trainer: Session, run: Run) -> None:
    """Writes a checkpoint of all processes into the run folder."""
    accelerator = trainer.accelerator
    if accelerator.num_processes == 1:
        run.save(trainer.epoch, trainer.step_done, trainer.save)
        return
    # Every process adds its random state to one folder, then the main process renames it.
    shared = run.checkpoints / ".part-shared"
    with writing(run.folder):
        trainer.save(shared)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        run.save(trainer.epoch, trainer.step_done, lambda part: os.replace(shared, part))
    accelerator.wait_for_everyone()


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """What the weights were made with; goes into the card."""
    packages = ("torch", "torchvision", "timm", "accelerate", "numpy")
    software = {"tcl_zoo": __version__, "python": platform.python_version()}
    software |= {name: importlib.metadata.version(name) for name in packages}
    if accelerator.device.type == "cuda":
        hardware = torch.cuda.get_device_name(accelerator.device)
    else:
        hardware = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    precision = next(name for name, theirs in PRECISIONS.items() if theirs == accelerator.mixed_precision)
    return {
        "software": software,
        "hardware": hardware,
        "processes": accelerator.num_processes,
        "precision": precision,
    }
