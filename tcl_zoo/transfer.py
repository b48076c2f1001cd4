"""Which encoder for which images: linear and kNN probes on several data sets, from one image per class to all.

Features are extracted once per encoder and data set; every low-label setting is then a fit on some of their rows.
Nothing is chosen: the penalty of the linear fit and the number of neighbours are given, and test images only measure.
"""

from __future__ import annotations

import csv
import os
import statistics
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .downstream import KNOWN, fit, load_known, open_data
from .downstream_models import brings_weights, fitted_cfg, open_model, own_name
from .errors import DataError
from .features import default_device, features
from .outside import expanded
from .probe import knn_probe, linear_probe
from .recipes import nearest
from .runs import write_atomically
from .splits import FolderSplit, Split, stratified, subset

SHOTS = (1, 5, 10, 25, 0)  # images per class; 0 is all


@dataclass(frozen=True)
class Score:
    """One measurement.

    Attributes:
        model: the encoder; of a folder, the name it has in there, or its own; the path, where two have one name.
        dataset: a known data set, or the name of a folder, or its path.
        classifier: ``linear`` or ``knn<k>``, on frozen features.
        shots: training images of each class; 0 is all.
        seed: of the draw of these images.
        top1: percent of the test images.
        train_images, test_images: how many.
    """

    model: str
    dataset: str
    classifier: str
    shots: int
    seed: int
    top1: float
    train_images: int
    test_images: int


def transfer(
    models: Sequence[str],
    datasets: Sequence[str],
    data_dir: str | os.PathLike[str] | None = None,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: int = 5,
    C: float = 1.0,
    k: int = 20,
    size: int = 0,
    test_images: int = 0,
    pretrained: bool = True,
    weights_dir: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
    device: torch.device | str | None = None,
    download: bool = False,
) -> list[Score]:
    """Linear and kNN top-1 of every encoder on every data set, at every number of training images per class.

    Args:
        models: see :func:`tcl_zoo.downstream_models.open_model`.
        datasets: known data sets (``KNOWN``) or folders, tested on ``test/``, or ``val/``, or a held-out fifth.
        data_dir: where the known data sets are.
        shots: training images of each class; 0 is all, as is a number that no class has more images than. Draws are
            nested: those of 5 are among those of 10.
        seeds: draws of each number, but one of all images.
        C: inverse L2 penalty of the linear fit.
        k: neighbours, weighted.
        size: pixels a side; 0 is the encoder's own.
        test_images: measure on so many test images only, the same share of each class; 0 is all.
        pretrained: False for random weights, as a baseline.
        weights_dir: a release folder, or a folder of them.
        sha256: of the one model's ``model.safetensors``: nothing else is loaded.
        device: where to compute; a GPU where there is one.
        download: let torchvision fetch missing data sets.

    Raises:
        DataError: missing or damaged data, or numbers out of range.
        RecipeError, WeightsError: no such model, or no weights for it.
    """
    if min(shots, default=-1) < 0 or seeds < 1 or not models or not datasets:
        raise DataError("images per class and draws are positive numbers, and there is a model and a data set at least")
    models, datasets = _unique(models), _unique(datasets)
    if sha256 is not None and len(models) > 1:
        raise DataError("a sha256 is that of one model")
    called, data_called = _labels(models, own_name), _labels(datasets, _data_name)
    own = {name for name in models if brings_weights(name)}
    own = own if len(own) < len(set(models)) else set()  # a weights_dir for none of them is refused by open_model
    device = default_device(device)
    scores: list[Score] = []
    for name in datasets:
        train, test = _images(name, data_dir, download)
        if 0 < test_images < len(test):
            test = subset(test, stratified(test.labels, test_images / len(test))[1])
        draws = _draws(train.labels, shots, seeds)
        used = torch.cat([rows for _, _, rows in draws]).unique()  # what no draw needs is not looked at
        label = data_called[name]
        for model_name in models:
            shown = called[model_name]
            place = None if model_name in own else weights_dir
            model = open_model(model_name, pretrained=pretrained, weights_dir=place, sha256=sha256, num_classes=0)
            model = model.to(device)
            cfg = fitted_cfg(model, size=size)
            model.pretrained_cfg = cfg  # type: ignore[assignment]
            parts = fit(subset(train, used), cfg), fit(test, cfg)
            x, y = (features(model, part, device=device, desc=f"{shown} on {label}") for part in parts)
            for number, seed, rows in draws:
                chosen = torch.searchsorted(used, rows)
                few = _labelled(train.labels[rows], train.classes)
                extracted = (x[chosen.to(x.device)], y)
                results = [linear_probe(model, few, test, C=C, device=device, extracted=extracted)]
                results += knn_probe(model, few, test, k=k, device=device, extracted=extracted)
                for kind, result in zip(("linear", f"knn{k}"), results, strict=True):
                    scores.append(Score(shown, label, kind, number, seed, result.top1, len(rows), result.n))
    return scores


def _data_name(name: str) -> str:
    return name if name in KNOWN else Path(name).resolve().name


