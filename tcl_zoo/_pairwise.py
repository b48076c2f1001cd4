"""All pairs of a batch without an [N, N] matrix: the walks behind ``losses.py``.

A batch of one tile is done in one square (``_dense.py``). A larger one is :class:`Tiled`, in two parts that walk twice,
forward for the denominators and backward with the denominators known:

- :class:`Negatives` walks square tiles of ``k2 exp(s / tau)`` with the class blocks struck out. Nearly all of the work
  is here: a matrix product, an exponential, a sum. ``s`` is symmetric, so in one process a tile above the diagonal
  serves its rows and its columns.
- :class:`Positives` holds each class's own square of ``s``, padded to the largest class of its size group, as one
  batched product. It is the only place where ``k1 exp(-s)`` is needed, and small unless classes are few.

On a CPU, rows of a tiled batch come sorted by the size of their class and then by class, so that a class is a block of
neighbouring rows whose borders are known (``Batch.bounds``). On a GPU asking for the borders would stall the queue:
rows come as they are and every pair's labels are compared.

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
# Batches up to here are a single square: 9 MiB each, three of them. Beyond, tiles are as fast and need less memory.
SINGLE = 1536
# Rows whose class blocks are struck out together.
_BAND = 64
# Entries of a padded batch of class squares.
_SQUARES = 1 << 20


@dataclass
class Batch:
    """What the walks read. ``A`` own anchors (rows), ``N`` rows of all processes (columns)."""

    rows: Tensor  # [A, D]
    columns: Tensor  # [N, D]; the same tensor as rows in one process
    row_class: Tensor  # [A] class numbers or labels
    column_class: Tensor  # [N]
    row_index: Tensor  # [A] where each anchor stands among the columns
    temperature: float
    k1: float
    k2: float
    start: Tensor | None = None  # [A] first column of the anchor's class, where sorted
    size: Tensor | None = None  # [A] columns of the anchor's class, itself included

    def __post_init__(self) -> None:
        self.symmetric = self.rows is self.columns
        fits = abs(math.log(self.k2)) < 80  # as a factor of a float32 exponential; tiles add its logarithm
        self.single = fits and max(self.rows.shape[0], self.columns.shape[0]) <= SINGLE
        self.bounds: tuple[list[int], list[int]] | None = None
        if self.start is not None and self.size is not None:
            self.bounds = self.start.tolist(), (self.start + self.size).tolist()
        self.log_k1 = math.log(self.k1) if self.k1 > 0 else -math.inf

    def exponentials(
        self, near: Tensor, shift: Tensor | None, work: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """exp(s / tau - shift) from ``near`` = s / tau, and k1 exp(-s - shift) where k1 > 0, in ``work`` if given.

        Without a shift ``near`` is overwritten.
        """
        far = None
        if self.k1 > 0:
            far = torch.add(near.new_full((), self.log_k1), near, alpha=-self.temperature, out=work)
        if shift is not None:
            near = near - shift
            far = far.sub_(shift) if far is not None else None
        return near.exp_(), far.exp_() if far is not None else None


@dataclass
class Terms:
    """Per anchor: the shift of its exponents, w / D and w / |P|, w the weight of its loss in the sum."""

    shift: Tensor
    scale: Tensor
    pull: Tensor


class Tiled:
    """A batch of many tiles."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.negatives, self.positives = batch, Negatives(batch), Positives(batch)

    def shift(self) -> Tensor:
        """[A] the largest exponent of each row."""
        largest = self.batch.rows.new_full((len(self.batch.rows),), -math.inf)
        self.negatives.largest(largest)
        self.positives.largest(largest)
        return largest

    def sums(self, shift: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """D with the shift taken out, the positives' sum of s, and |P|, each [A]."""
        denominator = self.batch.rows.new_zeros(len(self.batch.rows))
        self.negatives.add_sums(denominator, shift)
        sum_s, count = self.positives.add_sums(denominator, shift)
        return denominator, sum_s, count

    def gradient(self, shift: Tensor | None, own: Terms, others: Terms) -> Tensor:
        """tau times the gradient with respect to the rows, [A, D]."""
        gradient = torch.zeros_like(self.batch.rows)
        self.negatives.add_gradient(gradient, shift, own, others)
        self.positives.add_gradient(gradient, shift, own, others)
        return gradient


class Negatives:
    """Tiles of the pairs with different labels."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def _tiles(self) -> Iterator[tuple[slice, slice]]:
        b = self.batch
        for r in range(0, len(b.rows), TILE):
            for c in range(r if b.symmetric else 0, len(b.columns), TILE):
                yield slice(r, min(r + TILE, len(b.rows))), slice(c, min(c + TILE, len(b.columns)))

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
                tile = self._logits(rows, columns).exp_()
                weights = tile.mul_(own.scale[rows, None] + others.scale[None, columns])
            else:
                tile = self._logits(rows, columns)
                weights = (tile - own.shift[rows, None]).exp_().mul_(own.scale[rows, None])
                weights += tile.sub_(others.shift[None, columns]).exp_().mul_(others.scale[None, columns])
            into[rows].addmm_(weights, b.columns[columns])
            if b.symmetric and rows.start != columns.start:
                into[columns].addmm_(weights.T, b.rows[rows])


@dataclass
class _Square:
    """Some anchors of K classes against all rows of their class, padded: [K, R] rows, [K, M] columns."""

    row: Tensor  # [K, R] which anchor; padding repeats one
    column: Tensor  # [K, M] which column
    mask: Tensor  # [K, R, M] a positive pair: neither padding nor the anchor itself
    own: Tensor | None  # which of the K * R rows are no padding; None: all

    def __post_init__(self) -> None:
        self.no_pair = ~self.mask
        self.anchor = self.trim(self.row.flatten())

    def trim(self, values: Tensor) -> Tensor:
        """[K * R, ...] without the padding."""
        return values if self.own is None else values[self.own]


class Positives:
    """The pairs with the same label, class by class."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def _squares(self) -> Iterator[_Square]:
        """Laid out anew for each walk: together their masks would be quadratic in the batch."""
        b = self.batch
        if not len(b.rows):
            return
        if b.start is None or b.size is None:
            # Without a look at the labels: every anchor against every column, in strips.
            column = torch.arange(len(b.columns), device=b.rows.device)[None]
            for row in torch.arange(len(b.rows), device=b.rows.device).split(max(1, _SQUARES // len(b.columns))):
                mask = b.row_class[row, None] == b.column_class[None]
                mask &= b.row_index[row, None] != column
                yield _Square(row[None], column, mask[None], None)
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
                    i = torch.arange(top, min(top + height, r))
                    yield self._square(first[classes], rows[classes], starts[classes], sizes[classes], i, m)

    def _square(self, first: Tensor, rows: Tensor, start: Tensor, size: Tensor, i: Tensor, m: int) -> _Square:
        b, j = self.batch, torch.arange(m)
        own, other = i < rows[:, None], j < size[:, None]
        row = (first[:, None] + i).clamp_(max=len(b.rows) - 1)
        column = (start[:, None] + j).clamp_(max=len(b.columns) - 1)
        mask = own[:, :, None] & other[:, None, :]
        mask &= b.row_index[row][:, :, None] != column[:, None, :]
        return _Square(row, column, mask, None if own.all() else own.flatten().nonzero()[:, 0])

    def _similarities(self, square: _Square) -> Tensor:
        """s [K, R, M]."""
        return self.batch.rows[square.row] @ self.batch.columns[square.column].transpose(1, 2)

    def largest(self, into: Tensor) -> None:
        """Raises ``into`` [A] to the largest exponent of each row."""
        for square in self._squares():
            s = self._similarities(square)
            exponents = torch.maximum(s / self.batch.temperature, self.batch.log_k1 - s)
            found = exponents.masked_fill_(square.no_pair, -math.inf).amax(2)
            into.scatter_reduce_(0, square.anchor, square.trim(found.flatten()), "amax")

    def add_sums(self, into: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        """Adds exp(s / tau - shift) + k1 exp(-s - shift) to ``into`` [A]; returns each row's sum of s and |P|, [A]."""
        total, count = torch.zeros_like(into), torch.zeros_like(into)
        for square in self._squares():
            s = self._similarities(square)
            moved = None if shift is None else shift[square.row][:, :, None]
            near, far = self.batch.exponentials(s * (1 / self.batch.temperature), moved)
            terms = (near if far is None else near + far).masked_fill(square.no_pair, 0.0).sum(2)
            into.index_add_(0, square.anchor, square.trim(terms.flatten()))
            total.index_add_(0, square.anchor, square.trim(s.masked_fill_(square.no_pair, 0.0).sum(2).flatten()))
            count.index_add_(0, square.anchor, square.trim(square.mask.sum(2, dtype=count.dtype).flatten()))
        return total, count

    def add_gradient(self, into: Tensor, shift: Tensor | None, own: Terms, others: Terms) -> None:
        """Adds tau times the positives' part of the gradient with respect to the rows to ``into`` [A, D]."""
        for square in self._squares():
            s = self._similarities(square)
            r, c = square.row[:, :, None], square.column[:, None, :]
            if shift is None:
                weights = self._pulled(s, None).mul_(own.scale[r] + others.scale[c])
            else:
                weights = self._pulled(s, own.shift[r]).mul_(own.scale[r])
                weights += self._pulled(s, others.shift[c]).mul_(others.scale[c])
            weights -= own.pull[r] + others.pull[c]
            part = weights.masked_fill_(square.no_pair, 0.0) @ self.batch.columns[square.column]
            into.index_add_(0, square.anchor, square.trim(part.flatten(0, 1)))

    def _pulled(self, s: Tensor, shift: Tensor | None) -> Tensor:
        """exp(s / tau) - tau k1 exp(-s), shifted: tau times the derivative of a positive's terms of D."""
        near, far = self.batch.exponentials(s * (1 / self.batch.temperature), shift)
        return near if far is None else near.sub_(far, alpha=self.batch.temperature)
