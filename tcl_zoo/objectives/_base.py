"""The interface every objective has; what an objective leaves out does nothing."""

from __future__ import annotations

from torch import Tensor, nn

from ..batches import Views

__all__ = ["Objective", "Views"]


class Objective(nn.Module):
    """What a training step minimises, with the networks it adds to the encoder (projector, classifier, ...).

    Views are view-major: rows v * B to (v + 1) * B are view v of the batch. With small crops (multi-crop) they are a
    list of such tensors, one for each size.

    Attributes:
        progress: share of the training that was done before this step, in [0, 1); the trainer sets it.
        capturable: whether ``forward`` asks the device nothing and always does the same work, so that a CUDA graph can
            replay it.
    """

    progress: float = 0.0
    capturable: bool = False

    @property
    def constant_lr(self) -> nn.Module | None:
        """The submodule whose learning rate follows no schedule, if there is one."""
        return None

    def forward(self, encoder: nn.Module, views: Views, labels: Tensor) -> Tensor:
        """The loss of a step.

        Args:
            encoder: [N, C, H, W] to pooled features [N, d].
            views: float [V * B, C, H, W], normalised; with small crops a list of that and [V' * B, C, h, w].
            labels: int64 [B].

        Returns:
            A scalar.
        """
        raise NotImplementedError

    def after_backward(self) -> None:
        """What stands between the gradients and the optimiser's step: parameters that are not to move yet."""

    def after_step(self, encoder: nn.Module, progress: float) -> None:
        """What follows the optimiser's step: momentum networks, queues.

        Args:
            encoder: the trained encoder, just updated.
            progress: share of the training that is done, in (0, 1].
        """

    def logged(self) -> dict[str, Tensor]:
        """Scalars of the last step for ``metrics.jsonl``, on the device; read once an epoch."""
        return {}
