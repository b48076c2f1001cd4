"""The supervised rows of the thesis as data (SPEC section 3), and the data sets; standard library only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Data:
    """What a recipe needs to know of a data set before any image is read."""

    image_size: int
    in_chans: int
    num_classes: int
    thesis_encoder: str
    row: dict[str, Any]
    """The data set's row of SPEC section 3; ``lr`` is SupCon's."""
    lr_tcl: float


_CIFAR100_128 = {"batch_views": 128, "lr": 0.1, "k1": 5000.0}
_FLIP = {"augmentation": "crop_flip"}
DATA: dict[str, Data] = {
    "digits": Data(8, 1, 10, "resnet20", {"epochs": 60, "lr": 0.1, "augmentation": "crop", "crop_padding": 1}, 0.1),
    "cifar10": Data(32, 3, 10, "resnet50", {"batch_views": 128, "lr": 0.1, "k1": 5000.0}, 0.1),
    "cifar100": Data(32, 3, 100, "resnet50", {"batch_views": 256, "lr": 0.2, "k1": 4000.0}, 0.2),
    "fmnist": Data(28, 1, 10, "resnet50", {"batch_views": 128, "lr": 0.09, "k1": 5000.0} | _FLIP, 0.09),
    "imagenet100": Data(224, 3, 100, "resnet18", {"batch_views": 256, "lr": 0.2, "k1": 4000.0}, 0.3),
}

# Figure 5.2: views per step -> learning rate, k1 (CIFAR-100, ResNet-50).
VIEWS = {
    32: (0.008, 5000.0),
    64: (0.009, 7500.0),
    128: (0.1, 5000.0),
    256: (0.2, 4000.0),
    512: (0.5, 4000.0),
    1024: (1.0, 4000.0),
}
PROJECTOR_DIMS = (64, 128, 256, 512, 1024, 2048)


def supervised_fields(objective: str, encoder: str, dataset: str) -> dict[str, Any]:
    """What a supervised recipe sets, beside its name and the defaults."""
    data = DATA[dataset]
    fields: dict[str, Any] = dict(data.row)
    if dataset == "cifar100" and encoder in ("resnet18", "resnet34", "resnet101"):
        # Figure 5.1 compares the encoders at 128 views; for these three it is the thesis's only setting.
        fields |= _CIFAR100_128
        if encoder == "resnet101":
            fields["lr"] = 0.09
    if encoder == "resnet20" and dataset == "cifar100" and objective != "ce":
        fields["projector_hidden"] = 512  # SPEC section 7: its own 64 are too few for 100 classes
    if objective == "tcl" and dataset == "imagenet100":
        fields["lr"] = data.lr_tcl
    if dataset == "imagenet100" and encoder == "resnet34":
        # Listed with the recipes of 128 views, which have this rate and k1 unless said (SPEC section 3).
        fields |= {"batch_views": 128, "lr": 0.1, "k1": 5000.0}
    if objective == "supcon":
        fields |= {"k1": 0.0, "k2": 1.0}
    if objective == "ce":
        # Budget-matched (SPEC section 3): 100 + 50 epochs in one phase, one view, as many images as the row has views.
        fields |= {"k1": 0.0, "views": 1, "epochs": fields.get("epochs", 100) * 3 // 2}
    return fields


def supervised_variants(objective: str, encoder: str, dataset: str, variant: str) -> dict[str, Any] | None:
    """What a variant changes, or None where the name has no such variant."""
    stability = objective != "ce" and encoder == "resnet50" and dataset == "cifar100"
    tcl = objective == "tcl"
    if variant == "":
        return {}
    if variant == "supcontrast":
        ok = objective == "ce" and dataset in ("cifar10", "cifar100")
        changes = {"epochs": 500, "batch_views": 1024, "lr": 0.8, "augmentation": "resized_crop_flip"}
        changes["warmup_epochs"] = 10  # SupContrast's for batches above 256
        return changes if ok else None
    if variant == "simaug":
        changes = _CIFAR100_128 | {"epochs": 200, "augmentation": "simaugment"}
        changes |= {"k2": 1.2} if tcl else {"k1": 0.0}
        return changes if stability else None
    if variant == "e250":
        return {"epochs": 250 if objective == "ce" else 200} if dataset != "digits" else None
    match = re.fullmatch(r"([epv])([1-9][0-9]{0,4})", variant)
    if not match:
        return None
    kind, number = match[1], int(match[2])
    if kind == "e" and number <= 100:
        return {"epochs": number if objective != "ce" else max(1, number * 3 // 2)}
    if kind == "p" and stability and number in PROJECTOR_DIMS:
        return _CIFAR100_128 | {"projector_dim": number} | ({} if tcl else {"k1": 0.0})
    if kind == "v" and stability and number in VIEWS:
        lr, k1 = VIEWS[number]
        return {"batch_views": number, "lr": lr, "k1": k1 if tcl else 0.0}
    return None
