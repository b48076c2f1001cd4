"""What a fine-tuning was asked for."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ..augment import POLICIES
from ..errors import TrainingError
from ..outside import MAX_SIDE

_MIN_STEPS = 400  # so few images that 20 epochs are fewer steps get more epochs
_RATES = {"full": 1e-3, "scratch": 2e-3, "head": 1e-2}


@dataclass(frozen=True)
class Plan:
    """One fine-tuning; frozen, so that a run can be compared with what it was asked for.

    Attributes:
        model: the encoder to start from; see :func:`tcl_zoo.downstream_models.open_model`.
        dataset: a known data set, or "" for a folder.
        pretrained: False starts from random weights, to compare.
        epochs: passes over the training images; 0 is 20, or as many as make 400 steps.
        batch_size: images per step over all processes.
        optimizer: of timm's ``create_optimizer_v2``.
        lr: peak learning rate, cosine to a hundredth of it by step; 0 is a default for AdamW.
        weight_decay: on matrices and convolutions; biases and norms have none (timm's rule).
        layer_decay: the learning rate of a layer is this times that of the layer above it; 1 is off.
        warmup: share of the steps in which the learning rate rises.
        freeze: epochs at the start in which the head alone learns; -1 is all of them.
        augmentation: a policy of :class:`tcl_zoo.augment.Augment`.
        mixup, cutmix: alpha of each; 0 is off.
        smoothing: of the labels.
        drop_path: rate of stochastic depth, for models that have it.
        clip_grad: largest norm of the gradient; 0 is off.
        ema: decay of an exponential moving average of the weights, which is then what is measured and kept; 0 is off.
        patience: stop after so many measurements without a better one; 0 is never.
        measure: epochs between two measurements on the validation images; 0 is a thirtieth of the epochs.
        val: share of each class to hold out where the data has no validation images.
        per_class: go by so many training images of each class only, those held out among them; 0 is all.
        size: pixels a side; 0 is the model's own.
        seed: of the head, the order, the augmentation and what is held out.
    """

    model: str
    dataset: str = ""
    pretrained: bool = True
    epochs: int = 0
    batch_size: int = 64
    optimizer: str = "adamw"
    lr: float = 0.0
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    warmup: float = 0.1
    freeze: int = 0
    augmentation: str = "crop_flip"
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.1
    drop_path: float = 0.0
    clip_grad: float = 0.0
    ema: float = 0.0
    patience: int = 0
    measure: int = 0
    val: float = 0.2
    per_class: int = 0
    size: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {
            "epochs": (0, math.inf), "batch_size": (1, math.inf), "lr": (0, math.inf), "weight_decay": (0, math.inf),
            "layer_decay": (1e-3, 1), "warmup": (0, 1), "freeze": (-1, math.inf), "mixup": (0, math.inf),
            "cutmix": (0, math.inf), "smoothing": (0, 0.999), "drop_path": (0, 0.999), "clip_grad": (0, math.inf),
            "ema": (0, 0.999999), "patience": (0, math.inf), "measure": (0, math.inf), "val": (1e-6, 0.999),
            "per_class": (0, math.inf), "size": (0, MAX_SIDE), "seed": (0, 2**31),
        }  # fmt: skip
        for key, (low, high) in limits.items():
            value = getattr(self, key)
            if not low <= value <= high or math.isinf(value):
                raise TrainingError(f"{key} is {value}; it goes from {low} to {high}")
        if self.augmentation not in POLICIES:
            raise TrainingError(f"unknown augmentation {self.augmentation!r}; known: {', '.join(POLICIES)}")

    def resolved(self, images: int, processes: int, size: int) -> Plan:
        """Every default as the value it stands for, given the training images.

        Raises:
            TrainingError: fewer images than processes.
        """
        batch = min(self.batch_size, images) // processes
        if self.mixup or self.cutmix:
            batch -= batch % 2  # timm's Mixup mixes in pairs
        if not batch:
            raise TrainingError(
                f"{images} training images and a batch of {self.batch_size} are too few for {processes} process(es)"
                + (" and mixup" if self.mixup or self.cutmix else "")
            )
        steps = images // (batch * processes)
        epochs = self.epochs or max(20, math.ceil(_MIN_STEPS / steps))
        kind = "head" if self.freeze < 0 else "full" if self.pretrained else "scratch"
        return dataclasses.replace(
            self, epochs=epochs, batch_size=batch * processes, size=size, lr=self.lr or _RATES[kind],
            measure=self.measure or math.ceil(epochs / 30),
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        return dataclasses.asdict(self)
