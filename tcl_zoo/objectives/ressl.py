"""ReSSL (Zheng et al. 2021): the similarities to earlier images agree between a strong and a weak view."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..ranks import gathered, shared
from ..recipes import Recipe
from ._base import Views
from ._networks import Queue, Teacher, head
from ._self_supervised import SelfSupervised, full_precision, single
from .moco import moco_loss


def ressl_loss(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float, teacher_temperature: float) -> Tensor:
    """Cross-entropy between the distributions over the queue that key and query give (ReSSL, eq. 5).

    Args:
        queries, keys: [B, D] unit rows of student and teacher.
        queue: [K, D] unit rows.
        temperature, teacher_temperature: of the two softmaxes; the teacher's is the sharper one.
    """
    target = F.softmax(keys @ queue.T / teacher_temperature, dim=1)
    return F.cross_entropy(queries @ queue.T / temperature, target)


class ReSSL(SelfSupervised):
    """The student sees the first, strong view, the teacher the second, weak one.

    Args:
        recipe: temperature, the projector's sizes; ``ema_base``, ``ema_final``, ``queue_size``,
            ``teacher_temperature``, ``infonce_epochs`` in which the keys are told apart first (Zheng et al. 2022,
            "Weak Augmentation Guided Relational Self-Supervised Learning"): before that similarities say little.
        encoder: what is trained.
    """

    def __init__(self, recipe: Recipe, encoder: nn.Module) -> None:
        super().__init__(recipe)
        width, hidden, dim = int(encoder.num_features), recipe.projector_hidden, recipe.projector_dim  # type: ignore[arg-type]
        self.projector = head(width, hidden, dim, norm=False)
        self.teacher = Teacher(encoder, self.projector, self.options["ema_base"], self.options["ema_final"])
        self.queue = Queue(1, self.count("queue_size"), dim)
        self.temperatures = recipe.temperature, self.options["teacher_temperature"]
        self._keys: Tensor | None = None

    def forward(self, encoder: nn.Module, views: Views, labels: Tensor) -> Tensor:
        """[2 * B, C, H, W] views to a scalar."""
        strong, weak = self.apart(views)
        queries = F.normalize(single(self.projector(encoder(strong))), dim=1)
        keys = F.normalize(single(self.teacher(weak)), dim=1)
        self.seen(queries)
        self._keys = gathered(keys)[None]
        if self.progress == 0:
            self.queue.start(self._keys)
        with full_precision(queries):
            if self.epoch < self.options["infonce_epochs"]:
                loss = moco_loss(queries, keys, self.queue.rows[0], self.temperatures[0])
            else:
                loss = ressl_loss(queries, keys, self.queue.rows[0], *self.temperatures)
        return shared(loss, len(labels))

    def after_step(self, encoder: nn.Module, progress: float) -> None:
        """The teacher follows, the keys enter the queue."""
        self.teacher.follow(encoder, self.projector, progress)
        assert self._keys is not None
        self.queue.add(self._keys)
