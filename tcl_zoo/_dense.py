"""All pairs of a batch of one tile: its square is computed once and kept from forward to backward."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._pairwise import Batch, Terms

# Workspaces of earlier batches, three squares each. Fresh memory costs a page fault every 4 KiB: at N = 512 as long as
# the exponentials.
_Squares = tuple[Tensor, Tensor, Tensor]
_free: list[_Squares] = []


class Dense:
    """The one tile of a small batch, [A, N] at once.

    Masks are floats and steps in place: at this size a comparison of bools, or the page faults of one more square,
    cost as much as the exponential.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._near, self._pair, self._work = self._squares()
        torch.mm(batch.rows * (1 / batch.temperature), batch.columns.T, out=self._near)  # s / tau
        self._itself = batch.row_index[:, None]
        torch.eq(batch.row_class[:, None], batch.column_class[None], out=self._pair)
        self._pair.scatter_(1, self._itself, 0.0)
        self._kept: Tensor | None = None  # what the gradient needs of the exponentials, where nothing is shifted

    def _squares(self) -> _Squares:
        """Three [A, N] to write into: the workspace of a batch of this shape that is gone, where there is one."""
        rows = self.batch.rows
        shape = torch.Size((rows.shape[0], self.batch.columns.shape[0]))
        self._space: _Squares | None = None
        if rows.device.type != "cpu" or rows.dtype != torch.float32:
            return rows.new_empty(shape), rows.new_empty(shape), rows.new_empty(shape)
        try:
            self._space = _free.pop()
        except IndexError:
            self._space = torch.empty(shape), torch.empty(shape), torch.empty(shape)
        if self._space[0].shape != shape:
            self._space = torch.empty(shape), torch.empty(shape), torch.empty(shape)
        return self._space

    def __del__(self) -> None:
        if self._space is not None and len(_free) < 2:
            _free.append(self._space)

    def shift(self) -> Tensor:
        """[A] the largest exponent of each row."""
        b = self.batch
        pair = self._pair > 0
        near = torch.where(pair, self._near, self._near + math.log(b.k2)).scatter_(1, self._itself, -math.inf)
        far = torch.rsub(self._near, b.log_k1, alpha=b.temperature).masked_fill_(~pair, -math.inf)
        return torch.maximum(near, far).amax(1)

    def sums(self, shift: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """D with the shift taken out, the positives' sum of s, and |P|, each [A]."""
        sum_s = torch.linalg.vecdot(self._near, self._pair).mul_(self.batch.temperature)
        near, far = self._terms(None if shift is None else shift[:, None])
        denominator = near.sum(1)
        if far is not None:
            denominator += far.sum(1)
        if shift is None:
            self._kept = self._pulled(near, far)
        return denominator, sum_s, self._pair.sum(1)

    def gradient(self, shift: Tensor | None, own: Terms, others: Terms) -> Tensor:
        """tau times the gradient with respect to the rows, [A, D]."""
        if self._kept is not None:
            weights = torch.mul(self._kept, own.scale[:, None], out=self._work).addcmul_(self._kept, others.scale)
        else:
            weights = self._pulled(*self._terms(own.shift[:, None])).mul_(own.scale[:, None])
            weights += self._pulled(*self._terms(others.shift)).mul_(others.scale)
        weights.addcmul_(self._pair, own.pull[:, None], value=-1).addcmul_(self._pair, others.pull, value=-1)
        return weights @ self.batch.columns

    def _terms(self, shift: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Every term of the denominators: of negatives and positives by s / tau, of positives by -s."""
        near, far = self.batch.exponentials(self._near, shift, self._work)
        if self.batch.k2 != 1:
            near = torch.where(self._pair > 0, near, near * self.batch.k2)
        near.scatter_(1, self._itself, 0.0)
        return near, None if far is None else far.mul_(self._pair)

    def _pulled(self, near: Tensor, far: Tensor | None) -> Tensor:
        return near if far is None else near.sub_(far, alpha=self.batch.temperature)
