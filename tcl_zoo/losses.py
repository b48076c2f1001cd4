"""Tuned contrastive loss and supervised contrastive loss, exact, in memory linear in the batch.

SupCon (eq. 3.2) is TCL (eq. 4.2-4.4) at ``k1 = 0, k2 = 1``: one implementation serves both (SPEC section 1).
How it walks over the pairs is in ``_pairwise.py``.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ._pairwise import TILE, Batch, Terms, Walk
from .ranks import Shares, ranks

# exp(+-_RANGE), and sums of it, are safe in float32 (its exponents end at 88.7).
_RANGE = 70.0


def _arranged(
    rows: Tensor, labels: Tensor, temperature: float, k1: float, k2: float, shares: Shares | None
) -> tuple[Batch, Tensor | None, Tensor | None]:
    """The batch sorted by label, the order of the own anchors [A] and that of everybody's [N].

    Batches of one tile, and all on a GPU, stay as they are: no orders.
    """
    columns, everybody, own = rows, labels, slice(0, len(rows))
    if shares is not None:
        columns, everybody, own = shares.gather(rows), shares.gather(labels), shares.own
    if rows.device.type == "cpu":
        everybody = _as_floats(everybody)  # which are compared in an eighth of the time
    row_class, column_class = everybody[own], everybody
    index = None if shares is None else torch.arange(own.start, own.stop, device=rows.device)
    row_order = order = None
    ordered = rows.device.type == "cpu" and len(columns) > TILE
    if ordered:
        column_class, order = everybody.sort(stable=True)
        columns = columns[order]
        if index is None:
            row_class, row_order, rows = column_class, order, columns
        else:
            row_class, row_order = row_class.sort(stable=True)
            rows, index = rows[row_order], _put_back(torch.arange(len(order)), order)[index[row_order]]
    batch = Batch(rows, columns, row_class, column_class, index, temperature, k1, k2, ordered)
    return batch, row_order, order


def _as_floats(labels: Tensor) -> Tensor:
    """[N] float32 numbers that are equal where the labels are."""
    if labels.shape[0] == 0:
        return labels.float()
    labels = labels.long()
    low, high = labels.aminmax()
    if int(low) >= -(1 << 24) and int(high) <= 1 << 24:  # float32 holds all these integers
        return labels.float()
    return labels.unique(return_inverse=True)[1].float()


def _put_back(values: Tensor, order: Tensor | None) -> Tensor:
    """What was computed in ``order``, in the order of the caller's rows."""
    return values if order is None else torch.empty_like(values).index_copy_(0, order, values)


def _needs_shift(batch: Batch) -> bool:
    """Whether exponents may leave float32's range. A GPU is not asked for the rows' norms: it shifts always."""
    columns = batch.columns
    if columns.shape[0] == 0 or columns.device.type != "cpu":
        return columns.shape[0] > 0
    bound = float(torch.linalg.vecdot(columns, columns).max())
    largest = max(abs(math.log(k)) for k in (batch.k1 or 1.0, batch.k2))
    return not bound / batch.temperature + bound + largest < _RANGE


class _Anchors:
    """L_i of this process's anchors against everybody's embeddings, and the gradient of a weighted sum of all L_i.

    Attributes:
        losses: [A] L_i in the order of ``embeddings``, 0 for an anchor without a positive.
        positives: [A] how many positives each has, in some order.
    """

    def __init__(
        self, embeddings: Tensor, labels: Tensor, temperature: float, k1: float, k2: float, gather: bool
    ) -> None:
        rows = embeddings.detach().to(torch.promote_types(embeddings.dtype, torch.float32)).contiguous()
        self._shares = Shares(rows) if gather and ranks()[1] > 1 else None
        batch, self._row_order, self._order = _arranged(rows, labels, temperature, k1, k2, self._shares)
        self._walk = Walk(batch)
        self._shift = self._walk.largest() if _needs_shift(batch) else None
        if self._shift is not None:
            self._shift.masked_fill_(self._shift == -math.inf, 0.0)
        denominator, attraction, self.positives = self._walk.sums(self._shift)
        # A row without positives has no loss, finite or not.
        alone = self.positives == 0
        self._scale = denominator.reciprocal().masked_fill_(alone, 0.0)
        self._pull = self.positives.clamp(min=1).reciprocal_()
        losses = denominator.log_().addcmul_(attraction, self._pull, value=-1)
        if self._shift is not None:
            losses += self._shift
        self.losses = _put_back(losses.masked_fill_(alone, 0.0), self._row_order)

    def gradient(self, weight: Tensor | None) -> Tensor:
        """[A, D] gradient of the sum of everybody's weight * L with respect to the own embeddings.

        Args:
            weight: [A] of the own anchors; None: 1 for everybody's.
        """
        scale, pull = self._scale, self._pull
        if weight is not None:
            weight = weight if self._row_order is None else weight[self._row_order]
            scale, pull = scale * weight, pull * weight
        own = others = Terms(self._shift, scale, pull)
        if self._shares is not None:
            parts = [scale, pull] if self._shift is None else [scale, pull, self._shift]
            everybody = self._shares.gather(_put_back(torch.stack(parts, dim=1), self._row_order))
            if self._order is not None:
                everybody = everybody[self._order]
            scale, pull, *shift = everybody.T.contiguous().unbind()
            others = Terms(shift[0] if shift else None, scale, pull)
        # Anchors of a class have equally many positives.
        return _put_back(self._walk.gradient(own, others, alike=weight is None), self._row_order)

    def release(self) -> None:
        """Frees what was kept for the gradient; it is computed again if asked for."""
        self._walk.release()


