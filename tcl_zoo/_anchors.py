"""The anchors of a batch: how they are laid out for the walk over all pairs, their losses, and their gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._one_tile import OneTile
from ._pairwise import TILE, Batch, Factors, Walk
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
        columns = columns.index_select(0, order)
        if index is None:
            row_class, row_order, rows = column_class, order, columns
        else:
            row_class, row_order = row_class.sort(stable=True)
            rows, index = rows.index_select(0, row_order), _inverse(order)[index[row_order]]
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


def _inverse(order: Tensor) -> Tensor:
    """[N] where each of the caller's rows stands in ``order``."""
    return torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))


def _put_back(values: Tensor, order: Tensor | None) -> Tensor:
    """What was computed in ``order``, in the order of the caller's rows."""
    return values if order is None else values.index_select(0, _inverse(order))


def _needs_shift(batch: Batch) -> bool:
    """Whether exponents may leave float32's range. A GPU is not asked for the rows' norms: it shifts always."""
    columns = batch.columns
    if columns.shape[0] == 0 or columns.device.type != "cpu":
        return columns.shape[0] > 0
    norm = float(torch.linalg.vector_norm(columns, dim=1).max())
    bound = norm * norm  # infinite where it is too large; a power would raise
    largest = max(abs(math.log(batch.k1 or 1.0)), abs(math.log(batch.k2)))
    return not bound / batch.temperature + bound + largest < _RANGE


class Anchors:
    """L_i of this process's anchors against everybody's embeddings, and the gradient of a weighted sum of all L_i.

    Attributes:
        batch: what is walked over.
        count: how many of the own anchors have a positive, once the losses were asked for; a tensor on a GPU.
    """

    def __init__(
        self, embeddings: Tensor, labels: Tensor, temperature: float, k1: float, k2: float, gather: bool
    ) -> None:
        rows = embeddings.detach().to(torch.promote_types(embeddings.dtype, torch.float32)).contiguous()
        self._shares = Shares(rows) if gather and ranks()[1] > 1 else None
        self.batch, self._row_order, self._order = _arranged(rows, labels, temperature, k1, k2, self._shares)
        self._needs_shift = _needs_shift(self.batch)

    def walk(self, keep: bool) -> OneTile | Walk:
        """What sums over the pairs of the batch, once for the losses and once for the gradient.

        Args:
            keep: its tiles, where they are few enough, from the losses for the gradient.
        """
        rows = self.batch.rows
        one = rows.device.type == "cpu" and len(rows) <= TILE and self._shares is None and not self._needs_shift
        return OneTile(self.batch, keep) if one else Walk(self.batch, keep)

    def losses(self, walk: OneTile | Walk) -> Tensor:
        """[A] L_i in the order of ``embeddings``, 0 for an anchor without a positive."""
        self._shift = None
        if self._needs_shift:
            assert isinstance(walk, Walk)
            self._shift = walk.largest()
            self._shift.masked_fill_(self._shift == -math.inf, 0.0)
        denominator, attraction, positives = walk.sums(self._shift)
        self._scale, self._pull = denominator.reciprocal(), positives.reciprocal()
        # To base 2, as the exponents are: where these cancel, a factor before would leave its rounding.
        losses = denominator.log2().addcmul_(attraction, self._pull, value=-1)
        if self._shift is not None:
            losses += self._shift
        losses *= math.log(2)
        count = positives.count_nonzero()
        self.count = int(count) if count.device.type == "cpu" else count  # a GPU is not asked: it would stall
        self._alone = None
        if isinstance(self.count, Tensor) or self.count < len(losses):
            # A row without positives has no loss, finite or not.
            self._alone = positives == 0
            for values in self._scale, self._pull, losses:
                values.masked_fill_(self._alone, 0.0)
        return _put_back(losses, self._row_order)

    def gradient(self, walk: OneTile | Walk, weight: Tensor | None) -> Tensor:
        """[A, D] gradient of the sum of everybody's weight * L with respect to the own embeddings.

        Args:
            walk: the one that gave the losses, or a new one.
            weight: [A] of the own anchors; None: 1 for everybody's.
        """
        scale, pull = self._scale, self._pull
        if weight is not None:
            weight = weight.to(scale.dtype)
            weight = weight if self._row_order is None else weight[self._row_order]
            if self._alone is not None:
                weight = weight.masked_fill(self._alone, 0.0)  # it may be NaN
            scale, pull = scale * weight, pull * weight
        own = others = Factors(self._shift, scale, pull)
        if self._shares is not None:
            parts = [scale, pull] if self._shift is None else [scale, pull, self._shift]
            everybody = self._shares.gather(_put_back(torch.stack(parts, dim=1), self._row_order))
            if self._order is not None:
                everybody = everybody.index_select(0, self._order)
            scale, pull, *shift = everybody.T.contiguous().unbind()
            others = Factors(shift[0] if shift else None, scale, pull)
        # Anchors of a class have equally many positives.
        return _put_back(walk.gradient(own, others, alike=weight is None), self._row_order)
