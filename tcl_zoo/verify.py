"""Re-measure a release on the test split and hold it against its card."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .downstream import fit, load_known
from .errors import WeightsError
from .features import predict
from .models import create_model
from .weights import locate

# Of 10,000 images: another device rounds a logit otherwise and a tie falls the other way.
TOLERANCE_IMAGES = 2
TOLERANCE_GOLDEN = 1e-3


@dataclass(frozen=True)
class Verification:
    """What was reported, what was measured, and whether they agree.

    Attributes:
        name: the verified name.
        reported: top-1 in percent on the card.
        measured: top-1 in percent, just now.
        n: test images.
        hits: how many of them are right.
        same_data: whether the test images are those of the card, by fingerprint. Other images are measured but
            neither confirm nor refute its top-1.
        golden: largest difference between the logits of the four golden inputs and the card's.
        ok: the card holds: the same test images, top-1 within 2 images in 10,000 (at least 1), golden output within
            1e-3.
        predictions: [n] predicted classes; ``labels`` [n] and ``classes`` go with it.
    """

    name: str
    reported: float
    measured: float
    n: int
    hits: int
    same_data: bool
    golden: float
    ok: bool
    predictions: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def confusion(self) -> Tensor:
        """[classes, classes] counts, true class by row."""
        k = len(self.classes)
        return torch.bincount(self.labels * k + self.predictions, minlength=k * k).view(k, k)

    def per_class(self) -> list[tuple[str, int, float]]:
        """(class, test images, recall in percent) of every class."""
        counts = self.confusion()
        totals = counts.sum(1)
        recall = 100 * counts.diagonal() / totals.clamp(min=1)
        return list(zip(self.classes, totals.tolist(), recall.tolist(), strict=True))


def golden_inputs(channels: int, size: int) -> Tensor:
    """Four fixed images uint8 [4, C, S, S], the same on every machine: integer arithmetic, no generator."""
    i = torch.arange(4 * channels * size * size, dtype=torch.int64)
    return ((i * 2654435761 % 4294967296) >> 13).remainder(256).to(torch.uint8).view(4, channels, size, size)


def golden_output(model: nn.Module, cfg: dict[str, Any]) -> Tensor:
    """Logits [4, classes] of :func:`golden_inputs`, on the CPU in float32."""
    channels, size, _ = cfg["input_size"]
    mean, std = (torch.tensor(cfg[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        return model.cpu().eval()((golden_inputs(channels, size).float() / 255 - mean) / std)


def verify(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    weights_dir: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
    device: torch.device | str | None = None,
    download: bool = False,
) -> Verification:
    """Measures a released model on its test split.

    Args:
        name: a released name.
        data_dir: where the data set is; see :func:`tcl_zoo.datasets.load`.
        weights_dir: a release folder, or a folder of them.
        revision, cache_dir, sha256: as for :func:`tcl_zoo.create_model`.
        device: where to compute; a GPU where there is one.
        download: let torchvision fetch a missing data set.

    Raises:
        WeightsError: no weights, not those released, or a card that lacks what is compared.
        DataError: the data set is missing or damaged.
    """
    release = locate(name, weights_dir, revision, cache_dir, sha256)
    facts = release.config["tcl_zoo"]
    try:
        dataset, reported = facts["recipe"]["dataset"], float(facts["results"]["top1"])
        fingerprint, golden = facts["fingerprints"]["test"], torch.tensor(facts["golden"]["logits"])
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise WeightsError(f"{release.folder}/config.json lacks what verify compares: {error}") from None
    model = create_model(name, True, None, weights_dir, revision, cache_dir, sha256)
    ours = golden_output(model, release.config["pretrained_cfg"])
    difference = float((ours - golden).abs().max()) if ours.shape == golden.shape else float("inf")
    test = fit(load_known(dataset, data_dir, "test", download), release.config["pretrained_cfg"])
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    predictions = predict(model.to(device), test).argmax(1)
    labels = test.labels.cpu()
    hits, n = int((predictions == labels).sum()), len(labels)
    same = test.fingerprint() == fingerprint
    close = abs(hits - reported / 100 * n) <= max(1.0, TOLERANCE_IMAGES * n / 10_000) + 1e-6
    ok = difference <= TOLERANCE_GOLDEN and close and same
    return Verification(
        name, reported, 100 * hits / n, n, hits, same, difference, ok, predictions, labels, test.classes
    )  # fmt: skip


def plot_confusion(verification: Verification, path: str | os.PathLike[str]) -> None:
    """Writes the confusion matrix as a PNG, in percent of the true class."""
    from .pictures import confusion

    counts = verification.confusion()
    title = f"{verification.name}: {int(counts.sum()):,} test images"
    confusion(counts, verification.classes, title, Path(path))
