"""What a training step minimises: one file per family, one interface.

An objective is an ``nn.Module`` that owns the networks it adds to the encoder (projector, classifier) and turns
pooled features and labels into a loss:

    forward(features [V * B, d], labels [B]) -> scalar

Features are view-major: rows v * B to (v + 1) * B are view v of the batch.
"""

from __future__ import annotations

from torch import nn

from ..recipes import Recipe
from .contrastive import Contrastive
from .cross_entropy import CrossEntropy

__all__ = ["Contrastive", "CrossEntropy", "create_objective"]


def create_objective(recipe: Recipe, num_features: int, num_classes: int) -> nn.Module:
    """The objective of a recipe.

    Args:
        recipe: what to train.
        num_features: width of the encoder's pooled features.
        num_classes: classes of the data set.
    """
    if recipe.objective == "ce":
        return CrossEntropy(num_features, num_classes)
    return Contrastive(recipe, num_features)
