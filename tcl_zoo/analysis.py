"""Gradient responses of positives and negatives: what figures 5.5, 5.7 and 5.8 of the thesis plot over a training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .errors import TrainingError
from .losses import TCLLoss, check_arguments
from .ranks import Shares, ranks
from .runs import read_jsonl, write_text

# Entries of a strip of the similarity matrix: some anchors against the whole batch.
_STRIP = 1 << 20


@torch.no_grad()
def gradient_responses(
    embeddings: Tensor,
    labels: Tensor,
    temperature: float = 0.1,
    k1: float = 5000.0,
    k2: float = 1.0,
    gather: bool = False,
) -> tuple[Tensor, Tensor]:
    """Mean gradient magnitude per anchor from all positives and from all negatives.

    Lemma 2 (eq. 4.5-4.9) writes the gradient of an anchor's loss as
    ``dL_i/dz_i = 1/tau (sum_p z_p (P_ip - X_ip - Y_ip) + sum_n z_n P_in)`` with ``X_ip = 1/|P(i)|``,
    ``P_ip = exp(z_i.z_p / tau) / D``, ``Y_ip = tau k1 exp(-z_i.z_p) / D`` and ``P_in = k2 exp(z_i.z_n / tau) / D``.
    The rows z_p, z_n have length 1, so the weight before each is the length of its share. Averaged over the anchors
    that have a positive are

    - positives: ``sum_p |X_ip - P_ip + Y_ip|``, the terms of eq. 4.19 (eq. 3.4, 3.5 for SupCon: ``k1 = 0, k2 = 1``);
    - negatives: ``sum_n P_in`` (eq. 4.9; eq. 3.6 for SupCon).

    The factor 1/tau before both is left out, as in these equations. Computed in strips of rows, in float32 or wider;
    extra memory does not grow with the square of the batch.

    Args:
        embeddings: [N, D] unit-norm rows, all views of the batch.
        labels: [N] integers; rows with the same label are positives of each other.
        temperature: tau > 0.
        k1: weight of the hard-positive term, >= 0.
        k2: weight of the negatives, > 0.
        gather: compare the own rows with those of every process, and average over all anchors.

    Returns:
        Two scalars on the device, positives and negatives; 0 and 0 where no anchor has a positive.

    Raises:
        ValueError: a value out of range, wrong shapes, or labels that are no integers.
    """
    check_arguments(embeddings, labels, temperature, k1, k2, "mean")
    with torch.autocast(embeddings.device.type, enabled=False):
        rows = embeddings.detach().to(torch.promote_types(embeddings.dtype, torch.float32))
        columns, everybody, offset = rows, labels, 0
        if gather:
            shares = Shares(rows)
            columns, everybody, offset = shares.gather(rows), shares.gather(labels), shares.own.start
        sums = rows.new_zeros(3)  # positives, negatives, anchors
        index = torch.arange(len(columns), device=rows.device)
        height = max(1, _STRIP // max(1, len(columns)))
        for first in range(0, len(rows), height):
            anchors = slice(first, first + height)
            itself = index[anchors.start + offset : min(anchors.stop, len(rows)) + offset, None] == index
            same = labels[anchors, None] == everybody
            sums += _strip(rows[anchors] @ columns.T, same & ~itself, ~same, temperature, k1, k2)
        if gather:
            dist.all_reduce(sums)
        mean = sums[:2] / sums[2].clamp(min=1)
    return mean[0], mean[1]


def _strip(s: Tensor, positive: Tensor, negative: Tensor, temperature: float, k1: float, k2: float) -> Tensor:
    """Sums over some anchors, [3]: positives' weights, negatives' weights, anchors that have a positive.

    Args:
        s: [A, N] similarities of the anchors to the whole batch.
        positive, negative: [A, N] which pairs are.
        temperature, k1, k2: of the loss.
    """
    near = s / temperature
    far = math.log(k1) - s if k1 > 0 else torch.full_like(s, -math.inf)
    logits = torch.where(positive, torch.logaddexp(near, far), near + math.log(k2))
    log_d = logits.masked_fill(~(positive | negative), -math.inf).logsumexp(1, keepdim=True)
    count = positive.sum(1, keepdim=True, dtype=s.dtype)
    pulled = 1 / count.clamp(min=1) - (near - log_d).exp() + temperature * (far - log_d).exp()
    pushed = (near + (math.log(k2) - log_d)).exp()
    valid = count > 0
    return torch.stack(
        [
            pulled.abs().masked_fill(~positive, 0.0).sum(),
            pushed.masked_fill(~(negative & valid), 0.0).sum(),
            valid.sum().to(s.dtype),
        ]
    )


class GradientLog:
    """Writes the gradient responses of every n-th training step to a file, a line of JSON each.

    It keeps the loss's last arguments by a hook, so neither loss nor objective knows of it. Replays of a CUDA graph
    call no hook, but write to the very tensors that the captured call left here. Values stay on the device until
    :meth:`flush`, which training calls before each checkpoint.

    Args:
        file: ``gradients.jsonl`` of the run folder.
        network: has one :class:`TCLLoss` inside.
        every: log the steps that are multiples of this.
        writes: whether this process writes the file (all of them must compute).

    Raises:
        TrainingError: the network has no contrastive loss, or ``every`` is below 1.
    """

    def __init__(self, file: Path, network: nn.Module, every: int, writes: bool = True) -> None:
        losses = [module for module in network.modules() if isinstance(module, TCLLoss)]
        if len(losses) != 1:
            raise TrainingError(
                "gradients are logged for the loss of tcl and supcon only (of tcl_ssl and simclr, too); "
                "leave out --log-gradients"
            )
        if every < 1:
            raise TrainingError(f"--log-gradients takes steps between two lines, at least 1, got {every}")
        self.file, self._every, self._writes = file, every, writes
        self._loss = losses[0]
        self._seen: tuple[Tensor, Tensor] | None = None
        self._pending: dict[int, tuple[Tensor, Tensor]] = {}
        self._loss.register_forward_pre_hook(self._look)

    def _look(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        embeddings, labels = args
        self._seen = embeddings.detach(), labels

    def log(self, step: int) -> None:
        """Computes the responses of the batch that the loss was last called with, where this step is to be logged."""
        if step % self._every == 0:
            assert self._seen is not None
            loss, several = self._loss, ranks()[1] > 1
            self._pending[step] = gradient_responses(*self._seen, loss.temperature, loss.k1, loss.k2, gather=several)

    def flush(self) -> None:
        """Writes what was logged since the last time; waits for the device."""
        if self._writes and self._pending:
            with self.file.open("a", encoding="utf-8") as file:
                for step, (positives, negatives) in self._pending.items():
                    line = {"step": step, "positives": float(positives), "negatives": float(negatives)}
                    file.write(json.dumps(line) + "\n")
        self._pending.clear()

    def rewind(self, step: int) -> None:
        """Drops the lines from this step on, which is still to come: they will be written again."""
        if self._writes and self.file.exists():
            kept = "".join(json.dumps(line) + "\n" for line in read_jsonl(self.file) if line["step"] < step)
            write_text(self.file, kept)
