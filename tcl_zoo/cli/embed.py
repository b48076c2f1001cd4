"""``tcl-zoo embed``."""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

from ._common import OK, STOPPED, Add, device_option, sha256_option, weights_option, writable

_SHOWN = 10


def register(add: Add) -> None:
    """Adds the command."""
    sub = add("embed", _run, "features of any number of images in one file, and what is near a picture in it",
              """
              tcl-zoo embed tcl_resnet20_digits photos/ --out photos.npz
              tcl-zoo embed tcl_resnet20_digits --out photos.npz --search query.jpg
              """)  # fmt: skip
    sub.add_argument("name", help="a name of this zoo, a release folder, or any timm model")
    sub.add_argument("images", nargs="*", metavar="IMAGES",
                     help="files, folders (with what is below) and quoted glob patterns")  # fmt: skip
    sub.add_argument("--out", type=Path, required=True, metavar="FILE",
                     help=".npz or .parquet; a run that was stopped goes on with the same command")  # fmt: skip
    sub.add_argument("--overwrite", action="store_true", help="replace FILE where it is of something else")
    sub.add_argument("--search", metavar="IMAGE", help="draw the images nearest to this one; without IMAGES, in FILE")
    sub.add_argument("--top", type=int, default=9, metavar="K", help="how many of them (default: 9)")
    sub.add_argument("--picture", type=writable(".png"), metavar="PNG",
                     help="where to draw them (default: neighbours.png)")  # fmt: skip
    sub.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at a time (default: 64)")
    sub.add_argument("--workers", type=int, metavar="N", help="processes that decode (default: a core each, at most 8)")
    device_option(sub)
    weights_option(sub)
    sha256_option(sub)


def _run(args: argparse.Namespace) -> int:
    from ..embed import embed, search
    from ..embed.files import check_suffix
    from ..embed.neighbours import plot_neighbours
    from ..errors import DataError
    from ..images import shown
    from ..pipeline import cores, pipeline

    if not args.images and not args.search:
        raise DataError("name images to embed, or --search an image in what is embedded already")
    check_suffix(args.out)  # told before the model is loaded
    loaded = pipeline(args.name, args.weights_dir, args.device, sha256=args.sha256)
    if args.images:
        workers = min(8, cores()) if args.workers is None else args.workers
        try:
            done = embed(loaded, args.images, args.out, args.batch_size, workers, args.overwrite)
        except KeyboardInterrupt:
            print("stopped; the same command goes on", file=sys.stderr)
            return STOPPED
        print(f"{args.out}: {done.rows:,} images x {done.width}{'' if done.new else ', as it was'}")
        if done.skipped:
            print(f"skipped {done.n - done.rows:,} that do not decode, listed in {done.skipped}:", file=sys.stderr)
            with done.skipped.open(encoding="utf-8") as file:
                for line in itertools.islice(file, _SHOWN):
                    print("  " + ": ".join(line.rstrip("\n").split("\t")), file=sys.stderr)
            if done.n - done.rows > _SHOWN:
                print("  ...", file=sys.stderr)
    if args.search:
        nearest = search(loaded, args.search, args.out, args.top)
        for path, similarity in nearest:
            print(f"  {similarity:6.3f}  {shown(path)}")
        picture = args.picture or "neighbours.png"
        plot_neighbours(args.search, nearest, picture)
        print(picture)
        if gone := sum(not Path(path).exists() for path, _ in nearest):
            print(f"{gone} of them are not there: search from the folder where they were embedded", file=sys.stderr)
    return OK
