"""The cached linear probe against 50 epochs of augmented SGD."""

from __future__ import annotations

import time
from typing import Any

import torch

import tcl_zoo
from tcl_zoo.datasets import load
from tcl_zoo.memory import keep_freed
from tcl_zoo.probe import fit_linear, linear_probe
from tcl_zoo.recipes import recipe
from tcl_zoo.runs import load_run

from .timing import curves, write_csv


def run(quick: bool = False, encoder: str = "", data_dir: str = "data") -> None:
    """Prints both protocols on an encoder, and how the fit grows; writes probe.csv, probe_size.csv, probe_size.png.

    Args:
        quick: smaller sizes.
        encoder: a finished run folder, whose data set is measured; the released digits encoder where not given.
        data_dir: where the data sets are.
    """
    keep_freed()  # as scripts/train.py does, for both
    if encoder:
        plan, model = load_run(encoder)
    else:
        plan = recipe("tcl_resnet20_digits")
        model = tcl_zoo.create_model(plan.name, pretrained=True, num_classes=0)
    train, test = load(plan.dataset, data_dir, "train"), load(plan.dataset, data_dir, "test")
    rows: list[dict[str, Any]] = []
    for protocol in ("cached", "thesis"):
        spent = time.process_time()
        result = linear_probe(model, train, test, protocol=protocol, recipe=plan)
        spent = time.process_time() - spent
        rows.append({"encoder": plan.name, "images": len(train), "protocol": protocol, "seconds": result.seconds})
        rows[-1] |= {"cpu_seconds": spent, "top1": result.top1}
        print(
            f"{plan.name}, {len(train):,} images: {protocol} probe {result.top1:.2f} % in {result.seconds:.1f} s, ",
            end="",
        )
        print(f"{spent:.1f} s of CPU", flush=True)
    gain = rows[1]["seconds"] / rows[0]["seconds"]
    print(f"thesis over cached: {gain:.0f} times the time (target 30); top-1 {rows[0]['top1'] - rows[1]['top1']:+.2f}")
    write_csv("probe", rows)
    size_rows = []
    for n in (1000, 4000, 16_000) if quick else (1000, 2000, 5000, 10_000, 20_000, 50_000):
        torch.manual_seed(0)
        labels = torch.randint(10, (n,))
        features = torch.randn(10, 64)[labels] + 2 * torch.randn(n, 64)
        started = time.perf_counter()
        fit_linear(features, labels, 10)
        size_rows.append({"images": n, "seconds": time.perf_counter() - started})
    print("fit of 64 features, 10 classes: " + ", ".join(f"{r['images']:,} {r['seconds']:.2f} s" for r in size_rows))
    write_csv("probe_size", size_rows)
    x, y = [r["images"] for r in size_rows], [r["seconds"] for r in size_rows]
    curves("probe_size", {"tcl_zoo": (x, y)}, "training images", "seconds of the fit", "Cached probe: time over data")
