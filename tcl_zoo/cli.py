"""``tcl-zoo``: what people who use the models type. ``list``, ``info`` and ``--help`` load no torch.

Exit codes, here and in ``scripts/``: 0 done, 1 a check failed, 2 wrong use or bad input, 3 stopped before the end.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from . import __version__, index
from .errors import TclZooError
from .recipes import recipe
from .thesis import reported

OK, FAILED, WRONG, STOPPED = 0, 1, 2, 3


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, and an example at the end of every ``--help``."""

    def __init__(self, *args: Any, example: str = "", **kwargs: Any) -> None:
        if example:
            kwargs["epilog"] = "example:\n" + textwrap.indent(textwrap.dedent(example).strip(), "  ")
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> Any:
        self.exit(WRONG, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def guarded(run: Callable[[], int]) -> int:
    """Runs a command; what a user can cause becomes one line on stderr and exit code 2."""
    try:
        return run()
    except (TclZooError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def seconds(text: str) -> float:
    """``90``, ``90s``, ``9m`` or ``1h30m`` in seconds, for argparse."""
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if not match or not any(match.groups()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 9m or 1h30m")
    hours, minutes, rest = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + rest


def _percent(value: float | None, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if value is not None else "-"


def _where(name: str) -> str:
    entry = index.entries().get(name)
    if entry is None:
        return "-"
    place = "here" if index.bundled_folder(name) else "Hub" if entry.get("repo_id") else "-"
    return f"{place}, {entry['bytes'] / 1e6:.1f} MB"


def _list(args: argparse.Namespace) -> int:
    from .models import list_models

    found = list_models(args.pattern, pretrained=args.pretrained)
    if not found:
        print(f"no name matches {args.pattern!r}; `tcl-zoo list` shows all", file=sys.stderr)
        return FAILED
    width = max(len(name) for name in found)
    print(f"{'name':<{width}}  thesis   ours  weights")
    for name in found:
        thesis, entry = reported(name), index.entries().get(name)
        ours = entry["results"]["top1"] if entry else None
        print(f"{name:<{width}}  {_percent(thesis and thesis[0]):>6}  {_percent(ours):>5}  {_where(name)}")
    return OK


def _info(args: argparse.Namespace) -> int:
    from .models import model_info

    info = model_info(args.name, args.weights_dir)
    thesis, results = info["thesis"], info["results"]
    print(args.name)
    print(f"  architecture      {info['architecture']} (timm)")
    print(f"  thesis top-1      {f'{thesis[0]} % ({thesis[1]})' if thesis else 'no figure for this setting'}")
    if results:
        print(f"  our top-1         {results['top1']:.2f} % ({results['protocol']}, n = {results['n']:,} test images,")
        print(f"                    seed {results['seed']}, epoch {results['last_epoch']} of {results['epochs']})")
        print(f"  weights           {info['weights']}")
        print(f"  sha256   {info['sha256']}")
    else:
        print("  weights           none released; to train them:")
        print(f"    python scripts/train.py {args.name} --data-dir DATA")
    print("  recipe")
    for key, value in info["recipe"].items():
        if key not in ("name", "variant"):
            print(f"    {key:<17} {value}")
    return OK


def _verify(args: argparse.Namespace) -> int:
    from .verify import plot_confusion, verify

    v = verify(
        args.name, args.data_dir, weights_dir=args.weights_dir, revision=args.revision, device=args.device,
        download=args.download,
    )  # fmt: skip
    print(f"{v.name}")
    print(f"  reported  {v.reported:6.2f} %")
    print(f"  measured  {v.measured:6.2f} %  ({v.hits:,} of {v.n:,} test images)")
    print(f"  golden output differs by {v.golden:.1e} at most")
    if not v.same_data:
        print("  other test images than the card's (fingerprints differ): the figures are not comparable")
    if args.per_class:
        width = max(len(name) for name in v.classes)
        print(f"  {'class':<{width}}  images  recall")
        for name, n, recall in v.per_class():
            print(f"  {name:<{width}}  {n:>6}  {recall:6.2f}")
    if args.confusion:
        plot_confusion(v, args.confusion)
        print(f"  confusion matrix: {args.confusion}")
    print("  OK: the card holds" if v.ok else "  FAILED: the card does not hold")
    return OK if v.ok else FAILED


def _probe(args: argparse.Namespace) -> int:
    import timm
    import torch

    from .datasets import load
    from .errors import DataError
    from .models import create_model, list_models
    from .probe import knn_probe, linear_probe
    from .recipes import names

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


def _demo(args: argparse.Namespace) -> int:
    from .demo import demo

    return OK if demo(args.out) else FAILED


def _parser() -> Parser:
    parser = Parser(
        prog="tcl-zoo",
        description="Encoders trained by tuned contrastive learning, SupCon and cross-entropy.",
        example="""
            tcl-zoo list 'tcl_*cifar100*'
            tcl-zoo verify tcl_resnet20_digits
        """,
    )
    parser.add_argument("--version", action="version", version=f"tcl_zoo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str, example: str) -> Parser:
        sub: Parser = commands.add_parser(name, help=text, description=text, example=example)
        sub.set_defaults(run=run)
        return sub

    def data_options(sub: Parser) -> None:
        sub.add_argument("--data-dir", metavar="DIR", help="where the data sets are; digits needs none")
        sub.add_argument("--download", action="store_true", help="let torchvision fetch a missing data set")
        sub.add_argument("--device", help="cpu, cuda, cuda:1 ...; a GPU where there is one by default")

    weights_help = "a release folder, or a folder of them, to take the weights from"

    sub = add("list", _list, "names, top-1 in the thesis and here, and where the weights are",
              "tcl-zoo list 'tcl_*cifar100*'")  # fmt: skip
    sub.add_argument("pattern", nargs="?", default="*", help="fnmatch pattern, quoted (default: all)")
    sub.add_argument("--pretrained", action="store_true", help="only names with released weights")

    sub = add("info", _info, "the recipe of a name, its results and its weights", "tcl-zoo info tcl_resnet50_cifar100")
    sub.add_argument("name")
    sub.add_argument("--weights-dir", metavar="DIR", help=weights_help)

    sub = add("verify", _verify, "measure a release again and hold it against its card",
              "tcl-zoo verify tcl_resnet20_digits --per-class --confusion confusion.png")  # fmt: skip
    sub.add_argument("name")
    data_options(sub)
    sub.add_argument("--weights-dir", metavar="DIR", help=weights_help)
    sub.add_argument("--revision", help="of the Hub repository, instead of the pinned one")
    sub.add_argument("--per-class", action="store_true", help="a table of recall by class")
    sub.add_argument("--confusion", metavar="PNG", help="write the confusion matrix as a picture")

    sub = add("probe", _probe, "linear and kNN evaluation of a model of this zoo or of timm",
              "tcl-zoo probe tcl_resnet20_digits --knn 20 200")  # fmt: skip
    sub.add_argument("model", help="a name of this zoo, or any timm model")
    sub.add_argument("--dataset", help="a known data set (default: the model's own)")
    data_options(sub)
    sub.add_argument("--weights-dir", metavar="DIR", help=weights_help)
    sub.add_argument("--random", action="store_true", help="random weights, as a baseline")
    sub.add_argument("--protocol", default="cached", choices=("cached", "thesis"),
                     help="cached: features once, one full-batch fit; thesis: 50 epochs of augmented SGD")  # fmt: skip
    sub.add_argument("--C", type=float, default=1.0, help="inverse L2 penalty of the cached fit (default: 1)")
    sub.add_argument("--knn", type=int, nargs="*", default=(20, 200), metavar="K", help="neighbours (default: 20 200)")

    sub = add("demo", _demo, "train, probe, release, load and verify a model on a laptop, in minutes",
              "tcl-zoo demo --out runs/demo")  # fmt: skip
    sub.add_argument("--out", default="runs/demo", metavar="DIR", help="where everything goes (default: runs/demo)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``tcl-zoo``; returns the exit code."""
    args = _parser().parse_args(argv)
    return guarded(lambda: args.run(args))


if __name__ == "__main__":
    sys.exit(main())
