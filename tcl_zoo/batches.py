"""Batches of augmented views as a pure function of (seed, epoch, step).

The order of the images and every augmentation parameter are drawn on the CPU from generators keyed by seed, epoch
and position. A run that stops and goes on, or that is spread over more processes, therefore sees the same batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from .augment import MultiCrop, view_groups
from .augment.ops import sent
from .errors import RecipeError, TrainingError
from .features import Normaliser
from .splits import FolderSplit, Split, loader

Views = Tensor | list[Tensor]

# Views augmented at a time where the images sit in memory: large enough to group samples by operation. Part of what
# a seed means: changing it changes every run.
_CHUNK_VIEWS = 8192


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator of its own for every key."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Batches:
    """Shuffled batches of V views for training; the last partial batch of an epoch is dropped.

    Args:
        split: images in memory (moved to ``device`` once) or a folder that is streamed.
        normalise: uint8 views to what the encoder sees; see :func:`tcl_zoo.features.normaliser`.
        augmentation: a policy of :class:`Augment`.
        crop_padding: zero padding of the random crop in pixels.
        views: views per image.
        batch_images: images per step over all processes; a multiple of ``world``.
        seed: what everything drawn depends on.
        device: where the views are made.
        rank, world: this process and the number of processes; each gets its slice of every batch.
        workers: DataLoader workers of a streamed folder.
        multi: small crops beside the views.

    Attributes:
        steps: of an epoch.
        chunk_steps: steps whose views are made together, where the images sit in memory.

    Raises:
        TrainingError: fewer images than a batch, or a batch that does not divide by the processes.
        RecipeError: small crops that are not smaller than the images.
    """

    def __init__(
        self,
        split: Split | FolderSplit,
        normalise: Normaliser,
        augmentation: str,
        crop_padding: int,
        views: int,
        batch_images: int,
        seed: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        multi: MultiCrop | None = None,
    ) -> None:
        if len(split) < batch_images:
            raise TrainingError(f"{len(split)} images do not fill one batch of {batch_images}")
        if batch_images % world:
            raise TrainingError(f"a batch of {batch_images} images does not divide over {world} processes")
        self.split, self.views, self.batch_images, self.seed = split, views, batch_images, seed
        self.device, self.workers = torch.device(device), workers
        self.steps = len(split) // batch_images
        self.chunk_steps = max(1, _CHUNK_VIEWS // (views * batch_images))
        share = batch_images // world
        self._own = slice(rank * share, (rank + 1) * share)
        streamed = isinstance(split, FolderSplit)
        size = split.size if isinstance(split, FolderSplit) else split.images.shape[-1]
        self.multi = multi = multi or MultiCrop()
        if multi.count and multi.size >= size:
            raise RecipeError(f"options.local_size ({multi.size}) must be below the images' {size} pixels a side")
        # Streamed images begin with a random resized crop, but where the augmentation is to be none or a shift.
        self._resized = augmentation not in ("none", "crop")
        cropped = streamed and self._resized
        self.groups = view_groups(augmentation, size, views, multi, padding=crop_padding, cropped=cropped)
        self.normalise = normalise
        if isinstance(split, Split):
            self._images = split.images.to(self.device)
            self._labels = split.labels.to(self.device)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Views, Tensor]]:
        """Steps ``start`` and on of an epoch: (views float32 [V * b, C, H, W] view-major, labels int64 [b]).

        With small crops the views are a list: [V * b, C, H, W] and [count * b, C, size, size].
        """
        order = torch.randperm(len(self.split), generator=generator(self.seed, epoch, "order"))
        order = order[: self.steps * self.batch_images].view(self.steps, self.batch_images)
        make = self._streamed if isinstance(self.split, FolderSplit) else self._in_memory
        for made, labels in make(order, epoch, start):
            sizes = [[v for v in made if v.shape[-1] == side] for side in dict.fromkeys(v.shape[-1] for v in made)]
            views = [self.normalise(alike[0] if len(alike) == 1 else torch.cat(alike)) for alike in sizes]
            yield views if len(views) > 1 else views[0], labels

    def _parameters(self, group: int, epoch: int, chunk: int, images: int, side: int) -> dict[str, Tensor]:
        """Augmentation parameters [count, images, ...] of a group of views and a chunk, over all processes."""
        augment, count = self.groups[group]
        further = [group] if group else []
        drawn = augment.sample(count * images, generator(self.seed, epoch, "augment", chunk, *further), side)
        return {key: value.view(count, images, *value.shape[1:]) for key, value in drawn.items()}

    def _in_memory(self, order: Tensor, epoch: int, start: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        per_chunk = self.chunk_steps
        for chunk in range(start // per_chunk, -(-self.steps // per_chunk)):
            first = chunk * per_chunk
            steps = order[first : first + per_chunk]
            k, batch = steps.shape
            index = sent(steps[:, self._own], self.device)
            images = self._images[index.flatten()]
            made = []
            for group, (augment, count) in enumerate(self.groups):
                params = self._parameters(group, epoch, chunk, k * batch, images.shape[-1])
                own = {
                    key: value.view(count, k, batch, *value.shape[2:])[:, :, self._own].flatten(0, 2)
                    for key, value in params.items()
                }
                views = augment.apply(images.repeat(count, 1, 1, 1), own)
                made.append(views.unflatten(0, (count, *index.shape)))
            for step in range(max(0, start - first), k):
                yield [views[:, step].flatten(0, 1) for views in made], self._labels[index[step]]

    def _streamed(self, order: Tensor, epoch: int, start: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        assert isinstance(self.split, FolderSplit)
        multi = self.multi
        small = (multi.count, multi.size, (0.05, multi.split))
        whole = None if self._resized else self.split.transform
        data = self.split.view(self.views, self.seed, self.groups[0][0].scale, whole, small)
        data.set_epoch(epoch)
        own = order[start:, self._own]
        for step, (images, labels, _) in enumerate(loader(data, own.tolist(), self.workers, self.device), start):
            sizes = images if multi.count else [images]
            views = [v for size in sizes for v in size.to(self.device, non_blocking=True).unbind(1)]
            made, first = [], 0
            for group, (augment, count) in enumerate(self.groups):
                params = self._parameters(group, epoch, step, self.batch_images, self.split.size)
                mine = {key: value[:, self._own].flatten(0, 1) for key, value in params.items()}
                made.append(augment.apply(torch.cat(views[first : first + count]), mine))
                first += count
            yield made, labels.to(self.device, non_blocking=True)
