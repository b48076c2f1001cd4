"""The training step, and the state around it that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from ._ssl_recipes import unused_fields
from .analysis import GradientLog
from .augment import MultiCrop
from .batches import Batches
from .datasets import pretrained_cfg
from .errors import TrainingError
from .features import normaliser
from .graphs import CaptureError, GraphedBackward
from .objectives import Objective, Views, create_objective
from .optimizers import create_optimizer, fusable
from .recipes import Recipe
from .sessions import Session
from .splits import FolderSplit, Split


class Network(nn.Module):
    """Encoder and objective as one module, so that distributed wrappers see one forward: views to loss."""

    def __init__(self, encoder: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.encoder, self.objective = encoder, objective

    def forward(self, views: Views, labels: Tensor) -> Tensor:
        """[V * B, C, H, W] (or a list of them) and [B] to a scalar."""
        return self.objective(self.encoder, views, labels)


class Trainer(Session):
    """The state of a training: networks, optimiser, and where it stands (``epoch``, ``step_done``).

    Args:
        recipe: what to train.
        split: the training images.
        accelerator: device, precision and processes.
        workers: DataLoader workers of a streamed folder.
        accumulation: parts of a batch that go through the network one after the other.
        compile: let ``torch.compile`` fuse the encoder's kernels.
        graphs: replay forward and backward as a CUDA graph where that is possible.

    Attributes:
        network: what is called, as accelerate wraps it.
        bare: the same without what several processes need.
        gradients: writes the gradient responses, where there is one.
    """

    def __init__(
        self, recipe: Recipe, split: Split | FolderSplit, accelerator: Accelerator, workers: int = 0,
        accumulation: int = 1, compile: bool = False, graphs: bool = True,
    ) -> None:  # fmt: skip
        self.recipe, self.accelerator, self.accumulation = recipe, accelerator, accumulation
        set_seed(recipe.seed)
        in_chans = split.channels if isinstance(split, FolderSplit) else split.images.shape[1]
        encoder = timm.create_model(recipe.architecture, num_classes=0, in_chans=in_chans)
        objective = create_objective(recipe, encoder, len(split.classes))
        network = Network(encoder, objective).to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        on_gpu = accelerator.device.type == "cuda"
        if on_gpu:
            torch.backends.cudnn.benchmark = True  # every step has the same shapes
        if compile:
            encoder.compile()
        self._graphs = graphs and on_gpu and accelerator.num_processes == 1
        self._graphs &= objective.capturable and accelerator.mixed_precision != "fp16"  # its scale is asked for
        self._graphed: GraphedBackward | None = None
        fused = fusable(recipe, accelerator.device, accelerator.mixed_precision)
        optimizer = create_optimizer(recipe, network, objective.constant_lr, fused)
        self.bare = network
        self.network, self.optimizer = accelerator.prepare(network, optimizer)
        normalise = normaliser(pretrained_cfg(recipe.dataset), accelerator.device, resize=False)
        try:
            self.batches = Batches(
                split, normalise, recipe.augmentation, recipe.crop_padding, recipe.views, recipe.batch_images,
                recipe.seed, accelerator.device, accelerator.process_index, accelerator.num_processes, workers,
                MultiCrop.of(recipe.options),
            )  # fmt: skip
        except TrainingError as error:
            raise TrainingError(f"{error}; choose another batch with --set batch_views=N") from None
        share = recipe.batch_images // accelerator.num_processes
        if share % accumulation:
            raise TrainingError(f"{accumulation} accumulation steps do not divide the {share} images of each process")
        self.losses = torch.zeros(self.batches.steps, device=accelerator.device)
        self.gradients: GradientLog | None = None

    def steps_done(self) -> int:
        """Steps of all epochs so far."""
        return self.epoch * self.batches.steps + self.step_done

    def step(self, views: Views, labels: Tensor) -> Tensor:
        """One step: forward, backward, update. Returns the detached loss."""
        network = self.bare
        done, steps = self.steps_done(), self.recipe.epochs * self.batches.steps
        network.objective.progress = done / steps
        loss = self._captured(views, labels) if self._graphs else self.backward(views, labels)
        if self.gradients:
            self.gradients.log(done)
        network.objective.after_backward()
        self.optimizer.step()
        network.objective.after_step(network.encoder, (done + 1) / steps)
        return loss

    def backward(self, views: Views, labels: Tensor) -> Tensor:
        """The detached loss; its gradients are in the parameters' ``.grad``."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=labels.device)
        for part_views, part_labels in self._parts(views, labels):
            with self.accelerator.autocast():
                loss = self.network(part_views, part_labels) / self.accumulation
            self.accelerator.backward(loss)
            total = total + loss.detach()
        return total

    def _captured(self, views: Views, labels: Tensor) -> Tensor:
        assert isinstance(views, Tensor)
        if self._graphed is None:
            try:
                self._graphed = GraphedBackward(self.backward, self.network, views, labels)
            except CaptureError as error:
                self.accelerator.print(f"without CUDA graphs: {error}")
                self._graphs = False
        # Outside of the handler, whose error holds on to what the failed capture allocated.
        return self._graphed(views, labels) if self._graphed else self.backward(views, labels)

    def _parts(self, views: Views, labels: Tensor) -> Iterator[tuple[Views, Tensor]]:
        if self.accumulation == 1:
            yield views, labels
        else:
            assert isinstance(views, Tensor)  # several sizes are a contrastive objective's
            by_view = views.unflatten(0, (-1, len(labels)))  # [V, B, C, H, W]: every view of an image in its part
            parts = (part.flatten(0, 1) for part in by_view.chunk(self.accumulation, 1))
            yield from zip(parts, labels.chunk(self.accumulation), strict=True)

    def logged(self) -> dict[str, float]:
        """What the objective logs of its last step; waits for the device."""
        return {key: float(value) for key, value in self.bare.objective.logged().items()}

    def suggestion(self) -> str:
        """A lower learning rate, and what else the precision and the objective let one try."""
        recipe = self.recipe
        advice = f"try a lower learning rate (--set lr={recipe.lr / 2:g})"
        if self.accelerator.mixed_precision == "fp16":
            return advice + ", or --precision bf16"
        if "temperature" in unused_fields(recipe.objective):
            return advice
        return f"{advice} or a higher temperature than {recipe.temperature:g}"

    def save(self, folder: Path) -> None:
        """As every session, and the gradients logged so far reach their file."""
        if self.gradients:
            self.gradients.flush()
        super().save(folder)
