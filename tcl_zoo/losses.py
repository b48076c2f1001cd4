"""Tuned contrastive loss and supervised contrastive loss, exact, in memory linear in the batch.

SupCon (eq. 3.2) is TCL (eq. 4.2-4.4) at ``k1 = 0, k2 = 1``: one implementation serves both (SPEC section 1).

How it is computed. Rows are sorted by label, so the positives of a few rows lie in a narrow band of columns. Two
rooms share the work: :func:`_negatives` walks square tiles of ``exp(s / tau)`` with every same-label entry struck
out (nearly all of the work: a matrix product, an exponential and a sum), :func:`_positives` walks the bands, the
only place where ``k1 exp(-s)`` is needed. ``s`` is symmetric, so a tile above the diagonal serves both its rows and
its columns. The backward pass walks the same tiles again with the denominators known; nothing of size ``[N, N]``
outlives a tile.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# Side of a tile and height of a band, in rows. A tile of 1024 x 1024 float32 is 4 MiB: it stays in cache between the
# exponential and the sum. Batches up to one tile keep it from forward to backward.
_TILE = 1024
_BAND = 64
# exp(+-_RANGE) and sums of it are safe in float32 (max 88.7).
_RANGE = 70.0


@dataclass
class _Batch:
    """The batch sorted by label, as the two walks need it. ``rows`` are this process's anchors, ``all`` everybody's."""

    rows: Tensor  # [A, D] anchors
    all: Tensor  # [N, D] everything an anchor is compared with; the same tensor as rows in one process
    row_labels: Tensor  # [A], sorted
    labels: Tensor  # [N], sorted
    row_index: Tensor  # [A] position of each anchor in `all`
    count: Tensor  # [A] number of positives
    first: list[int] | None  # first and last column (exclusive) of each row's class; None: not known without a
    last: list[int] | None  # device synchronisation, so the band is the whole width
    temperature: float
    k1: float
    k2: float
    shifted: bool  # whether exponents need a shift per row; without it they fit float32 as they are

    @property
    def symmetric(self) -> bool:
        return self.rows is self.all

    def bands(self, r0: int, r1: int, q0: int, q1: int) -> Iterator[tuple[slice, slice]]:
        """Row and column slices that together hold every same-label entry of rows r0:r1, columns q0:q1."""
        if self.first is None or self.last is None:
            yield slice(r0, r1), slice(q0, q1)
            return
        for b0 in range(r0, r1, _BAND):
            b1 = min(b0 + _BAND, r1)
            c0, c1 = max(q0, self.first[b0]), min(q1, self.last[b1 - 1])
            if c0 < c1:
                yield slice(b0, b1), slice(c0, c1)

    def same(self, rows: slice, columns: slice) -> Tensor:
        """[rows, columns] bool: same label, self included."""
        return self.row_labels[rows, None] == self.labels[None, columns]

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Tiles of [A, N]; in one process only those on and above the diagonal."""
        for r0 in range(0, len(self.rows), _TILE):
            for q0 in range(r0 if self.symmetric else 0, len(self.all), _TILE):
                yield slice(r0, min(r0 + _TILE, len(self.rows))), slice(q0, min(q0 + _TILE, len(self.all)))

    def whole(self) -> bool:
        """Whether one tile holds everything."""
        return len(self.rows) <= _TILE and len(self.all) <= _TILE

    def negative_logits(self, rows: slice, columns: slice) -> Tensor:
        """[rows, columns] s / tau + log k2 of negatives, -inf where the labels are the same."""
        logits = (self.rows[rows] * (1 / self.temperature)) @ self.all[columns].T
        if self.k2 != 1:
            logits += math.log(self.k2)
        for r, c in self.bands(rows.start, rows.stop, columns.start, columns.stop):
            block = logits[r.start - rows.start : r.stop - rows.start, c.start - columns.start : c.stop - columns.start]
            block.masked_fill_(self.same(r, c), -math.inf)
        return logits

    def positive_similarities(self) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        """Bands of rows with their columns, similarities s and the mask of positives (same label, not itself)."""
        step = _TILE if self.first is None else len(self.rows)
        for r0 in range(0, len(self.rows), step):
            for r, c in self.bands(r0, min(r0 + step, len(self.rows)), 0, len(self.all)):
                mask = self.same(r, c)
                columns = torch.arange(c.start, c.stop, device=mask.device)
                mask &= self.row_index[r, None] != columns[None, :]
                yield r, c, self.rows[r] @ self.all[c].T, mask


def _shift(batch: _Batch) -> Tensor:
    """[A] the largest exponent of each row, subtracted before exp; zeros where nothing can leave the range."""
    shift = batch.rows.new_zeros(len(batch.rows))
    if not batch.shifted:
        return shift
    shift.fill_(-math.inf)
    for rows, columns in batch.tiles():
        logits = batch.negative_logits(rows, columns)
        shift[rows] = torch.maximum(shift[rows], logits.amax(1))
        if batch.symmetric and rows.start != columns.start:
            shift[columns] = torch.maximum(shift[columns], logits.amax(0))
    log_k1 = math.log(batch.k1) if batch.k1 > 0 else -math.inf
    for r, _, s, mask in batch.positive_similarities():
        largest = torch.maximum(s / batch.temperature, log_k1 - s).masked_fill_(~mask, -math.inf)
        shift[r] = torch.maximum(shift[r], largest.amax(1))
    return shift.nan_to_num_(nan=math.nan, neginf=0.0)


