"""What a recipe's values may be, whoever sets them: a run that cannot work is refused before it starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ._ssl_recipes import SELF_SUPERVISED
from .errors import RecipeError

OPTIMIZERS = ("sgd", "lars", "adam")
AUGMENTATIONS = (
    "autoaugment_thesis",
    "autoaugment",
    "simaugment",
    "simaugment_blur",
    "simaugment_mild",
    "symmetric",
    "symmetric_weak",
    "asymmetric",
    "asymmetric_blur",
    "ressl",
    "vicreg",
    "vicreg_blur",
    "wmse",
    "wmse_blur",
    "crop_flip",
    "crop",
    "resized_crop_flip",
    "none",
)
# Beyond these nothing of this kind can be meant, and numbers without end would exhaust the memory.
_MOST = {
    "epochs": 99_999, "views": 1024, "batch_views": 1_000_000, "projector_hidden": 65_536, "projector_dim": 65_536,
    "crop_padding": 256, "probe_epochs": 99_999, "probe_batch": 1_000_000, "seed": 2**32 - 1,
}  # fmt: skip
_ANY_VIEWS = ("tcl_ssl", "simclr", "dino", "swav")  # the other self-supervised losses compare two
_OWN_WIDTH = ("tcl_ssl", "simclr")  # their projector takes the encoder's width for 0
# Options by what they are: whole numbers [least, most], numbers above 0, shares of 1.
_WHOLE = {
    "queue_size": (1, 1_000_000), "prototypes": (1, 1_000_000), "predictor_hidden": (1, 65_536),
    "whitening_size": (1, 1_000_000), "sinkhorn_iterations": (1, 1000), "local_crops": (0, 1024),
    "local_size": (1, 1024), "head_norm": (0, 1),
}  # fmt: skip
_ABOVE_0 = ("teacher_temperature", "warmup_temperature", "sinkhorn_epsilon")
_SHARES = ("ema_base", "ema_final", "center_momentum", "crop_split")


def check(fields: Mapping[str, Any]) -> None:
    """Holds the fields of a :class:`tcl_zoo.Recipe` against what they mean.

    Raises:
        RecipeError: one is out of range, or some do not go together; names the recipe, the field and the range.
    """

    def need(ok: bool, what: str) -> None:
        if not ok:
            raise RecipeError(f"{fields['name']}: {what}")

    for key in ("epochs", "views", "batch_views", "projector_dim", "probe_epochs", "probe_batch"):
        need(fields[key] >= 1, f"{key} must be at least 1, got {fields[key]}")
    for key in ("projector_hidden", "crop_padding", "seed"):
        need(fields[key] >= 0, f"{key} must not be negative, got {fields[key]}")
    for key, most in _MOST.items():
        need(fields[key] <= most, f"{key} must be at most {most}")
    for key in ("lr", "probe_lr", "temperature", "k2"):
        need(math.isfinite(fields[key]) and fields[key] > 0, f"{key} must be finite and above 0, got {fields[key]}")
    for key in ("k1", "weight_decay"):
        need(math.isfinite(fields[key]) and fields[key] >= 0, f"{key} must be finite and at least 0, got {fields[key]}")
    need(0 <= fields["momentum"] < 1, f"momentum must lie in [0, 1), got {fields['momentum']}")
    need(0 <= fields["lr_min_factor"] <= 1, f"lr_min_factor must lie in [0, 1], got {fields['lr_min_factor']}")
    for policy in (fields["augmentation"], fields["probe_augmentation"] or "none"):
        need(policy in AUGMENTATIONS, f"unknown augmentation {policy!r}; known: {', '.join(AUGMENTATIONS)}")
    if fields["objective"] in ("supcon", "simclr"):
        need((fields["k1"], fields["k2"]) == (0, 1), "k1 is 0 and k2 is 1 here; others make it tcl or tcl_ssl")
    optimizer, warmup, epochs = fields["optimizer"], fields["warmup_epochs"], fields["epochs"]
    need(optimizer in OPTIMIZERS, f"unknown optimizer {optimizer!r}; known: {', '.join(OPTIMIZERS)}")
    need(0 <= warmup < epochs, f"warmup_epochs ({warmup}) must lie below epochs ({epochs}); set both")
    for key, value in fields["options"].items():
        _check_option(key, value, need)
    _check_views(fields, need)


def _check_option(key: str, value: float, need: Any) -> None:
    need(math.isfinite(value) and value >= 0, f"options.{key} must be finite and at least 0, got {value}")
    if key in _WHOLE:
        least, most = _WHOLE[key]
        whole = least <= value <= most and value == int(value)
        need(whole, f"options.{key} must be a whole number from {least} to {most}, got {value}")
    if key in _ABOVE_0:
        need(value > 0, f"options.{key} must be above 0, got {value}")
    if key == "crop_split":
        need(value > 0.05, f"options.{key} must be above 0.05, the share that the smallest crop takes, got {value}")
    if key in _SHARES:
        need(value <= 1, f"options.{key} must be at most 1, got {value}")


def _check_views(fields: Mapping[str, Any], need: Any) -> None:
    views, batch, objective = fields["views"], fields["batch_views"], fields["objective"]
    if objective in SELF_SUPERVISED and objective not in _ANY_VIEWS:
        need(views == 2, f"{objective} compares two views of an image, got views={views}")
    elif objective in SELF_SUPERVISED:
        need(views >= 2, f"views must be at least 2, got {views}: without labels an image's views are its positives")
    need(batch % views == 0, f"batch_views ({batch}) must be a multiple of views ({views})")
    if objective != "ce":
        need(batch >= 2, "a contrastive step needs at least 2 views")
    if objective in SELF_SUPERVISED:
        need(
            batch // views >= 2, f"batch_views ({batch}) must be at least twice views ({views}): a step needs 2 images"
        )
        hidden = fields["projector_hidden"]
        need(hidden >= 1 or objective in _OWN_WIDTH, "projector_hidden must be at least 1: this projector has no other")
