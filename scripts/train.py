"""Train a recipe, or go on with its run folder; then fit and measure its classifier."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout needs no installation

from tcl_zoo import recipe
from tcl_zoo.cli import OK, STOPPED, Parser, count, count_or_zero, guarded, seconds
from tcl_zoo.memory import keep_freed
from tcl_zoo.recipes import override


def main() -> int:
    """The command; returns the exit code."""
    parser = Parser(
        description=__doc__,
        example="""
            python scripts/train.py tcl_resnet20_cifar10 --data-dir data --set epochs=5
            accelerate launch scripts/train.py tcl_resnet50_cifar100 \\
                --data-dir data --time-limit 9m
        """,
    )
    parser.add_argument("name", help="what to train: <objective>_<encoder>_<dataset>[.<variant>]")
    parser.add_argument("--data-dir", metavar="DIR", help="where the data sets are; digits needs none")
    parser.add_argument("--download", action="store_true", help="let torchvision fetch a missing data set")
    parser.add_argument("--run-dir", metavar="DIR", help="state and weights (default: runs/NAME); again to go on")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a field of the recipe")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument(
        "--time-limit", type=seconds, metavar="T", help="stop cleanly after 90s, 9m, 1h30m: exit code 3"
    )
    parser.add_argument(
        "--workers",
        type=count_or_zero,
        default=2,
        metavar="N",
        help="DataLoader workers of a streamed folder (default: 2)",
    )
    parser.add_argument("--gradient-accumulation-steps", type=count, default=1, metavar="N", help="ce only")
    parser.add_argument("--log-with", choices=("tensorboard", "trackio", "wandb"), help="a tracker of accelerate's")
    parser.add_argument("--compile", action="store_true", help="let torch.compile fuse the encoder's kernels")
    parser.add_argument("--no-graphs", action="store_true", help="do without CUDA graphs on a GPU")
    parser.add_argument("--log-gradients", type=count, nargs="?", const=50, default=0, metavar="N",
                        help="write the gradient responses of every N-th step to gradients.jsonl (N: 50)")  # fmt: skip
    parser.add_argument("--hold-out", type=count, default=0, metavar="N",
                        help="train without N of the training images and measure on them, not on the test images: "
                        "to choose hyperparameters")  # fmt: skip
    parser.add_argument("--cpu", action="store_true", help="stay on the CPU")
    parser.add_argument("--protocol", default="cached", choices=("cached", "thesis", "none"),
                        help="of the linear probe after training (default: cached)")  # fmt: skip
    args = parser.parse_args()
    chosen = override(recipe(args.name), args.set)
    keep_freed()

    from tcl_zoo.evaluate import evaluate_run
    from tcl_zoo.processes import main_alone
    from tcl_zoo.train import train

    result = train(
        chosen, args.data_dir, args.run_dir, precision=args.precision,
        time_limit=args.time_limit, download=args.download, workers=args.workers,
        gradient_accumulation_steps=args.gradient_accumulation_steps, log_with=args.log_with, cpu=args.cpu,
        compile=args.compile, log_gradients=args.log_gradients, hold_out=args.hold_out,
        graphs=not args.no_graphs,
    )  # fmt: skip
    main_process = main_alone(args.cpu)
    if not result.finished:
        if main_process:
            print(f"{result.epoch} of {chosen.epochs} epochs done; the same command goes on from {result.run_dir}")
        return STOPPED
    if main_process:
        print(f"trained {chosen.name}: loss {result.loss:.4f}, {result.seconds:.0f} s, weights in {result.run_dir}")
        if args.protocol != "none":
            device = "cpu" if args.cpu else None
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            try:
                measured = evaluate_run(
                    result.run_dir, args.data_dir, protocol=args.protocol, device=device, workers=args.workers
                )
            except KeyboardInterrupt:
                print("stopped in the probe; the same command begins it again")
                return STOPPED
            knn = ", ".join(f"{key} {value:.2f}" for key, value in measured["knn"].items())
            images = f"{measured['n']:,}{'' if args.hold_out else ' test images'}"
            print(f"top-1 {measured['top1']:.2f} % of {images} ({measured['protocol']}); {knn}")
    return OK


if __name__ == "__main__":
    sys.exit(guarded(main))
