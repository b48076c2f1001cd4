"""Cross-entropy: the supervised baseline, one view of each image (SPEC section 3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..ranks import shared
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
        return shared(loss, len(labels))
