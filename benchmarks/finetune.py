"""What a pretrained encoder is worth with few images: fine-tuned on 25 of each class of CIFAR-10, against scratch.

Half of the training split is there to choose the learning rate of either side by (``tune``, judged on other images
of that half); the 25 images of each class that a seed draws come from the other half. A fifth of them chooses
the epoch; the 10,000 test images are measured once, at the end. Both sides see the same images for the same epochs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image

from tcl_zoo.datasets import Split, load
from tcl_zoo.downstream_models import own_name
from tcl_zoo.finetune import finetune
from tcl_zoo.intervals import mean_interval, verdict
from tcl_zoo.splits import FolderSplit, stratified, subset
from tcl_zoo.weights import CONFIG_FILE, read_config

from .timing import write_csv

PER_CLASS, EPOCHS = 25, 60
_JUDGED = 200  # images of each class to choose the rates by
# Of both sides.
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
# The best of them by `tune`, for an encoder of 2 epochs on CIFAR-100.
CHOSEN = {"fine-tuned": 1e-2, "scratch": 1e-2}


def run(
    quick: bool = False, encoder: str = "", seeds: int = 5, tune: bool = False, data_dir: str = "data",
    runs_dir: str = "runs",
) -> None:  # fmt: skip
    """Prints top-1 of both sides by seed, means with 95 % intervals and the paired difference; writes finetune.csv.

    What was stopped goes on with the same call.

    Args:
        quick: one epoch, to see that everything runs.
        encoder: a name of this zoo, a release or run folder; not of CIFAR-10.
        seeds: draws of the images; with ``tune`` one.
        tune: measure ``RATES`` on training images instead; writes finetune_tune.csv.
        data_dir: where CIFAR-10 is.
        runs_dir: where images and run folders go.
    """
    root, epochs = Path(runs_dir) / "benchmark-finetune", 1 if quick else EPOCHS
    rows: list[dict[str, Any]] = []
    print(f"{own_name(encoder)}: {PER_CLASS} images of each class of CIFAR-10")
    for seed in range(1 if tune else seeds):
        images = _folders(root, data_dir, seed, tune)
        for side in CHOSEN:
            for lr in RATES if tune else [CHOSEN[side]]:
                start = "scratch" if side == "scratch" else own_name(encoder)
                folder = root / f"{start}-{images.name}-lr={lr:g}-epochs={epochs}"
                if not (folder / "release" / CONFIG_FILE).is_file():
                    finetune(encoder, images, folder, pretrained=side != "scratch", seed=seed, lr=lr, epochs=epochs)
                found = read_config(folder / "release")["tcl_zoo"]["results"]
                row = {"start": start, "side": side, "seed": seed, "lr": lr, "epochs": epochs}
                rows.append(row | {"top1": round(found["test"], 2), "n": found["n"]})
                print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if not tune:
        _compare(rows)
    if not quick:
        write_csv("finetune_tune" if tune else "finetune", rows)


def _compare(rows: list[dict[str, Any]]) -> None:
    by_side = {side: [row["top1"] for row in rows if row["side"] == side] for side in CHOSEN}
    differences = [a - b for a, b in zip(*by_side.values(), strict=True)]
    for name, values in {**by_side, "difference, seed by seed": differences}.items():
        mean, half = mean_interval(values)
        text = "" if half is None else f" ± {half:.2f} (95 % interval, {len(values)} seeds)"
        print(f"{name:<25} {mean:6.2f}{text}")
    print(f"fine-tuned against scratch: {verdict(*mean_interval(differences), len(differences))}")


def _folders(root: Path, data_dir: str, seed: int, tune: bool) -> Path:
    """``train/<class>/*`` and ``test/<class>/*`` of one draw."""
    folder = root / ("tune" if tune else f"seed{seed}")
    if (folder / "test").exists():
        return folder
    full = load("cifar10", data_dir, "train")
    assert isinstance(full, Split)
    halves = [subset(full, rows) for rows in stratified(full.labels, 0.5)]
    rest, drawn = stratified(halves[tune].labels, PER_CLASS, seed)
    if not (folder / "train").exists():
        _write(subset(halves[tune], drawn), folder / "train")
    if tune:
        others = subset(halves[tune], rest)
        _write(subset(others, stratified(others.labels, _JUDGED)[1]), folder / "test")
        return folder
    if not (root / "test").exists():
        test = load("cifar10", data_dir, "test")
        assert isinstance(test, Split)
        _write(test, root / "test")
    (folder / "test").symlink_to((root / "test").resolve())
    return folder


def _write(split: Split | FolderSplit, to: Path) -> None:
    assert isinstance(split, Split)
    part = to.with_name(f"{to.name}.part")
    for i, (image, label) in enumerate(zip(split.images, split.labels.tolist(), strict=True)):
        file = part / split.classes[label] / f"{i:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    os.replace(part, to)
