"""The fine-tuning step, and the state around it that a checkpoint holds."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.data import Mixup
from timm.layers import convert_sync_batchnorm
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ..batches import Batches, Views
from ..errors import TrainingError
from ..features import normaliser, predict
from ..sessions import Session
from ..splits import FolderSplit, Split, subset
from .plan import Plan


class Tuner(Session):
    """The state of a fine-tuning: model, optimiser, average, the best so far, and where it stands.

    Args:
        plan: resolved.
        model: with a classifier for the classes of ``train``; its ``pretrained_cfg`` says how images are prepared.
        train: to train on.
        val: to choose the epoch by; None keeps the last.
        accelerator: device and processes.
        workers: DataLoader workers of a streamed folder.
    """

    state = (*Session.state, "best", "highest", "measured_since")

    def __init__(
        self, plan: Plan, model: nn.Module, train: Split | FolderSplit, val: Split | FolderSplit | None,
        accelerator: Accelerator, workers: int = 0,
    ) -> None:  # fmt: skip
        self.plan, self.accelerator, self.val, self.workers = plan, accelerator, val, workers
        set_seed(plan.seed, device_specific=True)
        model = model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            model = convert_sync_batchnorm(model)  # timm's: its norms have activations in them
        try:
            optimizer = create_optimizer_v2(
                model, plan.optimizer, plan.lr, plan.weight_decay,
                layer_decay=plan.layer_decay if plan.layer_decay < 1 else None,
            )  # fmt: skip
        except (ValueError, AssertionError, AttributeError) as error:
            raise TrainingError(f"timm makes no optimizer {plan.optimizer!r} of this: {error or 'see timm'}") from None
        if getattr(optimizer, "is_second_order", False):
            raise TrainingError(f"{plan.optimizer} needs gradients of gradients, which nothing takes; choose another")
        # Before accelerate wraps forward: the average is a copy.
        self.ema = ModelEmaV3(model, plan.ema, use_warmup=True) if plan.ema else None
        self.model: Any = model
        self.network, self.optimizer = accelerator.prepare(model, optimizer)
        # Its forward without accelerate's autocast, which :meth:`step` turns on: what is measured is float32's.
        accelerator.unwrap_model(self.network, keep_fp32_wrapper=False)
        if self.ema is not None:
            accelerator.register_for_checkpointing(self.ema)
        side = plan.size if isinstance(train, FolderSplit) else train.images.shape[-1]
        normalise = normaliser(model.pretrained_cfg, accelerator.device)  # type: ignore[arg-type]
        self.batches = Batches(
            train, normalise, plan.augmentation, max(1, side // 8), 1, plan.batch_size, plan.seed, accelerator.device,
            accelerator.process_index, accelerator.num_processes, workers,
        )  # fmt: skip
        total = plan.epochs * self.batches.steps
        self.schedule = CosineLRScheduler(
            self.optimizer, total, lr_min=plan.lr / 100, warmup_t=int(plan.warmup * total), t_in_epochs=False,
        )  # fmt: skip
        self.loss: nn.Module = LabelSmoothingCrossEntropy(plan.smoothing) if plan.smoothing else nn.CrossEntropyLoss()
        self.mixup = None
        if plan.mixup or plan.cutmix:
            classes = len(train.classes)
            self.mixup = Mixup(plan.mixup, plan.cutmix, label_smoothing=plan.smoothing, num_classes=classes)
            self.loss = SoftTargetCrossEntropy()
        self.losses = torch.zeros(self.batches.steps, device=accelerator.device)
        self.measured: dict[str, Any] = {}  # epoch, top1, loss of the last measurement
        self.best: dict[str, Any] = {}  # of the one whose weights are kept
        self.highest: list[float] = []  # top1, loss
        self.measured_since = 0  # measurements since the highest

    @property
    def lr(self) -> float:
        """Learning rate of the last step, of the layers that have the highest."""
        return float(max(group["lr"] for group in self.optimizer.param_groups))

    @property
    def kept(self) -> Any:
        """The model that is measured and kept: the average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def begin_epoch(self) -> None:
        """Train mode, or while frozen: only the head learns, and batch norm keeps its statistics."""
        frozen = self.plan.freeze < 0 or self.epoch < self.plan.freeze
        heads = self.model.get_classifier()
        heads = heads if isinstance(heads, tuple) else (heads,)
        self.network.train(not frozen)
        self.model.requires_grad_(not frozen)
        for head in heads:
            head.train().requires_grad_(True)

    def step(self, views: Views, labels: Tensor) -> Tensor:
        """One step: forward, backward, update. Returns the detached loss."""
        assert isinstance(views, Tensor)  # one view of one size
        images = views
        done = self.epoch * self.batches.steps + self.step_done
        self.schedule.step_update(done)
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)
        self.optimizer.zero_grad(set_to_none=True)
        with self.accelerator.autocast():
            outputs = self.network(images)
        loss = self.loss(outputs.float(), labels)
        self.accelerator.backward(loss)
        if self.plan.clip_grad:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.plan.clip_grad)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model, step=done + 1)
        return loss.detach()

    def measure(self) -> bool:
        """Measures on the validation images; whether these weights are to be kept.

        Kept are the latest whose top-1 is within one standard error of the highest so far: on few images the highest
        is mostly luck, and the learning rate is lowest at the end.
        """
        if self.val is None:
            self.measured = self.best = {"epoch": self.epoch}
            return True
        top1, loss = self.validate()
        self.measured = {"epoch": self.epoch, "top1": top1, "loss": loss}
        self.measured_since += 1
        if not self.highest or (top1, -loss) > (self.highest[0], -self.highest[1]):
            self.highest, self.measured_since = [top1, loss], 0
        share = self.highest[0] / 100
        keep = top1 >= self.highest[0] - 100 * math.sqrt(share * (1 - share) / len(self.val))
        self.best = self.measured if keep else self.best
        return keep

    def validate(self) -> tuple[float, float]:
        """Top-1 in percent and mean loss on the validation images, shared out over the processes."""
        assert self.val is not None
        acc = self.accelerator
        share = torch.arange(acc.process_index, len(self.val), acc.num_processes)
        sums = torch.zeros(2, device=acc.device)
        if len(share):
            part = subset(self.val, share)
            logits = predict(self.kept, part, device=acc.device, workers=self.workers)
            labels = part.labels.cpu()
            sums[0] = float((logits.argmax(1) == labels).sum())
            sums[1] = float(F.cross_entropy(logits, labels, reduction="sum"))
        hits, loss = acc.reduce(sums).tolist()
        return 100 * hits / len(self.val), loss / len(self.val)

    def suggestion(self) -> str:
        """A lower learning rate, or shorter gradients."""
        return f"try a lower learning rate (--lr {self.plan.lr / 3:.1g}) or --clip-grad 1"
