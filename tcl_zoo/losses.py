"""Tuned contrastive loss and supervised contrastive loss, exact, in memory linear in the batch.

SupCon (eq. 3.2) is TCL (eq. 4.2-4.4) at ``k1 = 0, k2 = 1``: one implementation serves both (SPEC section 1).
How it walks over the pairs is in ``_pairwise.py``, and in ``_dense.py`` for small batches.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ._dense import Dense
from ._pairwise import SINGLE, Batch, Terms, Tiled
from .ranks import Shares, ranks

# exp(+-_RANGE), and sums of it, are safe in float32 (its exponents end at 88.7).
_RANGE = 70.0


def _arranged(
    rows: Tensor, labels: Tensor, temperature: float, k1: float, k2: float, shares: Shares | None
) -> tuple[Batch, Tensor | None, Tensor | None]:
    """The batch sorted by class, the order of the own anchors [A] and that of everybody's [N].

    Batches of one tile, and all on a GPU, stay as they are (see ``_pairwise.py``): no orders.
    """
    columns, everybody, own = rows, labels, slice(0, len(rows))
    if shares is not None:
        columns, everybody, own = shares.gather(rows), shares.gather(labels), shares.own
    if rows.device.type != "cpu" or columns.shape[0] <= SINGLE:
        if rows.device.type == "cpu":
            everybody = _as_floats(everybody)  # which are compared in an eighth of the time
            labels = everybody[own]
        index = torch.arange(own.start, own.stop, device=rows.device)
        return Batch(rows, columns, labels, everybody, index, temperature, k1, k2), None, None
    _, number, counts = everybody.unique(return_inverse=True, return_counts=True)
    # Classes of one size stand together: number them anew by (size, label).
    renumber = torch.empty_like(counts)
    by_size = counts.argsort(stable=True)
    renumber[by_size] = torch.arange(len(counts), device=counts.device)
    number, counts = renumber[number], counts[by_size]
    column_class, order = number.sort(stable=True)
    columns = columns[order]
    place = torch.arange(len(order), device=order.device)
    if shares is not None:
        row_class, row_order = number[own].sort(stable=True)
        position = torch.empty_like(order)
        position[order] = place
        row_index, rows = position[row_order + own.start], rows[row_order]
    else:
        row_class, row_order, row_index, rows = column_class, order, place, columns
    starts = counts.cumsum(0) - counts
    batch = Batch(
        rows, columns, row_class.int(), column_class.int(), row_index, temperature, k1, k2,
        starts[row_class], counts[row_class],
    )  # fmt: skip
    return batch, row_order, order


def _as_floats(labels: Tensor) -> Tensor:
    """[N] float32 numbers that are equal where the labels are."""
    if labels.shape[0] == 0:
        return labels.float()
    labels = labels.long()
    low, high = labels.aminmax()
    if int(high) - int(low) < 1 << 24:  # float32 holds all integers up to there
        return (labels - low).float()
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


class _PerAnchorLoss(torch.autograd.Function):
    """[A] losses L_i of this process's anchors against everybody's embeddings, and which anchors have a positive."""

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, labels: Tensor, temperature: float, k1: float, k2: float, gather: bool
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(embeddings.device.type, enabled=False):
            rows = embeddings.detach().to(torch.promote_types(embeddings.dtype, torch.float32)).contiguous()
            shares = Shares(rows) if gather and ranks()[1] > 1 else None
            batch, row_order, order = _arranged(rows, labels, temperature, k1, k2, shares)
            walk = Dense(batch) if batch.single else Tiled(batch)
            shift = walk.shift() if _needs_shift(batch) else None
            if shift is not None:
                shift = shift.masked_fill(shift == -math.inf, 0.0)
            denominator, sum_s, count = walk.sums(shift)
            alone = count == 0
            count = count.clamp(min=1)
            losses = denominator.log().sub_(sum_s.div_(count), alpha=1 / temperature)
            if shift is not None:
                losses += shift
            # A row without positives has no loss, finite or not.
            losses.masked_fill_(alone, 0.0)
            out, has_positive = _put_back(losses, row_order), _put_back(~alone, row_order)
        ctx.walk, ctx.shares, ctx.dtype = walk, shares, embeddings.dtype
        ctx.save_for_backward(shift, denominator, count, alone, row_order, order)
        ctx.mark_non_differentiable(has_positive)
        return out, has_positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        walk = ctx.walk
        shift, denominator, count, alone, row_order, order = ctx.saved_tensors
        with torch.autocast(upstream.device.type, enabled=False):
            weight = upstream.to(denominator.dtype)
            weight = (weight if row_order is None else weight[row_order]).masked_fill(alone, 0.0)
            scale = weight / denominator.masked_fill(alone, 1.0)
            own = Terms(scale if shift is None else shift, scale, weight / count)
            others = own
            if ctx.shares is not None:
                unsorted = _put_back(torch.stack([own.shift, own.scale, own.pull], dim=1), row_order)
                everybody = ctx.shares.gather(unsorted)
                others = Terms(*(everybody if order is None else everybody[order]).T.contiguous().unbind())
            gradient = walk.gradient(shift, own, others).mul_(1 / walk.batch.temperature)
            out = _put_back(gradient, row_order)
        return out.to(ctx.dtype), None, None, None, None, None


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
    losses, has_positive = _PerAnchorLoss.apply(embeddings, labels, temperature, k1, k2, gather)
    if reduction == "none":
        return losses
    count = has_positive.sum()
    world = ranks()[1] if gather else 1
    if world > 1:
        dist.all_reduce(count)
    # A GPU is not asked: the answer would stall the queue, and the loss is 0 either way.
    if count.device.type == "cpu" and count == 0:
        warnings.warn("no anchor in the batch has a positive: the loss is 0 and has no gradient", RuntimeWarning, 2)
    total = losses.sum() * world if world > 1 else losses.sum()
    return total if reduction == "sum" else total / count.clamp(min=1)


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
