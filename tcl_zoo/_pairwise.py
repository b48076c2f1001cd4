"""All pairs of a batch without an [N, N] matrix: the two walks behind ``losses.py``.

Rows are sorted by the size of their class and then by class, so that a class is a block of neighbouring rows.

- :class:`Negatives` walks square tiles of ``k2 exp(s / tau)`` with the class blocks struck out. Nearly all of the work
  is here: a matrix product, an exponential, a sum. ``s`` is symmetric, so in one process a tile above the diagonal
  serves its rows and its columns.
- :class:`Positives` holds each class's own square of ``s``, padded to the largest class of its size group, as one
  batched product. It is the only place where ``k1 exp(-s)`` is needed, and small unless classes are few.

Both walk twice: forward for the denominators, backward with the denominators known. A batch of one tile keeps it.

Exponents of float32 reach +-88. Where temperature and k1, k2 cannot leave that range (``shift`` is None) exponentials
are taken as they are; elsewhere the largest exponent of each row is found first and subtracted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Side of a tile: 512 x 512 float32 is 1 MiB, which stays in cache between product, exponential and sum.
TILE = 512
# Batches up to here are a single tile, kept from forward to backward.
SINGLE = 1024
# Rows whose class blocks are struck out together.
_BAND = 64
# Entries of a padded batch of class squares.
_SQUARES = 1 << 20


@dataclass
class Batch:
    """What the walks read. ``A`` own anchors (rows), ``N`` rows of all processes (columns)."""

    rows: Tensor  # [A, D]
    columns: Tensor  # [N, D]; the same tensor as rows in one process
    row_class: Tensor  # [A] int32 class numbers in sorted order
    column_class: Tensor  # [N]
    row_index: Tensor  # [A] where each anchor stands among the columns
    start: Tensor  # [A] first column of the anchor's class
    size: Tensor  # [A] columns of the anchor's class, itself included
    temperature: float
    k1: float
    k2: float

    def __post_init__(self) -> None:
        self.symmetric = self.rows is self.columns
        self.single = max(len(self.rows), len(self.columns)) <= SINGLE
        # Python needs the blocks' borders; on a GPU asking for them would stall the queue.
        self.bounds: tuple[list[int], list[int]] | None = None
        if self.rows.device.type == "cpu":
            self.bounds = self.start.tolist(), (self.start + self.size).tolist()


class Negatives:
    """Tiles of the pairs with different labels."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._kept: Tensor | None = None

    def _tiles(self) -> Iterator[tuple[slice, slice]]:
        b = self.batch
        side = SINGLE if b.single else TILE
        for r in range(0, len(b.rows), side):
            for c in range(r if b.symmetric else 0, len(b.columns), side):
                yield slice(r, min(r + side, len(b.rows))), slice(c, min(c + side, len(b.columns)))

    def _logits(self, rows: slice, columns: slice) -> Tensor:
        """s / tau + log k2, -inf where the labels are the same."""
        b = self.batch
        tile = (b.rows[rows] * (1 / b.temperature)) @ b.columns[columns].T
        if b.k2 != 1:
            tile += math.log(b.k2)
        if b.bounds is None:
            return tile.masked_fill_(b.row_class[rows, None] == b.column_class[None, columns], -math.inf)
        first, last = b.bounds
        if last[rows.stop - 1] <= columns.start or first[rows.start] >= columns.stop:
            return tile
        for r in range(rows.start, rows.stop, _BAND):
            end = min(r + _BAND, rows.stop)
            c0, c1 = max(columns.start, first[r]), min(columns.stop, last[end - 1])
            if c0 < c1:
                same = b.row_class[r:end, None] == b.column_class[None, c0:c1]
                tile[r - rows.start : end - rows.start, c0 - columns.start : c1 - columns.start].masked_fill_(
                    same, -math.inf
                )
        return tile

    def largest(self, into: Tensor) -> None:
        """Raises ``into`` [A] to the largest exponent of each row."""
        for rows, columns in self._tiles():
            tile = self._logits(rows, columns)
            torch.maximum(into[rows], tile.amax(1), out=into[rows])
            if self.batch.symmetric and rows.start != columns.start:
                torch.maximum(into[columns], tile.amax(0), out=into[columns])

    def add_sums(self, into: Tensor, shift: Tensor | None) -> None:
        """Adds each row's sum of k2 exp(s / tau - shift) to ``into`` [A]."""
        for rows, columns in self._tiles():
            tile = self._logits(rows, columns)
            transposed = self.batch.symmetric and rows.start != columns.start
            if shift is None:
                tile.exp_()
                if transposed:
                    into[columns] += tile.sum(0)
                if self.batch.single:
                    self._kept = tile
            else:
                if transposed:
                    into[columns] += (tile - shift[columns]).exp_().sum(0)
                tile.sub_(shift[rows, None]).exp_()
            into[rows] += tile.sum(1)

    def add_gradient(self, into: Tensor, shift: Tensor | None, own: Terms, others: Terms) -> None:
        """Adds tau times the negatives' part of the gradient with respect to the rows to ``into`` [A, D]."""
        b = self.batch
        for rows, columns in self._tiles():
            if shift is None:
                tile = self._logits(rows, columns).exp_() if self._kept is None else self._kept
                weights = (own.scale[rows, None] + others.scale[None, columns]).mul_(tile)
            else:
                tile = self._logits(rows, columns)
                weights = (tile - own.shift[rows, None]).exp_().mul_(own.scale[rows, None])
                weights += tile.sub_(others.shift[None, columns]).exp_().mul_(others.scale[None, columns])
            into[rows].addmm_(weights, b.columns[columns])
            if b.symmetric and rows.start != columns.start:
                into[columns].addmm_(weights.T, b.rows[rows])


