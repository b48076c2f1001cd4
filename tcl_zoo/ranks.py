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


def all_rows(own: Tensor) -> tuple[Tensor, int]:
    """Every process's rows in rank order, and where the own ones start. Numbers of rows may differ; no gradient."""
    rank, world = ranks()
    if world == 1:
        return own, 0
    size = torch.tensor([len(own)], device=own.device)
    sizes = [torch.empty_like(size) for _ in range(world)]
    dist.all_gather(sizes, size)
    lengths = [int(s) for s in sizes]
    padded = own.new_zeros(max(lengths), *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    everything = torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])
    return everything, sum(lengths[:rank])


class _Gather(torch.autograd.Function):
    """Every process's rows; backward adds what every process wants of the own ones."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        everything, first = all_rows(own)
        ctx.own = slice(first, first + len(own))
        return everything

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
