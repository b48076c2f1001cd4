"""``tcl-zoo info``."""

from __future__ import annotations

import argparse

from ..recipes import flat
from ._common import OK, Add, weights_option


def register(add: Add) -> None:
    """Adds the command."""
    sub = add("info", _run, "the recipe of a name, its results and its weights", "tcl-zoo info tcl_resnet50_cifar100")
    sub.add_argument("name", help="a name of this zoo, or a release or run folder")
    weights_option(sub)


def _run(args: argparse.Namespace) -> int:
    from ..models import model_info

    info = model_info(args.name, args.weights_dir)
    thesis, results = info["thesis"], info["results"]
    print(args.name)
    print(f"  architecture      {info['architecture']} (timm)")
    print(f"  thesis top-1      {f'{thesis[0]} % ({thesis[1]})' if thesis else 'no figure for this setting'}")
    if results:
        if results["top1"] is None:
            print("  our top-1         not measured: there were no test images")
        else:
            images = "" if "images" in results["protocol"] else " test images"
            print(f"  our top-1         {results['top1']:.2f} % ({results['protocol']}, n = {results['n']:,}{images},")
            print(f"                    seed {results['seed']}, epoch {results['last_epoch']} of {results['epochs']})")
    if info["weights"]:
        print(f"  weights           {info['weights']}")
        if info["sha256"]:
            print(f"  sha256   {info['sha256']}")
    elif results:
        print("  weights           not in this package: pass --weights-dir")
    else:
        print("  weights           none released; to train them:")
        print(f"    python scripts/train.py {args.name} --data-dir DATA")
    print("  recipe")
    fields = {key: value for key, value in flat(info["recipe"]).items() if key not in ("name", "variant")}
    for key, value in fields.items():
        print(f"    {key:<{max(map(len, fields))}} {value}")
    return OK
