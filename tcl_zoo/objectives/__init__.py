"""What a training step minimises: one file per family, one interface (``Objective`` in ``_base.py``)."""

from __future__ import annotations

from ..recipes import Recipe
from ._base import Objective
from .contrastive import Contrastive
from .cross_entropy import CrossEntropy

__all__ = ["Contrastive", "CrossEntropy", "Objective", "create_objective"]


def create_objective(recipe: Recipe, num_features: int, num_classes: int) -> Objective:
    """The objective of a recipe.

    Args:
        recipe: what to train.
        num_features: width of the encoder's pooled features.
        num_classes: classes of the data set.
    """
    if recipe.objective == "ce":
        return CrossEntropy(num_features, num_classes)
    return Contrastive(recipe, num_features)
