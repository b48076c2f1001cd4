"""``tcl-zoo probe``."""

from __future__ import annotations

import argparse

from ..recipes import recipe
from ._common import OK, Add, above_zero, count, data_options, weights_option


def register(add: Add) -> None:
    """Adds the command."""
    sub = add("probe", _run, "linear and kNN evaluation of a model of this zoo or of timm",
              "tcl-zoo probe tcl_resnet20_digits --knn 20 200")  # fmt: skip
    sub.add_argument("model", help="a name of this zoo, or any timm model")
    sub.add_argument("--dataset", help="a known data set (default: the model's own)")
    data_options(sub)
    weights_option(sub)
    sub.add_argument("--random", action="store_true", help="random weights, as a baseline")
    sub.add_argument("--protocol", default="cached", choices=("cached", "thesis"),
                     help="cached: features once, one full-batch fit; thesis: 50 epochs of augmented SGD")  # fmt: skip
    sub.add_argument("--C", type=above_zero, default=1.0, help="inverse L2 penalty of the cached fit (default: 1)")
    sub.add_argument(
        "--knn", type=count, nargs="*", default=(20, 200), metavar="K", help="neighbours (default: 20 200)"
    )


def _run(args: argparse.Namespace) -> int:
    import timm
    import torch

    from ..datasets import load
    from ..errors import DataError
    from ..models import create_model, list_models
    from ..probe import knn_probe, linear_probe
    from ..recipes import names

    ours = args.model in {*names(), *list_models(pretrained=True)} or args.weights_dir
    if not ours and not timm.is_model(args.model.partition(".")[0]) and ":" not in args.model:
        recipe(args.model)
    if ours:
        model = create_model(args.model, pretrained=not args.random, weights_dir=args.weights_dir)
    else:
        model = timm.create_model(args.model, pretrained=not args.random)
    dataset = args.dataset or (recipe(args.model).dataset if ours else None)
    if dataset is None:
        raise DataError("--dataset is needed with a model that is not of this zoo")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device)
    train, test = (load(dataset, args.data_dir, split, download=args.download) for split in ("train", "test"))
    chosen = recipe(args.model) if ours and recipe(args.model).dataset == dataset else None
    if args.protocol == "thesis" and chosen is None:
        raise DataError("--protocol thesis follows a recipe: it goes with a model of this zoo on its own data set")
    results = [linear_probe(model, train, test, protocol=args.protocol, C=args.C, recipe=chosen, device=device)]
    if args.knn:
        results += knn_probe(model, train, test, k=args.knn, device=device)
    print(f"{args.model} on {dataset}: top-1 of {len(test):,} test images")
    for result in results:
        label = result.protocol if result.classifier is None else f"linear, {result.protocol}"
        print(f"  {label:<16} {result.top1:6.2f} %   {result.seconds:6.1f} s")
    return OK
