"""The optimiser of a recipe."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import Lars
from torch import nn

from .recipes import Recipe

_LARS_ETA = 0.02  # SPEC section 5


def fusable(recipe: Recipe, device: torch.device, precision: str) -> bool:
    """Whether torch's fused kernels serve this training.

    They want every gradient from the first step on, which a frozen part of a network has not; and where the first
    step of fp16 overflows, as it does until the scale has settled, fused SGD goes on from a momentum that was never
    written.
    """
    return device.type == "cuda" and precision != "fp16" and "freeze_epochs" not in dict(recipe.options)


def create_optimizer(
    recipe: Recipe, network: nn.Module, constant: nn.Module | None = None, fused: bool = False
) -> torch.optim.Optimizer:
    """The optimiser of every parameter that has a gradient.

    LARS is timm's, with its rate clipped at the learning rate; biases and norms (parameters of one dimension) get
    neither its adaptation nor weight decay (SPEC section 5). A group with ``scheduled`` False keeps its rate.

    Args:
        recipe: optimizer, lr, momentum, weight_decay.
        network: what is trained.
        constant: a part of it whose learning rate follows no schedule.
        fused: torch's fused kernels, for networks on a GPU.
    """
    apart = {id(p) for p in constant.parameters()} if constant is not None else set()
    trained = [p for p in network.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = []
    for scheduled in (True, False):
        own = [p for p in trained if (id(p) not in apart) == scheduled]
        parts: list[dict[str, Any]] = [{"params": own}]
        if recipe.optimizer == "lars":
            flat = {"params": [p for p in own if p.ndim <= 1], "weight_decay": 0.0}
            parts = [{"params": [p for p in own if p.ndim > 1], "always_adapt": True}, flat]
        groups += [part | {"scheduled": scheduled} for part in parts if part["params"]]
    decay = recipe.weight_decay
    if recipe.optimizer == "lars":
        lars: torch.optim.Optimizer = Lars(
            groups, recipe.lr, momentum=recipe.momentum, weight_decay=decay, trust_coeff=_LARS_ETA, trust_clip=True
        )
        return lars
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, recipe.lr, weight_decay=decay)
    return torch.optim.SGD(groups, recipe.lr, momentum=recipe.momentum, weight_decay=decay, fused=fused or None)
