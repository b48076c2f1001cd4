"""Tuned contrastive loss and supervised contrastive loss, exact, in memory linear in the batch.

SupCon (eq. 3.2) is TCL (eq. 4.2-4.4) at ``k1 = 0, k2 = 1``: one implementation serves both (SPEC section 1).
What an anchor's loss is made of stands in ``_anchors.py``, the walk over the pairs in ``_pairwise.py``, small batches'
short cut in ``_one_tile.py``.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ._anchors import Anchors
from .ranks import ranks


def _full_precision(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()


def _once() -> None:
    """Autograd computes with gradients where it is asked for those of a gradient, which would silently be none."""
    if torch.is_grad_enabled():
        raise RuntimeError("the loss has no second derivative: differentiate it without create_graph=True")


class _PerAnchorLoss(torch.autograd.Function):
    """[A] losses L_i, and how many of these anchors have a positive (None on a GPU)."""

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, labels: Tensor, temperature: float, k1: float, k2: float, gather: bool
    ) -> tuple[Tensor, int | None]:
        with _full_precision(embeddings):
            ctx.anchors = Anchors(embeddings, labels, temperature, k1, k2, gather)
            walk = ctx.anchors.walk(keep=False)
            losses = ctx.anchors.losses(walk)
            walk.release()
        ctx.save_for_backward(embeddings, labels)  # which are read again
        count = ctx.anchors.count
        return losses, None if isinstance(count, Tensor) else count

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: None) -> tuple[Tensor | None, ...]:
        _once()
        embeddings, _ = ctx.saved_tensors
        with _full_precision(upstream):
            walk = ctx.anchors.walk(keep=False)
            gradient = ctx.anchors.gradient(walk, upstream)
            walk.release()
        return gradient.to(embeddings.dtype), None, None, None, None, None


class _ReducedLoss(torch.autograd.Function):
    """Sum or mean of everybody's L_i, times the number of processes, and how many L_i there are (None on a GPU).

    All anchors weigh the same, which forward knows: it computes the gradient while the tiles are in the cache, and
    backward only scales it.
    """

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, labels: Tensor, temperature: float, k1: float, k2: float, gather: bool,
        mean: bool, differentiate: bool,
    ) -> tuple[Tensor, int | None]:  # fmt: skip
        with _full_precision(embeddings):
            anchors = Anchors(embeddings, labels, temperature, k1, k2, gather)
            walk = anchors.walk(keep=differentiate)
            loss = anchors.losses(walk).sum()
            gradient = anchors.gradient(walk, None) if differentiate else None
            walk.release()
            count, world = anchors.count, ranks()[1] if gather else 1
            if world > 1:
                everybody = torch.as_tensor(count, device=loss.device)
                dist.all_reduce(everybody)
                count = everybody if isinstance(count, Tensor) else int(everybody)
            weight: Tensor | float = world
            if mean:
                weight /= count.clamp(min=1).to(loss.dtype) if isinstance(count, Tensor) else max(count, 1)
        ctx.save_for_backward(gradient)
        ctx.weight, ctx.dtype = weight, embeddings.dtype
        return loss.mul_(weight), None if isinstance(count, Tensor) else count

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: None) -> tuple[Tensor | None, ...]:
        _once()
        (gradient,) = ctx.saved_tensors
        return (gradient * (upstream * ctx.weight)).to(ctx.dtype), None, None, None, None, None, None, None


def check_arguments(
    embeddings: Tensor, labels: Tensor, temperature: float, k1: float, k2: float, reduction: str
) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be finite and above 0, got {temperature}")
    if not (math.isfinite(k1) and k1 >= 0):
        raise ValueError(f"k1 must be finite and at least 0, got {k1}")
    if not (math.isfinite(k2) and k2 > 0):
        raise ValueError(f"k2 must be finite and above 0, got {k2}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    if not (isinstance(embeddings, Tensor) and isinstance(labels, Tensor)):
        raise ValueError(f"embeddings and labels must be tensors, got {type(embeddings)} and {type(labels)}")
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ValueError(f"embeddings must be floating point [N, D], got {embeddings.dtype} {list(embeddings.shape)}")
    if labels.ndim != 1 or len(labels) != len(embeddings):
        raise ValueError(f"labels must be [N] with N = {len(embeddings)}, got {list(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers, got {labels.dtype}")


@torch.compiler.disable
def _check_lengths(embeddings: Tensor) -> None:
    if isinstance(embeddings, Tensor) and embeddings.ndim == 2 and embeddings.is_floating_point() and len(embeddings):
        lengths = embeddings.detach().float().norm(dim=1)
        if bool((lengths - 1).abs().max() > 0.05):
            warnings.warn(
                f"the embeddings' lengths are {float(lengths.min()):.2g} to {float(lengths.max()):.2g}, not 1: pass "
                "torch.nn.functional.normalize(embeddings, dim=1)",
                stacklevel=4,
            )


def tuned_contrastive_loss(
    embeddings: Tensor,
    labels: Tensor,
    temperature: float = 0.1,
    k1: float = 5000.0,
    k2: float = 1.0,
    reduction: str = "mean",
    gather: bool = False,
) -> Tensor:
    """Tuned contrastive loss (eq. 4.2-4.4 of the thesis; SPEC section 1).

    ``L_i = -1/|P(i)| sum_p log(exp(z_i.z_p / tau) / D(z_i))`` with
    ``D(z_i) = sum_p exp(z_i.z_p / tau) + k1 sum_p exp(-z_i.z_p) + k2 sum_n exp(z_i.z_n / tau)``.
    At ``k1 = 0, k2 = 1`` it is the supervised contrastive loss (eq. 3.2). The thesis's theorems assume
    ``k1, k2 >= 1``. Computed in float32, or float64 for float64 embeddings, whatever autocast says; extra memory
    grows linearly in N above 2,048 rows, of which all pairs are kept.

    Args:
        embeddings: [N, D] unit-norm rows, all views of the batch.
        labels: [N] integers; rows with the same label are positives of each other. Self-supervised: the image index.
        temperature: tau > 0.
        k1: weight of the hard-positive term, >= 0.
        k2: weight of the negatives, > 0.
        reduction: ``"mean"`` over the anchors that have a positive, ``"sum"``, or ``"none"`` for the L_i themselves,
            [N], 0 for an anchor without a positive.
        gather: compare the own rows with those of every process (the default group). A mean or sum is scaled such
            that the mean over the processes of the loss, and of its gradient, is that of the whole batch.

    Returns:
        A scalar, or [N] for ``"none"``.

    Raises:
        ValueError: a value out of range, wrong shapes, or labels that are no integers.
        RuntimeError: in backward with ``create_graph=True``: there is no second derivative.

    Warns:
        RuntimeWarning: no anchor has a positive; the loss is 0 with a zero gradient. A GPU is silent: asking it would
            empty its queue at every step. So is ``"none"`` with ``gather``, where its zeros tell.
    """
    check_arguments(embeddings, labels, temperature, k1, k2, reduction)
    arguments = embeddings, labels, temperature, k1, k2, gather
    several = gather and ranks()[1] > 1
    if reduction == "none":
        loss, count = _PerAnchorLoss.apply(*arguments)
        count = None if several else count  # of the own anchors
    else:
        # Several processes ask each other for the gradient: all of them do.
        differentiate = torch.is_grad_enabled() and (embeddings.requires_grad or several)
        loss, count = _ReducedLoss.apply(*arguments, reduction == "mean", differentiate)
    if count == 0:
        warnings.warn("no anchor in the batch has a positive: the loss is 0 and has no gradient", RuntimeWarning, 2)
    return loss


class TCLLoss(nn.Module):
    """Tuned contrastive loss as a module; see :func:`tuned_contrastive_loss`.

    When ``torch.distributed`` is initialised with several processes, the own rows are the anchors and everybody's
    rows are what they are compared with; the gradient reaches the other processes' rows too.

    Args:
        temperature: tau > 0.
        k1: weight of the hard-positive term, >= 0. The thesis takes 4000 to 7500 (SPEC section 3) and finds 10^3 to
            10^4 to work best, more worse (section 6).
        k2: weight of the negatives, > 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """

    _looked = False  # at the lengths of a first batch

    def __init__(self, temperature: float = 0.1, k1: float = 5000.0, k2: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        check_arguments(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64), temperature, k1, k2, reduction)
        self.temperature, self.k1, self.k2, self.reduction = temperature, k1, k2, reduction

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """[N, D] unit rows and [N] integer labels to a scalar (or [N]); warns where the first batch is not of them."""
        if not self._looked:  # once: on a GPU it waits for the device
            self._looked = True
            _check_lengths(embeddings)
        several = ranks()[1] > 1
        return tuned_contrastive_loss(embeddings, labels, self.temperature, self.k1, self.k2, self.reduction, several)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, k1={self.k1}, k2={self.k2}, reduction={self.reduction!r}"


class SupConLoss(TCLLoss):
    """Supervised contrastive loss (eq. 3.2): :class:`TCLLoss` at ``k1 = 0, k2 = 1``."""

    def __init__(self, temperature: float = 0.1, reduction: str = "mean") -> None:
        super().__init__(temperature, 0.0, 1.0, reduction)
