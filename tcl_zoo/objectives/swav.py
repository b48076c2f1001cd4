"""SwAV (Caron et al. 2020): a view predicts to which prototypes another is assigned, in equal shares over the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightly.loss import SwaVLoss
from torch import Tensor, nn

from ..ranks import gathered
from ..recipes import Recipe
from ._base import Views
from ._networks import Prototypes, Queue, head
from ._self_supervised import SelfSupervised, full_precision, single


class SwAV(SelfSupervised):
    """Swapped prediction with a queue that fills up small batches; with small crops, which only predict.

    Args:
        recipe: temperature, the projector's sizes; ``prototypes``, ``sinkhorn_iterations``, ``sinkhorn_epsilon``,
            ``queue_size``, ``queue_epochs`` before the queue is used, ``freeze_epochs`` in which the prototypes stay.
        encoder: what is trained.
    """

    def __init__(self, recipe: Recipe, encoder: nn.Module) -> None:
        super().__init__(recipe)
        dim = recipe.projector_dim
        self.projector = head(int(encoder.num_features), recipe.projector_hidden, dim)  # type: ignore[arg-type]
        self.prototypes = Prototypes(dim, self.count("prototypes"))
        self.queue = Queue(recipe.views, self.count("queue_size"), dim)
        self.loss = SwaVLoss(recipe.temperature, self.count("sinkhorn_iterations"), self.options["sinkhorn_epsilon"])
        self._newest: Tensor | None = None

    def forward(self, encoder: nn.Module, views: Views, labels: Tensor) -> Tensor:
        """Views of full size and small crops to a scalar."""
        large = [gathered(single(self.projector(encoder(v)))) for v in self.apart(views)]
        small: list[Tensor] = []
        if isinstance(views, list):
            crops = single(self.projector(encoder(views[1]))).chunk(len(views[1]) // len(labels))
            small = [gathered(z) for z in crops]
        self.seen(large[0])
        self._newest = torch.stack([F.normalize(z.detach(), dim=1) for z in large])
        with full_precision(large[0]):
            queued = None
            if self.epoch >= self.options["queue_epochs"]:
                queued = [self.prototypes(rows) for rows in self.queue.rows]
            loss: Tensor = self.loss([self.prototypes(z) for z in large], [self.prototypes(z) for z in small], queued)
        return loss.squeeze()

    def after_backward(self) -> None:
        """The prototypes stay for a while."""
        if self.epoch < self.options["freeze_epochs"]:
            self.prototypes.weight.grad = None

    def after_step(self, encoder: nn.Module, progress: float) -> None:
        """The embeddings enter the queue."""
        assert self._newest is not None
        self.queue.add(self._newest)
