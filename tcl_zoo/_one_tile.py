"""A batch of one tile: what a walk over it would do, without the walk."""

from __future__ import annotations

import torch
from torch import Tensor

from ._pairwise import TILE, Batch, Factors, Pairs, Workspace


class OneTile(Pairs):
    """What a ``Walk`` answers, of a batch of one tile in one process: nothing to slice and nothing to add up.

    Args:
        batch: the pairs, at most ``TILE`` rows on a CPU; no shift.
        keep: the tile, for the gradient.
    """

    def __init__(self, batch: Batch, keep: bool) -> None:
        super().__init__(batch)
        self._space, self._keep = Workspace(batch, TILE), keep
        self._kept: tuple[Tensor, Tensor, Tensor] | None = None

    def release(self) -> None:
        """Gives the memory to the next batch."""
        self._kept = None
        self._space.release()

    def sums(self, shift: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """D, the positives' sum of exponents, and |P|, each [A]; see ``Walk.sums``."""
        assert shift is None
        near, pair, work = self._load()
        count, attraction = pair.sum(1), torch.mul(near, pair, out=work).sum(1)
        near, far = self._terms(near, pair, work)
        near.diagonal().fill_(0.0)
        denominator = near.sum(1)
        if far is not None:
            denominator += far.sum(1)
        if self._keep:
            self._kept = self._derive(near, far), pair, work
        return denominator, attraction, count

    def gradient(self, own: Factors, others: Factors, alike: bool) -> Tensor:
        """The gradient with respect to the rows, [A, D]; see ``Walk.gradient``."""
        assert others is own, "of one process"
        if self._kept is None:
            near, pair, work = self._load()
            weights = self._derive(*self._terms(near, pair, work))
            weights.diagonal().fill_(0.0)
        else:
            weights, pair, work = self._kept
        weights.mul_(torch.add(own.scale[:, None], own.scale, out=work))
        weights.addcmul_(pair, own.pull[:, None], value=-2 if alike else -1)
        if not alike:
            weights.addcmul_(pair, own.pull, value=-1)
        rows = self.batch.rows
        return torch.empty_like(rows).addmm_(weights, rows, beta=0, alpha=1 / self.batch.temperature)

    def _load(self) -> tuple[Tensor, Tensor, Tensor]:
        """The exponents of s / tau, 1 where a pair is positive, and a square to work in."""
        b, n = self.batch, len(self.batch.rows)
        near, pair, work = (self._space.square(number, (n, n)) for number in range(3))
        near.addmm_(b.rows, b.rows.t(), beta=0, alpha=self._exponent)
        torch.eq(b.row_class[:, None], b.row_class, out=pair)
        pair.diagonal().fill_(0.0)
        return near, pair, work
