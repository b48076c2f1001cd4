"""Images and labels by data set name: small sets in memory, ImageNet-100 streamed from folders.

Whatever is missing or damaged is a one-line ``DataError`` that says where and what to do next.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import DataError, one_line
from .outside import bounded, expanded
from .splits import FolderSplit, Split, holdout, loader, subfolders

__all__ = [
    "DATASETS", "DatasetInfo", "FolderSplit", "Split", "class_names", "holdout", "load", "loader", "pretrained_cfg",
]  # fmt: skip

_MAX_IMAGES = 250_000  # of an archive that is read into memory
_TORCHVISION = {  # torchvision's class, and its folder below the root
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
    "cifar100": ("CIFAR100", "cifar-100-python"),
    "fmnist": ("FashionMNIST", "FashionMNIST/raw"),
}


@dataclass(frozen=True)
class DatasetInfo:
    """Facts: ``size`` in pixels a side; ``mean``, ``std`` per channel of images scaled to 0..1."""

    name: str
    title: str
    num_classes: int
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    hub_id: str  # on the Hugging Face Hub; empty if there is none


# Means and standard deviations: SPEC section 4; those of digits are of its training split.
# fmt: off
_CITE = "no formal licence; cite Krizhevsky (2009)"
DATASETS: dict[str, DatasetInfo] = {info.name: info for info in (
    DatasetInfo("digits", "Digits", 10, 1, 8, (.3054,), (.3760,),
                "CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits)", ""),
    DatasetInfo("cifar10", "CIFAR-10", 10, 3, 32, (.4914, .4822, .4465), (.2023, .1994, .2010),
                _CITE, "uoft-cs/cifar10"),
    DatasetInfo("cifar100", "CIFAR-100", 100, 3, 32, (.5071, .4867, .4408), (.2675, .2565, .2761),
                _CITE, "uoft-cs/cifar100"),
    DatasetInfo("fmnist", "Fashion-MNIST", 10, 1, 28, (.5,), (.5,),
                "MIT (Zalando SE)", "zalando-datasets/fashion_mnist"),
    DatasetInfo("imagenet100", "ImageNet-100", 100, 3, 224, (.485, .456, .406), (.229, .224, .225),
                "ImageNet terms: non-commercial research and education", "clane9/imagenet-100"),
)}
# fmt: on


@functools.cache
def class_names(name: str) -> tuple[str, ...]:
    """Class names of a known data set in label order; WordNet ids for ImageNet-100."""
    here = Path(__file__).parent
    if name == "imagenet100":
        return tuple((here / "imagenet100_classes.txt").read_text("utf-8").split())
    return tuple(json.loads((here / "classes.json").read_text("utf-8"))[name])


def pretrained_cfg(dataset: str) -> dict[str, Any]:
    """timm's pretrained_cfg of a data set's models: input, normalisation and head (SPEC section 4)."""
    info = DATASETS[dataset]
    return {
        "num_classes": info.num_classes,
        "input_size": [info.channels, info.size, info.size],
        "mean": list(info.mean),
        "std": list(info.std),
        "interpolation": "bilinear",
        "crop_pct": 0.875 if info.size >= 64 else 1.0,
        "first_conv": "conv1",
        "classifier": "fc",
        "label_names": list(class_names(dataset)),
        "license": "apache-2.0",
    }


def load(
    name: str,
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    download: bool = False,
) -> Split | FolderSplit:
    """Find and read one split of a data set.

    Looked for, in this order: ``NAME.npz`` (uint8 ``x_train y_train x_test y_test``, [N, H, W, C]
    or [N, H, W]); torchvision's own layout; class folders ``NAME/train/<class>/*`` or
    ``train/<class>/*`` (``test`` or ``val`` for test), named after the classes or their numbers.
    ImageNet-100 is always a streamed folder, and may be among the 1000 classes of ImageNet.

    Args:
        name: a key of ``DATASETS``. ``digits`` needs no root: scikit-learn's, 0..16 scaled to
            0..255, split by ``train_test_split(test_size=360, stratify=labels, random_state=0)``.
        root: the data folder.
        split: ``train`` or ``test``.
        download: let torchvision fetch CIFAR or Fashion-MNIST if missing or damaged.

    Raises:
        DataError: an unknown name or split; data that is missing, damaged or of another shape.
    """
    if name not in DATASETS:
        near = "".join(f"did you mean {n}? " for n in difflib.get_close_matches(name, DATASETS, 1))
        raise DataError(f"unknown data set {name!r}: {near}Known: {', '.join(DATASETS)}")
    if split not in ("train", "test"):
        raise DataError(f"unknown split {split!r}: use 'train' or 'test'")
    info, layout = DATASETS[name], _TORCHVISION.get(name, ("", ""))[1]
    if name == "digits":
        return _digits(info, split)
    if root is None:
        raise DataError(f"{name} needs a data folder: pass --data-dir DIR (in Python: root=DIR)")
    root = expanded(root, DataError)
    if layout and (archive := root / f"{name}.npz").is_file():
        return _npz(info, archive, split)
    if layout and (root / layout).is_dir():
        return _torchvision(info, root, split, download)
    parts = ("train",) if split == "train" else ("test", "val")
    for folder in (base / part for base in (root / name, root) for part in parts):
        if subfolders(folder):
            order = _label_folders(info, folder)
            found = FolderSplit(folder, order, class_names(name), info.size, info.channels)
            return found.decoded() if layout else found
    if layout and download:
        return _torchvision(info, root, split, download)
    looked = f"{name}.npz, {layout}/, " if layout else ""
    get = "--download, or another" if layout else "the folder of ILSVRC2012 from image-net.org as"
    raise DataError(
        f"{name} not found under {root}{'' if root.is_dir() else ' (no such folder)'}: looked for "
        f"{looked}[{name}/]{'|'.join(parts)}/<class>/; pass {get} --data-dir"
    )


def _digits(info: DatasetInfo, split: str) -> Split:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    images, labels = np.rint(raw.images * 255 / 16).astype(np.uint8), raw.target
    parts = train_test_split(images, labels, test_size=360, stratify=labels, random_state=0)
    images, labels = parts[split == "test" :: 2]
    return _checked(info, images, labels, "scikit-learn's digits")


def _npz(info: DatasetInfo, path: Path, split: str) -> Split:
    try:
        bounded(path, (f"x_{split}", f"y_{split}"), _MAX_IMAGES * max(8, info.size**2 * info.channels))
        with np.load(path, allow_pickle=False) as archive:
            images, labels = archive[f"x_{split}"], archive[f"y_{split}"]
    except Exception as error:  # a damaged archive raises whatever its first bad byte meets
        wanted = f"cannot read x_{split} and y_{split} of {path}"
        raise DataError(f"{wanted}: {one_line(error)}; replace or delete the file") from error
    return _checked(info, images, labels, path)


def _torchvision(info: DatasetInfo, root: Path, split: str, download: bool) -> Split:
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    class_name, layout = _TORCHVISION[info.name]
    folder, source = root / layout, getattr(datasets, class_name)
    if info.name == "fmnist":
        files = dict(source.resources)
        if all((folder / file).with_suffix("").is_file() for file in files):
            files = {}  # torchvision keeps no checksums of the unpacked files
    else:
        meta = (source.meta["filename"], source.meta["md5"])
        files = dict([*source.train_list, *source.test_list, meta])
    bad = [file for file, md5 in files.items() if not check_integrity(folder / file, md5)]
    if bad and not download:
        raise DataError(f"{folder / bad[0]} is missing or damaged (MD5); delete it and pass --download")
    try:  # every file of Fashion-MNIST being there, download=True unpacks without a network
        found = source(root, split == "train", download=download or info.name == "fmnist")
    except Exception as error:  # whatever the transport or a damaged file raises
        advice = "check the network" if bad else "delete what is damaged and pass --download"
        verb = "download" if bad else "read"
        raise DataError(f"cannot {verb} {folder}: {one_line(error)}; {advice}") from error
    return _checked(info, np.asarray(found.data), np.asarray(found.targets), folder)


def _checked(info: DatasetInfo, images: Any, labels: Any, where: object) -> Split:
    shape = (info.size, info.size, info.channels)
    if info.channels == 1 and images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
        found, wanted = f"{images.dtype} {[*images.shape]}", f"uint8 [N, {str(shape)[1:-1]}]"
        raise DataError(f"{where}: images are {found}, {info.name} has {wanted}; replace it")
    if labels.dtype.kind not in "iu" or labels.shape not in ((len(images),), (len(images), 1)):
        found, wanted = f"{labels.dtype} {[*labels.shape]}", f"integers [{len(images)}]"
        raise DataError(f"{where}: labels are {found}, expected {wanted}; replace it")
    values, last = np.unique(labels), info.num_classes - 1
    if values[0] < 0 or values[-1] > last:
        problem = f"labels run from {values[0]} to {values[-1]}, expected 0 to {last}"
        raise DataError(f"{where}: {problem}; replace it")
    if len(values) <= last and len(labels) >= 10 * info.num_classes:  # not just a small sample
        problem = f"only {len(values)} of the {info.num_classes} classes of {info.title} occur"
        raise DataError(f"{where}: {problem}; replace it")
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    return Split(pixels, torch.from_numpy(labels.ravel().astype(np.int64)), class_names(info.name))


def _label_folders(info: DatasetInfo, folder: Path) -> Sequence[str]:
    """The class folders in label order."""
    found, names = subfolders(folder), class_names(info.name)
    if info.name == "imagenet100":
        missing = [name for name in names if name not in found]
        if missing:
            problem = f"lacks {len(missing)} of the 100 classes, {missing[0]} first"
            raise DataError(f"{folder} {problem}; ImageNet-100 needs one folder per WordNet id")
        return names
    by_key = {str(int(f)) if f.isdecimal() else _plain(f): f for f in found}
    for keys in (list(map(_plain, names)), list(map(str, range(len(names))))):
        if len(found) == len(keys) and by_key.keys() == set(keys):
            return [by_key[key] for key in keys]
    raise DataError(
        f"{folder} has {len(found)} class folders ({found[0]} .. {found[-1]}), expected the "
        f"{len(names)} of {info.title}: {names[0]} .. {names[-1]}, or 0 .. {len(names) - 1}"
    )


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())
