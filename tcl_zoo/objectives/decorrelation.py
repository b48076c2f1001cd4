"""VICReg (Bardes et al. 2022) and Barlow Twins (Zbontar et al. 2021): dimensions that do not repeat each other."""

from __future__ import annotations

from lightly.loss import BarlowTwinsLoss, VICRegLoss
from torch import Tensor, nn

from ..ranks import gathered
from ..recipes import Recipe
from ._base import Views
from ._networks import head
from ._self_supervised import SelfSupervised, full_precision, single


class _Decorrelation(SelfSupervised):
    """Three linear layers, then a loss on the embeddings of both views, over all processes."""

    loss: nn.Module

    def __init__(self, recipe: Recipe, encoder: nn.Module) -> None:
        super().__init__(recipe)
        width, hidden = int(encoder.num_features), recipe.projector_hidden  # type: ignore[arg-type]
        self.projector = head(width, hidden, hidden, recipe.projector_dim)
        self.scale = self.options.get("loss_scale", 1.0)

    def forward(self, encoder: nn.Module, views: Views, labels: Tensor) -> Tensor:
        """[2 * B, C, H, W] views to a scalar."""
        z1, z2 = (single(self.projector(encoder(v))) for v in self.apart(views))
        self.seen(z1)
        with full_precision(z1):
            loss: Tensor = self.scale * self.loss(gathered(z1), gathered(z2))
        return loss


class VICReg(_Decorrelation):
    """Invariance, variance and covariance.

    Args:
        recipe: the projector's sizes; the weights ``invariance``, ``variance``, ``covariance``.
        encoder: what is trained.
    """

    def __init__(self, recipe: Recipe, encoder: nn.Module) -> None:
        super().__init__(recipe, encoder)
        self.loss = VICRegLoss(*(self.options[key] for key in ("invariance", "variance", "covariance")))


class BarlowTwins(_Decorrelation):
    """The cross-correlation of the two views is to be the identity.

    Args:
        recipe: the projector's sizes; ``redundancy``, the weight of what is off the diagonal, and ``loss_scale``.
        encoder: what is trained.
    """

    def __init__(self, recipe: Recipe, encoder: nn.Module) -> None:
        super().__init__(recipe, encoder)
        self.loss = BarlowTwinsLoss(self.options["redundancy"])
