"""The self-supervised methods side by side: same images, epochs, batch and augmentation; probes, time and memory."""

from __future__ import annotations

import csv
import dataclasses
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch

from tcl_zoo._ssl_recipes import SELF_SUPERVISED
from tcl_zoo.augment.ops import resized_crop
from tcl_zoo.datasets import Split, load, pretrained_cfg
from tcl_zoo.features import features
from tcl_zoo.probe import fit_linear, knn_probe, linear_probe
from tcl_zoo.recipes import DATA, Recipe, override, recipe
from tcl_zoo.runs import load_run
from tcl_zoo.splits import holdout
from tcl_zoo.train import train

from .timing import HERE, write_csv

_ENCODER, _BATCH, _VIEWS = "resnet20", 128, (2, 3, 4)


class Setting(NamedTuple):
    """What all methods share."""

    images: int  # of the training split; 0: all
    side: int
    held: int  # training images to tune on
    epochs: int
    augmentation: str


# CIFAR-10 at half its side: four times the epochs in the same time.
SETTINGS = {
    "digits": Setting(0, 8, 300, 60, "simaugment_mild"),
    "cifar10": Setting(5000, 16, 5000, 20, "simaugment_blur"),
}
_FEW, _DRAWS = 10, 5  # labels of a class, and how often they are drawn


def contestants() -> dict[str, tuple[str, int]]:
    """Name in the table -> objective and views: every method with two, ``tcl_ssl`` with three and four, too."""
    rows = {f"tcl_ssl, {views} views": ("tcl_ssl", views) for views in _VIEWS}
    return rows | {objective: (objective, 2) for objective in SELF_SUPERVISED if objective != "tcl_ssl"}


def plan(dataset: str, objective: str, views: int, epochs: int, settings: list[str]) -> Recipe:
    """The method's own recipe but for what all share."""
    base = recipe(f"{objective}_{_ENCODER}_{dataset}")
    if epochs != base.epochs:
        base = recipe(f"{base.name}.e{epochs}")
    batch: dict[str, Any] = {"views": views, "batch_views": views * _BATCH}
    return override(dataclasses.replace(base, augmentation=SETTINGS[dataset].augmentation, **batch), settings)


def splits(dataset: str, data_dir: str, tune: bool) -> tuple[Split, Split]:
    """(train, measured on): the test split, or training images that are held out."""
    setting, full = SETTINGS[dataset], load(dataset, data_dir, "train")
    assert isinstance(full, Split)
    rest, held = holdout(full, setting.held)
    test = held if tune else load(dataset, data_dir, "test")
    assert isinstance(test, Split)
    chosen = holdout(rest, setting.images)[1] if setting.images else rest if tune else full
    return _reduced(chosen, setting.side), _reduced(test, setting.side)


def _reduced(split: Split, side: int) -> Split:
    """The images at ``side`` x ``side`` pixels."""
    if split.images.shape[-1] == side:
        return split
    zero, whole = torch.zeros(len(split)), torch.full((len(split),), split.images.shape[-1])
    return Split(resized_crop(split.images, zero, zero, whole, whole, side), split.labels, split.classes)


def run(
    quick: bool = False, data_dir: str = "data", datasets: tuple[str, ...] = ("digits",),
    methods: tuple[str, ...] = (), tune: bool = False, epochs: int = 0, settings: list[str] | None = None,
) -> None:  # fmt: skip
    """Prints a line per method; enters it into ssl_<dataset>.csv where nothing was changed.

    Args:
        quick: one epoch, to see that everything runs.
        data_dir: where CIFAR-10 is.
        datasets: of ``SETTINGS``.
        methods: names that begin with one of these; all where empty.
        tune: measure on training images that are held out, not on the test split.
        epochs: instead of the setting's.
        settings: ``key=value`` on top of every recipe.
    """
    for dataset in datasets:
        train_split, test = splits(dataset, data_dir, tune)
        count = epochs or (1 if quick else SETTINGS[dataset].epochs)
        side = SETTINGS[dataset].side
        print(f"{len(train_split):,} images of {dataset} at {side} px, {_ENCODER}, {count} epochs of {_BATCH} ", end="")
        print(f"images, {SETTINGS[dataset].augmentation}; {torch.get_num_threads()} thread(s)")
        print(f"probes on {len(test):,} {'held-out' if tune else 'test'} images; few: {_FEW} labels of a class")
        print(f"{'method':<16} linear  gain    few  gain    kNN s/epoch CPU s  MB     loss  std  rank")
        base = random_encoder(dataset, train_split, test)
        print(
            f"{'random encoder':<16} {base['linear']:6.2f}       {base['few']:6.2f}       {base['knn20']:6.2f}",
            flush=True,
        )
        shared = {"encoder": _ENCODER, "side": side, "epochs": count, "train_images": len(train_split)}
        shared |= {"batch_images": _BATCH, "augmentation": SETTINGS[dataset].augmentation, "test_images": len(test)}
        for name, (objective, views) in contestants().items():
            if methods and not name.startswith(methods):
                continue
            chosen = plan(dataset, objective, views, count, settings or [])
            row: dict[str, Any] = {"method": name} | _in_process(chosen, train_split, test)
            row |= {"gain": row["linear"] - base["linear"], "few_gain": row["few"] - base["few"]}
            print(_line(name, row), flush=True)
            if not (quick or tune or epochs or settings):
                _enter(dataset, base, row | shared, tuple(shared))


