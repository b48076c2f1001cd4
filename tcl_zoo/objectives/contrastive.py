"""TCL and SupCon: embeddings of all views against each other (SPEC sections 1 and 2)."""

from __future__ import annotations

from torch import Tensor, nn

from ..encoders import Projector
from ..losses import TCLLoss
from ..recipes import Recipe
from ._base import Objective, Views


class Contrastive(Objective):
    """Projector and tuned contrastive loss; SupCon is the same at ``k1 = 0, k2 = 1``.

    Args:
        recipe: temperature, k1, k2 and the projector's sizes.
        num_features: width of the encoder's pooled features.
    """

    capturable = True

    def __init__(self, recipe: Recipe, num_features: int) -> None:
        super().__init__()
        self.projector = Projector(num_features, recipe.projector_hidden, recipe.projector_dim)
        self.loss = TCLLoss(recipe.temperature, recipe.k1, recipe.k2)
        self.views = recipe.views

    def forward(self, encoder: nn.Module, views: Views, labels: Tensor) -> Tensor:
        """[V * B, C, H, W] views and [B] labels to a scalar."""
        assert isinstance(views, Tensor)
        return self.loss(self.projector(encoder(views)), labels.repeat(self.views))
