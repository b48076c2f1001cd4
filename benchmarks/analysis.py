"""What the log of gradient responses costs beside the training step it looks at."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tcl_zoo.analysis import gradient_responses

from .loop import endless, made_up
from .timing import alternate, medians, ratio, write_csv


def run(quick: bool = False) -> None:
    """Prints the share of a step, were it computed at every one; writes analysis.csv."""
    trainer = made_up("tcl_resnet20_cifar100", 8192, "cpu", "fp32")
    steps, n = endless(trainer), trainer.recipe.batch_views
    embeddings, labels = F.normalize(torch.randn(n, trainer.recipe.projector_dim)), torch.arange(n) % 100

    def step() -> None:
        trainer.losses[0] = trainer.step(*next(steps))

    contestants = {"training step": step, "gradient responses": lambda: gradient_responses(embeddings, labels)}
    seconds = alternate(contestants, rounds=5 if quick else 30, warm_up=2)
    median = medians(seconds)
    share = 100 * ratio(seconds, "gradient responses", "training step")
    write_csv("analysis", [{"views": n, "name": name, "ms": 1e3 * value} for name, value in median.items()])
    print(
        f"resnet20, {n} views: step {1e3 * median['training step']:.0f} ms, gradient responses "
        f"{1e3 * median['gradient responses']:.2f} ms: {share:.2f} % of a step (target 3)"
    )
