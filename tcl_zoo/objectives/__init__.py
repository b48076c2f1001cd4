"""What a training step minimises: one file per family, one interface (``Objective`` in ``_base.py``)."""

from __future__ import annotations

import importlib

from torch import nn

from ..errors import TrainingError
from ..recipes import Recipe
from ._base import Objective, Views
from .contrastive import Contrastive
from .cross_entropy import CrossEntropy

__all__ = ["Contrastive", "CrossEntropy", "Objective", "Views", "create_objective"]

# Objective -> file and class; loaded when asked for, as most of them stand on lightly.
_SELF_SUPERVISED = {
    "tcl_ssl": "instance.InstanceContrastive",
    "simclr": "instance.InstanceContrastive",
    "byol": "byol.BYOL",
    "dino": "dino.DINO",
    "simsiam": "simsiam.SimSiam",
    "moco": "moco.MoCo",
    "ressl": "ressl.ReSSL",
    "vicreg": "decorrelation.VICReg",
    "swav": "swav.SwAV",
    "wmse": "wmse.WMSE",
    "arb": "arb.ARB",
    "barlow": "decorrelation.BarlowTwins",
}


def create_objective(recipe: Recipe, encoder: nn.Module, num_classes: int) -> Objective:
    """The objective of a recipe.

    Args:
        recipe: what to train.
        encoder: what is trained, images to ``num_features`` pooled features; teachers start as its copy.
        num_classes: classes of the data set.

    Raises:
        TrainingError: the objective stands on a package that is not installed.
    """
    width = int(encoder.num_features)  # type: ignore[arg-type]
    if recipe.objective == "ce":
        return CrossEntropy(width, num_classes)
    if recipe.objective not in _SELF_SUPERVISED:
        return Contrastive(recipe, width)
    module, _, name = _SELF_SUPERVISED[recipe.objective].partition(".")
    try:
        made: Objective = getattr(importlib.import_module(f".{module}", __name__), name)(recipe, encoder)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lightly":
            raise
        raise TrainingError(f"{recipe.objective} needs lightly: pip install 'tcl_zoo[ssl]'") from None
    return made