def _full_precision(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()


class _PerAnchorLoss(torch.autograd.Function):
    """[A] losses L_i."""

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, labels: Tensor, temperature: float, k1: float, k2: float, gather: bool
    ) -> Tensor:
        with _full_precision(embeddings):
            ctx.anchors = _Anchors(embeddings, labels, temperature, k1, k2, gather)
            ctx.anchors.release()
        ctx.save_for_backward(embeddings)  # they are read again
        return ctx.anchors.losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (embeddings,) = ctx.saved_tensors
        with _full_precision(upstream):
            gradient = ctx.anchors.gradient(upstream.to(ctx.anchors.losses.dtype))
        return gradient.to(embeddings.dtype), None, None, None, None, None


class _ReducedLoss(torch.autograd.Function):
    """Sum or mean of everybody's L_i, times the number of processes, and how many L_i there are.

    All anchors weigh the same, which forward knows: it computes the gradient while the tiles are in the cache, and
    backward only scales it.
    """

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, labels: Tensor, temperature: float, k1: float, k2: float, gather: bool,
        mean: bool, differentiate: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        with _full_precision(embeddings):
            anchors = _Anchors(embeddings, labels, temperature, k1, k2, gather)
            count, world = anchors.positives.count_nonzero(), ranks()[1] if gather else 1
            if world > 1:
                dist.all_reduce(count)
            loss, gradient = anchors.losses.sum(), anchors.gradient(None) if differentiate else None
            anchors.release()
            weight: Tensor | float = world
            if mean and count.device.type == "cpu":
                weight = world / max(int(count), 1)
            elif mean:
                weight = world / count.clamp(min=1).to(loss.dtype)
        ctx.save_for_backward(gradient)
        ctx.weight, ctx.dtype = weight, embeddings.dtype
        ctx.mark_non_differentiable(count)
        return loss.mul_(weight), count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * (upstream * ctx.weight)).to(ctx.dtype), None, None, None, None, None, None, None


def _check(embeddings: Tensor, labels: Tensor, temperature: float, k1: float, k2: float, reduction: str) -> None:
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
    grows linearly in N.

    Args:
        embeddings: [N, D] unit-norm rows, all views of the batch.
        labels: [N] integers; rows with the same label are positives of each other. Self-supervised: the image index.
        temperature: tau > 0.
        k1: weight of the hard-positive term, >= 0.
        k2: weight of the negatives, > 0.
        reduction: ``"mean"`` over the anchors that have a positive, ``"sum"``, or ``"none"`` for the L_i themselves,
            [N], 0 for an anchor without a positive.
        gather: compare the own rows with those of every process (the default group). The loss is scaled such that
            the mean over the processes of the loss, and of its gradient, is that of the whole batch.

    Returns:
        A scalar, or [N] for ``"none"``.

    Raises:
        ValueError: a value out of range, wrong shapes, or labels that are no integers.

    Warns:
        RuntimeWarning: no anchor has a positive; the loss is 0 with a zero gradient. A GPU is silent: asking it would
            empty its queue at every step.
    """
    _check(embeddings, labels, temperature, k1, k2, reduction)
    arguments = embeddings, labels, temperature, k1, k2, gather
    if reduction == "none":
        return _PerAnchorLoss.apply(*arguments)
    differentiate = embeddings.requires_grad and torch.is_grad_enabled()
    loss, count = _ReducedLoss.apply(*arguments, reduction == "mean", differentiate)
    # A GPU is not asked: the answer would stall the queue, and the loss is 0 either way.
    if count.device.type == "cpu" and count == 0:
        warnings.warn("no anchor in the batch has a positive: the loss is 0 and has no gradient", RuntimeWarning, 2)
    return loss


class TCLLoss(nn.Module):
    """Tuned contrastive loss as a module; see :func:`tuned_contrastive_loss`.

    When ``torch.distributed`` is initialised with several processes, the own rows are the anchors and everybody's
    rows are what they are compared with; the gradient reaches the other processes' rows too.

    Args:
        temperature: tau > 0.
        k1: weight of the hard-positive term, >= 0.
        k2: weight of the negatives, > 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """

    def __init__(self, temperature: float = 0.1, k1: float = 5000.0, k2: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        _check(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64), temperature, k1, k2, reduction)
        self.temperature, self.k1, self.k2, self.reduction = temperature, k1, k2, reduction

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """[N, D] unit rows and [N] integer labels to a scalar (or [N])."""
        several = ranks()[1] > 1
        return tuned_contrastive_loss(embeddings, labels, self.temperature, self.k1, self.k2, self.reduction, several)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, k1={self.k1}, k2={self.k2}, reduction={self.reduction!r}"


class SupConLoss(TCLLoss):
    """Supervised contrastive loss (eq. 3.2): :class:`TCLLoss` at ``k1 = 0, k2 = 1``."""

    def __init__(self, temperature: float = 0.1, reduction: str = "mean") -> None:
        super().__init__(temperature, 0.0, 1.0, reduction)
