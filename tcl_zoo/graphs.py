"""Forward and backward of a training step as one CUDA graph: a step of 64 images is hundreds of launches of a few
microseconds each, and launching them one by one takes a big GPU several times longer than computing them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .errors import one_line

# Steps before the capture, so that cuDNN has chosen its kernels and the allocator has settled.
_WARM_UP = 3


class CaptureError(RuntimeError):
    """What was run cannot be captured, though it runs; one line says why."""


class GraphedBackward:
    """Captures ``backward(views, labels) -> loss`` once and replays it on batches of the same shapes.

    The parameters' ``.grad`` become buffers of the graph that every replay overwrites: do not set them to None.
    Buffers of the network (batch statistics) are put back after the warm-up, so that the first replay is the first
    step.

    Args:
        backward: zeroes the gradients, computes the loss and its gradients, and returns the detached loss; asks the
            device nothing.
        network: whose buffers the call updates.
        views, labels: the first batch.

    Raises:
        CaptureError: something in ``backward`` cannot be captured. What it raises of itself passes through.
    """

    def __init__(
        self, backward: Callable[[Tensor, Tensor], Tensor], network: nn.Module, views: Tensor, labels: Tensor
    ) -> None:
        self._views, self._labels = views.clone(), labels.clone()
        before = [buffer.clone() for buffer in network.buffers()]
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    backward(self._views, self._labels)
            current.wait_stream(stream)
            # The warm-up's own stream: libraries keep a workspace for each. This thread's calls alone: another one
            # may be pinning the next batches' memory, which a capture of all threads forbids.
            try:
                with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
                    self._loss = backward(self._views, self._labels)
            except RuntimeError as error:
                # A capture that was broken off ends in an error of its own, which hides the first one.
                raise CaptureError(one_line(error.__context__ or error)) from error
        finally:
            torch.cuda.set_stream(current)  # a capture that fails may leave its own
            current.wait_stream(stream)
            for buffer, value in zip(network.buffers(), before, strict=True):
                buffer.copy_(value)

    def __call__(self, views: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch; the gradients are in the parameters' ``.grad``."""
        self._views.copy_(views)
        self._labels.copy_(labels)
        self._graph.replay()
        return self._loss.clone()
