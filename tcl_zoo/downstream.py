"""Any images, as fine-tuning and the transfer benchmark take them; the encoders are in ``downstream_models.py``."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .datasets import DATASETS, load
from .downstream_models import SMALL
from .errors import DataError
from .extras import EXTRAS, load_extra
from .outside import expanded
from .progress import progress
from .recipes import nearest
from .splits import FolderSplit, Split, loader, stratified, subfolders, subset

KNOWN = (*DATASETS, *EXTRAS)
_IN_MEMORY = 2**30  # bytes of decoded images below which a folder of small images is not streamed
_LOOK_AT = 500  # files that are opened to see whether a folder is gray


@dataclass(frozen=True)
class Data:
    """Images to train on, to choose by, and to report on.

    Attributes:
        name: of the data set, or of the folder.
        train: to train on.
        val: to choose the epoch by; None where every class has but one image, or nothing is to be held out.
        test: to report on, where there is such a split.
    """

    name: str
    train: Split | FolderSplit
    val: Split | FolderSplit | None
    test: Split | FolderSplit | None

    @property
    def channels(self) -> int:
        """1 (gray) or 3."""
        return self.train.channels if isinstance(self.train, FolderSplit) else int(self.train.images.shape[1])

    def fit(self, cfg: dict[str, Any]) -> Data:
        """The same images at the size and in the channels of timm's ``pretrained_cfg``."""
        parts = ((key, getattr(self, key)) for key in ("train", "val", "test"))
        fitted: dict[str, Any] = {key: fit(part, cfg) for key, part in parts if part is not None}
        return dataclasses.replace(self, **fitted)


def open_data(
    data_dir: str | os.PathLike[str] | None = None,
    dataset: str | None = None,
    *,
    val: float = 0.2,
    per_class: int = 0,
    seed: int = 0,
    download: bool = False,
) -> Data:
    """A known data set, or a folder of images.

    A folder holds ``train/<class>/*`` and, as they are there, ``val/<class>/*`` and ``test/<class>/*``; or
    ``<class>/*`` alone. Where there is no ``val``, a seeded share of each class of the training images is held out.

    Args:
        data_dir: the folder, or where the known data set is.
        dataset: a known data set (``KNOWN``).
        val: share of each class to hold out; 0 for none.
        per_class: go by so many training images of each class only, drawn with ``seed``; those held out are among
            them. 0 is all.
        seed: of what is drawn.
        download: let torchvision fetch a missing data set.

    Raises:
        DataError: missing or damaged, fewer than two classes, or classes in ``val`` that are not in ``train``.
    """
    held: Split | FolderSplit | None
    test: Split | FolderSplit | None
    if dataset is not None:
        name, held = dataset, None
        train, test = (load_known(dataset, data_dir, part, download) for part in ("train", "test"))
    elif data_dir is not None:
        folder = expanded(data_dir, DataError)
        name = folder.resolve().name
        base = folder / "train" if subfolders(folder / "train") else folder
        if not subfolders(base):
            missing = "" if folder.is_dir() else " (no such folder)"
            raise DataError(f"{folder}{missing} has no class folders: it needs <class>/* or train/<class>/*")
        train = FolderSplit(base)
        train.channels = _channels(train)
        held, test = (_other(folder / part, train) if base != folder else None for part in ("val", "test"))
    else:
        raise DataError(f"which images? pass --data-dir FOLDER, or --dataset with one of {', '.join(KNOWN)}")
    if len(train.classes) < 2:
        raise DataError(f"{name} has one class only, {train.classes[0]!r}: there is nothing to tell apart; add another")
    if per_class:
        train = subset(train, stratified(train.labels, per_class, seed)[1])
    if held is None and val > 0:
        kept, out = stratified(train.labels, val, seed)
        held = subset(train, out) if len(out) else None
        train = subset(train, kept)
    return Data(name, train, held, test)


def load_known(name: str, root: str | os.PathLike[str] | None, split: str, download: bool = False) -> Any:
    """One split of a data set of ``KNOWN``.

    Raises:
        DataError: unknown, missing or damaged.
    """
    if name not in KNOWN:
        raise DataError(f"unknown data set {name!r}{nearest(name, KNOWN)}; known: {', '.join(KNOWN)}")
    return load_extra(name, root, split, download) if name in EXTRAS else load(name, root, split, download)


def _channels(split: FolderSplit) -> int:
    """1 where the images looked at are all gray, else 3; files that do not open are left to whoever needs them."""
    from PIL import Image

    for file in split.files[:: -(-len(split) // _LOOK_AT)]:
        try:
            with Image.open(split.folder / file) as image:
                if image.mode not in ("1", "L", "LA", "F") and not image.mode.startswith("I"):
                    return 3
        except OSError:
            continue
    return 1


def _other(folder: Path, train: FolderSplit) -> FolderSplit | None:
    """``val`` or ``test`` beside ``train``, with its labels."""
    if not (names := subfolders(folder)):
        return None
    if foreign := sorted(set(names) - set(train.classes)):
        raise DataError(f"{folder} has the class {foreign[0]!r}, which train has not; rename or remove it")
    found = FolderSplit(folder, names, channels=train.channels)
    labels = [train.classes.index(names[k]) for k in found.labels.tolist()]
    samples = list(zip(found.files, labels, strict=True))
    return FolderSplit(folder, classes=train.classes, channels=train.channels, samples=samples)


def fit(split: Split | FolderSplit, cfg: dict[str, Any]) -> Split | FolderSplit:
    """The images at ``cfg``'s size and channels: folders of small images decoded, large ones streamed.

    Images in memory stay as they are where the model's size is 64 or more: :func:`tcl_zoo.features.normaliser` resizes
    those batch by batch.
    """
    from torchvision.transforms import InterpolationMode, v2

    channels, size, _ = cfg["input_size"]
    if isinstance(split, Split):
        if size >= SMALL or split.images.shape[-1] == size:
            return split
        return Split(_resized(split.images, size), split.labels, split.classes)
    split = copy.copy(split)
    split.size, split.channels = size, channels
    mode = InterpolationMode(cfg["interpolation"])
    split.transform = v2.Compose([v2.Resize(math.floor(size / cfg["crop_pct"]), mode), v2.CenterCrop(size)])
    if size < SMALL and len(split) * channels * size**2 < _IN_MEMORY:
        return _decoded(split)
    return split


def _resized(images: Tensor, size: int) -> Tensor:
    parts = (
        F.interpolate(part.float(), size=(size, size), mode="bilinear", antialias=True) for part in images.split(4096)
    )
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in parts])


def _decoded(split: FolderSplit) -> Split:
    parts = []
    with progress(len(split), "reading images", "image", leave=False) as bar:
        batches = [part.tolist() for part in torch.arange(len(split)).split(500)]
        for views, _, _ in loader(split, batches, 2 if len(split) > 2000 else 0):
            parts.append(views[:, 0])
            bar.update(len(views))
    return Split(torch.cat(parts), split.labels, split.classes)
