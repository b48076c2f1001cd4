"""ARB (Zhang et al. 2022): each view is aligned with the orthonormal base that is nearest to the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ranks import gathered
from ..recipes import Recipe
from ._base import Views
from ._networks import head
from ._self_supervised import SelfSupervised, full_precision, single


def nearest_base(rows: Tensor, eps: float) -> Tensor:
    """The columns of [B, D] turned into the nearest orthogonal ones, of the same length: no gradient.

    ``rows C^(-1/2)`` with C the columns' covariance, rows being centred: the polar factor.

    Args:
        rows: [B, D], each column of mean 0.
        eps: added to the eigenvalues of C; where B is below D some are 0.
    """
    with torch.no_grad():
        wide = rows.double()  # small eigenvalues magnify rounding
        values, vectors = torch.linalg.eigh(wide.T @ wide / (len(rows) - 1))
        scale = (values.clamp(min=0) + eps).rsqrt()
        return (wide @ ((vectors * scale) @ vectors.T)).to(rows.dtype)


def arb_loss(z1: Tensor, z2: Tensor, eps: float) -> Tensor:
    """Sum over the dimensions of (1 - correlation with the other view's base) squared, both directions.

    Args:
        z1, z2: [B, D].
        eps: of :func:`nearest_base`.
    """
    z1, z2 = ((z - z.mean(0)) / (z.std(0) + 1e-5) for z in (z1, z2))
    total = z1.new_zeros(())
    for rows, other in ((z1, z2), (z2, z1)):
        correlation = (rows * nearest_base(other, eps)).sum(0) / len(rows)
        total = total + (correlation - 1).square().sum()
    return total


class ARB(SelfSupervised):
    """Projector of three layers, then :func:`arb_loss` over all processes.

    Args:
        recipe: the projector's sizes; ``whitening_eps``, ``loss_scale``.
        encoder: what is trained.
    """

    def __init__(self, recipe: Recipe, encoder: nn.Module) -> None:
        super().__init__(recipe)
        width, hidden = int(encoder.num_features), recipe.projector_hidden  # type: ignore[arg-type]
        self.projector = head(width, hidden, hidden, recipe.projector_dim)

    def forward(self, encoder: nn.Module, views: Views, labels: Tensor) -> Tensor:
        """[2 * B, C, H, W] views to a scalar."""
        z1, z2 = (single(self.projector(encoder(v))) for v in self.apart(views))
        self.seen(z1)
        with full_precision(z1):
            return self.options["loss_scale"] * arb_loss(gathered(z1), gathered(z2), self.options["whitening_eps"])
