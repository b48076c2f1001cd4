"""The training step, and the state around it that a checkpoint holds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from .analysis import GradientLog
from .batches import Batches
from .errors import TrainingError
from .objectives import Objective, create_objective
from .recipes import Recipe
from .splits import FolderSplit, Split


class Network(nn.Module):
    """Encoder and objective as one module, so that distributed wrappers see one forward: views to loss."""

    def __init__(self, encoder: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.encoder, self.objective = encoder, objective

    def forward(self, views: Tensor, labels: Tensor) -> Tensor:
        """[V * B, C, H, W] and [B] to a scalar."""
        return self.objective(self.encoder, views, labels)


class Trainer:
    """The state of a training: networks, optimiser, and where it stands (``epoch``, ``step``)."""

    def __init__(
        self, recipe: Recipe, split: Split | FolderSplit, accelerator: Accelerator, workers: int, accumulation: int
    ) -> None:
        self.recipe, self.accelerator, self.accumulation = recipe, accelerator, accumulation
        set_seed(recipe.seed)
        in_chans = split.channels if isinstance(split, FolderSplit) else split.images.shape[1]
        encoder = timm.create_model(recipe.architecture, num_classes=0, in_chans=in_chans)
        objective = create_objective(recipe, encoder.num_features, len(split.classes))
        network = Network(encoder, objective).to(memory_format=torch.channels_last)
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        optimizer = torch.optim.SGD(
            network.parameters(), recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        self.network, self.optimizer = accelerator.prepare(network, optimizer)
        try:
            self.batches = Batches(
                split, recipe.dataset, recipe.augmentation, recipe.crop_padding, recipe.views, recipe.batch_images,
                recipe.seed, accelerator.device, accelerator.process_index, accelerator.num_processes, workers,
            )  # fmt: skip
        except ValueError as error:
            raise TrainingError(f"{error}; choose another batch with --set batch_views=N") from None
        self.epoch = self.step_done = 0
        self.seconds = 0.0
        # Losses of the epoch's steps, on the device until somebody looks.
        self.losses = torch.zeros(self.batches.steps, device=accelerator.device)
        self.gradients: GradientLog | None = None

    def steps_done(self) -> int:
        """Steps of all epochs so far."""
        return self.epoch * self.batches.steps + self.step_done

    def step(self, views: Tensor, labels: Tensor) -> Tensor:
        """One step: forward, backward, update. Returns the detached loss."""
        network = self.accelerator.unwrap_model(self.network)
        self.optimizer.zero_grad(set_to_none=True)
        total = views.new_zeros(())
        for part_views, part_labels in self._parts(views, labels):
            with self.accelerator.autocast():
                loss = self.network(part_views, part_labels) / self.accumulation
            self.accelerator.backward(loss)
            total = total + loss.detach()
        self.optimizer.step()
        done = self.steps_done() + 1
        network.objective.after_step(network.encoder, done / (self.recipe.epochs * self.batches.steps))
        return total

    def logged(self) -> dict[str, float]:
        """What the objective logs of its last step; waits for the device."""
        network = self.accelerator.unwrap_model(self.network)
        return {key: float(value) for key, value in network.objective.logged().items()}

    def _parts(self, views: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        if self.accumulation == 1:
            yield views, labels
        else:
            yield from zip(views.chunk(self.accumulation), labels.chunk(self.accumulation), strict=True)

    def check(self, upto: int) -> float:
        """Mean loss of the steps before ``upto``; waits for the device.

        Raises:
            TrainingError: a loss is NaN or infinite; names the epoch and the first such step.
        """
        losses = self.losses[:upto]
        mean = float(losses.mean())
        if not math.isfinite(mean):
            bad = int((~losses.isfinite()).nonzero()[0])
            raise TrainingError(
                f"the loss became {float(losses[bad])} at epoch {self.epoch + 1}, step {bad + 1}; {self._suggestion()}"
            )
        return mean

    def _suggestion(self) -> str:
        recipe = self.recipe
        advice = f"try a lower learning rate (--set lr={recipe.lr / 2:g})"
        if self.accelerator.mixed_precision == "fp16":
            return advice + ", or --precision bf16"
        return advice + (f" or a higher temperature than {recipe.temperature:g}" if recipe.contrastive else "")

    def save(self, folder: Path) -> None:
        """Everything to go on bit for bit, through accelerate."""
        self.accelerator.save_state(str(folder))
        if self.accelerator.is_main_process:
            state = {
                "epoch": self.epoch,
                "step": self.step_done,
                "seconds": self.seconds,
                "losses": self.losses[: self.step_done].tolist(),
            }
            (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """The state that :meth:`save` wrote."""
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        self.accelerator.load_state(str(folder))
        self.epoch, self.step_done, self.seconds = state["epoch"], state["step"], state["seconds"]
        self.losses[: self.step_done] = torch.tensor(state["losses"])
