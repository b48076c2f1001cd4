"""Forward and backward of the loss against the dense formulations, and the memory it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tcl_zoo.losses import SupConLoss, TCLLoss

from . import peers
from .timing import HERE, alternate, by_name, curves, medians, ratio, write_csv

DENSE_LIMIT = 12_288  # rows from which a dense peer takes more memory than small machines have
_TARGETS = {512: 1.5, 4096: 4.0, 12_288: 5.0}


def _contestants() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    from pytorch_metric_learning.losses import SupConLoss as TheirSupCon

    return {
        "tcl_zoo": TCLLoss(),
        "tcl_zoo SupCon": SupConLoss(),
        "SupContrast (dense)": peers.supcontrast,
        "authors' TCL (dense)": peers.authors_tcl,
        "pytorch-metric-learning": TheirSupCon(temperature=0.1),
    }


def _step(loss: Callable[[Tensor, Tensor], Tensor], z: Tensor, y: Tensor) -> Callable[[], None]:
    def run() -> None:
        loss(z.detach().requires_grad_(), y).backward()  # type: ignore[no-untyped-call]

    return run


def _floor(z: Tensor) -> Callable[[], Tensor]:
    """The two matrix products nothing can do without: z z^T and [N, N] z."""
    return lambda: (z @ z.T) @ z


def run(quick: bool = False) -> None:
    """Prints medians and ratios; writes loss.csv, loss.png, loss_memory.csv, loss_memory.png."""
    sizes = [64, 128, 256, 512, 1024] if quick else [64, 128, 256, 512, 1024, 2048, 4096, 12_288]
    rows: list[dict[str, Any]] = []
    print(f"forward + backward, D = 128, float32, {torch.get_num_threads()} threads; medians in ms")
    for n in sizes:
        z, y = peers.unit_batch(n)
        runs: dict[str, Callable[[], Any]] = {name: _step(loss, z, y) for name, loss in _contestants().items()}
        runs["matrix products alone"] = _floor(z)
        seconds = alternate(runs, rounds=48 if n <= 1024 else 12 if n <= 4096 else 6)
        median = medians(seconds)
        peer = min((name for name in runs if not name.startswith(("tcl_zoo", "matrix"))), key=median.__getitem__)
        best, floor = ratio(seconds, peer, "tcl_zoo"), ratio(seconds, "tcl_zoo", "matrix products alone")
        rows += [
            {"n": n, "name": name, "ms": 1e3 * value, "over_ours": ratio(seconds, name, "tcl_zoo")}
            for name, value in median.items()
        ]
        target = f" (target {_TARGETS[n]})" if n in _TARGETS else ""
        print(f"N = {n}: " + ", ".join(f"{name} {1e3 * value:.2f}" for name, value in median.items()))
        print(f"    fastest peer, {peer}, over ours: {best:.2f}{target}; ours over the matrix products: {floor:.2f}")
    write_csv("loss", rows)
    curves(
        "loss",
        by_name(rows, "n", "ms"),
        "rows in the batch, N",
        "forward + backward (ms)",
        "Loss: time over batch size",
    )
    memory(quick)


def memory(quick: bool = False) -> None:
    """Peak extra memory of one step, each in a process of its own."""
    sizes = [1024, 4096] if quick else [1024, 2048, 4096, 12_288, 32_768, 65_536]
    rows: list[dict[str, Any]] = []
    for n in sizes:
        for name in ("tcl_zoo", "SupContrast (dense)", "authors' TCL (dense)", "pytorch-metric-learning"):
            if n <= (DENSE_LIMIT if "tcl_zoo" not in name else n):
                out = subprocess.run(
                    [sys.executable, "-m", "benchmarks.loss", name, str(n)], cwd=HERE.parent, capture_output=True,
                    text=True, check=True,
                )  # fmt: skip
                rows.append({"n": n, "name": name, "mib": json.loads(out.stdout.splitlines()[-1])})
                print(f"N = {n}: {name} takes {rows[-1]['mib']:.0f} MiB beyond the embeddings and labels")
    write_csv("loss_memory", rows)
    curves(
        "loss_memory",
        by_name(rows, "n", "mib"),
        "rows in the batch, N",
        "peak extra memory (MiB)",
        "Loss: memory over batch size",
    )


def _peak(name: str, n: int) -> float:
    """MiB of resident memory one step adds at its peak, looked at every millisecond."""
    page = os.sysconf("SC_PAGE_SIZE")

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * page

    loss = _contestants()[name]
    _step(loss, *peers.unit_batch(256))()
    z, y = peers.unit_batch(n)
    before = peak = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    _step(loss, z, y)()
    done.set()
    watcher.join()
    return max(peak - before, 1 << 20) / (1 << 20)


if __name__ == "__main__":
    print(json.dumps(_peak(sys.argv[1], int(sys.argv[2]))))