def _negatives(batch: _Batch, shift: Tensor, denominator: Tensor) -> Tensor | None:
    """Adds k2 sum_n exp(s / tau - shift) to ``denominator`` [A]; returns the tile where there is only one."""
    tile = None
    for rows, columns in batch.tiles():
        logits = batch.negative_logits(rows, columns)
        transposed = batch.symmetric and rows.start != columns.start
        if batch.shifted:
            if transposed:
                denominator[columns] += (logits - shift[None, columns]).exp_().sum(0)
            tile = logits.sub_(shift[rows, None]).exp_()
        else:
            tile = logits.exp_()
            if transposed:
                denominator[columns] += tile.sum(0)
        denominator[rows] += tile.sum(1)
    return tile if batch.whole() and not batch.shifted else None


def _positives(batch: _Batch, shift: Tensor, denominator: Tensor) -> Tensor:
    """Adds the positives' exp(s / tau) and k1 exp(-s) to ``denominator`` [A]; returns the mean of s [A]."""
    total = torch.zeros_like(denominator)
    for r, _, s, mask in batch.positive_similarities():
        terms = (s / batch.temperature - shift[r, None]).exp_()
        if batch.k1 > 0:
            terms += (math.log(batch.k1) - s - shift[r, None]).exp_()
        denominator[r] += terms.masked_fill_(~mask, 0.0).sum(1)
        total[r] += s.masked_fill_(~mask, 0.0).sum(1)
    return total / batch.count.clamp(min=1)


def _gradient(
    batch: _Batch, shift: Tensor, scale: Tensor, pull: Tensor, all_terms: Tensor, tile: Tensor | None
) -> Tensor:
    """Gradient of sum_i w_i L_i over all anchors of all processes with respect to ``batch.rows``, [A, D].

    Args:
        shift: [A] as in the forward pass.
        scale: [A] w_i / D_i of the own anchors, D_i with the shift taken out.
        pull: [A] w_i / |P(i)|.
        all_terms: [3, N] shift, scale and pull of everybody's anchors.
        tile: exp(s / tau) of the negatives where the forward pass kept it.

    ``s_ij`` enters L_i and L_j, so its derivative has a part of each: eq. 4.5-4.9 for the row and for the column.
    """
    gradient = torch.zeros_like(batch.rows)
    tau, (shift_j, scale_j, pull_j) = batch.temperature, all_terms
    for rows, columns in batch.tiles():
        if batch.shifted:
            logits = batch.negative_logits(rows, columns)
            weights = (logits - shift[rows, None]).exp_().mul_(scale[rows, None])
            weights += logits.sub_(shift_j[None, columns]).exp_().mul_(scale_j[None, columns])
        else:
            weights = batch.negative_logits(rows, columns).exp_() if tile is None else tile
            weights = weights * (scale[rows, None] + scale_j[None, columns])
        gradient[rows].addmm_(weights, batch.all[columns], alpha=1 / tau)
        if batch.symmetric and rows.start != columns.start:
            gradient[columns].addmm_(weights.T, batch.rows[rows], alpha=1 / tau)
    for r, c, s, mask in batch.positive_similarities():
        weights = (s / tau - shift[r, None]).exp_().mul_(scale[r, None])
        weights += (s / tau - shift_j[None, c]).exp_().mul_(scale_j[None, c])
        weights -= pull[r, None] + pull_j[None, c]
        weights /= tau
        if batch.k1 > 0:
            log_k1 = math.log(batch.k1)
            weights -= (log_k1 - s - shift[r, None]).exp_().mul_(scale[r, None])
            weights -= (log_k1 - s - shift_j[None, c]).exp_().mul_(scale_j[None, c])
        gradient[r].addmm_(weights.masked_fill_(~mask, 0.0), batch.all[c])
    return gradient


def _gather(local: Tensor) -> tuple[Tensor, int]:
    """Every process's rows in rank order, and where the own ones start. Numbers of rows may differ."""
    world = dist.get_world_size()
    size = torch.tensor([len(local)], device=local.device)
    sizes = [torch.empty_like(size) for _ in range(world)]
    dist.all_gather(sizes, size)
    lengths = [int(s) for s in sizes]
    padded = local.new_zeros(max(lengths), *local.shape[1:])
    padded[: len(local)] = local
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    everything = torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])
    return everything, sum(lengths[: dist.get_rank()])


