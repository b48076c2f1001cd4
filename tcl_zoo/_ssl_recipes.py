"""The self-supervised rows of Table 5.2 as data (SPEC sections 5 and 6); standard library only.

Sources of the values: the thesis (its sections 4.2, 5.3, A.3) for ``tcl_ssl``; for the methods it is compared with,
solo-learn's settings for CIFAR and ImageNet-100, where most figures of Table 5.2 come from, and the method's own paper
where a comment says so. Learning rates are solo-learn's for 256 images, the batch of every row but those of digits,
which take them as they are with 128.
"""

from __future__ import annotations

import re
from typing import Any

TITLES = {
    "tcl_ssl": "Tuned Contrastive Learning without labels (an image's views are its positives)",
    "simclr": "SimCLR",
    "byol": "BYOL",
    "dino": "DINO",
    "simsiam": "SimSiam",
    "moco": "MoCo v2+",
    "ressl": "ReSSL",
    "vicreg": "VICReg",
    "swav": "SwAV",
    "wmse": "W-MSE",
    "arb": "ARB (Align Representations with Base)",
    "barlow": "Barlow Twins",
}
SELF_SUPERVISED = tuple(TITLES)
_WITH_TEMPERATURE = ("dino", "moco", "ressl", "swav")
_IMAGES = 256  # per step

_COMMON: dict[str, Any] = {
    "epochs": 1000,
    "views": 2,
    "lr_min_factor": 0.0,
    "k1": 0.0,
    "temperature": 0.2,
    "projector_hidden": 2048,
    "projector_dim": 256,
    "optimizer": "lars",
    "warmup_epochs": 10,
    "probe_epochs": 100,
    "probe_batch": 256,
    "probe_augmentation": "resized_crop_flip",  # the thesis is silent; the usual one
}
_MULTI_CROP = {"local_crops": 0, "local_size": 16, "crop_split": 0.14}  # SwAV's paper: 6 crops; Table 5.2: none

# What a method changes, and its options.
_ROWS: dict[str, dict[str, Any]] = {
    "tcl_ssl": {"views": 3, "lr": 0.5, "k1": 1.0, "k2": 1.5, "augmentation": "simaugment_blur"},  # SPEC section 5
    "simclr": {"lr": 0.4, "augmentation": "symmetric"},
    "byol": {"lr": 1.0, "weight_decay": 1e-5, "projector_hidden": 4096, "augmentation": "asymmetric",
             "options": {"ema_base": 0.99, "ema_final": 1.0, "predictor_hidden": 4096}},
    "dino": {"lr": 0.3, "weight_decay": 1e-6, "augmentation": "asymmetric", "temperature": 0.1,
             "options": {"ema_base": 0.9995, "ema_final": 1.0, "prototypes": 4096, "teacher_temperature": 0.07,
                         "warmup_temperature": 0.04, "warmup_temperature_epochs": 50.0, "freeze_epochs": 1.0,
                         "center_momentum": 0.9, "head_norm": 0, **_MULTI_CROP, "crop_split": 0.25}},
    "simsiam": {"lr": 0.5, "weight_decay": 1e-5, "optimizer": "sgd", "projector_dim": 2048,
                "augmentation": "symmetric_weak", "options": {"predictor_hidden": 512}},
    "moco": {"lr": 0.3, "optimizer": "sgd", "augmentation": "symmetric_weak",
             "options": {"ema_base": 0.99, "ema_final": 0.999, "queue_size": 32768}},
    "ressl": {"lr": 0.05, "optimizer": "sgd", "projector_hidden": 4096, "augmentation": "ressl", "temperature": 0.1,
              # The queue of the paper's CIFAR setting: solo-learn's default holds more than all of CIFAR's images.
              "options": {"ema_base": 0.99, "ema_final": 1.0, "queue_size": 4096, "teacher_temperature": 0.04,
                          "infonce_epochs": 0.0}},
    # solo-learn's 25 weigh the sum of both views' variance terms, the loss used here takes their mean.
    "vicreg": {"lr": 0.3, "projector_dim": 2048, "augmentation": "vicreg",
               "options": {"invariance": 25.0, "variance": 50.0, "covariance": 1.0}},
    "swav": {"lr": 0.6, "weight_decay": 1e-6, "projector_dim": 128, "augmentation": "symmetric", "temperature": 0.1,
             "options": {"prototypes": 3000, "sinkhorn_iterations": 3, "sinkhorn_epsilon": 0.05, "queue_size": 3840,
                         "queue_epochs": 50.0, "freeze_epochs": 2.0, **_MULTI_CROP}},
    "wmse": {"lr": 2e-3, "weight_decay": 1e-6, "optimizer": "adam", "projector_hidden": 1024, "projector_dim": 64,
             "augmentation": "wmse", "options": {"whitening_size": 128, "whitening_eps": 0.0}},
    # ARB: rate, optimiser and scale are those of Barlow Twins, whose loss it starts from, for want of a better source;
    # the whitening's epsilon is that of its authors' code.
    "arb": {"lr": 0.3, "projector_dim": 2048, "augmentation": "asymmetric",
            "options": {"loss_scale": 0.1, "whitening_eps": 1e-5}},
    "barlow": {"lr": 0.3, "projector_dim": 2048, "augmentation": "asymmetric",
               "options": {"loss_scale": 0.1, "redundancy": 5e-3}},
}  # fmt: skip

