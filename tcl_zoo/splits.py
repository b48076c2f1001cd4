"""What a split is: images in memory (:class:`Split`) or streamed from class folders (:class:`FolderSplit`)."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .errors import DataError, one_line
from .images import SUFFIXES, WrongSizeError, read
from .progress import progress


@dataclass(frozen=True, eq=False)
class Split:
    """Images in memory: ``images`` uint8 [N, C, H, W], ``labels`` int64 [N]."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> str:
        """Sha256 of the images' bytes in [N, H, W, C] order, then of the labels as '<i8'."""
        digest = hashlib.sha256(self.images.cpu().permute(0, 2, 3, 1).numpy().tobytes())
        digest.update(self.labels.cpu().numpy().astype("<i8").tobytes())
        return digest.hexdigest()


class FolderSplit(Dataset[tuple[Any, int, int]]):
    """Streams ``folder/<class>/*.png``: item i is (views uint8 [V, C, S, S], label, i).

    As made, it gives the evaluation view: shorter side to S * 256 / 224, centre crop S (SPEC section 4).
    What is drawn for an image depends on (seed, epoch, i) alone, so neither the number of workers
    nor the order nor a resumed run changes it. Images are ordered by label, then by file name.

    Args:
        folder: holds one folder per class.
        folders: the class folders in label order; default: all of them, sorted.
        classes: class names in label order; default: the folder names.
        size, channels: S in pixels; 3 (decoded to RGB) or 1 (to grey).
        samples: paths below ``folder`` with their labels, instead of class folders; in this order.

    Raises:
        DataError: no class folders, or one without images; an item: a file that does not decode.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        folders: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        size: int = 224,
        channels: int = 3,
        samples: Sequence[tuple[str, int]] | None = None,
    ) -> None:
        from torchvision.transforms import v2

        self.folder, self.size, self.channels = Path(folder), size, channels
        self.views, self.seed, self.epoch, self.small_views = 1, 0, 0, 0
        self.small_transform: Any = None
        self.transform: Any = v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)])
        if samples is not None:
            self.files, self.classes = [file for file, _ in samples], tuple(classes or ())
            self.labels = torch.tensor([label for _, label in samples], dtype=torch.int64)
            return
        if not (folders := folders or subfolders(self.folder)):
            raise DataError(f"{self.folder} has no class folders: it needs <class>/*.png")
        self.classes = tuple(classes or folders)
        found = [_image_files(self.folder / name) for name in folders]
        self.files = [f"{name}/{f}" for name, fs in zip(folders, found, strict=True) for f in fs]
        self.labels = torch.arange(len(found)).repeat_interleave(torch.tensor([*map(len, found)]))

    def __len__(self) -> int:
        return len(self.files)

    def view(
        self,
        views: int = 2,
        seed: int = 0,
        scale: tuple[float, float] = (0.2, 1.0),
        transform: Any = None,
        small: tuple[int, int, tuple[float, float]] = (0, 0, (0.0, 0.0)),
    ) -> FolderSplit:
        """The same images for training: V random resized crops, aspect ratio 3/4..4/3, no flip.

        ``transform`` (PIL to PIL, drawing from torch's generator) may replace the crop. ``small``: how many crops of
        another side and scale come with them; the views of an item are then [V, C, S, S] and [count, C, side, side].
        """
        from torchvision.transforms import v2

        split = copy.copy(self)
        split.transform = transform or v2.RandomResizedCrop(self.size, scale, (3 / 4, 4 / 3))
        split.views, split.seed = views, seed
        split.small_views, side, small_scale = small
        split.small_transform = v2.RandomResizedCrop(side, small_scale, (3 / 4, 4 / 3)) if split.small_views else None
        return split

    def set_epoch(self, epoch: int) -> None:
        """Draw anew; call it before iterating, as workers copy the data set when they start."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[Any, int, int]:
        from torchvision.transforms.v2.functional import pil_to_tensor

        image = self.image(index)
        key = hashlib.sha256(f"{self.seed}/{self.epoch}/{index}".encode()).digest()[:8]
        with torch.random.fork_rng(devices=[], device_type="cpu"):
            # not torch.manual_seed: it would reseed the GPUs, which nothing here restores
            torch.default_generator.manual_seed(int.from_bytes(key, "little") >> 1)
            views = torch.stack([pil_to_tensor(self.transform(image)) for _ in range(self.views)])
            small = [pil_to_tensor(self.small_transform(image)) for _ in range(self.small_views)]
        return (views, torch.stack(small)) if small else views, int(self.labels[index]), index

    def image(self, index: int, side: int | None = None) -> Any:
        """The decoded PIL image, RGB or grey; with ``side`` a ``DataError`` where it is not side x side pixels."""
        path = self.folder / self.files[index]
        try:
            return read(path, "RGB" if self.channels == 3 else "L", side)
        except WrongSizeError:
            raise
        except Exception as error:  # a damaged file raises whatever its first bad byte meets
            raise DataError(f"{path} does not decode: {one_line(error)}; replace it") from error

    def decoded(self) -> Split:
        """All images in memory; a ``DataError`` names one that is not S x S pixels."""
        side, images = self.size, np.empty((len(self), self.size, self.size, self.channels), "u1")
        with progress(len(self), "decoding", "image") as bar:
            for index in range(len(self)):
                images[index] = np.asarray(self.image(index, side)).reshape(side, side, -1)
                bar.update()
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        return Split(pixels, self.labels, self.classes)

    def fingerprint(self) -> str:
        """Sha256 over the files sorted by relative path: path, NUL byte, sha256 of the content."""
        digest = hashlib.sha256()
        with progress(len(self), "fingerprint", "image") as bar:
            for file in sorted(self.files):
                content = hashlib.sha256((self.folder / file).read_bytes())
                digest.update(os.fsencode(file) + b"\0" + content.digest())
                bar.update()
        return digest.hexdigest()


class _Loader(DataLoader[Any]):
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            with _uninterrupted():  # workers keep it: a terminal's Ctrl-C goes to them, too, and is for this process
                batches = super().__iter__()
            yield from batches
        except DataError as error:  # a worker's error arrives with its whole traceback as text
            raise DataError(str(error).rpartition("DataError: ")[2].strip()) from None


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Holds SIGINT back; processes that are started meanwhile never see it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def loader(
    dataset: Dataset[Any],
    batches: Iterable[Any],
    workers: int = 0,
    device: torch.device | str = "cpu",
    collate: Any = None,
) -> DataLoader[Any]:
    """A DataLoader over given batches of keys; takes nothing from the global generator. Ctrl-C is for the caller.

    Args:
        dataset: what the keys are of.
        batches: of keys.
        workers: processes that load; 0: this one.
        device: where the batches go: memory is pinned for a GPU.
        collate: makes a batch of items; torch's own where not given.
    """
    return _Loader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.device(device).type == "cuda",
        generator=torch.Generator(),
        worker_init_fn=_quiet if workers else None,
    )


