"""Linear and kNN evaluation of any timm model on frozen features.

The encoder is in eval() mode throughout: in train() mode its batch norm would go on learning from the probe's
images, and the figure would no longer be that of the weights on disk (SPEC section 3).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batches import Batches
from .datasets import FolderSplit, Split
from .features import features, frozen, normaliser, pooled
from .progress import progress
from .recipes import Recipe

PROTOCOLS = ("cached", "thesis")
# SGD of the thesis protocol (SPEC section 3), whatever the encoder was trained with.
_MOMENTUM, _WEIGHT_DECAY = 0.9, 1e-4
_STEPS_PER_FORWARD = 16  # of the thesis protocol: the encoder is frozen, so it may see several steps' images at once


@dataclass(frozen=True)
class ProbeResult:
    """What a probe measured.

    Attributes:
        top1: percent of the test images.
        n: number of test images.
        protocol: ``cached``, ``thesis`` or ``knn<k>``.
        predictions: [n] int64 predicted classes, on the CPU.
        classifier: the fitted linear layer on raw pooled features; None for kNN.
        seconds: wall time, features included.
    """

    top1: float
    n: int
    protocol: str
    predictions: Tensor
    classifier: nn.Linear | None
    seconds: float


def fit_linear(inputs: Tensor, labels: Tensor, num_classes: int, C: float = 1.0, max_iter: int = 500) -> nn.Linear:
    """Multinomial logistic regression by full-batch L-BFGS, on standardised features.

    The objective is scikit-learn's ``LogisticRegression(C=C)`` on the same standardised features, so that the
    optimum is its too; the standardisation is folded into the layer, which takes the raw features.

    Args:
        inputs: [N, d] features.
        labels: [N] int64 below ``num_classes``.
        num_classes: outputs.
        C: inverse strength of the L2 penalty on the weights (the bias is free).
        max_iter: L-BFGS iterations at most.
    """
    mean, std = inputs.mean(0), inputs.std(0, correction=0)
    std = torch.where(std > 1e-6 * inputs.abs().max(), std, torch.ones_like(std))
    scaled = (inputs - mean) / std
    weight = torch.zeros(num_classes, inputs.shape[1], device=inputs.device, dtype=inputs.dtype, requires_grad=True)
    bias = torch.zeros(num_classes, device=inputs.device, dtype=inputs.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=max_iter, tolerance_grad=1e-6, tolerance_change=1e-9, history_size=20,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(scaled, weight, bias), labels)
        loss = loss + weight.square().sum() / (2 * C * len(labels))
        loss.backward()
        bar.update()
        return loss

    most = max_iter * 5 // 4  # evaluations that torch's L-BFGS allows itself; it ends sooner
    with torch.enable_grad(), progress(most, "fit", "evaluation") as bar:
        optimizer.step(closure)
    kind = {"device": inputs.device, "dtype": inputs.dtype}
    linear = nn.utils.skip_init(nn.Linear, inputs.shape[1], num_classes, **kind)  # no random numbers are drawn
    with torch.no_grad():
        linear.weight.copy_(weight / std)
        linear.bias.copy_(bias - linear.weight @ mean)
    return linear.requires_grad_(False)


def _fit_thesis(
    model: nn.Module,
    train: Split | FolderSplit,
    recipe: Recipe,
    device: torch.device | str,
    workers: int,
) -> nn.Linear:
    """SPEC section 3: SGD on augmented views of the frozen encoder, 50 epochs, cosine from lr 0.5."""
    augmentation = recipe.probe_augmentation or recipe.augmentation
    normalise = normaliser(model.pretrained_cfg, device)  # type: ignore[arg-type]
    batches = Batches(
        train, normalise, augmentation, recipe.crop_padding, 1, recipe.probe_batch, recipe.seed + 1, device,
        workers=workers,
    )  # fmt: skip
    forward = pooled(model)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed + 1)
        linear = nn.Linear(int(model.num_features), len(train.classes))  # type: ignore[arg-type]
    linear = linear.to(device)
    optimizer = torch.optim.SGD(linear.parameters(), recipe.probe_lr, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY)
    low = recipe.probe_lr * recipe.lr_min_factor
    bar = progress(recipe.probe_epochs * batches.steps, "linear probe", "step")
    with bar:
        for epoch in range(recipe.probe_epochs):
            cosine = 0.5 * (1 + math.cos(math.pi * epoch / recipe.probe_epochs))
            optimizer.param_groups[0]["lr"] = low + (recipe.probe_lr - low) * cosine
            steps = cast("Iterator[tuple[Tensor, Tensor]]", batches.epoch(epoch))
            while group := list(itertools.islice(steps, _STEPS_PER_FORWARD)):
                with torch.no_grad():
                    inputs = forward(torch.cat([views for views, _ in group])).float()
                for part, (_, labels) in zip(inputs.chunk(len(group)), group, strict=True):
                    with torch.enable_grad():
                        loss = F.cross_entropy(linear(part), labels)
                        loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                bar.update(len(group))
    return linear.requires_grad_(False)


def linear_probe(
    model: nn.Module,
    train: Split | FolderSplit,
    test: Split | FolderSplit,
    *,
    protocol: str = "cached",
    C: float = 1.0,
    recipe: Recipe | None = None,
    device: torch.device | str | None = None,
    extracted: tuple[Tensor, Tensor] | None = None,
    workers: int = 2,
) -> ProbeResult:
    """Top-1 of a linear classifier on frozen features.

    Args:
        model: any timm model; its own classifier is not used.
        train: images to fit on.
        test: images to measure on.
        protocol: ``cached``: features once, then a full-batch fit; ``thesis``: 50 epochs of SGD on augmented views.
        C: inverse regularisation of the cached fit.
        recipe: augmentation and schedule of the thesis protocol, which needs it.
        device: where to compute; the model's own where not given.
        extracted: :func:`features` of ``train`` and ``test``, where they were computed before.
        workers: DataLoader workers of a streamed folder.

    Raises:
        ValueError: unknown protocol, or ``thesis`` without a recipe.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    started = time.monotonic()
    device = device or next(model.parameters()).device
    if protocol == "cached":
        inputs = extracted[0] if extracted else features(model, train, device, "train features", workers)
        classifier = fit_linear(inputs, train.labels.to(device), len(train.classes), C)
    else:
        if recipe is None:
            raise ValueError("the thesis protocol needs the recipe whose augmentation and schedule it follows")
        with frozen(model):
            classifier = _fit_thesis(model, train, recipe, device, workers)
    outputs = extracted[1] if extracted else features(model, test, device, "test features", workers)
    predictions = classifier(outputs).argmax(1).cpu()
    return _result(predictions, test, protocol, classifier, started)