# ImageNet-100: 400 epochs (SPEC section 5) and blur where CIFAR has none.
_IMAGENET: dict[str, dict[str, Any]] = {
    "tcl_ssl": {"projector_hidden": 4096},
    "simclr": {"lr": 0.3, "projector_hidden": 4096},
    "byol": {"lr": 0.5, "weight_decay": 1e-6, "options": {"predictor_hidden": 8192}},
    "dino": {"options": {"local_size": 96}},
    "moco": {"options": {"queue_size": 65536}},
    "ressl": {"lr": 0.3, "options": {"queue_size": 65536}},  # solo-learn's default: the images are as many as that here
    "swav": {"options": {"local_size": 96}},
}
_WITH_BLUR = {"asymmetric": "asymmetric_blur", "vicreg": "vicreg_blur", "wmse": "wmse_blur"}

# Ours, for resnet20 and its 64 features: heads that a CPU can train.
_SMALL: dict[str, Any] = {"projector_hidden": 512, "projector_dim": 128}
_SMALL_OPTIONS = {"predictor_hidden": 256, "prototypes": 256, "queue_size": 2048}
# Ours, too: digits has 11 steps of 128 images an epoch, 660 in all, where the papers' settings have 195,000. The
# teacher keeps their momentum of 0.99: a faster one moves away from its queue, and telling this step's keys from older
# ones is then all that is learnt.
_DIGITS_OPTIONS = {"queue_size": 512, "prototypes": 64, "local_size": 4}  # 4 steps' keys; fewer prototypes than images
_DIGITS: dict[str, dict[str, Any]] = {
    # All similarities are near 1 at first and say nothing that could be passed on: the keys are told apart before. SGD
    # without batch norm in the head asks for larger steps than the 0.05 of a long training.
    "ressl": {"lr": 0.3, "options": {"infonce_epochs": 15.0}},
    # The embeddings differ little at first: only a sharper teacher says more than "all prototypes alike" then.
    # Prototypes stay for a tenth of the steps, not for one. Without batch norm in the head all collapses in 660 steps.
    "dino": {
        "options": {
            "ema_base": 0.99,
            "teacher_temperature": 0.02,
            "warmup_temperature": 0.02,
            "freeze_epochs": 6.0,
            "head_norm": 1,
        }
    },
    # What SwAV's authors advise where the loss stays at ln(prototypes), as it did.
    "swav": {"options": {"sinkhorn_epsilon": 0.03, "freeze_epochs": 15.0}},
    # 128 images do not whiten 64 dimensions: the two views' whitened rows are noise to each other.
    "wmse": {"projector_dim": 16},
    # The redundancy's weight goes with the dimensions it sums over. 512 of them, made of 64 features, hold too few
    # factors to be told apart: the correlation of the views was given up instead.
    "barlow": {"projector_dim": 128, "options": {"redundancy": 0.02}},
}
_WIDE = ("vicreg", "barlow", "simsiam", "arb")  # in Table 5.2 with 2048 dimensions


