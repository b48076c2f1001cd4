"""W-MSE (Ermolov et al. 2021): distance of the two views after the batch is whitened."""

from __future__ import annotations

import torch
from lightly.loss.wmse_loss import Whitening2d, norm_mse_loss
from torch import Tensor, nn

from ..errors import TrainingError
from ..ranks import gathered
from ..recipes import Recipe
from ._base import Views
from ._networks import head
from ._self_supervised import SelfSupervised, full_precision, single


class WMSE(SelfSupervised):
    """Whitens parts of the batch (Cholesky) and compares unit rows: ``2 - 2 cos``.

    The parts are runs of the batch, which is in random order as it is.

    Args:
        recipe: the projector's sizes; ``whitening_size`` rows at a time, ``whitening_eps``.
        encoder: what is trained.

    Raises:
        TrainingError: a batch that does not divide into such parts, or parts too small for the dimensions.
    """

    def __init__(self, recipe: Recipe, encoder: nn.Module) -> None:
        super().__init__(recipe)
        self.size, dim = self.count("whitening_size"), recipe.projector_dim
        if recipe.batch_images % self.size or self.size < 2 * dim:
            raise TrainingError(
                f"options.whitening_size ({self.size}) must divide the batch ({recipe.batch_images} images) and be "
                f"twice projector_dim ({dim}) at least"
            )
        self.projector = head(int(encoder.num_features), recipe.projector_hidden, dim)  # type: ignore[arg-type]
        self.whitening = Whitening2d(dim, track_running_stats=False, eps=self.options["whitening_eps"])

    def forward(self, encoder: nn.Module, views: Views, labels: Tensor) -> Tensor:
        """[2 * B, C, H, W] views to a scalar."""
        z = [single(self.projector(encoder(v))) for v in self.apart(views)]
        self.seen(z[0])
        with full_precision(z[0]):
            try:
                w1, w2 = (torch.cat([self.whitening(p) for p in gathered(v).split(self.size)]) for v in z)
            except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
                raise TrainingError(
                    "the embeddings cannot be whitened: their covariance is singular; "
                    "try --set options.whitening_eps=0.001 or a lower learning rate"
                ) from None
            loss: Tensor = norm_mse_loss(w1, w2)
        return loss