def _labels(given: Sequence[str], own: Callable[[str], str]) -> dict[str, str]:
    """Given to shown: what each is called, but as it was given where that is the name of several."""
    called = {name: own(name) for name in given}
    return {name: short if list(called.values()).count(short) == 1 else name for name, short in called.items()}


def _labelled(labels: Tensor, classes: tuple[str, ...]) -> Split:
    """Labels whose images have become features."""
    return Split(torch.empty(len(labels), 0, 0, 0, dtype=torch.uint8), labels, classes)


def _images(name: str, data_dir: Any, download: bool) -> tuple[Split | FolderSplit, Split | FolderSplit]:
    if name in KNOWN:
        train, test = (load_known(name, data_dir, part, download) for part in ("train", "test"))
        return train, test
    if not expanded(name, DataError).is_dir():
        what = f"{name} is neither a folder nor a known data set{nearest(name, KNOWN)}"
        raise DataError(f"{what}; known: {', '.join(KNOWN)}")
    data = open_data(name, val=0)
    if data.test is None and data.val is None:
        data = open_data(name)
    held = data.test or data.val
    if held is None:
        raise DataError(f"{name} has one image of each class: there is nothing to measure on")
    return data.train, held


def _draws(labels: Tensor, shots: Sequence[int], seeds: int) -> list[tuple[int, int, Tensor]]:
    """(images per class, seed, rows) of every setting; as many as there are, or more, is all: 0."""
    most = int(torch.bincount(labels).max())
    draws = []
    for number in dict.fromkeys(number if number < most else 0 for number in shots):
        if number == 0:
            draws.append((0, 0, torch.arange(len(labels))))
        else:
            draws += [(number, seed, stratified(labels, number, seed)[1]) for seed in range(seeds)]
    return draws


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation (of the sample; 0 for one draw) of a setting over its draws, in percent."""

    model: str
    dataset: str
    classifier: str
    shots: int
    mean: float
    std: float
    draws: int
    test_images: int


def summarise(scores: Iterable[Score]) -> list[Summary]:
    """One line per setting, in the order of the scores."""
    groups: dict[tuple[str, str, str, int], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.model, score.dataset, score.classifier, score.shots), []).append(score)
    return [
        Summary(
            *key, statistics.fmean(s.top1 for s in group),
            statistics.stdev(s.top1 for s in group) if len(group) > 1 else 0.0, len(group), group[0].test_images,
        )
        for key, group in groups.items()
    ]  # fmt: skip


def table(summaries: Sequence[Summary]) -> str:
    """A block per data set, 80 columns: a line per encoder and classifier, a column per number of images."""
    blocks = []
    shots = _ordered(s.shots for s in summaries)
    for dataset in _unique(s.dataset for s in summaries):
        mine = [s for s in summaries if s.dataset == dataset]
        lines = [f"{dataset}: top-1 (%) of {mine[0].test_images:,} test images by training images per class"]
        lines.append(f"{'':<10}" + "".join(f"{number or 'all':>12}" for number in shots))
        for model in _unique(s.model for s in mine):
            lines.append(_short(model))
            for kind in _unique(s.classifier for s in mine):
                values = {s.shots: s for s in mine if (s.model, s.classifier) == (model, kind)}
                lines.append(f"  {kind:<8}" + "".join(_cell(values.get(number)) for number in shots))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _cell(value: Summary | None) -> str:
    if value is None:
        return f"{'-':>12}"
    return f"{value.mean:.1f} ± {value.std:.1f}".rjust(12) if value.draws > 1 else f"{value.mean:>12.1f}"


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:39]}…"


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _ordered(values: Iterable[int]) -> list[int]:
    return sorted(set(values), key=lambda number: (number == 0, number))


def picture(summaries: Sequence[Summary], path: str | os.PathLike[str]) -> None:
    """A panel per data set: top-1 of the linear probe over images per class, a curve per encoder, bars of one std."""
    from .pictures import panels

    shots = _ordered(s.shots for s in summaries)
    found: dict[str, dict[str, list[tuple[int, float, float]]]] = {}
    for s in summaries:
        if s.classifier == "linear":
            curve = found.setdefault(s.dataset, {}).setdefault(_short(s.model), [])
            curve.append((shots.index(s.shots), s.mean, s.std))
    ticks = [str(number or "all") for number in shots]
    panels(found, ticks, "training images per class", "top-1 of a linear probe (%)", Path(path))


def write_csv(scores: Sequence[Score], path: str | os.PathLike[str]) -> None:
    """A line per measurement."""

    def write(part: Path) -> None:
        with part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Score)], lineterminator="\n")
            writer.writeheader()
            writer.writerows({**asdict(score), "top1": round(score.top1, 4)} for score in scores)

    write_atomically(Path(path), write)


def read_csv(path: str | os.PathLike[str]) -> list[Score]:
    """What :func:`write_csv` wrote.

    Raises:
        DataError: missing, or another table.
    """
    types = typing.get_type_hints(Score)
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            return [Score(**{key: types[key](value) for key, value in row.items()}) for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no table of tcl-zoo probe --csv ({error}); measure again") from None