def ssl_fields(objective: str, encoder: str, dataset: str) -> dict[str, Any]:
    """The fields of a recipe without a variant.

    Args:
        objective: one of ``SELF_SUPERVISED``.
        encoder: ``resnet18`` or ``resnet20``.
        dataset: any but ``fmnist``.
    """
    row = _ROWS[objective]
    fields = _COMMON | {key: value for key, value in row.items() if key != "options"}
    options = dict(row.get("options", {}))
    if dataset == "imagenet100":
        changes = dict(_IMAGENET.get(objective, {}))
        options |= changes.pop("options", {})
        fields |= {"epochs": 400} | changes
        fields["augmentation"] = _WITH_BLUR.get(fields["augmentation"], fields["augmentation"])
    if encoder == "resnet20":
        fields |= _SMALL
        fields["projector_dim"] = {"wmse": 64}.get(objective, 512 if objective in _WIDE else 128)
        options |= {key: min(value, options[key]) for key, value in _SMALL_OPTIONS.items() if key in options}
    fields["batch_views"] = fields["views"] * _IMAGES
    if dataset == "digits":
        fields |= {"augmentation": "simaugment_mild", "probe_augmentation": "crop", "crop_padding": 1}
        fields |= {"projector_hidden": 256, "batch_views": fields["batch_views"] // 2}
        fields, options = shortened(fields, options, 60)
        changes = dict(_DIGITS.get(objective, {}))
        small = _DIGITS_OPTIONS | changes.pop("options", {})
        fields |= changes
        options |= {key: small[key] for key in small if key in options}
    return fields | {"options": options}


def unused_fields(objective: str) -> set[str]:
    """Fields of a recipe that its objective does not look at."""
    if objective == "ce":
        head = {"temperature", "k1", "k2", "projector_hidden", "projector_dim"}
        return head | {"probe_epochs", "probe_lr", "probe_batch", "probe_augmentation"}
    if objective in ("tcl_ssl", "simclr") or objective not in SELF_SUPERVISED:
        return set()
    return {"k1", "k2"} | (set() if objective in _WITH_TEMPERATURE else {"temperature"})


def shortened(fields: dict[str, Any], options: dict[str, Any], epochs: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The schedule fitted to fewer epochs: what counts epochs shrinks with them."""
    share = epochs / fields["epochs"]
    options = {key: value * share if key.endswith("_epochs") else value for key, value in options.items()}
    if "ema_base" in options:
        # A teacher averages over the same share of the steps, but over a hundred at least, as most methods' do.
        base = options["ema_base"]
        options["ema_base"] = round(min(base, max(0.99, 1 - (1 - base) / share)), 6)
    changes = {"epochs": epochs, "warmup_epochs": min(fields["warmup_epochs"], epochs // 10)}
    return fields | changes, options


def ssl_variants(objective: str, encoder: str, dataset: str, variant: str) -> dict[str, Any] | None:
    """What a variant changes, or None where the name has no such variant."""
    fields = ssl_fields(objective, encoder, dataset)
    options = fields["options"]
    if variant == "":
        return {}
    if variant == "p256" and objective in ("barlow", "arb") and encoder == "resnet18":
        return {"projector_dim": 256}
    match = re.fullmatch(r"(e|views)([1-9]\d*)", variant)
    if not match:
        return None
    number = int(match[2])
    if match[1] == "e" and number <= 500 and number < fields["epochs"]:
        shorter, options = shortened(fields, options, number)
        return {key: shorter[key] for key in ("epochs", "warmup_epochs")} | {"options": options}
    if match[1] == "views" and objective == "tcl_ssl" and number in (2, 3, 4):
        return {"views": number, "batch_views": number * fields["batch_views"] // fields["views"]}
    return None
