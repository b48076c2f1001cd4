"""The random resized crop family as data: SimAugment and the pairs of views of the self-supervised methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Recolour:
    """One view: crop, flip, colour jitter, grayscale, blur, solarize, in this order.

    Attributes:
        scale: share of the area that the crop takes, from and to.
        jitter: strength of brightness, contrast, saturation and hue.
        jitter_p, gray_p, blur_p, solarize_p: probabilities.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_p: float = 0.8
    gray_p: float = 0.2
    blur_p: float = 0.0
    solarize_p: float = 0.0


_SMALL, _BYOL, _STRONG = (0.08, 1.0), (0.4, 0.4, 0.2, 0.1), (0.8, 0.8, 0.8, 0.2)

# Policy -> its views; the last stands for all further ones. All but the first three are solo-learn's, which has blur
# for ImageNet-100 where CIFAR has none. The mild one is ours for digits: a fifth of 8 x 8 pixels shows no digit.
RECOLOUR: dict[str, tuple[Recolour, ...]] = {
    "simaugment": (Recolour(),),
    "simaugment_blur": (Recolour(blur_p=0.5),),
    "simaugment_mild": (Recolour(scale=(0.5, 1.0)),),
    "symmetric": (Recolour(_SMALL, _STRONG, blur_p=0.5),),
    "symmetric_weak": (Recolour(_SMALL, blur_p=0.5),),
    "asymmetric": (Recolour(_SMALL, _BYOL), Recolour(_SMALL, _BYOL, solarize_p=0.2)),
    "asymmetric_blur": (Recolour(_SMALL, _BYOL, blur_p=1.0), Recolour(_SMALL, _BYOL, blur_p=0.1, solarize_p=0.2)),
    "ressl": (Recolour(_SMALL, _BYOL, blur_p=0.5), Recolour(_SMALL, jitter_p=0.0, gray_p=0.0)),
    "vicreg": (Recolour(jitter=_BYOL, solarize_p=0.1),),
    "vicreg_blur": (Recolour(jitter=_BYOL, blur_p=0.5, solarize_p=0.1),),
    "wmse": (Recolour(jitter=_STRONG),),
    "wmse_blur": (Recolour(jitter=_STRONG, blur_p=0.2),),
}


@dataclass(frozen=True)
class MultiCrop:
    """Small crops beside the views (SwAV, DINO).

    Attributes:
        count: small crops of an image; 0 for none.
        size: their side in pixels.
        split: a small crop takes 5 % of the area up to this share, a view from this share up.
    """

    count: int = 0
    size: int = 0
    split: float = 0.0

    @classmethod
    def of(cls, options: Mapping[str, float]) -> MultiCrop:
        """From a recipe's ``local_crops``, ``local_size`` and ``crop_split``."""
        if not options.get("local_crops"):
            return cls()
        return cls(int(options["local_crops"]), int(options["local_size"]), options["crop_split"])
