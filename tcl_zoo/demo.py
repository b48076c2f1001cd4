"""The whole line on scikit-learn's digits: recipe, training, probe, release, load, verification."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import torch

from .datasets import load
from .errors import TrainingError
from .evaluate import evaluate_run
from .models import create_model
from .probe import linear_probe
from .progress import duration
from .recipes import recipe
from .release import release
from .train import train
from .verify import verify
from .weights import read_config

NAME = "tcl_resnet20_digits"


def demo(out: str | os.PathLike[str] = "runs/demo") -> bool | None:
    """Makes a verified encoder from nothing and prints what it did.

    Args:
        out: where the run folder and the release folder go; an older demo there is replaced.

    Returns:
        Whether the release holds what its card says; None where the training was stopped.

    Raises:
        TrainingError: ``out`` has more in it than a demo leaves.
    """
    started = time.monotonic()
    out = Path(out)
    foreign = {path.name for path in out.glob("[!.]*")} - {NAME, "run"}
    if foreign or (out / NAME / "recipe.json").exists():  # a run of scripts/train.py
        raise TrainingError(f"{out} has more in it than an older demo, which would be replaced: choose another --out")
    for old in (out / NAME, out / "run"):
        shutil.rmtree(old, ignore_errors=True)
    plan = recipe(NAME)
    print(f"1. recipe     {NAME}: {plan.epochs} epochs, {plan.batch_views} views per step, lr {plan.lr},")
    print(f"              tau {plan.temperature}, k1 {plan.k1:g}, k2 {plan.k2:g}")
    print("2. train      (stop with Ctrl-C and go on with scripts/train.py, if you like)")
    trained = train(plan, run_dir=out / "run", cpu=True)
    if not trained.finished:
        print(f"stopped after {trained.epoch} epochs")
        return None
    print(f"              loss {trained.loss:.3f} after {trained.epoch} epochs, {duration(trained.seconds)}")
    results = evaluate_run(out / "run", device="cpu")
    print("3. probe      linear classifier and nearest neighbours on the frozen features")
    folder = release(out / "run", out, device="cpu")
    size = (folder / "model.safetensors").stat().st_size
    print(f"4. release    {folder}: model.safetensors ({size / 1e6:.1f} MB), config.json, card")
    own = read_config(folder)["tcl_zoo"]["sha256"]  # not the released weights
    model = create_model(NAME, pretrained=True, weights_dir=out, sha256=own)
    print(f"5. load       create_model({NAME!r}, pretrained=True, weights_dir={str(out)!r})")
    checked = verify(NAME, weights_dir=out, sha256=own, device="cpu")
    print("6. verify     the card's figure, measured again on the loaded model")

    torch.manual_seed(0)
    random = create_model(NAME, num_classes=0)
    baseline = linear_probe(random, load(plan.dataset), load(plan.dataset, split="test"))
    rows = [
        ("random encoder, linear probe", baseline.top1),
        *((f"this encoder, {key[3:]} nearest neighbours", value) for key, value in results["knn"].items()),
        ("this encoder, linear probe", results["top1"]),
        ("released model, as its card reports it", checked.reported),
        ("released model, as verify measures it", checked.measured),
    ]
    print(f"\n{'top-1 on ' + str(checked.n) + ' test digits':<42}     %")
    for label, value in rows:
        print(f"{label:<42} {value:6.2f}")
    parameters = sum(p.numel() for p in model.parameters())
    print(f"\n{parameters:,} parameters, {duration(time.monotonic() - started)} in all: ", end="")
    print("the card holds" if checked.ok else "THE CARD DOES NOT HOLD")
    return checked.ok
