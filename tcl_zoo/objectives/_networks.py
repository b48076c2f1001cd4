"""Networks around the encoder: heads, prototypes, a teacher that follows by moving average, a queue of embeddings."""

from __future__ import annotations

import copy
import itertools
import math

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import ProjectionHead
from lightly.models.utils import update_momentum
from torch import Tensor, nn

from ._self_supervised import single


def head(*widths: int, norm: bool = True, last_norm: bool = False, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Linear layers of these widths, between them batch norm and activation.

    Args:
        widths: of the input, every hidden layer and the output.
        norm: batch norm in hidden layers.
        last_norm: batch norm without affine parameters after the output, too (SimSiam).
        activation: of the hidden layers.
    """
    hidden = itertools.pairwise(widths[:-1])
    blocks = [(a, b, nn.BatchNorm1d(b) if norm else None, activation()) for a, b in hidden]
    last = nn.BatchNorm1d(widths[-1], affine=False) if last_norm else None
    made: nn.Module = ProjectionHead([*blocks, (widths[-2], widths[-1], last, None)])
    return made


class Prototypes(nn.Module):
    """Cosine of embeddings [N, D] with K learnt directions, float32 or wider [N, K]."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, dim))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as nn.Linear

    def forward(self, embeddings: Tensor) -> Tensor:
        """[N, D] to [N, K]."""
        return F.linear(F.normalize(single(embeddings), dim=1), F.normalize(self.weight, dim=1))


class Teacher(nn.Module):
    """Encoder and head as they were on average: each step they move a little towards the trained ones.

    Its batch norm sees the batch, as the trained one's does; no gradient enters.

    Args:
        encoder, head: what it starts as a copy of and follows.
        base, final: momentum of the average at the start and, by a cosine, at the end (BYOL, section 3.2).
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, base: float, final: float) -> None:
        super().__init__()
        self.encoder, self.head = copy.deepcopy(encoder), copy.deepcopy(head)
        self.base, self.final = base, final
        self.requires_grad_(False)

    def momentum(self, progress: float) -> float:
        """Of the average at this share of the training."""
        return self.final - (self.final - self.base) * (1 + math.cos(math.pi * progress)) / 2

    @torch.no_grad()
    def follow(self, encoder: nn.Module, head: nn.Module, progress: float) -> None:
        """Moves towards the trained networks."""
        for own, theirs in ((self.encoder, encoder), (self.head, head)):
            update_momentum(theirs, own, self.momentum(progress))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] to the head's output, without a gradient."""
        return self.head(self.encoder(images))


class Queue(nn.Module):
    """The last embeddings of each view, the oldest overwritten first; part of every checkpoint.

    Args:
        views: how many are kept apart.
        size: embeddings of a view.
        dim: dimensions of an embedding.
    """

    rows: Tensor
    at: Tensor

    def __init__(self, views: int, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(views, size, dim), dim=2))
        self.register_buffer("at", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def start(self, embeddings: Tensor) -> None:
        """Fills every place with [views, B, dim] over and over, at the first step.

        Against random directions nothing would keep the embeddings apart before real ones have replaced them, and a
        short training would not recover.
        """
        size = self.rows.shape[1]
        self.rows.copy_(embeddings.repeat(1, -(-size // embeddings.shape[1]), 1)[:, :size])

    @torch.no_grad()
    def add(self, embeddings: Tensor) -> None:
        """Enters [views, B, dim]; between backward and the next forward, as the loss's graph holds the rows."""
        size = self.rows.shape[1]
        newest = embeddings[:, -size:].to(self.rows.dtype)
        index = (self.at + torch.arange(newest.shape[1], device=self.at.device)) % size
        self.rows.index_copy_(1, index, newest)
        self.at.copy_((self.at + newest.shape[1]) % size)
