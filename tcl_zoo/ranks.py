"""A batch that several processes share: which rows are whose, whatever the share of each."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def ranks() -> tuple[int, int]:
    """This process's rank and the number of processes: (0, 1) where there is no group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


class Shares:
    """Whose rows of a shared batch are whose: asked of the processes once, good for all that has the same rows.

    The answer is waited for, which empties a GPU's queue: one object per batch.

    Args:
        rows: the own rows [b, ...]; b may differ between the processes.

    Attributes:
        own: where the own rows stand among everybody's.
    """

    def __init__(self, rows: Tensor) -> None:
        rank, world = ranks()
        self.lengths = [len(rows)]
        if world > 1:
            size = torch.tensor([len(rows)], device=rows.device)
            sizes = [torch.empty_like(size) for _ in range(world)]
            dist.all_gather(sizes, size)
            self.lengths = torch.cat(sizes).tolist()
        first = sum(self.lengths[:rank])
        self.own = slice(first, first + len(rows))

    def gather(self, own: Tensor) -> Tensor:
        """Every process's rows in rank order, [B, ...]; no gradient."""
        if len(self.lengths) == 1:
            return own
        padded = own.new_zeros(max(self.lengths), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in self.lengths]
        dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, self.lengths, strict=True)])


class _Gather(torch.autograd.Function):
    """Every process's rows; backward adds what every process wants of the own ones."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        shares = Shares(own)
        ctx.own = shares.own
        return shares.gather(own)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.own]


def gathered(own: Tensor) -> Tensor:
    """The rows [b, ...] of every process, in rank order, [B, ...]; the gradient reaches them.

    A loss over all rows, computed on every process, then has the whole batch's gradient in the mean over the
    processes, as distributed wrappers take it.
    """
    return _Gather.apply(own) if ranks()[1] > 1 else own


def shared(loss: Tensor, images: int) -> Tensor:
    """A mean over this process's images, scaled such that the mean over the processes is that of the whole batch.

    Args:
        loss: a scalar.
        images: how many of the batch are this process's.
    """
    world = ranks()[1]
    if world == 1:
        return loss
    total = torch.tensor(images, dtype=loss.dtype, device=loss.device)
    dist.all_reduce(total)
    return loss * (images * world / total)
