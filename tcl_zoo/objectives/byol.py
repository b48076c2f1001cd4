"""BYOL (Grill et al. 2020): a predictor foretells the teacher's embedding of the other view."""

from __future__ import annotations

from lightly.loss import NegativeCosineSimilarity
from torch import Tensor, nn

from ..ranks import shared
from ..recipes import Recipe
from ._base import Views
from ._networks import Teacher, head
from ._self_supervised import SelfSupervised, single


class BYOL(SelfSupervised):
    """Mean squared distance of unit rows, in both directions (eq. 2): ``2 - 2 cos`` each.

    Args:
        recipe: the projector's sizes; ``ema_base``, ``ema_final``, ``predictor_hidden``.
        encoder: what is trained.
    """

    def __init__(self, recipe: Recipe, encoder: nn.Module) -> None:
        super().__init__(recipe)
        dim = recipe.projector_dim
        self.projector = head(int(encoder.num_features), recipe.projector_hidden, dim)  # type: ignore[arg-type]
        self.predictor = head(dim, self.count("predictor_hidden"), dim)
        self.teacher = Teacher(encoder, self.projector, self.options["ema_base"], self.options["ema_final"])
        self.loss = NegativeCosineSimilarity()

    def forward(self, encoder: nn.Module, views: Views, labels: Tensor) -> Tensor:
        """[2 * B, C, H, W] views to a scalar."""
        images = self.apart(views)
        z1, z2 = (self.projector(encoder(v)) for v in images)
        t1, t2 = (self.teacher(v) for v in images)
        self.seen(z1)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        distance = self.loss(single(p1), single(t2)) + self.loss(single(p2), single(t1))
        return shared(4 + 2 * distance, len(labels))

    def after_step(self, encoder: nn.Module, progress: float) -> None:
        """The teacher follows."""
        self.teacher.follow(encoder, self.projector, progress)
