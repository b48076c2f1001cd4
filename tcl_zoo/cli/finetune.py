"""``tcl-zoo finetune``."""

from __future__ import annotations

import argparse

from ..memory import keep_freed
from ._common import OK, STOPPED, Add, above_zero, count, count_or_zero, pixels, seconds, sha256_option, weights_option

_FREEZE_ALL = -1


def _epochs_or_all(text: str) -> int:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of epochs nor all")
    return _FREEZE_ALL if text == "all" else int(text)


def register(add: Add) -> None:
    """Adds the command."""
    sub = add("finetune", _run, "train an encoder further on images of your own, or on a known data set",
              """
              tcl-zoo finetune tcl_resnet20_digits --data-dir PHOTOS --out runs/photos
              tcl-zoo finetune resnet18 --dataset pets --data-dir data --freeze 3
              accelerate launch -m tcl_zoo finetune NAME --data-dir PHOTOS
              """)  # fmt: skip
    sub.add_argument("model", help="a name of this zoo, a release or run folder, or any timm model")
    sub.add_argument(
        "--data-dir", metavar="DIR", help="holds <class>/*, or train/, val/, test/ of them; or the --dataset"
    )
    sub.add_argument("--dataset", metavar="NAME", help="a known data set instead of a folder")
    sub.add_argument("--download", action="store_true", help="let torchvision fetch a missing data set")
    sub.add_argument("--cpu", action="store_true", help="stay on the CPU")
    weights_option(sub)
    sha256_option(sub)
    sub.add_argument("--out", metavar="RUN", help="the run folder; the same command goes on from it")
    sub.add_argument("--scratch", action="store_true", help="start from random weights, to compare")
    sub.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    sub.add_argument("--time-limit", type=seconds, metavar="T", help="stop cleanly after 90s, 9m ...: exit code 3")
    sub.add_argument(
        "--workers",
        type=count_or_zero,
        default=2,
        metavar="N",
        help="DataLoader workers of streamed images (default: 2)",
    )
    values = sub.add_argument_group("how to train")
    for option, kind, text in (
        ("epochs", count, "default: 20, or as many as make 400 steps"),
        ("batch-size", count, "images per step over all processes (default: 64)"),
        ("lr", above_zero, "peak learning rate (default: 0.001; head only 0.01, --scratch 0.002)"),
        ("optimizer", str, "of timm's (default: adamw)"),
        ("weight-decay", float, "default: 0.05"),
        ("layer-decay", float, "learning rate of a layer over that of the one above (default: 1)"),
        ("freeze", _epochs_or_all, "first epochs in which only the head learns, or all (default: 0)"),
        ("augmentation", str, "crop_flip (default), crop, autoaugment, simaugment, none ..."),
        ("mixup", float, "alpha (default: 0)"),
        ("cutmix", float, "alpha (default: 0)"),
        ("smoothing", float, "of the labels (default: 0.1)"),
        ("drop-path", float, "stochastic depth (default: 0)"),
        ("clip-grad", float, "largest norm of the gradient (default: none)"),
        ("ema", float, "decay of averaged weights, say 0.99 (default: none)"),
        ("patience", count, "stop after so many measurements without a better one (default: never)"),
        ("val", float, "share of each class to hold out where there is no val/ (default: 0.2)"),
        ("per-class", count, "go by so many training images of each class only"),
        ("size", pixels, "pixels a side (default: the model's)"),
        ("seed", count_or_zero, "default: 0"),
    ):
        values.add_argument(f"--{option}", type=kind, metavar=option[0].upper(), help=text)
    sub.set_defaults(fields=[action.dest for action in values._group_actions])


def _run(args: argparse.Namespace) -> int:
    from ..finetune import finetune
    from ..processes import main_alone

    keep_freed()
    values = {key: value for key in args.fields if (value := getattr(args, key)) is not None}
    result = finetune(
        args.model, args.data_dir, args.out, weights_dir=args.weights_dir, sha256=args.sha256,
        precision=args.precision, time_limit=args.time_limit, download=args.download, workers=args.workers,
        cpu=args.cpu, dataset=args.dataset or "", pretrained=not args.scratch, **values,
    )  # fmt: skip
    main_process = main_alone(args.cpu)
    if not result.finished:
        if main_process:
            print(f"{result.epoch} epochs done; the same command goes on from {result.run_dir}")
        return STOPPED
    if main_process:
        found = result.results
        for part, n in (("test", found["n"]), ("val", found["val_images"])):
            if part in found:
                print(f"top-1 {found[part]:.2f} % of {n:,} {part} images")
        if found["top1"] is None:
            print("top-1 not measured: there are neither validation nor test images")
        print(f"weights of epoch {found['last_epoch']}: {result.release}")
        print(f'load: tcl_zoo.create_model("{result.release}", pretrained=True)')
    return OK
