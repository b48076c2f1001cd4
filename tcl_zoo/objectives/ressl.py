"""ReSSL (Zheng et al. 2021): the similarities to earlier images agree between a strong and a weak view."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..ranks import gathered, shared
from ._base import Views
from ._self_supervised import full_precision, single
from .moco import MoCo, moco_loss


def ressl_loss(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float, teacher_temperature: float) -> Tensor:
    """Cross-entropy between the distributions over the queue that key and query give (ReSSL, eq. 5).

    Args:
        queries, keys: [B, D] unit rows of student and teacher.
        queue: [K, D] unit rows.
        temperature, teacher_temperature: of the two softmaxes; the teacher's is the sharper one.
    """
    target = F.softmax(keys @ queue.T / teacher_temperature, dim=1)
    return F.cross_entropy(queries @ queue.T / temperature, target)


class ReSSL(MoCo):
    """MoCo's networks with one queue: the student sees the first, strong view, the teacher the second, weak one.

    Args:
        recipe: temperature, the projector's sizes; ``ema_base``, ``ema_final``, ``queue_size``,
            ``teacher_temperature``, ``infonce_epochs`` in which the keys are told apart first (Zheng et al. 2022,
            "Weak Augmentation Guided Relational Self-Supervised Learning"): before that similarities say little.
        encoder: what is trained.
    """

    queues = 1

    def forward(self, encoder: nn.Module, views: Views, labels: Tensor) -> Tensor:
        """[2 * B, C, H, W] views to a scalar."""
        strong, weak = self.apart(views)
        queries = F.normalize(single(self.projector(encoder(strong))), dim=1)
        keys = F.normalize(single(self.teacher(weak)), dim=1)
        self.seen(queries)
        self.remember(gathered(keys)[None])
        with full_precision(queries):
            if self.epoch < self.options["infonce_epochs"]:
                loss = moco_loss(queries, keys, self.queue.rows[0], self.temperature)
            else:
                sharper = self.options["teacher_temperature"]
                loss = ressl_loss(queries, keys, self.queue.rows[0], self.temperature, sharper)
        return shared(loss, len(labels))
