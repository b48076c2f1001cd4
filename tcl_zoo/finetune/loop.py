"""A model and images in, a run folder out, with the best checkpoint in it as a release folder."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from safetensors.torch import load_file
from torch import nn

from ..downstream import Data, open_data
from ..downstream_models import fitted_cfg, open_model
from ..errors import DataError, TrainingError
from ..processes import main_first, naming_the_lost
from ..progress import progress
from ..ranks import ranks
from ..runs import Run, read_metrics, save_module
from ..sessions import checkpoint, create_accelerator, environment, resume, run_epoch, within_memory
from ..splits import FolderSplit, Split
from ..stopping import Stop, agreed
from .export import export, no_release, parent_facts
from .plan import Plan
from .tuner import Tuner

BEST_FILE = "best.safetensors"


@dataclass(frozen=True)
class FinetuneResult:
    """What a call of :func:`finetune` did.

    Attributes:
        finished: False where a time limit or a signal stopped it; the same call goes on.
        epoch: epochs completed.
        run_dir: the run folder.
        release: the release folder in it, once finished.
        results: ``val`` and ``test`` top-1 in percent with their ``n``, as the release reports them.
    """

    finished: bool
    epoch: int
    run_dir: Path
    release: Path | None
    results: dict[str, Any]


def finetune(
    model: str,
    data_dir: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    plan: Plan | None = None,
    weights_dir: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
    precision: str = "auto",
    time_limit: float | None = None,
    download: bool = False,
    workers: int = 2,
    cpu: bool = False,
    **values: Any,
) -> FinetuneResult:
    """Fine-tunes an encoder on images, or goes on where the run folder stands.

    The epoch is chosen on validation images, the latest within one standard error of the best; test images, where there
    are any, are looked at once, at the end.

    Args:
        model: a name of this zoo, a release or run folder, or any timm model.
        data_dir: class folders, or where the known data set (``dataset=``) is; see
            :func:`tcl_zoo.downstream.open_data`.
        out: the run folder; its name becomes the release's. ``runs/MODEL-DATA`` where not given.
        plan: all values at once; else each as a keyword: ``epochs=30, layer_decay=0.7`` ... (:class:`Plan`).
        weights_dir: a release folder, or a folder of them, to take the model's weights from.
        sha256: of ``model.safetensors`` of a release to start from: nothing else is loaded.
        precision: ``fp32``, ``bf16``, ``fp16``, or ``auto``: bf16 on a GPU that has it, else fp32.
        time_limit: seconds of wall time after which to write a checkpoint and return.
        download: let torchvision fetch a missing data set.
        workers: DataLoader workers of streamed images.
        cpu: stay on the CPU.
        **values: fields of :class:`Plan`.

    Raises:
        TrainingError: values out of range, a run folder of another run, a loss that is NaN or infinite.
        DataError: images are missing or damaged, or there is nothing to tell apart.
        WeightsError, RecipeError: no such model, or no weights for it.
    """
    started = time.monotonic()
    try:
        plan = dataclasses.replace(plan or Plan(model), model=model, **values)
    except TypeError as error:
        raise TrainingError(f"a fine-tuning has no such value: {error}") from None
    accelerator = create_accelerator(precision, cpu, partial=plan.freeze != 0)
    asked = plan
    with naming_the_lost():
        data = main_first(lambda: open_data(
            data_dir, asked.dataset or None, val=asked.val, per_class=asked.per_class, seed=asked.seed,
            download=download,
        ))  # fmt: skip
    out = Path(out or Path("runs") / f"{Path(model).name}-{data.name}".replace(":", "-"))
    set_seed(plan.seed)
    net, size = _model(plan, data, weights_dir, sha256)
    if why := no_release(net, data.train.classes, out.resolve().name):
        raise TrainingError(f"{plan.model} could be trained on this, but not released: {why}")
    parent, images = parent_facts(plan, weights_dir, sha256), _identity(data)
    with _naming_the_broken(data.train, data.val, data.test):
        data = data.fit(net.pretrained_cfg)  # type: ignore[arg-type]
    plan = plan.resolved(len(data.train), accelerator.num_processes, size)
    tuner = Tuner(plan, net, data.train, data.val, accelerator, workers if len(data.train) > 500 else 0)
    settings = {
        "precision": accelerator.mixed_precision,
        "parent": {key: parent[key] for key in ("name", "sha256") if key in parent},
        "images": images,
        "classes": list(data.train.classes),
    }
    results: dict[str, Any] = {}
    smaller = f"--batch-size {max(1, plan.batch_size // 2)}"
    with naming_the_lost(), within_memory(accelerator, f"{plan.batch_size} images", smaller):
        hold = accelerator.is_main_process
        run = main_first(lambda: Run(out, plan, settings, lambda values: Plan(**values), hold))
        try:
            resume(tuner, run)
            stop = Stop(time_limit - (time.monotonic() - started) if time_limit is not None else None)
            with _naming_the_broken(data.train, data.val, data.test), stop.signals():
                finished = _epochs(tuner, run, stop)
            folder = out / "release" if finished else None
            if folder is not None and accelerator.is_main_process:
                facts = {
                    "environment": environment(accelerator),
                    "seconds": round(tuner.seconds, 1),
                    "best": tuner.best,
                }
                net = accelerator.unwrap_model(tuner.network, keep_fp32_wrapper=False)
                net.load_state_dict(load_file(out / BEST_FILE))
                results = export(folder, net, data, plan, parent, facts, read_metrics(out), workers)
        finally:
            run.release()
    return FinetuneResult(finished, tuner.epoch, out, folder, results)


@contextlib.contextmanager
def _naming_the_broken(*splits: Split | FolderSplit | None, seconds: float = 60.0) -> Iterator[None]:
    """Where an image of a folder does not decode, looks for others for up to a minute: the error names them, too."""
    try:
        yield
    except DataError as error:
        folders, until = [s for s in splits if isinstance(s, FolderSplit)], time.monotonic() + seconds
        bad: list[str] = []
        if ranks()[1] > 1:
            raise  # the other processes wait for this one
        for split, index in ((folder, i) for folder in folders for i in range(len(folder))):
            if time.monotonic() > until or len(bad) > 9:
                break
            try:
                split.image(index)
            except DataError as damage:
                bad.append(str(damage).removesuffix("; replace it"))
        if len(bad) < 2:
            raise
        more = "; and maybe more" * (len(bad) > 9)
        raise DataError(f"{'; '.join(bad)}{more}; replace or remove them") from error


def _model(
    plan: Plan, data: Data, weights_dir: str | os.PathLike[str] | None, sha256: str | None
) -> tuple[nn.Module, int]:
    """The model with a head for the classes, its ``pretrained_cfg`` that of these images; and pixels a side."""
    kwargs: dict[str, Any] = {"drop_path_rate": plan.drop_path} if plan.drop_path else {}
    net = open_model(
        plan.model, pretrained=plan.pretrained, weights_dir=weights_dir, sha256=sha256,
        num_classes=len(data.train.classes), in_chans=data.channels, **kwargs,
    )  # fmt: skip
    cfg = fitted_cfg(net, data.channels, plan.size)
    if isinstance(data.train, Split):  # :mod:`tcl_zoo.features` resizes what is in memory, whole images
        cfg |= {"crop_pct": 1.0, "interpolation": "bilinear"}
    net.pretrained_cfg = cfg  # type: ignore[assignment]
    return net, int(cfg["input_size"][-1])


def _identity(data: Data) -> dict[str, str]:
    """By what images are known when a run goes on: those in memory by their bytes, files by path, size and label."""

    def digest(split: Split | FolderSplit) -> str:
        if isinstance(split, Split):
            return split.fingerprint()[:16]
        found = hashlib.sha256()
        for file, label in zip(split.files, split.labels.tolist(), strict=True):
            path = split.folder / file
            size = path.stat().st_size if path.exists() else -1  # a link to nowhere is told of when it is read
            found.update(os.fsencode(f"{file}\0{size}\0{label}\n"))
        return found.hexdigest()[:16]

    parts = {part: getattr(data, part) for part in ("train", "val", "test")}
    return {part: f"{len(split)} of {digest(split)}" for part, split in parts.items() if split is not None}


def _epochs(tuner: Tuner, run: Run, stop: Stop) -> bool:
    """Runs what is left of the epochs; False where it was stopped. Leaves a checkpoint either way."""
    plan, acc, steps = tuner.plan, tuner.accelerator, tuner.batches.steps
    bar = progress(
        plan.epochs * steps, run.folder.name, "step",
        initial=tuner.epoch * steps + tuner.step_done, disable=not acc.is_main_process,
    )  # fmt: skip

    def note(loss: float, rate: float) -> str:
        best = tuner.best.get("top1")
        val = f" kept val {best:.2f}" if best is not None else ""
        return f"epoch {tuner.epoch + 1} loss {loss:.3f}{val} {rate * plan.batch_size:,.0f} images/s"

    with bar:
        while tuner.epoch < plan.epochs and not (plan.patience and tuner.measured_since >= plan.patience):
            tuner.begin_epoch()
            if not run_epoch(tuner, stop, bar, note):
                checkpoint(tuner, run)
                acc.print(f"stopped ({stop.reason}) in epoch {tuner.epoch + 1} of {plan.epochs}")
                return False
            line = {"epoch": tuner.epoch, "loss": tuner.check(steps), "lr": tuner.lr}
            line["seconds"] = round(tuner.seconds, 3)
            tuner.epoch, tuner.step_done = tuner.epoch + 1, 0
            measured = tuner.epoch % plan.measure == 0 or tuner.epoch == plan.epochs
            if measured:
                better = tuner.measure()
                line |= {f"val_{key}": value for key, value in tuner.measured.items() if key != "epoch"}
                if better and acc.is_main_process:
                    save_module(run.folder / BEST_FILE, tuner.kept)
            if acc.is_main_process:
                run.append_metrics(line)
            if measured:
                checkpoint(tuner, run)
                if tuner.epoch < plan.epochs and agreed(acc, stop(), True):
                    acc.print(f"stopped ({stop.reason}) after epoch {tuner.epoch} of {plan.epochs}")
                    return False
    return True
