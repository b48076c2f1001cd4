"""Time this package and its peers side by side; writes benchmarks/*.csv and *.png."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for benchmarks/, too

from tcl_zoo.cli import OK, Parser, guarded

SUITES = ("loss", "augment", "loop", "analysis", "probe", "startup", "processes", "ssl")


def main() -> int:
    """The command; returns the exit code."""
    parser = Parser(
        description=__doc__,
        example="""
            python scripts/benchmark.py loss augment
            python scripts/benchmark.py finetune --encoder runs/tcl_resnet20_cifar100.e40
            python scripts/benchmark.py epoch --name tcl_resnet18_cifar10 --device cuda
        """,
    )
    choices = (*SUITES, "all", "epoch", "finetune")
    parser.add_argument("suites", nargs="+", choices=choices, metavar="SUITE", help=", ".join(choices))
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer rounds")
    parser.add_argument("--data-dir", default="data", metavar="DIR", help="ssl, finetune, probe: where CIFAR-10 is")
    parser.add_argument("--dataset", default="digits", choices=("digits", "cifar10"), help="ssl (default: digits)")
    parser.add_argument(
        "--encoder", default="", metavar="NAME", help="finetune: a name or folder, not of CIFAR-10; probe: a run folder"
    )
    parser.add_argument("--seeds", type=int, default=5, help="finetune: draws of the images (default: 5)")
    parser.add_argument("--tune", action="store_true", help="finetune: compare settings, on training images")
    parser.add_argument("--runs-dir", default="runs", metavar="DIR", help="finetune: where its runs go (default: runs)")
    parser.add_argument("--name", default="tcl_resnet20_cifar10", help="epoch: the recipe")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="epoch: where")
    parser.add_argument(
        "--precision", default="auto", choices=("auto", "fp32", "bf16"), help="epoch: as a training's (default: auto)"
    )
    parser.add_argument("--steps", type=int, default=50, help="epoch: timed steps")
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="epoch: of the device, for the utilisation")
    parser.add_argument("--compile", action="store_true", help="epoch: with torch.compile")
    parser.add_argument("--no-graphs", action="store_true", help="epoch: do without CUDA graphs on a GPU")
    args = parser.parse_args()
    if "finetune" in args.suites and (not args.encoder or args.seeds < 1):
        parser.error("finetune needs an --encoder and at least one of --seeds")

    suites = SUITES if "all" in args.suites else tuple(args.suites)
    if len(suites) > 1:  # each in a process of its own: one that has trained keeps freed memory, which helps the peers
        options = [text for text in sys.argv[1:] if text not in args.suites]
        for suite in suites:
            if code := subprocess.run([sys.executable, __file__, suite, *options]).returncode:
                return code
        return OK

    from benchmarks import analysis, augment, finetune, loop, loss, probe, processes, ssl, startup

    runs: dict[str, Callable[[bool], None]]
    runs = {
        "loss": loss.run,
        "augment": augment.run,
        "loop": loop.run,
        "probe": partial(probe.run, encoder=args.encoder, data_dir=args.data_dir),
        "startup": startup.run,
    }
    runs |= {"analysis": analysis.run, "processes": processes.run}
    runs["ssl"] = partial(ssl.run, data_dir=args.data_dir, datasets=(args.dataset,))
    runs["finetune"] = partial(
        finetune.run, encoder=args.encoder, seeds=args.seeds, tune=args.tune, data_dir=args.data_dir,
        runs_dir=args.runs_dir,
    )  # fmt: skip
    if suites == ("epoch",):
        loop.epoch(
            args.name, args.device, args.precision, args.steps, args.peak_tflops, args.compile, not args.no_graphs
        )
    else:
        runs[suites[0]](args.quick)
    return OK


if __name__ == "__main__":
    sys.exit(guarded(main))
