"""A model with everything around it: files in, features or label names out. Ours, a release folder, or timm's."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from .downstream_models import located, open_model
from .errors import DataError, WeightsError
from .features import default_device, frozen, pooled
from .images import batched, read, reason, shown
from .memory import give_back_freed
from .models import transform_of
from .splits import loader

_TRIM_EVERY = 16  # batches


@dataclass(frozen=True)
class Pipeline:
    """A frozen model, its transform and its label names; made by :func:`pipeline`.

    Attributes:
        name: what was asked for.
        model: the timm model, in eval() mode on ``device``.
        transform: PIL image to model input [C, S, S].
        mode: "RGB", or "L" for a model of gray images.
        labels: K names of the classifier's outputs; empty where it has none.
        device: where it computes.
    """

    name: str
    model: nn.Module
    transform: Any
    mode: str
    labels: tuple[str, ...]
    device: torch.device

    def predict(self, image: Any, top: int = 5) -> list[tuple[str, float]]:
        """(label, probability in 0..1) of the ``top`` likeliest classes of one image, likeliest first.

        Args:
            image: a path, or a PIL image.
            top: from 1 on; at most all classes are given.

        Raises:
            DataError: a file that does not decode, or a ``top`` below 1.
            WeightsError: a model without a classifier.
        """
        if top < 1:
            raise DataError(f"top is a number of classes from 1 on, got {top}")
        if not self.labels:
            raise WeightsError(f"{self.name} has no classifier: embed with it, or fine-tune it")
        if isinstance(image, (str, os.PathLike)):
            try:
                image = read(image, self.mode)
            except Exception as error:  # whatever the first bad byte of a damaged file meets
                raise DataError(f"{shown(os.fspath(image))} does not decode: {reason(error)}") from error
        with frozen(self.model):
            logits = self.model(self.transform(image)[None].to(self.device)).float()
        likeliest = logits.softmax(1)[0].topk(min(top, len(self.labels)))
        indices, values = likeliest.indices.tolist(), likeliest.values.tolist()
        return [(self.labels[i], p) for i, p in zip(indices, values, strict=True)]

    def embed(
        self, paths: str | os.PathLike[str] | Iterable[str], batch_size: int = 64, workers: int = 0
    ) -> Iterator[tuple[Tensor, list[str | None]]]:
        """Pooled features of image files, a batch at a time, in order.

        Nothing but ``batch_size`` images and ``2 * workers`` batches ahead is ever held.

        Args:
            paths: of one file, or of any number of them; read as they are needed. :func:`tcl_zoo.images.find` has
                those of a folder.
            batch_size: files at a time.
            workers: processes that decode.

        Yields:
            Float32 [n, d] on the CPU, unnormalised, of those that decode; and for every file of the batch None, or
            why it does not.

        Raises:
            DataError: a ``batch_size`` below 1.
        """
        if batch_size < 1:
            raise DataError(f"batch_size is from 1 on, got {batch_size}")
        paths = [os.fspath(paths)] if isinstance(paths, (str, os.PathLike)) else paths
        files = _Files(self.transform, self.mode)
        batches = loader(files, batched(paths, batch_size), workers, self.device, _collate)
        forward = pooled(self.model)
        for number, (images, reasons) in enumerate(batches):
            if number % _TRIM_EVERY == 0:
                give_back_freed()
            if len(images):
                with frozen(self.model):
                    images = forward(images.to(self.device, non_blocking=True)).float().cpu()
            yield images, reasons

    def width(self) -> int:
        """d: the length of one image's features."""
        from PIL import Image

        try:
            with frozen(self.model):
                return pooled(self.model)(self.transform(Image.new("RGB", (8, 8)))[None].to(self.device)).shape[1]
        except NotImplementedError:  # timm's encoders of language models
            raise WeightsError(f"{self.name} gives no features of a whole image") from None

    def preparation(self) -> str:
        """Digest of how images are prepared: the same for two pipelines that see the same."""
        cfg: dict[str, Any] = self.model.pretrained_cfg  # type: ignore[assignment]
        keys = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
        return hashlib.sha256(json.dumps([cfg.get(key) for key in keys]).encode()).hexdigest()[:16]

    def fingerprint(self) -> str:
        """Sha256 of the weights: the same for two pipelines that say the same."""
        digest = hashlib.sha256()
        for key, value in self.model.state_dict().items():
            digest.update(key.encode() + b"\0" + value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def pipeline(
    name: str | os.PathLike[str],
    weights_dir: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    pretrained: bool = True,
    sha256: str | None = None,
) -> Pipeline:
    """Loads a model with its transform and its label names.

    Args:
        name: a name of this zoo, ``hf-hub:ORG/NAME`` or ``local-dir:PATH``; the path of a release or run folder; or
            any timm model, ``architecture[.tag]``.
        weights_dir: a release folder, or a folder of them.
        device: a GPU where there is one, if not given.
        pretrained: False for random weights.
        sha256: of ``model.safetensors`` of a release: nothing else is loaded.

    Raises:
        RecipeError: a name that neither this zoo nor timm knows.
        WeightsError: no weights, or not those that were released.
    """
    from timm.data import resolve_model_data_config

    device = default_device(device)
    model = open_model(name, pretrained=pretrained, weights_dir=weights_dir, sha256=sha256)
    transform = transform_of(resolve_model_data_config(model))
    mode = "L" if model.pretrained_cfg["input_size"][0] == 1 else "RGB"  # type: ignore[index]
    return Pipeline(located(name, weights_dir).name, model.to(device).eval(), transform, mode, _labels(model), device)


def predict(
    name: str | os.PathLike[str],
    image: Any,
    top: int = 5,
    weights_dir: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    sha256: str | None = None,
) -> list[tuple[str, float]]:
    """What a model sees in one image: (label, probability in 0..1), likeliest first.

    For many images load once: :func:`pipeline`, then :meth:`Pipeline.predict`.

    Args:
        name: as for :func:`pipeline`.
        image: a path, or a PIL image of any mode and size.
        top: how many labels.
        weights_dir: a release folder, or a folder of them.
        device: a GPU where there is one, if not given.
        sha256: as for :func:`pipeline`.

    Raises:
        RecipeError: unknown name.
        WeightsError: no weights, or a model without a classifier.
        DataError: a file that does not decode.
    """
    return pipeline(name, weights_dir, device, sha256=sha256).predict(image, top)


def _labels(model: Any) -> tuple[str, ...]:
    """Of the weights' own configuration, of ImageNet where timm knows the model's, or numbers."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    count = int(model.num_classes)
    names = model.pretrained_cfg.get("label_names")
    if names and len(names) == count:
        return tuple(map(str, names))
    if subset := infer_imagenet_subset(model):
        info = ImageNetInfo(subset)
        return tuple(info.index_to_description(i) for i in range(count))
    return tuple(f"class {i}" for i in range(count))


# What says of the disk, the network or this process that it fails, and nothing of the file.
_FAILING = {
    getattr(errno, name, -1)
    for name in (
        "EIO", "ENXIO", "ENODEV", "ESTALE", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "EREMOTEIO",
        "EMFILE", "ENFILE", "ENOMEM",
    )
}  # fmt: skip


class _Files(Dataset[Any]):
    """By path: the model input, or why there is none.

    A disk that is gone stops the run, which can go on later; its files are not taken for damaged ones.
    """

    def __init__(self, transform: Any, mode: str) -> None:
        self.transform, self.mode = transform, mode

    def __getitem__(self, path: str) -> Tensor | str:
        try:
            return self.transform(read(path, self.mode))
        except MemoryError:
            raise DataError(f"no memory left to decode {shown(path)}: fewer --workers") from None
        except OSError as error:
            if error.errno in _FAILING or not os.path.isdir(os.path.dirname(path) or "."):
                raise DataError(f"cannot go on reading at {shown(path)}: {reason(error)}") from None
            return reason(error)
        except Exception as error:  # whatever the first bad byte of a damaged file meets
            return reason(error)


def _collate(items: list[Tensor | str]) -> tuple[Tensor, list[str | None]]:
    images = [item for item in items if isinstance(item, Tensor)]
    reasons = [item if isinstance(item, str) else None for item in items]
    return torch.stack(images) if images else torch.empty(0), reasons


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
