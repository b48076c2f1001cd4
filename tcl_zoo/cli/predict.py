"""``tcl-zoo predict``."""

from __future__ import annotations

import argparse

from ._common import OK, WRONG, Add, count, device_option, sha256_option, tell, weights_option


def register(add: Add) -> None:
    """Adds the command."""
    sub = add("predict", _run, "the likeliest labels of images",
              "tcl-zoo predict tcl_resnet20_digits photo.png --top 3")  # fmt: skip
    sub.add_argument("name", help="a name of this zoo, a release folder, or any timm model")
    sub.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or glob patterns")
    sub.add_argument("--top", type=count, default=5, metavar="K", help="how many labels (default: 5)")
    device_option(sub)
    weights_option(sub)
    sha256_option(sub)


def _run(args: argparse.Namespace) -> int:
    from ..errors import DataError
    from ..images import find, shown
    from ..pipeline import pipeline

    paths = list(find(args.images))  # a wrong path is told before the model is loaded
    loaded, failed = pipeline(args.name, args.weights_dir, args.device, sha256=args.sha256), 0
    for path in paths:
        try:
            likeliest = loaded.predict(path, args.top)
        except DataError as error:
            tell(error)
            failed += 1
            continue
        print(shown(path))
        for label, probability in likeliest:
            print(f"  {100 * probability:6.2f} %  {label}")
    return WRONG if failed else OK