@dataclass
class Terms:
    """Per anchor: the shift of its exponents, w / D and w / |P|, w the weight of its loss in the sum."""

    shift: Tensor
    scale: Tensor
    pull: Tensor


@dataclass
class _Square:
    """Some anchors of K classes against all rows of their class, padded: [K, R] rows, [K, M] columns."""

    row: Tensor  # [K, R] which anchor; padding repeats one
    column: Tensor  # [K, M] which column
    mask: Tensor  # [K, R, M] a positive pair: neither padding nor the anchor itself
    own: Tensor  # [K, R] no padding


class Positives:
    """The pairs with the same label, class by class."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._squares = list(self._layout())
        self._kept = [self._similarities(square) for square in self._squares] if batch.single else None

    def _layout(self) -> Iterator[_Square]:
        b = self.batch
        if not len(b.rows):
            return
        if b.bounds is None:
            # Without a look at the labels: every anchor against every column, in strips.
            column = torch.arange(len(b.columns), device=b.rows.device)[None]
            for row in torch.arange(len(b.rows), device=b.rows.device).split(max(1, _SQUARES // len(b.columns))):
                mask = b.row_class[row, None] == b.column_class[None]
                mask &= b.row_index[row, None] != column
                yield _Square(row[None], column, mask[None], torch.ones_like(row[None], dtype=torch.bool))
            return
        # Classes of the own anchors: where their rows and columns begin, and how many there are of each.
        _, rows = torch.unique_consecutive(b.row_class, return_counts=True)
        first = rows.cumsum(0) - rows
        starts, sizes = b.start[first], b.size[first]
        group = torch.ceil(torch.log2(sizes.double())).int()  # padding at most doubles a class
        _, members = torch.unique_consecutive(group, return_counts=True)
        for part in torch.arange(len(rows)).split(members.tolist()):
            m, r = int(sizes[part].max()), int(rows[part].max())
            per = max(1, _SQUARES // (m * r))
            height = r if per > 1 else max(1, _SQUARES // m)
            for classes in part.split(per):
                for top in range(0, r, height):
                    yield self._square(first[classes], rows[classes], starts[classes], sizes[classes], top, height, m)

    def _square(
        self, first: Tensor, rows: Tensor, start: Tensor, size: Tensor, top: int, height: int, m: int
    ) -> _Square:
        b = self.batch
        i = torch.arange(top, min(top + height, int(rows.max())))
        j = torch.arange(m)
        own, other = i < rows[:, None], j < size[:, None]
        row = (first[:, None] + i).clamp_(max=len(b.rows) - 1)
        column = (start[:, None] + j).clamp_(max=len(b.columns) - 1)
        mask = own[:, :, None] & other[:, None, :]
        mask &= b.row_index[row][:, :, None] != column[:, None, :]
        return _Square(row, column, mask, own)

    def _similarities(self, square: _Square) -> Tensor:
        """s [K, R, M]."""
        return self.batch.rows[square.row] @ self.batch.columns[square.column].transpose(1, 2)

    def _each(self) -> Iterator[tuple[_Square, Tensor]]:
        for i, square in enumerate(self._squares):
            yield square, self._similarities(square) if self._kept is None else self._kept[i]

    def _log_k1(self) -> float:
        return math.log(self.batch.k1) if self.batch.k1 > 0 else -math.inf

    def largest(self, into: Tensor) -> None:
        """Raises ``into`` [A] to the largest exponent of each row."""
        for square, s in self._each():
            exponents = torch.maximum(s / self.batch.temperature, self._log_k1() - s)
            found = exponents.masked_fill_(~square.mask, -math.inf).amax(2)
            into.scatter_reduce_(0, square.row[square.own], found[square.own], "amax")

    def add_sums(self, into: Tensor, shift: Tensor | None) -> Tensor:
        """Adds exp(s / tau - shift) + k1 exp(-s - shift) to ``into`` [A]; returns each row's sum of s [A]."""
        total = torch.zeros_like(into)
        for square, s in self._each():
            row = square.row[square.own]
            moved = 0.0 if shift is None else shift[square.row][:, :, None]
            terms = (s * (1 / self.batch.temperature) - moved).exp_()
            if self.batch.k1 > 0:
                terms += (self._log_k1() - s - moved).exp_()
            into.index_add_(0, row, terms.masked_fill_(~square.mask, 0.0).sum(2)[square.own])
            total.index_add_(0, row, s.masked_fill(~square.mask, 0.0).sum(2)[square.own])
        return total

    def add_gradient(self, into: Tensor, shift: Tensor | None, own: Terms, others: Terms) -> None:
        """Adds tau times the positives' part of the gradient with respect to the rows to ``into`` [A, D]."""
        tau = self.batch.temperature
        for square, s in self._each():
            r, c = square.row[:, :, None], square.column[:, None, :]
            if shift is None:
                weights = (s * (1 / tau)).exp_()
                if self.batch.k1 > 0:
                    weights -= (self._log_k1() + math.log(tau) - s).exp_()
                weights *= own.scale[r] + others.scale[c]
            else:
                weights = (
                    self._pulled(s, own.shift[r]) * own.scale[r] + self._pulled(s, others.shift[c]) * others.scale[c]
                )
            weights -= own.pull[r] + others.pull[c]
            weights.masked_fill_(~square.mask, 0.0)
            part = weights @ self.batch.columns[square.column]
            into.index_add_(0, square.row[square.own], part[square.own])

    def _pulled(self, s: Tensor, shift: Tensor) -> Tensor:
        """exp(s / tau) - tau k1 exp(-s), both shifted."""
        weights = (s / self.batch.temperature - shift).exp_()
        if self.batch.k1 > 0:
            weights -= (self._log_k1() + math.log(self.batch.temperature) - s - shift).exp_()
        return weights
