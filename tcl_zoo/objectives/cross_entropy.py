"""Cross-entropy: the supervised baseline, one view of each image (SPEC section 3)."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ._base import Objective, Views


class CrossEntropy(Objective):
    """Linear classifier on the pooled features; it becomes the release's ``fc``.

    Args:
        num_features: width of the encoder's pooled features.
        num_classes: classes of the data set.
    """

    capturable = True

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(num_features, num_classes)

    def forward(self, encoder: nn.Module, views: Views, labels: Tensor) -> Tensor:
        """[V * B, C, H, W] views and [B] labels to a scalar."""
        assert isinstance(views, Tensor)
        loss = F.cross_entropy(self.classifier(encoder(views)), labels.repeat(len(views) // len(labels)))
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # Such that the mean over the processes is that of the whole batch, whatever the share of each.
            total = torch.tensor(len(labels), dtype=loss.dtype, device=loss.device)
            dist.all_reduce(total)
            loss = loss * (len(labels) * dist.get_world_size() / total)
        return loss
