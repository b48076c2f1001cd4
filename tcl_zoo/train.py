"""One recipe in, one run folder out, on accelerate.

The step itself is ``Trainer.step`` in ``trainer.py``. Everything random is a function of (seed, epoch, step), so a
run that stops anywhere and goes on ends with the same weights, to the bit on a CPU.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .analysis import GradientLog
from .datasets import FolderSplit, Split, holdout, load
from .errors import TrainingError
from .processes import main_first, naming_the_lost
from .progress import progress
from .recipes import Recipe, flat
from .runs import Run, read_metrics, save_module, write_json
from .sessions import checkpoint, create_accelerator, environment, resume, run_epoch, within_memory
from .stopping import Stop, agreed
from .trainer import Trainer

# Seconds between checkpoints that nothing asks for. On a CPU every epoch has one; a GPU may need no longer for an
# epoch than for a checkpoint.
_PAUSE, _PAUSES = 60.0, {"cpu": 0.0}


@dataclass(frozen=True)
class TrainResult:
    """What a call of :func:`train` did.

    Attributes:
        finished: False where a time limit or a signal stopped it; the same call goes on.
        epoch: epochs completed.
        run_dir: the run folder, with ``encoder.safetensors`` once finished.
        loss: mean loss of the last epoch.
        seconds: training time of the whole run so far, over all calls.
    """

    finished: bool
    epoch: int
    run_dir: Path
    loss: float
    seconds: float


def train(
    recipe: Recipe,
    data_dir: str | os.PathLike[str] | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    *,
    precision: str = "auto",
    time_limit: float | None = None,
    download: bool = False,
    workers: int = 2,
    gradient_accumulation_steps: int = 1,
    log_with: str | None = None,
    cpu: bool = False,
    compile: bool = False,
    split: Split | FolderSplit | None = None,
    log_gradients: int = 0,
    hold_out: int = 0,
    graphs: bool = True,
) -> TrainResult:
    """Trains a recipe, or goes on where its run folder stands.

    Args:
        recipe: what to train.
        data_dir: where the data set is; see :func:`tcl_zoo.datasets.load`.
        run_dir: the run folder; ``runs/<name>`` where not given.
        precision: ``fp32``, ``bf16``, ``fp16``, or ``auto``: bf16 on a GPU that has it, else fp32.
        time_limit: seconds of wall time after which to write a checkpoint and return, measured from the call.
        download: let torchvision fetch a missing data set.
        workers: DataLoader workers of a streamed folder; sets in memory need none.
        gradient_accumulation_steps: parts of a batch that go through the network one after the other; ``ce`` only.
        log_with: ``tensorboard``, ``wandb`` or another tracker of accelerate's.
        cpu: stay on the CPU.
        compile: let ``torch.compile`` fuse the encoder's kernels; takes a minute first and needs a C++ compiler.
        split: train on these images instead of the data set's training split.
        log_gradients: write the gradient responses (:mod:`tcl_zoo.analysis`) of every so many steps to
            ``gradients.jsonl``; 0: none.
        hold_out: keep so many of the training images, stratified by class and the same at every seed, for
            :func:`tcl_zoo.evaluate.evaluate_run` to measure on, to choose hyperparameters without the test images.
        graphs: replay steps as CUDA graphs where that is possible.

    Raises:
        TrainingError: the run cannot start or go on; a loss that is NaN or infinite.
        DataError: the data set is missing or damaged.
    """
    started = time.monotonic()
    if gradient_accumulation_steps > 1 and recipe.needs_probe:
        raise TrainingError(
            f"gradient accumulation is for ce only: the loss of {recipe.objective} looks at all images of a batch "
            "together, and would see those of one part; lower batch_views instead"
        )
    if gradient_accumulation_steps < 1 or recipe.batch_images % gradient_accumulation_steps:
        raise TrainingError(
            f"{gradient_accumulation_steps} accumulation steps do not divide {recipe.batch_images} images"
        )
    run_dir = Path(run_dir or Path("runs") / recipe.name)
    accelerator = create_accelerator(precision, cpu, log_with, run_dir)
    with naming_the_lost():
        split = split or main_first(lambda: load(recipe.dataset, data_dir, "train", download=download))
    if hold_out:
        split, _ = holdout(split, hold_out)
    # First whatever may be refused, then the folder: a refused call leaves nothing behind.
    trainer = Trainer(recipe, split, accelerator, workers, gradient_accumulation_steps, compile, graphs)
    if log_gradients:
        trainer.gradients = GradientLog(
            run_dir / "gradients.jsonl", trainer.network, log_gradients, accelerator.is_main_process
        )
    smaller = [f"--set batch_views={recipe.views * max(1, recipe.batch_images // 2)}"]
    smaller += [] if recipe.needs_probe else [f"--gradient-accumulation-steps {2 * gradient_accumulation_steps}"]
    with naming_the_lost(), within_memory(accelerator, f"{recipe.batch_views} views", *smaller):
        settings: dict[str, Any] = {"precision": accelerator.mixed_precision}
        settings |= {"compile": True} if compile else {}
        if gradient_accumulation_steps > 1:  # batch statistics are those of a part
            settings["gradient_accumulation_steps"] = gradient_accumulation_steps
        settings |= {"hold_out": hold_out} if hold_out else {}
        run = main_first(lambda: Run(run_dir, recipe, settings, hold=accelerator.is_main_process))
        try:
            resume(trainer, run)
            if trainer.gradients:
                trainer.gradients.rewind(trainer.steps_done())
            if log_with:
                accelerator.init_trackers("tcl_zoo", config=flat(recipe.to_dict()))
            stop = Stop(time_limit - (time.monotonic() - started) if time_limit is not None else None)
            with stop.signals():
                finished = _epochs(trainer, run, stop)
            if finished and accelerator.is_main_process:
                _save_weights(trainer, run)
            for tracker in accelerator.trackers:  # no more of accelerate's end: another training may follow
                tracker.finish()
        finally:
            run.release()
    lines = read_metrics(run_dir)
    loss = lines[-1]["loss"] if lines else math.nan
    return TrainResult(finished, trainer.epoch, run_dir, loss, trainer.seconds)


def _epochs(trainer: Trainer, run: Run, stop: Stop) -> bool:
    """Runs what is left of the epochs; False where it was stopped. Leaves a checkpoint either way."""
    recipe, accelerator = trainer.recipe, trainer.accelerator
    trainer.network.train()
    saved, pause = time.monotonic(), _PAUSES.get(accelerator.device.type, _PAUSE)
    bar = progress(
        recipe.epochs * trainer.batches.steps,
        recipe.name,
        "step",
        initial=trainer.epoch * trainer.batches.steps + trainer.step_done,
        disable=not accelerator.is_main_process,
    )
    with bar:
        while trainer.epoch < recipe.epochs:
            lr = recipe.lr_at(trainer.epoch)
            for group in trainer.optimizer.param_groups:
                if group.get("scheduled", True):
                    group["lr"] = lr

            def note(loss: float, rate: float, lr: float = lr) -> str:
                views = rate * recipe.batch_views
                return f"epoch {trainer.epoch + 1} loss {loss:.3f} lr {lr:.3g} {views:,.0f} views/s"

            if not run_epoch(trainer, stop, bar, note):
                checkpoint(trainer, run)
                accelerator.print(f"stopped ({stop.reason}) in epoch {trainer.epoch + 1} of {recipe.epochs}")
                return False
            line = {
                "epoch": trainer.epoch,
                "loss": trainer.check(trainer.batches.steps),
                "lr": lr,
                "seconds": round(trainer.seconds, 3),
                "views": (trainer.epoch + 1) * trainer.batches.steps * recipe.batch_views,
                **trainer.logged(),
            }
            trainer.epoch, trainer.step_done = trainer.epoch + 1, 0
            if accelerator.is_main_process:
                run.append_metrics(line)
            accelerator.log({"loss": line["loss"], "lr": lr}, step=trainer.epoch)
            last, due = trainer.epoch == recipe.epochs, time.monotonic() - saved >= pause
            if not agreed(accelerator, last or due or stop(), True):
                continue
            checkpoint(trainer, run)
            saved = time.monotonic()
            if not last and agreed(accelerator, stop(), True):
                accelerator.print(f"stopped ({stop.reason}) after epoch {trainer.epoch} of {recipe.epochs}")
                return False
    return True


def _save_weights(trainer: Trainer, run: Run) -> None:
    """``encoder.safetensors`` in timm's keys, and the objective's own networks in ``<network>.safetensors``."""
    modules = {"encoder": trainer.bare.encoder, **dict(trainer.bare.objective.named_children())}
    write_json(run.folder / "environment.json", environment(trainer.accelerator))
    for name, module in modules.items():
        if len(module.state_dict()):
            save_module(run.folder / f"{name}.safetensors", module)
