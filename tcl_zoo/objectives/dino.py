"""DINO (Caron et al. 2021): the student's distribution over prototypes agrees with the teacher's of other views."""

from __future__ import annotations

import torch
from lightly.loss import DINOLoss
from torch import Tensor, nn

from ..ranks import gathered
from ..recipes import Recipe
from ._base import Views
from ._networks import Prototypes, Teacher, head
from ._self_supervised import SelfSupervised, full_precision


class DINO(SelfSupervised):
    """Self-distillation with a centred, sharpened teacher; with small crops, which the student alone sees.

    Args:
        recipe: temperature (the student's), the projector's sizes; ``ema_base``, ``ema_final``, ``prototypes``,
            ``teacher_temperature``, ``warmup_temperature`` and its ``_epochs``, ``center_momentum``,
            ``freeze_epochs`` in which the prototypes stay, ``head_norm`` (1: batch norm in the head).
        encoder: what is trained.
    """

    def __init__(self, recipe: Recipe, encoder: nn.Module) -> None:
        super().__init__(recipe)
        width, hidden, dim = int(encoder.num_features), recipe.projector_hidden, recipe.projector_dim  # type: ignore[arg-type]
        layers = head(width, hidden, hidden, dim, norm=bool(self.options["head_norm"]), activation=nn.GELU)
        for module in layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.projector = nn.Sequential(layers, Prototypes(dim, self.count("prototypes")))
        self.teacher = Teacher(encoder, self.projector, self.options["ema_base"], self.options["ema_final"])
        self.loss = DINOLoss(
            self.count("prototypes"), student_temp=recipe.temperature, center_momentum=self.options["center_momentum"]
        )

    def teacher_temperature(self) -> float:
        """Rises linearly in the first epochs: a soft teacher would let everything collapse, a sharp one start noisy."""
        start, end = self.options["warmup_temperature"], self.options["teacher_temperature"]
        warm = self.options["warmup_temperature_epochs"]
        return start + (end - start) * min(1.0, self.epoch / warm) if warm else end

    def forward(self, encoder: nn.Module, views: Views, labels: Tensor) -> Tensor:
        """Views of full size and small crops to a scalar."""
        images = self.apart(views)
        embeddings = [self.projector[0](encoder(v)) for v in images]
        self.seen(embeddings[0])
        if isinstance(views, list):
            embeddings += self.projector[0](encoder(views[1])).chunk(len(views[1]) // len(labels))
        layers, prototypes = self.teacher.head.children()
        with torch.no_grad():
            targets = [layers(self.teacher.encoder(v)) for v in images]
        with full_precision(embeddings[0]):
            # Of all processes: the teacher's centre is the whole batch's, whatever the share of each.
            student = [self.projector[1](gathered(z)) for z in embeddings]
            teacher = [prototypes(gathered(z)).detach() for z in targets]
            loss: Tensor = self.loss(teacher, student, self.teacher_temperature())
        return loss

    def after_backward(self) -> None:
        """The prototypes stay for a while."""
        if self.epoch < self.options["freeze_epochs"]:
            self.projector[1].weight.grad = None

    def after_step(self, encoder: nn.Module, progress: float) -> None:
        """The teacher follows."""
        self.teacher.follow(encoder, self.projector, progress)
