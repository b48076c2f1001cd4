"""Batched augmentation of uint8 images on whatever device they sit (SPEC section 4).

``ops`` has the image operations, ``policies`` the AutoAugment tables, ``simaugment`` those of the self-supervised
views; :class:`Augment` draws parameters for a batch and applies them. Drawing and applying are two calls so that
several processes, or a resumed one, see the same views: parameters come from a generator on the CPU, pixels never
touch it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from .._validation import AUGMENTATIONS as POLICIES
from . import ops, policies
from .simaugment import RECOLOUR, MultiCrop, Recolour

__all__ = ["POLICIES", "Augment", "MultiCrop", "ops", "policies", "view_groups"]

_PART = 256  # images of a group that are worked on at a time on a CPU
_CHUNK = 2048  # images that are grouped at a time on a CPU: their bytes stay in its last cache
_ORDERS = torch.tensor(list(itertools.permutations(range(4))))  # of brightness, contrast, saturation, hue
_JITTER = (("brightness", ops.brightness), ("contrast", ops.contrast), ("saturation", ops.color), ("hue", ops.hue))
_SOLARIZE = 128  # the threshold of BYOL's views, and Pillow's default


class Augment:
    """One random view of every image of a batch, each with parameters of its own.

    - ``crop_flip``: random crop with zero padding, horizontal flip with p 0.5; ``crop``: without the flip;
      ``resized_crop_flip``: random resized crop (scale 0.2-1) and flip.
    - ``autoaugment_thesis``: crop and flip, then the CIFAR-10 policy with magnitudes drawn between two levels.
    - ``autoaugment``: crop and flip, then torchvision's policy (fixed magnitudes, random sign).
    - ``simaugment``: random resized crop, flip, colour jitter 0.4/0.4/0.4/0.1 with p 0.8, grayscale with p 0.2.
    - the other names of ``simaugment.RECOLOUR``: as it, with other strengths, blur and solarisation; some differ
      from view to view.
    - ``none``: the images as they are.

    Args:
        name: one of the above.
        size: side of the views in pixels.
        padding: zero padding of the random crop in pixels.
        cropped: the images come cropped at random already (a streamed folder): flip and recolour only.
        view: which of an image's views, for the policies whose views differ.
        scale: share of the area that a resized crop takes, instead of the policy's.

    Raises:
        ValueError: unknown name.
    """

    def __init__(
        self,
        name: str,
        size: int = 32,
        *,
        padding: int = 4,
        cropped: bool = False,
        view: int = 0,
        scale: tuple[float, float] | None = None,
    ) -> None:
        if name not in POLICIES:
            raise ValueError(f"unknown augmentation {name!r}; known: {', '.join(POLICIES)}")
        self.name, self.size, self.padding = name, size, 0 if cropped else padding
        views = RECOLOUR.get(name, ())
        self._recolour: Recolour | None = views[min(view, len(views) - 1)] if views else None
        self.scale = scale or (self._recolour.scale if self._recolour else (0.2, 1.0))
        self._resized = (self._recolour is not None or name == "resized_crop_flip") and not cropped
        self._policy = policies.policy(name, size) if name.startswith("autoaugment") else None
        self._kernel_size = max(3, size // 10 // 2 * 2 + 1)

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """uint8 [N, C, H, W] to uint8 [N, C, size, size]; see :meth:`apply` for what is raised."""
        return self.apply(images, self.sample(len(images), generator, images.shape[-1]))

    def sample(self, n: int, generator: torch.Generator | None = None, source: int | None = None) -> dict[str, Tensor]:
        """Parameters of n views, every entry [n, ...], on the generator's device (the CPU without one).

        Args:
            n: number of images.
            generator: reproducible where given, else torch's default.
            source: side of the images in pixels; ``size`` where not given.
        """
        device = generator.device if generator is not None else torch.device("cpu")

        def rand() -> Tensor:
            return torch.rand(n, generator=generator, device=device)

        def offset() -> Tensor:
            return torch.randint(2 * self.padding + 1, (n,), generator=generator, device=device)

        if self.name == "none":
            return {}
        if self._resized:
            params = policies.resized_crop_box(n, source or self.size, generator, self.scale)
        else:
            params = {"top": offset(), "left": offset()}
        params["flip"] = rand() < 0.5
        if self.name == "crop":
            params["flip"] = torch.zeros_like(params["flip"])
        if self._policy is not None:
            params |= self._policy.sample(n, generator)
        if (recolour := self._recolour) is not None:
            params["jitter"], params["gray"] = rand() < recolour.jitter_p, rand() < recolour.gray_p
            params["order"] = torch.randint(len(_ORDERS), (n,), generator=generator, device=device)
            for (key, _), strength in zip(_JITTER, recolour.jitter, strict=True):
                params[key] = (2 * rand() - 1) * strength + (0 if key == "hue" else 1)
            if recolour.blur_p:
                params["blur"], params["sigma"] = rand() < recolour.blur_p, 0.1 + 1.9 * rand()
            if recolour.solarize_p:
                params["solarize"] = rand() < recolour.solarize_p
        return params

    def apply(self, images: Tensor, params: dict[str, Tensor]) -> Tensor:
        """Views of ``images`` by ``params``; a slice of both gives the slice of the whole.

        Args:
            images: uint8 [N, C, H, W], C 1 or 3.
            params: as :meth:`sample` draws them, N of each.

        Returns:
            uint8 [N, C, size, size] on the images' device.

        Raises:
            ValueError: other dtype, shape or side than promised.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images must be uint8 [N, 1 or 3, H, W], got {images.dtype} {list(images.shape)}")
        if not self._resized and images.shape[2:] != (self.size, self.size):
            raise ValueError(f"{self.name} keeps the size: images must be {self.size} px, got {list(images.shape[2:])}")
        if images.shape[2] != images.shape[3]:
            raise ValueError(f"images must be square, got {list(images.shape[2:])}")
        if self.name == "none" or not len(images):
            return images.new_empty(0, images.shape[1], self.size, self.size) if not len(images) else images.clone()
        if images.device.type == "cpu" and len(images) > _CHUNK:
            views = images.new_empty(len(images), images.shape[1], self.size, self.size)
            for chunk in (slice(i, i + _CHUNK) for i in range(0, len(images), _CHUNK)):
                views[chunk] = self.apply(images[chunk], {k: v[chunk] for k, v in params.items()})
            return views
        move = {key: ops.sent(value, images.device) for key, value in params.items()}
        if self._resized:
            top, left, height, width = (move[k] for k in ("top", "left", "height", "width"))
            views = ops.resized_crop(images, top, left, height, width, self.size)
        else:
            views = ops.crop(images, move["top"], move["left"], self.padding)
        samples = _Samples(views)
        samples.run(params["flip"].long() - 1, [lambda x, _: x.flip(3)])
        if self._policy is not None:
            self._apply_policy(samples, params, move["magnitude"])
        if "jitter" in params:
            self._apply_jitter(samples, params, move)
        if "blur" in params:
            size, sigma = self._kernel_size, move["sigma"]
            samples.run(params["blur"].long() - 1, [lambda x, i: ops.gaussian_blur(x, sigma[i], size)])
        if "solarize" in params:
            solarize = [lambda x, i: ops.solarize(x, torch.full((len(x),), float(_SOLARIZE), device=x.device))]
            samples.run(params["solarize"].long() - 1, solarize)
        return samples.views()

    def _apply_policy(self, samples: _Samples, params: dict[str, Tensor], magnitude: Tensor) -> None:
        """Both steps of each sample's sub-policy."""
        assert self._policy is not None
        run = self._policy.run
        operation = self._policy.operation.to(params["policy"].device)[params["policy"]]
        operation = operation.masked_fill(~params["apply"], -1)
        for step in (0, 1):
            runs = [partial(_run_at, partial(run, name), magnitude[:, step]) for name in policies.NAMES]
            samples.run(operation[:, step], runs)

    @staticmethod
    def _apply_jitter(samples: _Samples, params: dict[str, Tensor], move: dict[str, Tensor]) -> None:
        order = _ORDERS.to(params["order"].device)[params["order"]].masked_fill(~params["jitter"][:, None], -1)
        runs = [partial(_run_at, run, move[key]) for key, run in _JITTER]
        for step in range(4):
            samples.run(order[:, step], runs)
        samples.run(params["gray"].long() - 1, [lambda x, _: ops.grayscale(x)])