def knn_probe(
    model: nn.Module,
    train: Split | FolderSplit,
    test: Split | FolderSplit,
    *,
    k: int | Sequence[int] = (20, 200),
    temperature: float = 0.07,
    device: torch.device | str | None = None,
    extracted: tuple[Tensor, Tensor] | None = None,
) -> list[ProbeResult]:
    """Top-1 of the weighted k nearest neighbours by cosine similarity, each vote ``exp(similarity / temperature)``.

    Args:
        model: any timm model.
        train: the neighbours.
        test: images to measure on.
        k: one or several numbers of neighbours; more than there are means all.
        temperature: of the votes (Wu et al. 2018 use 0.07).
        device: where to compute; the model's own where not given.
        extracted: :func:`features` of ``train`` and ``test``, where they were computed before.

    Returns:
        A result per k.
    """
    started = time.monotonic()
    device = device or next(model.parameters()).device
    ks = [k] if isinstance(k, int) else list(k)
    if extracted is None:
        extracted = (
            features(model, train, device, "train features"),
            features(model, test, device, "test features"),
        )
    bank, queries = (F.normalize(x, dim=1) for x in extracted)
    labels = train.labels.to(device)
    predictions: dict[int, list[Tensor]] = {number: [] for number in ks}
    for part in queries.split(1000):
        similarity, index = (part @ bank.T).topk(min(max(ks), len(bank)), dim=1)
        votes = torch.exp((similarity - similarity[:, :1]) / temperature)
        for number in ks:
            counts = torch.zeros(len(part), len(train.classes), device=device)
            counts.scatter_add_(1, labels[index[:, :number]], votes[:, :number])
            predictions[number].append(counts.argmax(1).cpu())
    return [_result(torch.cat(predictions[number]), test, f"knn{number}", None, started) for number in ks]


def _result(
    predictions: Tensor, test: Split | FolderSplit, protocol: str, classifier: nn.Linear | None, started: float
) -> ProbeResult:
    top1 = 100 * float((predictions == test.labels.cpu()).double().mean())
    return ProbeResult(top1, len(predictions), protocol, predictions, classifier, time.monotonic() - started)
