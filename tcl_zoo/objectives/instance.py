"""TCL without labels, and SimCLR: an image's views are each other's positives (SPEC section 5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..encoders import Projector
from ..losses import TCLLoss
from ..ranks import ranks
from ..recipes import Recipe
from ._base import Views
from ._self_supervised import SelfSupervised


class InstanceContrastive(SelfSupervised):
    """Tuned contrastive loss with the image as its own class; SimCLR is the same at ``k1 = 0, k2 = 1`` and two views.

    Args:
        recipe: temperature, k1, k2, views and the projector's sizes.
        encoder: what is trained.
    """

    capturable = True

    def __init__(self, recipe: Recipe, encoder: nn.Module) -> None:
        super().__init__(recipe)
        width = int(encoder.num_features)  # type: ignore[arg-type]
        self.projector = Projector(width, recipe.projector_hidden, recipe.projector_dim)
        self.loss = TCLLoss(recipe.temperature, recipe.k1, recipe.k2)

    def forward(self, encoder: nn.Module, views: Views, labels: Tensor) -> Tensor:
        """[V * B, C, H, W] views to a scalar; the labels are not looked at."""
        assert isinstance(views, Tensor)
        embeddings = self.projector(encoder(views))
        self.seen(embeddings)
        rank, world = ranks()
        images = torch.arange(len(labels), device=labels.device) * world + rank  # no other process's
        return self.loss(embeddings, images.repeat(self.views))
