"""What the self-supervised objectives share: views apart, precision, signs of collapse."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..recipes import Recipe
from ._base import Objective, Views


def embedding_std(embeddings: Tensor) -> Tensor:
    """Spread of the directions of [N, D] embeddings: 0 where all point one way, about 1 where they fill the sphere.

    The standard deviation of each dimension of the normalised rows, averaged, times sqrt(D) (SimSiam, section 4).
    """
    rows = F.normalize(embeddings.float(), dim=1)
    return rows.std(0, correction=0).mean() * math.sqrt(rows.shape[1])


def effective_rank(embeddings: Tensor) -> Tensor:
    """Dimensions that [N, D] embeddings fill, 1 to min(N, D): exp of the entropy of their singular values.

    Roy and Vetterli 2007; RankMe (Garrido et al. 2023).
    """
    values = torch.linalg.svdvals(embeddings.float())
    share = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return torch.exp(-torch.xlogy(share, share).sum())


def single(values: Tensor) -> Tensor:
    """In float32 at least: half precision is widened."""
    return values if values.dtype == torch.float64 else values.float()


class SelfSupervised(Objective):
    """Logs how far the embeddings of the last step are from collapse: ``embedding_std``, ``effective_rank``.

    Args:
        recipe: epochs, views and options.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.options, self.epochs, self.views = dict(recipe.options), recipe.epochs, recipe.views
        self._seen: Tensor | None = None

    @property
    def epoch(self) -> float:
        """Epochs that were done before this step."""
        return self.progress * self.epochs

    def count(self, option: str) -> int:
        """An option that is a whole number."""
        return int(self.options[option])

    def apart(self, views: Views) -> list[Tensor]:
        """The views of full size one by one, [B, C, H, W] each."""
        return list((views[0] if isinstance(views, list) else views).chunk(self.views))

    def seen(self, embeddings: Tensor) -> None:
        """Keeps the embeddings [N, D] of this step for the log."""
        self._seen = embeddings.detach()

    def logged(self) -> dict[str, Tensor]:
        """Signs of collapse in this process's rows of the last step."""
        if self._seen is None:
            return {}
        return {"embedding_std": embedding_std(self._seen), "effective_rank": effective_rank(self._seen)}


def full_precision(like: Tensor) -> torch.autocast:
    """What is computed in it is not autocast: sums over a batch want float32."""
    return torch.autocast(like.device.type, enabled=False)
