"""SimSiam (Chen and He 2021): as BYOL without a teacher; that no gradient enters the target keeps it from collapse."""

from __future__ import annotations

from lightly.loss import NegativeCosineSimilarity
from torch import Tensor, nn

from ..ranks import shared
from ..recipes import Recipe
from ._base import Views
from ._networks import head
from ._self_supervised import SelfSupervised, single


class SimSiam(SelfSupervised):
    """Negative cosine of a view's prediction and the other's embedding, both directions (eq. 4).

    Args:
        recipe: the projector's sizes; ``predictor_hidden``.
        encoder: what is trained.
    """

    def __init__(self, recipe: Recipe, encoder: nn.Module) -> None:
        super().__init__(recipe)
        width, hidden, dim = int(encoder.num_features), recipe.projector_hidden, recipe.projector_dim  # type: ignore[arg-type]
        self.projector = head(width, hidden, hidden, dim, last_norm=True)
        self.predictor = head(dim, self.count("predictor_hidden"), dim)
        self.loss = NegativeCosineSimilarity()

    @property
    def constant_lr(self) -> nn.Module:
        """The predictor: it is to follow the changing embeddings to the end."""
        return self.predictor

    def forward(self, encoder: nn.Module, views: Views, labels: Tensor) -> Tensor:
        """[2 * B, C, H, W] views to a scalar."""
        z1, z2 = (self.projector(encoder(v)) for v in self.apart(views))
        p1, p2 = self.predictor(z1), self.predictor(z2)
        self.seen(z1)
        one, two = self.loss(single(p1), single(z2.detach())), self.loss(single(p2), single(z1.detach()))
        return shared((one + two) / 2, len(labels))