def _sorted_batch(
    embeddings: Tensor, labels: Tensor, temperature: float, k1: float, k2: float, gathered: bool
) -> tuple[_Batch, Tensor, Tensor, int]:
    """The batch, the order of the own anchors [A], the order of all anchors [N], and where the own ones start."""
    rows = embeddings.detach().to(torch.promote_types(embeddings.dtype, torch.float32)).contiguous()
    everything, start = _gather(rows) if gathered else (rows, 0)
    all_labels = _gather(labels)[0] if gathered else labels
    all_labels, order = all_labels.sort(stable=True)
    everything = everything[order]
    if gathered:
        row_labels, row_order = labels.sort(stable=True)
        position = torch.empty_like(order)
        position[order] = torch.arange(len(order), device=order.device)
        row_index = position[row_order + start]
        rows = rows[row_order]
    else:
        row_labels, row_order, rows = all_labels, order, everything
        row_index = torch.arange(len(order), device=order.device)
    first = torch.searchsorted(all_labels, row_labels)
    last = torch.searchsorted(all_labels, row_labels, right=True)
    # Exponents lie within +-bound for rows of any norm. Asking a GPU for it would stall the queue: shift there always.
    shifted, cpu = True, rows.device.type == "cpu"
    if cpu:
        bound = float(everything.square().sum(1).max()) if len(everything) else 0.0
        log_k = [abs(math.log(k)) for k in (k1, k2) if k > 0]
        shifted = not bound / temperature + bound + max(log_k) < _RANGE
    batch = _Batch(
        rows, everything, row_labels, all_labels, row_index, (last - first - 1).to(rows.dtype),
        first.tolist() if cpu else None, last.tolist() if cpu else None, temperature, k1, k2, shifted,
    )  # fmt: skip
    return batch, row_order, order, start


class _PerAnchorLoss(torch.autograd.Function):
    """[A] losses L_i of this process's anchors against everybody's embeddings."""

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, labels: Tensor, temperature: float, k1: float, k2: float, gathered: bool
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(embeddings.device.type, enabled=False):
            batch, row_order, order, start = _sorted_batch(embeddings, labels, temperature, k1, k2, gathered)
            shift = _shift(batch)
            denominator = torch.zeros_like(shift)
            mean_s = _positives(batch, shift, denominator)
            tile = _negatives(batch, shift, denominator)
            valid = batch.count > 0
            losses = denominator.log() + shift - mean_s / temperature
            out = torch.empty_like(losses)
            # Adding 0 * loss would keep a NaN; a row without positives has no loss, finite or not.
            out[row_order] = losses.where(valid, torch.zeros_like(losses))
            has_positive = torch.empty_like(valid)
            has_positive[row_order] = valid
        ctx.batch, ctx.tile = batch, tile
        ctx.gathered, ctx.start, ctx.dtype = gathered, start, embeddings.dtype
        ctx.save_for_backward(shift, denominator, row_order, order)
        ctx.mark_non_differentiable(has_positive)
        return out, has_positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        batch: _Batch = ctx.batch
        shift, denominator, row_order, order = ctx.saved_tensors
        with torch.autocast(upstream.device.type, enabled=False):
            valid = batch.count > 0
            weight = upstream.to(shift.dtype)[row_order].where(valid, torch.zeros_like(shift))
            scale = weight / denominator.where(valid, torch.ones_like(denominator))
            pull = weight / batch.count.clamp(min=1)
            terms = torch.stack([shift, scale, pull])
            if ctx.gathered:
                unsorted = torch.empty_like(terms)
                unsorted[:, row_order] = terms
                terms = _gather(unsorted.T.contiguous())[0].T[:, order]
            gradient = torch.empty_like(batch.rows)
            gradient[row_order] = _gradient(batch, shift, scale, pull, terms, ctx.tile)
        return gradient.to(ctx.dtype), None, None, None, None, None


def _check(embeddings: Tensor, labels: Tensor, temperature: float, k1: float, k2: float, reduction: str) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be finite and above 0, got {temperature}")
    if not (math.isfinite(k1) and k1 >= 0):
        raise ValueError(f"k1 must be finite and at least 0, got {k1}")
    if not (math.isfinite(k2) and k2 > 0):
        raise ValueError(f"k2 must be finite and above 0, got {k2}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
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
        RuntimeWarning: no anchor has a positive; the loss is 0 with a zero gradient.
    """
    _check(embeddings, labels, temperature, k1, k2, reduction)
    losses, has_positive = _PerAnchorLoss.apply(embeddings, labels, temperature, k1, k2, gather)
    if reduction == "none":
        return losses
    count = has_positive.sum()
    world = 1
    if gather:
        dist.all_reduce(count)
        world = dist.get_world_size()
    # A GPU is not asked: the answer would stall the queue, and the loss is 0 either way.
    if count.device.type == "cpu" and count == 0:
        warnings.warn("no anchor in the batch has a positive: the loss is 0 and has no gradient", RuntimeWarning, 2)
    total = losses.sum() * world
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
        gather = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        return tuned_contrastive_loss(embeddings, labels, self.temperature, self.k1, self.k2, self.reduction, gather)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, k1={self.k1}, k2={self.k2}, reduction={self.reduction!r}"


class SupConLoss(TCLLoss):
    """Supervised contrastive loss (eq. 3.2): :class:`TCLLoss` at ``k1 = 0, k2 = 1``."""

    def __init__(self, temperature: float = 0.1, reduction: str = "mean") -> None:
        super().__init__(temperature, 0.0, 1.0, reduction)
