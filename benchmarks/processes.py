"""A training step on 1 and 2 processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tcl_zoo.memory import keep_freed

from .loop import endless, made_up
from .timing import by_name, curves, medians, write_csv

_STEPS = {128: 64, 1024: 8}  # batch in views: steps that are timed in each turn, a chunk of views


def run(quick: bool = False) -> None:
    """Prints views/s of one and of two gloo processes, one thread each; writes processes.csv, processes.png."""
    rows: list[dict[str, Any]] = []
    for views, steps in _STEPS.items():
        seconds: dict[str, list[float]] = {"1": [], "2": []}
        for _ in range(1 if quick else 3):
            for processes, times in seconds.items():
                times.append(_launched(int(processes), views, steps))
        median = medians(seconds)
        rows += [
            {"name": f"{views:,} views a step", "processes": int(processes), "views_per_second": views / value}
            for processes, value in median.items()
        ]
        gain = median["1"] / median["2"]
        print(f"resnet20, {views:,} views: {views / median['1']:.0f} views/s on one process, ", end="")
        print(f"{views / median['2']:.0f} on two, {gain:.2f} times; one thread each", flush=True)
    write_csv("processes", rows)
    lines = by_name(rows, "processes", "views_per_second")
    curves("processes", lines, "processes", "views/s", "A TCL training step of resnet20 on gloo processes", log=False)


def _launched(processes: int, views: int, steps: int) -> float:
    # accelerate's launcher starts one process on a CPU, whatever --num_processes says
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["-m", "benchmarks.processes", str(views), str(steps)]
    root, env = Path(__file__).resolve().parent.parent, os.environ | {"OMP_NUM_THREADS": "1"}
    out = subprocess.run(command, capture_output=True, text=True, env=env, cwd=root)
    if out.returncode:
        raise RuntimeError(out.stderr[-2000:])
    return float(json.loads(out.stdout.splitlines()[-1])["seconds"])


def _worker(views: int, steps: int) -> None:
    """Times ``steps`` steps after one that is not counted; the first process prints the seconds of one."""
    keep_freed()  # as scripts/train.py does
    trainer = made_up("tcl_resnet20_cifar10", 16_384, "cpu", "fp32", settings=(f"batch_views={views}",))
    trainer.step(*next(endless(trainer)))
    trainer.accelerator.wait_for_everyone()
    started = time.perf_counter()
    for _, (views_, labels) in zip(range(steps), endless(trainer), strict=False):
        trainer.step(views_, labels)
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        print(json.dumps({"seconds": (time.perf_counter() - started) / steps}))
    trainer.accelerator.end_training()


if __name__ == "__main__":
    _worker(int(sys.argv[1]), int(sys.argv[2]))
