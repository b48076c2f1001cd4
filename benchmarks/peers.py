"""What we are measured against: packages where there are any, published algorithms re-expressed where there are not."""

from __future__ import annotations

import random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from tcl_zoo.augment.policies import _RANGES, THESIS


def supcontrast(z: Tensor, y: Tensor, temperature: float = 0.1) -> Tensor:
    """SupCon as SupContrast's repository computes it: dense [N, N], row maximum detached."""
    mask = (y[:, None] == y[None]).float()
    logits = (z @ z.T) / temperature
    logits = logits - logits.max(1, keepdim=True)[0].detach()
    others = torch.scatter(torch.ones_like(mask), 1, torch.arange(len(z)).view(-1, 1), 0)
    mask = mask * others
    log_prob = logits - torch.log((torch.exp(logits) * others).sum(1, keepdim=True))
    return -((mask * log_prob).sum(1) / mask.sum(1)).mean()


def authors_tcl(z: Tensor, y: Tensor, temperature: float = 0.1, k1: float = 5000.0, k2: float = 1.0) -> Tensor:
    """TCL as the authors' release computes it: dense, with separate exponentials for each sum of the denominator."""
    similarity = z @ z.T
    others = 1 - torch.eye(len(z))
    positive = (y[:, None] == y[None]).float() * others
    negative = others - positive
    exponential = torch.exp(similarity / temperature)
    denominator = (
        (exponential * positive).sum(1)
        + k1 * (torch.exp(-similarity) * positive).sum(1)
        + k2 * (exponential * negative).sum(1)
    )
    log_prob = similarity / temperature - torch.log(denominator)[:, None]
    return -((positive * log_prob).sum(1) / positive.sum(1)).mean()


class PillowAutoAugment:
    """``autoaugment_thesis`` on one PIL image at a time, as a DataLoader's worker would run it."""

    def __init__(self, padding: int = 4) -> None:
        self.padding = padding

    def __call__(self, image: Image.Image) -> Image.Image:
        """PIL to PIL."""
        size = image.size
        image = ImageOps.expand(image, self.padding)
        left, top = (random.randrange(2 * self.padding + 1) for _ in range(2))
        image = image.crop((left, top, left + size[0], top + size[1]))
        if random.random() < 0.5:
            image = ImageOps.mirror(image)
        for op, p, level in random.choice(THESIS):
            if random.random() < p:
                image = self._apply(image, op, level)
        return image

    @staticmethod
    def _apply(image: Image.Image, op: str, level: int) -> Image.Image:
        low, high = _RANGES.get(op, (0.0, 0.0))
        m = random.uniform(low + (high - low) * level / 10, low + (high - low) * (level + 1) / 10)
        width, height = image.size
        affine = {
            "ShearX": (1, m, 0, 0, 1, 0),
            "ShearY": (1, 0, 0, m, 1, 0),
            "TranslateX": (1, 0, m * width, 0, 1, 0),
            "TranslateY": (1, 0, 0, 0, 1, m * height),
        }
        if op in affine:
            return image.transform(image.size, Image.Transform.AFFINE, affine[op])
        if op in ("Contrast", "Color", "Brightness", "Sharpness"):
            return getattr(ImageEnhance, op)(image).enhance(m)
        if op == "Rotate":
            return image.rotate(m)
        if op in ("Solarize", "Posterize"):
            return ImageOps.solarize(image, m) if op == "Solarize" else ImageOps.posterize(image, round(m))
        return {"AutoContrast": ImageOps.autocontrast, "Equalize": ImageOps.equalize, "Invert": ImageOps.invert}[op](
            image
        )


def pillow_simaugment(size: int = 32) -> object:
    """``simaugment`` through torchvision's transforms on PIL images."""
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.RandomResizedCrop(size, (0.2, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
        ]
    )


class PillowViews(torch.utils.data.Dataset[Tensor]):
    """Images [N, H, W, C] as augmented tensors."""

    def __init__(self, images: np.ndarray, transform: object) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image = self.transform(Image.fromarray(self.images[index]))  # type: ignore[operator]
        return torch.from_numpy(np.array(image))


def unit_batch(n: int, d: int = 128, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Random unit rows [N, D] and labels [N]."""
    generator = torch.Generator().manual_seed(n)
    z = F.normalize(torch.randn(n, d, generator=generator), dim=1)
    return z, torch.randint(classes, (n,), generator=generator)
