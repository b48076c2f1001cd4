"""MoCo v2+ (He et al. 2020; Chen et al. 2020): a teacher's embeddings of earlier images are the negatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ranks import gathered, shared
from ..recipes import Recipe
from ._base import Views
from ._networks import Queue, Teacher, head
from ._self_supervised import SelfSupervised, full_precision, single


def moco_loss(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding a query's own key among those of the queue (He et al., eq. 1).

    Args:
        queries, keys: [B, D] unit rows.
        queue: [K, D] unit rows.
        temperature: of the softmax.
    """
    own = (queries * keys).sum(1, keepdim=True)
    logits = torch.cat([own, queries @ queue.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(queries), dtype=torch.int64, device=queries.device))


class MoCo(SelfSupervised):
    """Both views in turn query the other's key, each with a queue of its own (symmetric, as MoCo v2+).

    Args:
        recipe: temperature, the projector's sizes; ``ema_base``, ``ema_final``, ``queue_size``.
        encoder: what is trained.

    Attributes:
        queues: how many there are.
    """

    queues = 2

    def __init__(self, recipe: Recipe, encoder: nn.Module) -> None:
        super().__init__(recipe)
        width, hidden, dim = int(encoder.num_features), recipe.projector_hidden, recipe.projector_dim  # type: ignore[arg-type]
        self.projector = head(width, hidden, dim, norm=False)
        self.teacher = Teacher(encoder, self.projector, self.options["ema_base"], self.options["ema_final"])
        self.queue = Queue(self.queues, self.count("queue_size"), dim)
        self.temperature = recipe.temperature
        self._keys: Tensor | None = None

    def forward(self, encoder: nn.Module, views: Views, labels: Tensor) -> Tensor:
        """[2 * B, C, H, W] views to a scalar."""
        images = self.apart(views)
        q1, q2 = (F.normalize(single(self.projector(encoder(v))), dim=1) for v in images)
        k1, k2 = (F.normalize(single(self.teacher(v)), dim=1) for v in images)
        self.seen(q1)
        self.remember(torch.stack([gathered(k1), gathered(k2)]))
        with full_precision(q1):
            first = moco_loss(q1, k2, self.queue.rows[1], self.temperature)
            second = moco_loss(q2, k1, self.queue.rows[0], self.temperature)
        return shared((first + second) / 2, len(labels))

    def remember(self, keys: Tensor) -> None:
        """Keeps the keys [queues, B, D] of this step for the queues, which the very first ones fill."""
        self._keys = keys
        if self.progress == 0:
            self.queue.start(keys)

    def after_step(self, encoder: nn.Module, progress: float) -> None:
        """The teacher follows, the keys enter the queue."""
        self.teacher.follow(encoder, self.projector, progress)
        assert self._keys is not None
        self.queue.add(self._keys)
