"""The two AutoAugment tables of SPEC section 4, and how a level or bin becomes the magnitude of an operation."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from . import ops

Step = tuple[str, float, int]

# CIFAR-10 policy: 25 sub-policies of two steps (operation, probability, level).
THESIS: tuple[tuple[Step, Step], ...] = (
    (("Invert", 0.1, 7), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 8), ("Equalize", 0.9, 2)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 5), ("Equalize", 0.5, 1)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 7), ("AutoContrast", 0.4, 8)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 8), ("Equalize", 0.6, 4)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 6)),
    (("AutoContrast", 0.8, 4), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 3)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 2), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 8), ("Invert", 0.1, 3)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 1)),
)

# Lowest and highest magnitude over 11 levels. Translate is a fraction of the side.
_RANGES: dict[str, tuple[float, float]] = {
    "ShearX": (-0.3, 0.3),
    "ShearY": (-0.3, 0.3),
    "TranslateX": (-150 / 331, 150 / 331),
    "TranslateY": (-150 / 331, 150 / 331),
    "Rotate": (-30.0, 30.0),
    "Solarize": (0.0, 256.0),
    "Posterize": (4.0, 8.0),
    "Contrast": (0.1, 1.9),
    "Color": (0.1, 1.9),
    "Brightness": (0.1, 1.9),
    "Sharpness": (0.1, 1.9),
}

_OPS: dict[str, Callable[..., Tensor]] = {
    "ShearX": ops.shear_x,
    "ShearY": ops.shear_y,
    "TranslateX": ops.translate_x,
    "TranslateY": ops.translate_y,
    "Rotate": ops.rotate,
    "Solarize": ops.solarize,
    "Posterize": ops.posterize,
    "Contrast": ops.contrast,
    "Color": ops.color,
    "Brightness": ops.brightness,
    "Sharpness": ops.sharpness,
    "AutoContrast": ops.autocontrast,
    "Equalize": ops.equalize,
    "Invert": ops.invert,
}
NAMES = tuple(_OPS)
_ENHANCERS = ("Contrast", "Color", "Brightness", "Sharpness")


class Policy:
    """A table of sub-policies as tensors: draws steps for n samples, and applies one operation to a group.

    Args:
        table: sub-policies of two steps (operation, probability, level).
    """

    def __init__(self, table: tuple[tuple[Step, Step], ...]) -> None:
        self.table = table
        self.operation = torch.tensor([[NAMES.index(op) for op, _, _ in steps] for steps in table])
        self.probability = torch.tensor([[p for _, p, _ in steps] for steps in table])

    def sample(self, n: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        """``policy`` int64 [n], ``apply`` bool [n, 2], ``magnitude`` float32 [n, 2]."""
        device = generator.device if generator is not None else torch.device("cpu")
        policy = torch.randint(len(self.table), (n,), generator=generator, device=device)
        chance = torch.rand(n, 2, generator=generator, device=device)
        uniform = torch.rand(n, 2, generator=generator, device=device)
        apply = chance < self.probability.to(device)[policy]
        return {"policy": policy, "apply": apply, "magnitude": self._magnitude(policy, uniform)}

    def _magnitude(self, policy: Tensor, uniform: Tensor) -> Tensor:
        raise NotImplementedError

    def run(self, name: str, images: Tensor, magnitude: Tensor) -> Tensor:
        """One operation on uint8 [N, C, H, W] with magnitudes [N] as :meth:`sample` draws them."""
        raise NotImplementedError


class ThesisPolicy(Policy):
    """Magnitude uniform between level k and level k + 1 of the ranges; the sign is the level's."""

    def __init__(self) -> None:
        super().__init__(THESIS)

        def at(op: str, level: float) -> float:
            low, high = _RANGES.get(op, (0.0, 0.0))
            return low + (high - low) * level / 10

        self._low = torch.tensor([[at(op, k) for op, _, k in steps] for steps in THESIS])
        self._width = torch.tensor([[at(op, k + 1) - at(op, k) for op, _, k in steps] for steps in THESIS])
        self._rounded = self.operation == NAMES.index("Posterize")

    def _magnitude(self, policy: Tensor, uniform: Tensor) -> Tensor:
        value = self._low.to(policy.device)[policy] + uniform * self._width.to(policy.device)[policy]
        return torch.where(self._rounded.to(policy.device)[policy], value.round(), value)

    def run(self, name: str, images: Tensor, magnitude: Tensor) -> Tensor:
        if name in ("TranslateX", "TranslateY"):
            magnitude = magnitude * images.shape[3 if name == "TranslateX" else 2]
        return _OPS[name](images, magnitude) if name in _RANGES else _OPS[name](images)


