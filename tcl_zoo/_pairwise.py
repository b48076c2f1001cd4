"""All pairs of a batch in memory linear in the batch: the walk over tiles behind ``losses.py``.

The pairs are walked in tiles: once for the denominators, and once more, with the denominators known, for the gradient.
A tile is a matrix product and an exponential; where some of its pairs have the same label also a mask of those, and a
second exponential for ``k1 exp(-s)``. On a CPU the rows of a batch of several tiles come sorted by label, so that few
tiles have such pairs. Batches of up to ``KEEP`` entries keep their tiles from the first walk to the second. A batch of
one tile (up to 512 rows of one process on a CPU, without a shift) goes through ``_one_tile.py``: the same arithmetic
without the slices and sums of a walk, whose fixed cost shows at that size.

Exponentials are powers of 2, ``exp(s / tau) = 2^(s / (tau ln 2))``: in float32 they take half the time of powers of e.
Where temperature and k1, k2 cannot leave float32's range (the shift is None) they are taken as they are, and in one
process, where ``s`` is symmetric, a tile above the diagonal serves its rows and its columns. Elsewhere the largest
exponent of each row is found first and subtracted.

Everything happens in place: at these sizes the page faults of fresh memory cost as much as the exponential, and masks
of bools are slower than masks of floats.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Side of a tile. 512 x 512 float32 is 1 MiB, which stays in a CPU's cache between product, exponential and sum; a GPU
# wants fewer and larger kernels.
TILE, GPU_TILE = 512, 4096
# Entries of all tiles, up to which they are kept.
KEEP = 2048**2


@dataclass
class Batch:
    """What the walks read. ``A`` own anchors (rows), ``N`` rows of all processes (columns)."""

    rows: Tensor  # [A, D]
    columns: Tensor  # [N, D]; the same tensor as rows in one process
    row_class: Tensor  # [A] numbers that are equal where the labels are
    column_class: Tensor  # [N]
    row_index: Tensor | None  # [A] where each anchor stands among the columns; None where rows are columns
    temperature: float
    k1: float
    k2: float
    ordered: bool  # whether row_class and column_class ascend


@dataclass
class Factors:
    """Per anchor, [A] or [N]: the shift (of exponents to base 2), w / D and w / |P|, w what its loss weighs."""

    shift: Tensor | None
    scale: Tensor
    pull: Tensor


@dataclass
class _Tile:
    rows: slice
    columns: slice
    positives: bool  # whether two of its labels may be equal
    mirrored: bool  # whether it stands for its transpose as well

    def add(self, into: Tensor, values: Tensor) -> None:
        """Adds the sum of every row (and column, if mirrored) to ``into`` [A]."""
        into[self.rows].add_(values.sum(1))
        if self.mirrored:
            into[self.columns].add_(values.sum(0))


class Workspace:
    """Memory for tiles. One workspace waits for the next batch: fresh memory is dear (see above)."""

    _free: list[list[Tensor]] = []  # noqa: RUF012 (shared on purpose)

    def __init__(self, batch: Batch, side: int) -> None:
        self._dtype, self._device = batch.rows.dtype, batch.rows.device
        # Not handed on: tensors made in inference mode, which later steps may not write to, and a compiler's.
        private = torch.compiler.is_compiling() or torch.is_inference_mode_enabled()
        self._shared = batch.rows.device.type == "cpu" and batch.rows.dtype == torch.float32 and not private
        self.entries = side * side
        if not self._shared:
            self.entries = min(side, len(batch.rows)) * min(side, len(batch.columns))
        self._squares: list[Tensor] = []

    def square(self, number: int, shape: tuple[int, int]) -> Tensor:
        """The ``number``-th square as a tensor of ``shape``, whatever was in it."""
        if not self._squares and self._shared:
            with contextlib.suppress(IndexError):
                self._squares = self._free.pop()
        while len(self._squares) <= number:
            self._squares.append(torch.empty(self.entries, dtype=self._dtype, device=self._device))
        return self._squares[number].as_strided(shape, (shape[1], 1))

    def release(self) -> None:
        """What the squares hold is gone."""
        if self._shared and self._squares and not self._free:
            self._free.append(self._squares)
        self._squares = []


class Pairs:
    """What the pairs of a matrix add to the denominators."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._log_k1 = math.log2(batch.k1) if batch.k1 > 0 else None
        self._log_k2 = math.log2(batch.k2)
        self._exponent = 1 / (batch.temperature * math.log(2))  # of exp(1 / tau), to base 2

    def _bias(self, pair: Tensor | None) -> Tensor | float:
        """The exponent of k2, of the negatives."""
        return (1 - pair).mul_(self._log_k2) if pair is not None and self._log_k2 else self._log_k2

    def _far(self, near: Tensor, work: Tensor) -> Tensor:
        """The exponent of k1 exp(-s), in ``work``."""
        assert self._log_k1 is not None
        # A number and a tensor: not documented, and takes neither a pass nor a tensor for the number.
        return torch.sub(self._log_k1, near, alpha=self.batch.temperature, out=work)  # type: ignore[call-overload]

    def _terms(
        self, near: Tensor, pair: Tensor | None, work: Tensor, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Every pair's terms from its exponent: by s / tau, and of the positives by -s, in ``work``.

        Without a shift ``near`` is overwritten.
        """
        far = None
        if pair is not None and self._log_k1 is not None:
            far = self._far(near, work)
            if shift is None:
                far.exp2_().mul_(pair)
            else:
                far.sub_(shift).masked_fill_(pair == 0, -math.inf).exp2_()
        if shift is not None:
            near = near - shift
        if self._log_k2:
            near += self._bias(pair)
        return near.exp2_(), far

    def _derive(self, near: Tensor, far: Tensor | None) -> Tensor:
        """tau times the derivative by s of a pair's terms, in place of ``near``."""
        return near if far is None else near.sub_(far, alpha=self.batch.temperature)


class Walk(Pairs):
    """Sums and gradient over all pairs of a batch, each asked for once.

    Args:
        batch: the pairs.
        keep: tiles, where they are few enough, for what is asked next.
    """

    def __init__(self, batch: Batch, keep: bool) -> None:
        super().__init__(batch)
        self._side = TILE if batch.rows.device.type == "cpu" else GPU_TILE
        self._symmetric = batch.rows is batch.columns
        self._space = Workspace(batch, self._side)
        tiles = math.ceil(len(batch.rows) / self._side) * math.ceil(len(batch.columns) / self._side)
        self._keep = keep and tiles * self._space.entries <= KEEP
        self._kept: dict[tuple[int, int], tuple[Tensor, Tensor | None, Tensor]] = {}
        self._derived = False  # whether what is kept are derivatives
        self._laid_out: dict[bool, list[_Tile]] = {}
        self._borders: tuple[list[tuple[float, float]], list[tuple[float, float]]] = [], []
        if batch.ordered:
            self._borders = self._ends(batch.row_class), self._ends(batch.column_class)

    def release(self) -> None:
        """Gives the memory to the next batch."""
        self._kept, self._derived = {}, False
        self._space.release()

    def largest(self) -> Tensor:
        """[A] the largest exponent of 2 of each row, -inf where it has none."""
        b = self.batch
        into = b.rows.new_full((len(b.rows),), -math.inf)
        for tile in self._tiles(mirror=False):
            near, pair, work = self._load(tile)
            largest = self._strike(tile, near + self._bias(pair), -math.inf).amax(1)
            if pair is not None and self._log_k1 is not None:
                torch.maximum(largest, self._far(near, work).masked_fill_(pair == 0, -math.inf).amax(1), out=largest)
            torch.maximum(into[tile.rows], largest, out=into[tile.rows])
        return into

    def sums(self, shift: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """D with the shift taken out, the positives' sum of exponents, and |P|, each [A]."""
        denominator, attraction, count = self.batch.rows.new_zeros(3, len(self.batch.rows)).unbind()
        for tile in self._tiles(mirror=shift is None):
            near, pair, work = self._load(tile)
            if pair is not None:
                tile.add(count, pair)
                tile.add(attraction, torch.mul(near, pair, out=work))
            near, far = self._struck(tile, near, pair, work, None if shift is None else shift[tile.rows, None])
            tile.add(denominator, near)
            if far is not None:
                tile.add(denominator, far)
            if shift is None and self._keep:
                self._derive(near, far)
        self._derived = shift is None and self._keep
        return denominator, attraction, count

    def gradient(self, own: Factors, others: Factors, alike: bool) -> Tensor:
        """The gradient with respect to the rows, [A, D]; what was kept is overwritten.

        Args:
            own: of the own anchors, [A].
            others: of everybody's, [N].
            alike: the two anchors of a positive pair have the same pull.
        """
        b, into = self.batch, torch.zeros_like(self.batch.rows)
        for tile in self._tiles(mirror=own.shift is None):
            near, pair, work = self._load(tile)
            r, c = tile.rows, tile.columns
            if own.shift is None or others.shift is None:
                if not self._derived:
                    self._derive(*self._struck(tile, near, pair, work, None))
                weights = near.mul_(torch.add(own.scale[r, None], others.scale[c], out=work))
            else:
                weights = self._derive(*self._struck(tile, near, pair, work, own.shift[r, None]))
                weights.mul_(own.scale[r, None])
                theirs = self._derive(*self._struck(tile, near, pair, work, others.shift[c]))
                weights.addcmul_(theirs, others.scale[c])
            if pair is not None and alike:
                weights.addcmul_(pair, own.pull[r, None], value=-2)
            elif pair is not None:
                weights.addcmul_(pair, own.pull[r, None], value=-1).addcmul_(pair, others.pull[c], value=-1)
            into[r].addmm_(weights, b.columns[c], alpha=1 / b.temperature)
            if tile.mirrored:
                into[c].addmm_(weights.t(), b.rows[r], alpha=1 / b.temperature)
        return into

    def _ends(self, classes: Tensor) -> list[tuple[float, float]]:
        """The first and the last class of every tile."""
        first = classes[:: self._side]
        last = torch.cat([classes[self._side - 1 :: self._side], classes[-1:]])
        return list(zip(first.tolist(), last.tolist(), strict=False))

    def _tiles(self, mirror: bool) -> list[_Tile]:
        mirror = mirror and self._symmetric
        if mirror in self._laid_out:
            return self._laid_out[mirror]
        a, n, side, tiles = len(self.batch.rows), len(self.batch.columns), self._side, []
        for i, r in enumerate(range(0, a, side)):
            for j, c in enumerate(range(0, n, side)):
                if mirror and j < i:
                    continue
                positives = True
                if self.batch.ordered:
                    (first, last), (low, high) = self._borders[0][i], self._borders[1][j]
                    positives = first <= high and low <= last
                rows, columns = slice(r, min(r + side, a)), slice(c, min(c + side, n))
                tiles.append(_Tile(rows, columns, positives, mirror and j > i))
        self._laid_out[mirror] = tiles
        return tiles

    def _load(self, tile: _Tile) -> tuple[Tensor, Tensor | None, Tensor]:
        """Exponents of s / tau, 1 where a pair is positive (None where none of the tile is), and a square to work in.

        Of a kept tile the first one holds what was last written to it.
        """
        b, rows, columns = self.batch, tile.rows, tile.columns
        where = rows.start, columns.start
        if where in self._kept:
            return self._kept[where]
        shape, number = (rows.stop - rows.start, columns.stop - columns.start), 1 + 2 * len(self._kept)
        work, near, pair = self._space.square(0, shape), self._space.square(number, shape), None
        near.addmm_(b.rows[rows], b.columns[columns].t(), beta=0, alpha=self._exponent)
        if tile.positives:
            pair = self._space.square(number + 1, shape)
            torch.eq(b.row_class[rows, None], b.column_class[columns], out=pair)
            self._strike(tile, pair, 0.0)
        if self._keep:
            self._kept[where] = near, pair, work
        return near, pair, work

    def _strike(self, tile: _Tile, values: Tensor, value: float) -> Tensor:
        """``values`` with ``value`` at the pairs of an anchor with itself, in place."""
        if self._symmetric:
            if tile.rows.start == tile.columns.start:
                values.diagonal().fill_(value)
        elif self.batch.row_index is not None and tile.positives:
            place = torch.arange(tile.columns.start, tile.columns.stop, device=values.device)
            values.masked_fill_(self.batch.row_index[tile.rows, None] == place, value)
        return values

    def _struck(
        self, tile: _Tile, near: Tensor, pair: Tensor | None, work: Tensor, shift: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The terms, without that of an anchor with itself."""
        near, far = self._terms(near, pair, work, shift)
        return self._strike(tile, near, 0.0), far