def view_groups(
    name: str, size: int, views: int, multi: MultiCrop, *, padding: int = 4, cropped: bool = False
) -> list[tuple[Augment, int]]:
    """The views of an image as (how, how many): one entry where all are made alike.

    Args:
        name: a policy.
        size: side of the views in pixels.
        views: views of an image.
        multi: the small crops beside them.
        padding, cropped: as :class:`Augment` takes them.
    """
    scale = (multi.split, 1.0) if multi.count else None
    kinds = min(views, max(1, len(RECOLOUR.get(name, ()))))
    groups = [
        (Augment(name, size, padding=padding, cropped=cropped, view=view, scale=scale),
         views - view if view == kinds - 1 else 1)
        for view in range(kinds)
    ]  # fmt: skip
    if multi.count:
        small = Augment(name, multi.size, padding=padding, cropped=cropped, scale=(0.05, multi.split))
        groups.append((small, multi.count))
    return groups


def _run_at(run: Callable[[Tensor, Tensor], Tensor], value: Tensor, images: Tensor, index: Tensor) -> Tensor:
    """An operation with the magnitudes of these samples."""
    return run(images, value[index])


class _Samples:
    """Views on their way through operations, in the order in which the last of these left them.

    Args:
        views: uint8 [N, C, H, W].
    """

    def __init__(self, views: Tensor) -> None:
        self._views = views
        self._order: Tensor | None = None  # [N] which sample stands where; None: as they came

    def run(self, operation: Tensor, runs: Sequence[Callable[[Tensor, Tensor], Tensor]]) -> None:
        """``runs[operation[i]]`` on every sample i, -1 for none.

        Samples are brought into the order of their operation and worked on in parts that stay in a CPU's cache. The
        order is found where the parameters are, on the CPU as a rule: no GPU is waited for.

        Args:
            operation: int64 [N].
            runs: each takes some images and their numbers in the batch.
        """
        counts = torch.bincount(operation + 1, minlength=len(runs) + 1).tolist()
        if counts[0] == len(operation):
            return
        move = (operation if self._order is None else operation[self._order]).argsort(stable=True)
        self._order = move if self._order is None else self._order[move]
        views = self._views = self._views.index_select(0, ops.sent(move, self._views.device))
        index = ops.sent(self._order, views.device)
        step = _PART if views.device.type == "cpu" else len(views)
        first = counts[0]
        for run, count in zip(runs, counts[1:], strict=True):
            for start in range(first, first + count, step):
                part = slice(start, min(start + step, first + count))
                views[part] = run(views[part], index[part])
            first += count

    def views(self) -> Tensor:
        """The views in the order in which they came."""
        if self._order is None:
            return self._views
        back = torch.empty_like(self._order)
        back[self._order] = torch.arange(len(back), device=back.device)
        return self._views.index_select(0, ops.sent(back, self._views.device))
