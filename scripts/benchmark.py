"""Time this package and its peers side by side; writes benchmarks/*.csv and *.png."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tcl_zoo.cli import OK, Parser, guarded

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for benchmarks/, which is not part of the package

SUITES = ("loss", "augment", "loop", "analysis", "probe", "startup", "processes", "ssl")


def main() -> int:
    """The command; returns the exit code."""
    parser = Parser(
        description=__doc__,
        example="""
            python scripts/benchmark.py loss augment
            python scripts/benchmark.py epoch --name tcl_resnet18_cifar10 --device cuda --precision bf16
        """,
    )
    parser.add_argument("suites", nargs="+", choices=(*SUITES, "all", "epoch"), help="what to measure")
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer rounds")
    parser.add_argument("--data-dir", default="data", metavar="DIR", help="ssl: where CIFAR-10 is (default: data)")
    parser.add_argument("--name", default="tcl_resnet20_cifar10", help="epoch: the recipe")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="epoch: where")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="epoch: in what")
    parser.add_argument("--steps", type=int, default=50, help="epoch: timed steps")
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="epoch: of the device, for the utilisation")
    parser.add_argument("--compile", action="store_true", help="epoch: with torch.compile")
    args = parser.parse_args()

    from benchmarks import analysis, augment, loop, loss, probe, ssl, startup

    runs: dict[str, Callable[[bool], None]]
    runs = {"loss": loss.run, "augment": augment.run, "loop": loop.run, "probe": probe.run, "startup": startup.run}
    runs |= {"analysis": analysis.run, "processes": loop.processes, "ssl": partial(ssl.run, data_dir=args.data_dir)}
    for suite in SUITES if "all" in args.suites else args.suites:
        if suite == "epoch":
            loop.epoch(args.name, args.device, args.precision, args.steps, args.peak_tflops, args.compile)
        else:
            runs[suite](args.quick)
    return OK


if __name__ == "__main__":
    sys.exit(guarded(main))
