"""Views per second of the batched augmentation against a DataLoader over Pillow."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tcl_zoo.augment import Augment

from . import peers
from .timing import alternate, curves, medians, ratio, write_csv

_WORKERS = 2


def images(n: int, size: int = 32) -> Tensor:
    """Photographs cut into uint8 [N, 3, S, S]."""
    from sklearn.datasets import load_sample_images

    photos = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2)
    patches = photos.unfold(2, size, max(1, size // 4)).unfold(3, size, max(1, size // 4))
    patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, size, size)
    return patches[torch.arange(n) % len(patches)].contiguous()


def run(quick: bool = False) -> None:
    """Prints medians and ratios; writes augment.csv, augment_batch.csv, augment_size.csv and pictures."""
    n = 4096 if quick else 8192
    batch = images(n)
    pixels = batch.permute(0, 2, 3, 1).contiguous().numpy()
    rows: list[dict[str, Any]] = []
    for name, pillow in (("autoaugment_thesis", peers.PillowAutoAugment()), ("simaugment", peers.pillow_simaugment())):
        augment = Augment(name, 32)
        loader = DataLoader(
            peers.PillowViews(pixels, pillow), batch_size=128, num_workers=_WORKERS, persistent_workers=True
        )
        seconds = alternate(
            {"tcl_zoo": partial(augment, batch), "DataLoader over Pillow": partial(list, loader)},
            rounds=3 if quick else 7,
        )
        median = medians(seconds)
        for who, value in median.items():
            rows.append({"policy": name, "name": who, "views_per_second": n / value})
        gain = ratio(seconds, "DataLoader over Pillow", "tcl_zoo")
        print(
            f"{name} at 32 px: ours {n / median['tcl_zoo']:,.0f} views/s on {torch.get_num_threads()} threads, "
            f"DataLoader with {_WORKERS} workers {n / median['DataLoader over Pillow']:,.0f}; "
            f"ratio {gain:.1f} (target 10)"
        )
    write_csv("augment", rows)
    _scaling(quick)


def _scaling(quick: bool) -> None:
    """Cost over batch size and image size."""
    policies = ("crop_flip", "autoaugment_thesis", "simaugment")
    over_batch: list[dict[str, Any]] = []
    for n in (128, 512, 2048, 8192) if quick else (128, 256, 512, 1024, 2048, 4096, 8192, 16384):
        batch = images(n)
        seconds = alternate({p: partial(Augment(p, 32), batch) for p in policies}, rounds=5)
        over_batch += [{"images": n, "policy": p, "seconds": s} for p, s in medians(seconds).items()]
    write_csv("augment_batch", over_batch)
    over_size: list[dict[str, Any]] = []
    for size in (28, 32, 64) if quick else (28, 32, 64, 96, 128, 224):
        batch = images(256, size)
        seconds = alternate({p: partial(Augment(p, size), batch) for p in policies}, rounds=3)
        over_size += [{"size": size, "policy": p, "seconds": s} for p, s in medians(seconds).items()]
    write_csv("augment_size", over_size)
    for key, rows, label in (("images", over_batch, "images in the batch"), ("size", over_size, "side in pixels")):
        lines = {
            p: ([r[key] for r in rows if r["policy"] == p], [r["seconds"] for r in rows if r["policy"] == p])
            for p in policies
        }
        name = "augment_batch" if key == "images" else "augment_size"
        what = "32 px" if key == "images" else "256 images"
        curves(
            name, lines, label, "seconds per batch", f"Augmentation: cost over {label} ({what})", "autoaugment_thesis"
        )
    first, last = (next(r for r in over_batch if r["images"] == n and r["policy"] == "autoaugment_thesis")
                   for n in (2048, over_batch[-1]["images"]))  # fmt: skip
    growth = (last["seconds"] / first["seconds"]) / (last["images"] / first["images"])
    print(f"cost per image at {last['images']} images over that at 2048: {growth:.2f} (linear: 1)")