class TorchvisionPolicy(Policy):
    """torchvision's ``AutoAugment`` for CIFAR-10: one magnitude per level, random sign where the operation has one.

    Args:
        size: side of the images in pixels, on which torchvision's translations depend.
    """

    def __init__(self, size: int) -> None:
        from torchvision.transforms.autoaugment import AutoAugment, AutoAugmentPolicy

        theirs = AutoAugment(AutoAugmentPolicy.CIFAR10)
        space = theirs._augmentation_space(10, (size, size))
        super().__init__(tuple((_step(a), _step(b)) for a, b in theirs.policies))

        def at(op: str, level: int) -> float:
            bins = space[op][0]
            return float(bins[level]) if bins.ndim else 0.0

        self._value = torch.tensor([[at(op, k) for op, _, k in steps] for steps in self.table])
        self._signed = torch.tensor([[space[op][1] for op, _, _ in steps] for steps in self.table])

    def _magnitude(self, policy: Tensor, uniform: Tensor) -> Tensor:
        value, signed = self._value.to(policy.device)[policy], self._signed.to(policy.device)[policy]
        return torch.where(signed & (uniform < 0.5), -value, value)

    def run(self, name: str, images: Tensor, magnitude: Tensor) -> Tensor:
        if name in _ENHANCERS:
            magnitude = 1 + magnitude
        elif name in ("TranslateX", "TranslateY"):
            magnitude = -magnitude.trunc()  # theirs moves the content, by whole pixels
        return _OPS[name](images, magnitude) if name in _RANGES else _OPS[name](images)


def _step(step: tuple[str, float, int | None]) -> Step:
    op, p, level = step
    return op, p, level or 0


@functools.cache
def policy(name: str, size: int) -> Policy:
    """``autoaugment_thesis`` or ``autoaugment`` for images of ``size`` pixels."""
    return ThesisPolicy() if name == "autoaugment_thesis" else TorchvisionPolicy(size)


def resized_crop_box(
    n: int, side: int, generator: torch.Generator | None, scale: tuple[float, float] = (0.2, 1.0)
) -> dict[str, Tensor]:
    """``top, left, height, width`` [n] in whole pixels of square images, drawn as torchvision's RandomResizedCrop does.

    Area uniform in ``scale``, log aspect uniform in 3/4 to 4/3; the first of ten tries that fits, else the whole.
    """
    device = generator.device if generator is not None else torch.device("cpu")
    draw = torch.rand(n, 10, 2, generator=generator, device=device)
    place = torch.rand(n, 2, generator=generator, device=device)
    area = side * side * (scale[0] + (scale[1] - scale[0]) * draw[..., 0])
    aspect = torch.exp(math.log(3 / 4) + 2 * math.log(4 / 3) * draw[..., 1])
    width, height = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (width > 0) & (width <= side) & (height > 0) & (height <= side)
    first = fits.int().argmax(1, keepdim=True)
    whole = torch.full_like(place[:, 0], side)
    width = torch.where(fits.any(1), width.gather(1, first)[:, 0], whole)
    height = torch.where(fits.any(1), height.gather(1, first)[:, 0], whole)
    top, left = torch.floor(place[:, 0] * (side - height + 1)), torch.floor(place[:, 1] * (side - width + 1))
    return {"top": top, "left": left, "height": height, "width": width}
