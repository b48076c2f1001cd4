"""Re-measure a release on the test split and hold it against its card."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .downstream import fit, load_known
from .errors import WeightsError
from .features import confusion_counts, default_device, normaliser, predict
from .models import create_model
from .places import find
from .splits import FolderSplit, Split, subset
from .weights import locate

# Of 10,000 images: another device rounds a logit otherwise and a tie falls the other way.
TOLERANCE_IMAGES = 2
TOLERANCE_GOLDEN = 1e-3


@dataclass(frozen=True)
class Altered:
    """What a card says of test images that its copy of the data set has otherwise than everybody else's.

    Attributes:
        images: their indices; at most one in a hundred.
        fingerprint: of the other test images.
        n: how many others there are.
        hits: how many of these the released weights have right.
    """

    images: list[int]
    fingerprint: str
    n: int
    hits: int

    def __post_init__(self) -> None:
        known = sorted(set(self.images)) == self.images and all(type(i) is int and i >= 0 for i in self.images)
        if not known or not 0 < len(self.images) <= self.n / 99 or not 0 <= self.hits <= self.n:
            raise ValueError("altered images that are none, or too many of them")

    def hold(self, top1: float) -> None:
        """Raises ValueError where a top-1 in percent of all images is not possible with what the others have."""
        right = top1 / 100 * (self.n + len(self.images))
        if not self.hits - 0.5 <= right <= self.hits + len(self.images) + 0.5:
            raise ValueError(f"a top-1 of {top1:.2f} %, which {self.hits} of {self.n} unaltered images contradict")

    def others(self, test: Split | FolderSplit) -> Split | FolderSplit | None:
        """The other images of a test split, where they are the card's."""
        if len(test) != self.n + len(self.images) or self.images[-1] >= len(test):
            return None
        part = subset(test, without(len(test), self.images))
        return part if part.fingerprint() == self.fingerprint else None


def without(n: int, indices: Sequence[int]) -> Tensor:
    """The indices [n - len(indices)] below ``n`` that are not among those given."""
    kept = torch.ones(n, dtype=torch.bool)
    kept[torch.as_tensor(indices, dtype=torch.int64)] = False
    return kept.nonzero()[:, 0]


@dataclass(frozen=True)
class Verification:
    """What was reported, what was measured, and whether they agree.

    Attributes:
        name: the verified name.
        reported: top-1 in percent on the card.
        measured: top-1 in percent, just now.
        n: test images that were measured.
        hits: how many of them are right.
        left_out: test images that were not measured, as the card's copy of the data set has them otherwise; the
            reported top-1 is that of the others, too.
        same_data: whether the test images are those of the card, by fingerprint. Other images are measured but
            neither confirm nor refute its top-1.
        golden: largest difference between the logits of the four golden inputs and the card's.
        ok: the card holds: the same test images, top-1 within 2 images in 10,000 (at least 1), golden output within
            1e-3.
        predictions: [n] predicted classes; ``labels`` [n] and ``classes`` go with it.
        fingerprint: of the images that were measured, as the data set has them.
    """

    name: str
    reported: float
    measured: float
    n: int
    hits: int
    left_out: int
    same_data: bool
    golden: float
    ok: bool
    predictions: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    fingerprint: str

    def against(self, other: Verification) -> tuple[int, int] | None:
        """How many images this model alone has right, and how many the other alone; None where they saw others."""
        if self.fingerprint != other.fingerprint:
            return None
        ours, theirs = self.predictions == self.labels, other.predictions == other.labels
        return int((ours & ~theirs).sum()), int((theirs & ~ours).sum())

    def confusion(self) -> Tensor:
        """[classes, classes] counts, true class by row."""
        return confusion_counts(self.labels, self.predictions, len(self.classes))

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
    with torch.no_grad():
        return model.cpu().eval()(normaliser(cfg)(golden_inputs(channels, size)))


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
        name: a released name, ``hf-hub:org/name[@revision]``, ``local-dir:PATH`` or the path of a release folder.
        data_dir: where the data set is; see :func:`tcl_zoo.datasets.load`.
        weights_dir: a release folder, or a folder of them.
        revision, cache_dir, sha256: as for :func:`tcl_zoo.create_model`.
        device: where to compute; a GPU where there is one.
        download: let torchvision fetch a missing data set.

    Raises:
        WeightsError: no weights, not those released, or a card that lacks what is compared.
        DataError: the data set is missing or damaged.
    """
    name, weights_dir, run = find(name, weights_dir)
    if run is not None:
        what = f"{run} has no card to verify: python scripts/publish.py --run-dir {run} makes that of a recipe"
        raise WeightsError(f"{what} as it is named; what this run reached: tcl-zoo info {run}")
    release = locate(name, weights_dir, revision, cache_dir, sha256)
    facts = release.config["tcl_zoo"]
    if "parent" in facts and "dataset" not in facts["recipe"]:
        raise WeightsError(f"{name} was fine-tuned on a folder of images: verify measures on the known data sets alone")
    try:
        dataset, reported = facts["recipe"]["dataset"], float(facts["results"]["top1"])
        fingerprint, golden = facts["fingerprints"]["test"], torch.tensor(facts["golden"]["logits"])
        altered = Altered(**facts["altered"]) if "altered" in facts else None
        if altered:
            altered.hold(reported)
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise WeightsError(f"{release.folder}/config.json lacks what verify compares: {error}") from None
    if release.source == "hub":
        # The commit that was read, whatever revision was named: a branch may move.
        name, revision = name.partition("@")[0], release.folder.name
    model = create_model(name, True, None, weights_dir, revision, cache_dir, release.sha256)
    ours = golden_output(model, release.config["pretrained_cfg"])
    difference = float((ours - golden).abs().max()) if ours.shape == golden.shape else float("inf")
    images = load_known(dataset, data_dir, "test", download)
    test, measured, left_out = fit(images, release.config["pretrained_cfg"]), images.fingerprint(), 0
    same = test.fingerprint() == fingerprint
    if not same and altered and (others := altered.others(test)):
        test, same, left_out, reported = others, True, len(altered.images), 100 * altered.hits / altered.n
        measured = altered.fingerprint
    device = default_device(device)
    predictions = predict(model.to(device), test).argmax(1)
    labels = test.labels.cpu()
    hits, n = int((predictions == labels).sum()), len(labels)
    close = abs(hits - reported / 100 * n) <= math.ceil(TOLERANCE_IMAGES * n / 10_000) + 1e-6
    ok = difference <= TOLERANCE_GOLDEN and close and same
    return Verification(
        name, reported, 100 * hits / n, n, hits, left_out, same, difference, ok, predictions, labels, test.classes,
        measured,
    )  # fmt: skip


def plot_confusion(verification: Verification, path: str | os.PathLike[str]) -> None:
    """Writes the confusion matrix as a PNG, in percent of the true class."""
    from .pictures import confusion

    counts = verification.confusion()
    title = f"{verification.name}: {int(counts.sum()):,} test images"
    confusion(counts, verification.classes, title, Path(path))
