"""What a training step costs beyond the encoder itself, and whole epochs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from tcl_zoo.datasets import Split, pretrained_cfg
from tcl_zoo.objectives import Views
from tcl_zoo.recipes import override, recipe
from tcl_zoo.sessions import create_accelerator
from tcl_zoo.trainer import Trainer

from .augment import images
from .timing import alternate, medians, ratio, write_csv

Steps = Iterator[tuple[int, tuple[Views, Tensor]]]
_TARGETS = {"resnet18": 1.10, "resnet20": 1.15}


def made_up(
    name: str, n: int, device: str, precision: str, settings: tuple[str, ...] = (), **switches: bool
) -> Trainer:
    """A trainer of recipe ``name`` on ``n`` images made for it: its data set's pixels and channels, ten classes.

    ``settings`` are as ``--set`` takes them, ``switches`` (``compile``, ``graphs``) as ``Trainer`` does.
    """
    plan = override(recipe(name), settings)
    channels, side, _ = pretrained_cfg(plan.dataset)["input_size"]
    split = Split(images(n, side)[:, :channels].contiguous(), torch.arange(n) % 10, tuple(map(str, range(10))))
    accelerator = create_accelerator(precision, device == "cpu", None, Path())
    trainer = Trainer(plan, split, accelerator, **switches)
    trainer.network.train()
    return trainer


def run(quick: bool = False) -> None:
    """Prints step over bare encoder; writes loop.csv."""
    rows: list[dict[str, Any]] = []
    for encoder in ("resnet20", "resnet18"):
        trainer = made_up(f"tcl_{encoder}_cifar10", 8192, "cpu", "fp32")
        bare = timm.create_model(f"{encoder}_cifar", num_classes=0).train().to(memory_format=torch.channels_last)
        batch = next(trainer.batches.epoch(0))[0]
        assert isinstance(batch, Tensor)
        chunk = trainer.batches.chunk_steps
        steps = enumerate(endless(trainer))

        def whole(trainer: Trainer = trainer, steps: Steps = steps, chunk: int = chunk) -> None:
            i, (views, labels) = next(steps)
            trainer.losses[i % chunk] = trainer.step(views, labels)
            if (i + 1) % chunk == 0:
                trainer.check(chunk)

        def encoder_only(bare: Any = bare, batch: Tensor = batch) -> None:
            bare.zero_grad(set_to_none=True)
            bare(batch).sum().backward()

        # They take turns step by step and are counted by the chunk, in whose first step its views are made.
        chunks = 1 if quick else 2 if encoder == "resnet18" else 4
        turns = alternate({"training step": whole, "encoder alone": encoder_only}, chunks * chunk, warm_up=0)
        seconds = {k: [sum(v[i : i + chunk]) for i in range(0, len(v), chunk)] for k, v in turns.items()}
        median = medians(seconds)
        overhead = ratio(seconds, "training step", "encoder alone")
        rows += [{"encoder": encoder, "name": k, "ms_per_step": 1e3 * v / chunk} for k, v in median.items()]
        print(
            f"{encoder}, {len(batch)} views of 32 px: step {1e3 * median['training step'] / chunk:.0f} ms, "
            f"encoder alone {1e3 * median['encoder alone'] / chunk:.0f} ms; "
            f"ratio {overhead:.3f} (target {_TARGETS[encoder]})",
            flush=True,
        )
    write_csv("loop", rows)


def endless(trainer: Trainer) -> Iterator[tuple[Views, Tensor]]:
    """The batches of epoch after epoch, from the start of one: the first has the views of a whole chunk made."""
    epoch = 0
    while True:
        yield from trainer.batches.epoch(epoch)
        epoch += 1


def epoch(
    name: str, device: str, precision: str, steps: int = 50, peak_tflops: float = 0.0, compile: bool = False,
    graphs: bool = True,
) -> None:  # fmt: skip
    """Prints epoch seconds, views/s, FLOP/s and a profile of a recipe on this machine, on images made for it.

    Args:
        name: a recipe.
        device: ``cpu`` or ``cuda``.
        precision: ``fp32``, ``bf16`` or a training's ``auto``.
        steps: how many are timed at least; whole chunks of views, so that making them is in it.
        peak_tflops: of the device in this precision, for the utilisation; 0: not printed.
        compile: with ``torch.compile``.
        graphs: on a GPU with CUDA graphs, as the trainings.
    """
    from torch.profiler import ProfilerActivity, profile
    from torch.utils.flop_counter import FlopCounterMode

    trainer = made_up(name, 16_384, device, precision, compile=compile, graphs=graphs)
    taken = "fp32" if trainer.accelerator.mixed_precision == "no" else trainer.accelerator.mixed_precision
    chunk = trainer.batches.chunk_steps
    steps = -(-steps // chunk) * chunk

    def run_steps(n: int) -> float:
        started = time.perf_counter()
        for _, (views, labels) in zip(range(n), endless(trainer), strict=False):
            trainer.losses[0] = trainer.step(views, labels)
        trainer.check(1)
        return time.perf_counter() - started

    run_steps(max(5, steps // 10))
    seconds = run_steps(steps) / steps
    # Counted on a step of its own that is neither replayed nor compiled: the counter sees what torch dispatches.
    plain = made_up(name, trainer.recipe.batch_images, device, precision)
    views, labels = next(plain.batches.epoch(0))
    with FlopCounterMode(display=False) as counter:
        plain.backward(views, labels)
    flops, n_views = counter.get_total_flops(), trainer.recipe.batch_views
    epoch_seconds = seconds * (50_000 // trainer.recipe.batch_images)
    print(f"{name}, {device}, {taken}: {1e3 * seconds:.1f} ms per step of {n_views} views,")
    print(f"  {epoch_seconds:.1f} s per epoch of 50,000 images, {n_views / seconds:,.0f} views/s, ", end="")
    print(f"{flops / seconds / 1e12:.2f} TFLOP/s", end="")
    print(f", {100 * flops / seconds / 1e12 / peak_tflops:.0f} % of {peak_tflops:g}" if peak_tflops else "")
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device == "cuda" else [])
    with profile(activities=activities) as profiler:
        run_steps(chunk)
    key = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=key, row_limit=12, max_name_column_width=50))