def _quiet(_: int) -> None:
    """In a worker: that the caller was stopped while it fetched a batch is nothing to print a traceback about."""
    told = sys.excepthook

    def hook(kind: Any, value: Any, trace: Any) -> None:
        if not issubclass(kind, (ConnectionError, EOFError)):
            told(kind, value, trace)

    sys.excepthook = hook  # multiprocessing's thread that hands batches over goes by it


AnySplit = TypeVar("AnySplit", bound="Split | FolderSplit")


def subset(split: Split | FolderSplit, indices: Tensor) -> Split | FolderSplit:
    """These images of a split, in this order; the classes stay all."""
    if isinstance(split, Split):
        indices = indices.to(split.labels.device)
        return Split(split.images[indices], split.labels[indices], split.classes)
    part = copy.copy(split)
    part.files, part.labels = [split.files[i] for i in indices.tolist()], split.labels[indices]
    return part


def stratified(labels: Tensor, held: float | int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Indices (kept, held) of a seeded split by class, each in order.

    Args:
        labels: [N] classes.
        held: a share of each class below 1 (at least one image, where it has two or more; an only image is kept), or
            a number of images of each class, all of it where it has fewer.
        seed: of the draw. What is held at a smaller number is held at a larger one, too.
    """
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    order = torch.argsort(labels.cpu(), stable=True)
    for k, members in enumerate(order.split(torch.bincount(labels.cpu()).tolist())):
        n = len(members)
        number = held if isinstance(held, int) else min(max(1, round(held * n)), n - 1) if n > 1 else 0
        drawn = members[torch.from_numpy(np.random.default_rng((seed, k)).permutation(n))]
        parts[0].append(drawn[number:])
        parts[1].append(drawn[:number])
    kept, taken = (torch.cat(part).sort().values for part in parts)
    return kept, taken


def holdout(split: AnySplit, n: int, seed: int = 0) -> tuple[AnySplit, AnySplit]:
    """(train, held): ``n`` images held out to choose hyperparameters on, stratified by class.

    Both keep the order of ``split``. Raises DataError if ``n`` images cannot be stratified.
    """
    from sklearn.model_selection import train_test_split

    indices, labels = np.arange(len(split)), split.labels.cpu().numpy()
    try:
        parts = train_test_split(indices, test_size=n, stratify=labels, random_state=seed)
    except ValueError as error:
        raise DataError(f"cannot hold out {n} of {len(split)} images: {one_line(error)}") from error
    train, held = (cast(AnySplit, subset(split, torch.from_numpy(np.sort(part)))) for part in parts)
    return train, held


def subfolders(folder: Path) -> list[str]:
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [entry.name for entry in entries if entry.is_dir() and entry.name[0] != "."]


def _image_files(folder: Path) -> list[str]:
    with os.scandir(folder) if folder.is_dir() else contextlib.nullcontext(()) as entries:
        # Regular files: a pipe of that name would be waited for.
        names = [e.name for e in entries if e.name.lower().endswith(SUFFIXES) and e.name[0] != "." and e.is_file()]
    found = sorted(names)
    if not found:
        raise DataError(f"class folder {folder} has no images ({' '.join(SUFFIXES)}); fill it")
    return found
