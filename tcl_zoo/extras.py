"""Further data sets to fine-tune and compare on, read by torchvision's own loaders in torchvision's own layout.

They are no recipes' data sets (:mod:`tcl_zoo.datasets` has those), so nothing but their names and splits is said here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import DataError, one_line
from .outside import expanded
from .splits import FolderSplit, Split, stratified, subset

_TEST_SHARE = 0.2  # of a set that comes without splits


@dataclass(frozen=True)
class Extra:
    """Facts of a data set.

    Attributes:
        title: its name in print.
        source: torchvision's class.
        train, test: values of torchvision's ``split`` that make up each; empty where there are no splits.
        classes: class names where torchvision has none; a number stands for 0 .. n - 1.
    """

    title: str
    source: str
    train: tuple[Any, ...] = ("train",)
    test: tuple[Any, ...] = ("test",)
    classes: int = 0


EXTRAS: dict[str, Extra] = {
    "mnist": Extra("MNIST", "MNIST", (True,), (False,), 10),
    "svhn": Extra("SVHN", "SVHN", classes=10),
    "stl10": Extra("STL-10", "STL10"),
    "eurosat": Extra("EuroSAT", "EuroSAT", (), ()),
    "gtsrb": Extra("GTSRB", "GTSRB", classes=43),
    "dtd": Extra("DTD", "DTD", ("train", "val")),
    "flowers102": Extra("Flowers-102", "Flowers102", ("train", "val"), classes=102),
    "pets": Extra("Oxford-IIIT Pets", "OxfordIIITPet", ("trainval",)),
    "food101": Extra("Food-101", "Food101"),
}


def load_extra(
    name: str, root: str | os.PathLike[str] | None, split: str = "train", download: bool = False
) -> Split | FolderSplit:
    """One split of a further data set: MNIST, SVHN, STL-10 in memory, the others streamed.

    The validation images of DTD and Flowers-102 belong to ``train``, as in the literature on transfer. EuroSAT has no
    splits: a seeded fifth of each class is ``test``.

    Args:
        name: a key of ``EXTRAS``.
        root: torchvision's root folder.
        split: ``train`` or ``test``.
        download: let torchvision fetch it.

    Raises:
        DataError: missing or damaged.
    """
    from torchvision import datasets

    facts = EXTRAS[name]
    if root is None:
        raise DataError(f"{name} needs a data folder: pass --data-dir DIR (in Python: root=DIR)")
    root = expanded(root, DataError)
    key = "train" if name == "mnist" else "split"
    wanted = [{key: value} for value in (facts.train if split == "train" else facts.test)] or [{}]
    try:
        found = [getattr(datasets, facts.source)(root, **w, download=download) for w in wanted]
        parts = [_read(part, facts) for part in found]
        whole = parts[0] if len(parts) == 1 else _joined(parts)
    except Exception as error:  # whatever the transport, or the first bad byte of a damaged file, raises
        raise DataError(
            f"cannot read {facts.title} under {root}: {one_line(error)}; pass --download, or the folder that "
            f"torchvision's {facts.source} reads as --data-dir"
        ) from error
    if not wanted[0]:
        kept, held = stratified(whole.labels, _TEST_SHARE)
        whole = subset(whole, kept if split == "train" else held)
    return whole


def _read(found: Any, facts: Extra) -> Split | FolderSplit:
    classes = tuple(getattr(found, "classes", ())) if not facts.classes else tuple(map(str, range(facts.classes)))
    if isinstance(getattr(found, "data", None), np.ndarray | torch.Tensor):
        images = torch.as_tensor(found.data)
        images = images[:, None] if images.ndim == 3 else images
        labels = torch.as_tensor(np.asarray(found.targets if hasattr(found, "targets") else found.labels))
        if images.dtype != torch.uint8 or len(images) != len(labels) or not len(labels):
            raise ValueError(f"{len(images)} images, {len(labels)} labels")
        classes = classes or tuple(map(str, range(int(labels.max()) + 1)))
        return Split(images.contiguous(), labels.long(), classes)
    samples = _samples(found)
    folder = Path(os.path.commonpath([Path(file).parent for file, _ in samples]))
    relative = [(os.path.relpath(file, folder), label) for file, label in samples]
    return FolderSplit(folder, classes=classes, samples=relative)


def _samples(found: Any) -> Sequence[tuple[str, int]]:
    """(file, label) of each image. torchvision has no public name for it that all its data sets share."""
    for name in ("samples", "_samples"):
        if pairs := getattr(found, name, None):
            return [(str(file), int(label)) for file, label in pairs]
    files = found._image_files if hasattr(found, "_image_files") else found._images
    if not files:
        raise ValueError("no images are listed")
    return [(str(file), int(label)) for file, label in zip(files, found._labels, strict=True)]


def _joined(parts: Sequence[Split | FolderSplit]) -> FolderSplit:
    files = [p for p in parts if isinstance(p, FolderSplit)]
    folder = Path(os.path.commonpath([part.folder for part in files]))
    samples = [
        (os.path.relpath(part.folder / file, folder), int(label))
        for part in files
        for file, label in zip(part.files, part.labels, strict=True)
    ]
    return FolderSplit(folder, classes=parts[0].classes, samples=samples)