def _enter(dataset: str, base: dict[str, float], row: dict[str, Any], shared: tuple[str, ...]) -> None:
    """Writes a method's row beside those of the others that were measured at the same setting."""
    file = HERE / f"ssl_{dataset}.csv"
    known: list[dict[str, Any]] = []
    if file.is_file():
        with file.open(newline="", encoding="utf-8") as handle:
            known = list(csv.DictReader(handle))
    rows = {line["method"]: line for line in known if all(line.get(key) == str(row[key]) for key in shared)}
    rows[row["method"]] = row
    first = dict.fromkeys(row, "") | {"method": "random encoder"} | base
    write_csv(f"ssl_{dataset}", [first, *(rows[name] for name in contestants() if name in rows)])


def _line(name: str, row: dict[str, Any]) -> str:
    scores = f"{name:<16} {row['linear']:6.2f} {row['gain']:5.1f} {row['few']:6.2f} {row['few_gain']:5.1f}"
    cost = f"{row['knn20']:6.2f} {row['seconds_per_epoch']:7.1f} {row['cpu_seconds']:5.0f} {row['peak_mb']:3.0f}"
    return f"{scores} {cost} {row['loss']:8.3f} {row['embedding_std']:4.2f} {row['effective_rank']:5.1f}"


def random_encoder(dataset: str, train_split: Split, test: Split) -> dict[str, float]:
    """The probes of the encoder as it is before any training."""
    torch.manual_seed(0)
    untrained = timm.create_model(f"{_ENCODER}_cifar", num_classes=0, in_chans=DATA[dataset].in_chans)
    return _probes(untrained, dataset, train_split, test)


def _probes(model: Any, dataset: str, train_split: Split, test: Split) -> dict[str, float]:
    """Top-1 in percent: linear on all labels and, averaged over draws, on a few of each class; 20-NN."""
    model.pretrained_cfg = pretrained_cfg(dataset)
    rows, queries = features(model, train_split), features(model, test)
    linear = linear_probe(model, train_split, test, extracted=(rows, queries)).top1
    knn = knn_probe(model, train_split, test, k=20, extracted=(rows, queries))[0].top1
    few = 0.0
    for seed in range(_DRAWS):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(rows), generator=generator)
        chosen = torch.cat([order[train_split.labels[order] == k][:_FEW] for k in range(len(test.classes))])
        classifier = fit_linear(rows[chosen], train_split.labels[chosen], len(test.classes))
        few += 100 * float((classifier(queries).argmax(1) == test.labels).double().mean()) / _DRAWS
    return {"linear": linear, "few": few, "knn20": knn}


def _peak_mb() -> float:
    """The most memory that this process had so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux hands getrusage's figure on from the process that forked
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def _in_process(plan: Recipe, train_split: Split, test: Split) -> dict[str, Any]:
    """:func:`measure` in a process of its own: its peak of memory is the method's."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightly.loss", "tcl_zoo.train", "tcl_zoo.evaluate"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, plan, train_split, test, torch.get_num_threads()).result()


def measure(plan: Recipe, train_split: Split, test: Split, threads: int) -> dict[str, Any]:
    """Trains and probes; the figures of a row."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        before = _peak_mb()
        result = train(plan, run_dir=folder, split=train_split, cpu=True)
        used = time.process_time() - started
        peak = _peak_mb()
        last = json.loads((Path(folder) / "metrics.jsonl").read_text().splitlines()[-1])
        _, model = load_run(folder)
        probes = _probes(model, plan.dataset, train_split, test)
    return {
        **probes,
        "seconds_per_epoch": result.seconds / plan.epochs,
        "cpu_seconds": used,
        "peak_mb": peak - before,
        "loss": result.loss,
        "embedding_std": last["embedding_std"],
        "effective_rank": last["effective_rank"],
    }
