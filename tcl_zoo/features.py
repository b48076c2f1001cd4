"""What a frozen model says of a split: pooled features and logits, in order, in bounded memory.

The model is in eval() mode throughout: in train() mode its batch norm would go on learning from the images, and a
figure would no longer be that of the weights on disk (SPEC section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .progress import progress
from .splits import FolderSplit, Split, loader

Normaliser = Callable[[Tensor], Tensor]


def normaliser(cfg: Mapping[str, Any], device: torch.device | str = "cpu", resize: bool = True) -> Normaliser:
    """uint8 [N, C, H, W] to float32 in channels_last as a ``pretrained_cfg`` says (SPEC section 4).

    Gray images are repeated for a colour model, colour ones turned to luma for a gray one; other sizes are resized
    (bilinear, antialiased) only where the model's stem needs it, that is from 64 pixels on, and never without
    ``resize``: views in training have sizes of their own.
    """
    channels, side = cfg["input_size"][0], cfg["input_size"][-1]
    mean, std = (torch.tensor(cfg[key], device=device).view(1, -1, 1, 1) for key in ("mean", "std"))
    scale, offset = 1 / (255 * std), -mean / std

    def normalise(images: Tensor) -> Tensor:
        images = images.to(memory_format=torch.channels_last).float()
        if channels == 3 and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        elif channels == 1 and images.shape[1] == 3:
            images = (images * torch.tensor([0.299, 0.587, 0.114], device=images.device)[:, None, None]).sum(1, True)
        if resize and side >= 64 and images.shape[-1] != side:
            images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
        return torch.addcmul(offset, images, scale).contiguous(memory_format=torch.channels_last)

    return normalise


def default_device(asked: torch.device | str | None = None) -> torch.device:
    """The device that was asked for; else a GPU where there is one."""
    return torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))


def confusion_counts(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """[classes, classes] counts of two [N] of class indices, true class by row."""
    return torch.bincount(labels * classes + predictions, minlength=classes**2).view(classes, classes)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """eval(), no gradients, and float32 that is not rounded to TF32: figures are to hold on any device."""
    training = model.training
    model.eval()
    try:
        kept = {key: getattr(torch.backends.cudnn, key) for key in ("benchmark", "deterministic")}
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False, **kept):
            yield
    finally:
        model.train(training)


def extract(
    forward: Callable[[Tensor], Tensor],
    split: Split | FolderSplit,
    normalise: Normaliser,
    device: torch.device | str,
    batch_size: int = 500,
    workers: int = 2,
    desc: str = "features",
) -> Tensor:
    """``forward`` of every image in the split's order, float32 [N, ...] on ``device``."""
    outputs = []
    bar = progress(len(split), desc, "image", leave=False)
    with bar:
        for images in _parts(split, batch_size, workers, device):
            outputs.append(forward(normalise(images.to(device, non_blocking=True))).float())
            bar.update(len(images))
    return torch.cat(outputs)


def _parts(split: Split | FolderSplit, batch_size: int, workers: int, device: torch.device | str) -> Iterator[Tensor]:
    """The images in order, uint8 [up to batch_size, C, H, W] at a time."""
    if isinstance(split, Split):
        yield from split.images.split(batch_size)
        return
    indices = [part.tolist() for part in torch.arange(len(split)).split(batch_size)]
    for views, _, _ in loader(split, indices, workers, device):
        yield views[:, 0]


def pooled(model: Any) -> Callable[[Tensor], Tensor]:
    """timm's pooled features [N, d]: what stands before the classifier."""
    return lambda images: model.forward_head(model.forward_features(images), pre_logits=True)


def features(
    model: nn.Module,
    split: Split | FolderSplit,
    device: torch.device | str | None = None,
    desc: str = "features",
    workers: int = 2,
) -> Tensor:
    """Unnormalised pooled features [N, d], float32, of an unaugmented split.

    Args:
        model: any timm model, with or without a classifier.
        split: the images.
        device: where to compute; the model's own where not given.
        desc: what the progress bar says.
        workers: DataLoader workers of a streamed folder.
    """
    device = device or next(model.parameters()).device
    with frozen(model):
        prepare = normaliser(model.pretrained_cfg, device)  # type: ignore[arg-type]
        return extract(pooled(model), split, prepare, device, workers=workers, desc=desc)


def predict(
    model: nn.Module,
    split: Split | FolderSplit,
    device: torch.device | str | None = None,
    workers: int = 2,
) -> Tensor:
    """Logits [N, classes] of the model's own classifier, on the CPU; arguments as of :func:`features`."""
    device = device or next(model.parameters()).device
    with frozen(model):
        prepare = normaliser(model.pretrained_cfg, device)  # type: ignore[arg-type]
        return extract(model, split, prepare, device, workers=workers, desc="test images").cpu()
