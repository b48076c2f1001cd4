"""Two thousand steps: memory and open files stay where they were."""

from __future__ import annotations

import dataclasses
import gc
import os

import psutil
import pytest
import torch

from tcl_zoo.datasets import Split, load
from tcl_zoo.recipes import recipe
from tcl_zoo.train import train
from tcl_zoo.trainer import Trainer

pytestmark = pytest.mark.slow


def test_two_thousand_steps(tmp_path, monkeypatch):
    """250 epochs of 8 steps, each with a checkpoint; after the first 400 nothing grows by more than 2 %."""
    full = load("digits")
    split = Split(full.images[:128], full.labels[:128], full.classes)
    plan = dataclasses.replace(recipe("tcl_resnet20_digits"), epochs=250, batch_views=32)
    process, original, seen = psutil.Process(), Trainer.step, []

    def step(self: Trainer, views: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if (self.epoch * 8 + self.step_done) % 100 == 0:
            gc.collect()
            seen.append((process.memory_info().rss, len(os.listdir("/proc/self/fd"))))
        return original(self, views, labels)

    monkeypatch.setattr(Trainer, "step", step)
    assert train(plan, run_dir=tmp_path / "run", split=split, cpu=True).finished
    memory, files = zip(*seen[4:], strict=True)
    print(f"2,000 steps: {[round(m / 2**20, 1) for m in memory]} MiB, {files} open files")
    assert len(seen) == 20
    assert max(memory) <= 1.02 * min(memory), memory
    assert len(set(files)) == 1, files
