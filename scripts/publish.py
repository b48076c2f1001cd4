"""Build the release folder of a trained run under model_cards/ and enter it into the index."""

from __future__ import annotations

import sys

from tcl_zoo.cli import OK, Parser, guarded


def main() -> int:
    """The command; returns the exit code."""
    parser = Parser(
        description=__doc__,
        example="python scripts/publish.py --run-dir runs/tcl_resnet20_cifar10 --data-dir data",
    )
    parser.add_argument("--run-dir", metavar="DIR", required=True, help="a finished run of scripts/train.py")
    parser.add_argument("--data-dir", metavar="DIR", help="where the data sets are; digits needs none")
    parser.add_argument("--out", default="model_cards", metavar="DIR", help="where release folders live")
    parser.add_argument("--no-index", action="store_true", help="leave tcl_zoo/index.json as it is")
    args = parser.parse_args()

    from tcl_zoo.release import release, update_index

    folder = release(args.run_dir, args.out, args.data_dir)
    print(f"released {folder}")
    if not args.no_index:
        print(f"the index has {len(update_index(args.out))} names")
    return OK


if __name__ == "__main__":
    sys.exit(guarded(main))
