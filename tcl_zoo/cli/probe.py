"""``tcl-zoo probe``."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from .. import index
from ..places import is_timms, run_folder, run_recipe
from ..recipes import recipe
from ._common import OK, Add, above_zero, count, data_options, picture, pixels, sha256_option, weights_option, writable


def register(add: Add) -> None:
    """Adds the command."""
    sub = add("probe", _run, "linear and kNN evaluation of models of this zoo or of timm",
              """
              tcl-zoo probe tcl_resnet20_digits --knn 20 200
              tcl-zoo probe tcl_resnet20_digits ce_resnet20_digits \\
                  --dataset digits mnist PHOTOS --data-dir data --csv scores.csv
              """)  # fmt: skip
    sub.usage = "%(prog)s model [model ...] [--dataset NAME ...] [options]"
    sub.add_argument("model", nargs="+",
                     help="a name of this zoo, any timm model, a release or run folder; before --dataset")  # fmt: skip
    sub.add_argument("--dataset", nargs="+", metavar="NAME",
                     help="known data sets or class folders (default: the model's own)")  # fmt: skip
    data_options(sub)
    weights_option(sub)
    sha256_option(sub)
    sub.add_argument("--random", action="store_true", help="random weights, as a baseline")
    sub.add_argument("--protocol", default="cached", choices=("cached", "thesis"),
                     help="cached: features once, one full-batch fit; thesis: 50 epochs of augmented SGD")  # fmt: skip
    sub.add_argument("--C", type=above_zero, default=1.0, help="inverse L2 penalty of the cached fit (default: 1)")
    sub.add_argument("--knn", type=count, nargs="*", default=(20, 200), metavar="K",
                     help="neighbours (default: 20 200; the first, to compare)")  # fmt: skip
    sub.add_argument("--size", type=pixels, default=0, metavar="S", help="pixels a side (default: the model's)")
    several = sub.add_argument_group("to compare (on with several models or data sets, or with one of these)")
    several.add_argument("--shots", type=_shots, nargs="+", metavar="N",
                         help="training images per class, or all (default: 1 5 10 25 all)")  # fmt: skip
    several.add_argument("--seeds", type=count, metavar="N", help="draws of each number (default: 5)")
    several.add_argument("--test-images", type=count, metavar="N", help="measure on so many only")
    several.add_argument("--csv", type=writable(), metavar="FILE", help="write every measurement")
    several.add_argument("--picture", type=picture, metavar="PNG", help="draw the linear probes")
    sub.set_defaults(several=[action.dest for action in several._group_actions])


def _shots(text: str) -> int:
    if text != "all" and not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of images nor all")
    return 0 if text == "all" else int(text)


def _run(args: argparse.Namespace) -> int:
    from ..downstream import KNOWN
    from ..errors import DataError

    if not args.dataset:
        name = args.model[0]
        run = run_folder(name)
        name = run_recipe(run).name if run else name
        path = not run and Path(name).exists() and name not in index.entries()
        if ":" in name or path or is_timms(name):
            raise DataError("--dataset is needed with a model that is not of this zoo")
    datasets = args.dataset or [recipe(name).dataset]
    folder = datasets[0] not in KNOWN and len(datasets) == 1
    asked = any(getattr(args, key) is not None for key in args.several)
    if asked or len(args.model) > 1 or len(datasets) > 1 or folder:
        if args.protocol != "cached":
            raise DataError("--protocol thesis measures one model on its own data set; to compare, leave it out")
        return _compare(args, datasets)
    return _one(args, args.model[0], datasets[0])


def _is_recipe(name: str) -> bool:
    from ..errors import RecipeError

    try:
        recipe(name)
    except RecipeError:
        return False
    return True


def _compare(args: argparse.Namespace, datasets: list[str]) -> int:
    from ..transfer import SHOTS, summarise, table, transfer, write_csv
    from ..transfer import picture as draw

    scores = transfer(
        args.model, datasets, args.data_dir, shots=args.shots or SHOTS, seeds=args.seeds or 5, C=args.C,
        k=(*args.knn, 20)[0], size=args.size, test_images=args.test_images or 0, pretrained=not args.random,
        weights_dir=args.weights_dir, sha256=args.sha256, device=args.device, download=args.download,
    )  # fmt: skip
    summaries = summarise(scores)
    print(table(summaries))
    if args.csv:
        write_csv(scores, args.csv)
    if args.picture:
        draw(summaries, args.picture)
    return OK


def _one(args: argparse.Namespace, name: str, dataset: str) -> int:
    from ..downstream import fit, load_known
    from ..downstream_models import fitted_cfg, open_model
    from ..errors import DataError
    from ..features import default_device, features
    from ..probe import knn_probe, linear_probe

    model = open_model(name, pretrained=not args.random, weights_dir=args.weights_dir, sha256=args.sha256)
    device = default_device(args.device)
    model = model.to(device)
    cfg = fitted_cfg(model, size=args.size)
    model.pretrained_cfg = cfg  # type: ignore[assignment]
    parts = (load_known(dataset, args.data_dir, split, args.download) for split in ("train", "test"))
    train, test = (fit(part, cfg) for part in parts)
    chosen = recipe(name) if _is_recipe(name) and recipe(name).dataset == dataset else None
    if args.protocol == "thesis" and chosen is None:
        raise DataError("--protocol thesis follows a recipe: it goes with a model of this zoo on its own data set")
    started, extracted = time.monotonic(), None
    if args.protocol == "cached" or args.knn:
        extracted = (
            features(model, train, device=device, desc="train features"),
            features(model, test, device=device, desc="test features"),
        )
    took = time.monotonic() - started
    results = [
        linear_probe(
            model, train, test, protocol=args.protocol, C=args.C, recipe=chosen, device=device, extracted=extracted
        )
    ]
    if args.knn:
        results += knn_probe(model, train, test, k=args.knn, device=device, extracted=extracted)
    print(f"{name} on {dataset}: top-1 of {len(test):,} test images")
    if extracted:
        print(f"  {'features':<16} {'':6}     {took:6.1f} s")
    for result in results:
        label = result.protocol if result.classifier is None else f"linear, {result.protocol}"
        print(f"  {label:<16} {result.top1:6.2f} %   {result.seconds:6.1f} s")
    return OK
