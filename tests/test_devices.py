"""Training, measuring and using on a device that is not the CPU: nothing is left behind there; see ``stand_in``."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import stand_in
from PIL import Image
from torch.utils import backend_registration

import tcl_zoo
from tcl_zoo.datasets import load
from tcl_zoo.evaluate import evaluate_run
from tcl_zoo.finetune import finetune, loop
from tcl_zoo.objectives import create_objective
from tcl_zoo.pipeline import pipeline
from tcl_zoo.probe import knn_probe, linear_probe
from tcl_zoo.recipes import OBJECTIVES, recipe
from tcl_zoo.release import release
from tcl_zoo.sessions import create_accelerator
from tcl_zoo.splits import Split
from tcl_zoo.train import train
from tcl_zoo.trainer import Trainer
from tcl_zoo.transfer import transfer
from tcl_zoo.verify import verify

pytest.importorskip("lightly", reason="the other objectives stand on lightly")
NAME = "tcl_resnet20_digits"
pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="needs torch 2.10"
)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Callable[..., Any]]:
    """Calls a function in a process that has the device."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=stand_in.install) as pool:
        yield lambda function, *args: pool.submit(function, *args).result()


def digits(images: int) -> Split:
    full = load("digits")
    return Split(full.images[:images], full.labels[:images], full.classes)


def steps(objective: str) -> tuple[list[float], dict[str, int]]:
    """Losses of three steps, and what the later two waited for."""
    plan = recipe(f"{objective}_resnet20_digits")
    made = Trainer(plan, digits(3 * plan.batch_images), create_accelerator("fp32", True))
    made.network.train()
    losses = []
    for views, labels in made.batches.epoch(0):
        losses.append(made.step(views, labels))
        if len(losses) == 1:
            stand_in.waits.clear()
    waits = dict(stand_in.waits)
    return [float(loss) for loss in losses], waits


def run(folder: Path, device: str) -> tuple[list[float], list[float]]:
    """A training, its release and the check of that: top-1s in percent of the 360 test digits, and other figures."""
    if device != "cpu":
        tcl_zoo.train.checkpoint = lambda trainer, run: None  # storage is what the stand-in has not
    result = train(recipe(f"{NAME}.e1"), run_dir=folder / "run", cpu=True)
    measured = evaluate_run(folder / "run", device=device)
    release(folder / "run", folder / "cards", device=device)
    checked = verify(f"{NAME}.e1", weights_dir=folder / "cards", device=device)
    return [measured["top1"], *measured["knn"].values(), checked.measured], [result.loss, checked.ok]


def use(folder: Path, device: str) -> tuple[list[float], list[float]]:
    """Whatever takes a release: top-1s in percent of the test digits, and other figures."""
    if device != "cpu":
        loop.checkpoint = lambda tuner, run: None
    train, test = digits(256), load("digits", split="test")
    model = tcl_zoo.create_model(NAME, pretrained=True).to(device)
    probes = [
        linear_probe(model, train, test),
        linear_probe(model, train, test, protocol="thesis", recipe=recipe(NAME)),
        *knn_probe(model, train, test),
    ]
    pipe, image = pipeline(NAME, device=device), Image.fromarray(test.images[0, 0].numpy())
    image.save(folder / "0.png")
    (rows, _), *_ = pipe.embed(folder / "0.png")
    tuned = [
        finetune(NAME, out=folder / f"tuned{i}", dataset="digits", epochs=2, cpu=True, **settings).results["top1"]
        for i, settings in enumerate([{"mixup": 0.2, "cutmix": 0.5}, {"freeze": 1, "layer_decay": 0.7}])
    ]
    scores = transfer([NAME], ["digits"], shots=[1], seeds=2, device=device)
    top1 = [*(probe.top1 for probe in probes), *tuned, *(score.top1 for score in scores)]
    return top1, [*rows[0].tolist(), *(probability for _, probability in pipe.predict(image))]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_leaves_nothing_on_the_cpu(elsewhere, objective) -> None:
    """Nor does an objective that says it can be captured in a CUDA graph ever ask the device."""
    losses, waits = elsewhere(steps, objective)
    assert losses == pytest.approx(steps(objective)[0], rel=1e-6)
    plan = recipe(f"{objective}_resnet20_digits")
    capturable = create_objective(plan, tcl_zoo.create_model(NAME, pretrained=False), 10).capturable
    assert not (capturable and waits)


@pytest.mark.parametrize("work", [run, use])
def test_figures_are_those_of_the_cpu(elsewhere, work, tmp_path) -> None:
    for side in ("cpu", "gpu"):
        (tmp_path / side).mkdir()
    ours, theirs = elsewhere(work, tmp_path / "gpu", "gpu"), work(tmp_path / "cpu", "cpu")
    assert ours[0] == pytest.approx(theirs[0], abs=0.6)  # two images
    assert ours[1] == pytest.approx(theirs[1], rel=1e-4)


def left_behind() -> None:
    import torch

    torch.zeros(3, device="gpu") + torch.zeros(3)


def test_the_stand_in_refuses_what_a_gpu_refuses(elsewhere) -> None:
    with pytest.raises(RuntimeError, match="two devices"):
        elsewhere(left_behind)
