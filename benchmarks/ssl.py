"""The self-supervised methods side by side: same images, epochs, batch and augmentation; probes, time and memory."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import timm
import torch

from tcl_zoo._ssl_recipes import SELF_SUPERVISED
from tcl_zoo.augment.ops import resized_crop
from tcl_zoo.batches import Normalise
from tcl_zoo.datasets import Split, load
from tcl_zoo.evaluate import load_run
from tcl_zoo.features import features
from tcl_zoo.probe import knn_probe, linear_probe
from tcl_zoo.recipes import Recipe, override, recipe
from tcl_zoo.splits import holdout
from tcl_zoo.train import train

from .timing import write_csv

IMAGES, EPOCHS, BATCH = 5000, 10, 128
DATASET, ENCODER = "cifar10", "resnet20"
_VIEWS = (2, 3, 4)


def plans(epochs: int, settings: list[str]) -> dict[str, Recipe]:
    """Every method by its own recipe but for what all share, and ``tcl_ssl`` with 2, 3 and 4 views."""

    def plan(objective: str, views: int) -> Recipe:
        base = recipe(f"{objective}_{ENCODER}_{DATASET}.e{epochs}")
        lr = base.lr if base.optimizer == "adam" else base.lr * BATCH / 256
        base = dataclasses.replace(base, views=views, batch_views=views * BATCH, lr=lr, augmentation="simaugment_blur")
        return override(base, settings)

    rows = {f"tcl_ssl, {views} views": plan("tcl_ssl", views) for views in _VIEWS}
    return rows | {objective: plan(objective, 2) for objective in SELF_SUPERVISED if objective != "tcl_ssl"}


def run(
    quick: bool = False, data_dir: str = "data", methods: tuple[str, ...] = (), tune: bool = False, epochs: int = 0,
    settings: list[str] | None = None, side: int = 32,
) -> None:  # fmt: skip
    """Prints a line per method; writes ssl.csv.

    Args:
        quick: 1,000 images and 1 epoch, to see that everything runs.
        data_dir: where CIFAR-10 is.
        methods: names that begin with one of these; all where empty. Nothing is written then.
        tune: measure on training images that are held out, not on the test split. Nothing is written then.
        epochs: instead of ``EPOCHS``.
        settings: ``key=value`` on top of every recipe. Nothing is written then.
        side: pixels that the images are reduced to, on a slow machine.
    """
    epochs = epochs or (1 if quick else EPOCHS)
    full = load(DATASET, data_dir, "train")
    assert isinstance(full, Split)
    rest, subset = holdout(full, 1000 if quick else IMAGES)
    test = holdout(rest, 5000)[1] if tune else load(DATASET, data_dir, "test")
    rows: list[dict[str, Any]] = []
    print(
        f"{len(subset):,} images of {DATASET}, {ENCODER}, {epochs} epochs of {BATCH} images, simaugment_blur; ", end=""
    )
    print(f"probes on {len(test):,} {'held-out' if tune else 'test'} images, {torch.get_num_threads()} thread(s)")
    print(f"{'method':<18} linear    kNN  gain  s/epoch  CPU s  peak MB   loss   std   rank")
    random = timm.create_model(f"{ENCODER}_cifar", num_classes=0)
    base = _probes(random, subset, test)
    print(f"{'random encoder':<18} {base[0]:6.2f} {base[1]:6.2f}")
    rows.append({"method": "random encoder", "linear": base[0], "knn20": base[1], "gain": 0.0})
    for name, plan in plans(epochs, settings or []).items():
        if methods and not name.startswith(methods):
            continue
        row = _in_process(plan, subset, test)
        row["gain"] = row["linear"] - base[0]
        rows.append({"method": name} | row)
        print(
            f"{name:<18} {row['linear']:6.2f} {row['knn20']:6.2f} {row['gain']:5.1f} {row['seconds_per_epoch']:8.1f} "
            f"{row['cpu_seconds']:6.0f} {row['peak_mb']:8.0f} {row['loss']:6.3f} {row['embedding_std']:5.2f} "
            f"{row['effective_rank']:6.1f}",
            flush=True,
        )
    if not (quick or methods or tune or settings):
        keys = list(rows[-1])
        write_csv("ssl", [{key: row.get(key, "") for key in keys} for row in rows])


def _reduced(split: Split, side: int) -> Split:
    """The images at ``side`` x ``side`` pixels."""
    if split.images.shape[-1] == side:
        return split
    n, whole = len(split), torch.full((len(split),), split.images.shape[-1])
    zero = torch.zeros(n)
    return Split(resized_crop(split.images, zero, zero, whole, whole, side), split.labels, split.classes)


def _probes(model: Any, subset: Split, test: Split) -> tuple[float, float]:
    """Linear and 20-NN top-1 in percent."""
    normalise = Normalise(DATASET)
    extracted = (features(model, subset, normalise), features(model, test, normalise))
    linear = linear_probe(model, subset, test, extracted=extracted)
    return linear.top1, knn_probe(model, subset, test, k=20, extracted=extracted)[0].top1


def _in_process(plan: Recipe, subset: Split, test: Split) -> dict[str, Any]:
    """:func:`_measure` in a process of its own: its peak of memory is the method's."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        result: dict[str, Any] = pool.apply(_measure, (plan, subset, test, torch.get_num_threads()))
    return result


def _measure(plan: Recipe, subset: Split, test: Split, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = train(plan, run_dir=folder, split=subset, cpu=True)
        used = time.process_time() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        last = json.loads((Path(folder) / "metrics.jsonl").read_text().splitlines()[-1])
        _, model = load_run(folder)
        linear, knn = _probes(model, subset, test)
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return {
        "linear": linear,
        "knn20": knn,
        "gain": 0.0,
        "seconds_per_epoch": result.seconds / plan.epochs,
        "cpu_seconds": used,
        "peak_mb": (peak - before) / unit,
        "loss": result.loss,
        "embedding_std": last["embedding_std"],
        "effective_rank": last["effective_rank"],
    }
