"""Cross-entropy: the supervised baseline, one view of each image (SPEC section 3)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class CrossEntropy(nn.Module):
    """Linear classifier on the pooled features; it becomes the release's ``fc``.

    Args:
        num_features: width of the encoder's pooled features.
        num_classes: classes of the data set.
    """

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(num_features, num_classes)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """[V * B, d] features and [B] labels to a scalar."""
        return F.cross_entropy(self.classifier(features), labels.repeat(len(features) // len(labels)))
