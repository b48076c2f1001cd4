"""Build the release folder of a trained run, and put releases on a Hub.

--run-dir builds model_cards/NAME and enters it into the index; a NAME (or --all) with --repo-id (or --org) puts it on
the Hub of HF_ENDPOINT with the token of HF_TOKEN or `hf auth login`: one commit, the tag v<version>, and the commit's
id in tcl_zoo/index.json. The --run-dir of a fine-tuning has its release already: with --repo-id it goes to the Hub, and
never into the index.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout needs no installation

from tcl_zoo import __version__, index
from tcl_zoo.cli import FAILED, OK, Parser, guarded

TAG = f"v{__version__}"


def _parser() -> Parser:
    parser = Parser(
        description=__doc__,
        example="""
            python scripts/publish.py --run-dir runs/tcl_resnet20_cifar10 --data-dir data
            python scripts/publish.py tcl_resnet20_cifar10 --repo-id ORG/tcl_resnet20_cifar10 --dry-run
            python scripts/publish.py --all --org ORG
            python scripts/publish.py --run-dir runs/photos --repo-id ORG/photos
        """,
    )
    parser.add_argument("name", nargs="?", help="a release under --out")
    parser.add_argument("--all", action="store_true", help="every release of the index")
    parser.add_argument(
        "--run-dir",
        metavar="DIR",
        help="build the release of this finished run of scripts/train.py, or take that of a fine-tuning",
    )
    parser.add_argument("--data-dir", metavar="DIR", help="where the data sets are; digits needs none")
    parser.add_argument("--note", default="", metavar="TEXT", help="--run-dir: what readers of the card should know")
    parser.add_argument(
        "--altered", metavar="NPZ", help="`test`: indices of test images that are not the official ones; for the card"
    )
    parser.add_argument("--out", type=Path, default=index.MODEL_CARDS, metavar="DIR",
                        help="where release folders live (default: model_cards of this checkout)")  # fmt: skip
    parser.add_argument("--no-index", action="store_true", help="neither read nor write tcl_zoo/index.json")
    parser.add_argument("--cards", action="store_true", help="write all cards again from their config.json; the index")
    parser.add_argument(
        "--seeds", nargs="+", metavar="DIR", help="enter these runs of NAME by other seeds into its card"
    )
    parser.add_argument("--transfer", metavar="CSV", help="enter what tcl-zoo probe --csv wrote into the card of NAME")
    parser.add_argument("--repo-id", metavar="ORG/NAME", help="where to publish")
    parser.add_argument("--org", help="where to publish: ORG/NAME of each release")
    parser.add_argument("--tag", default=TAG, help=f"of the commit (default: {TAG}, the package's version)")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument(
        "--dry-run", action="store_true", help="check, and show files, sizes and the card; send nothing"
    )
    return parser


def _check_use(parser: Parser, args: argparse.Namespace) -> None:
    what = sum((bool(args.name), args.all, bool(args.run_dir)))
    if what > 1:
        parser.error("give one of NAME, --all and --run-dir")
    if not what and not args.cards:
        parser.error("give a NAME, --all, --run-dir or --cards")
    if args.repo_id and (args.org or args.all):
        parser.error("--repo-id is for one release; --org ORG for ORG/NAME of each")
    if args.transfer and not args.name:
        parser.error("--transfer goes with the NAME of a release")
    if args.seeds and not args.name:
        parser.error("--seeds goes with the NAME of a release")
    if args.altered and not (args.name or args.run_dir):
        parser.error("--altered goes with the NAME of a release, or with --run-dir")
    entered = args.transfer or args.altered or args.seeds
    if (args.name or args.all) and not (args.repo_id or args.org or args.dry_run or entered):
        parser.error("where to? --repo-id ORG/NAME or --org ORG")
    if args.repo_id and args.repo_id.count("/") != 1:
        parser.error(f"--repo-id takes ORG/NAME, got {args.repo_id!r}")
    if args.no_index and (args.all or args.cards):
        parser.error("--all and --cards go by the index")


def main() -> int:
    """The command; returns the exit code."""
    parser = _parser()
    args = parser.parse_args()
    _check_use(parser, args)

    from tcl_zoo.amend import add_altered, add_seeds, add_transfer
    from tcl_zoo.errors import TclZooError
    from tcl_zoo.outside import expanded
    from tcl_zoo.publish import ReleaseCheckError, preview, publish
    from tcl_zoo.release import release, update_index
    from tcl_zoo.weights import DamagedError, read_config

    out, indexed = args.out, not args.no_index
    args.name = args.name and args.name.rstrip("/")  # a shell completes a folder's name with it
    names = [args.name] if args.name else list(index.entries()) if args.all else []
    folders = [out / name for name in names]
    if args.name and not (out / args.name).is_dir():
        parser.error(f"{out / args.name} is no release folder")
    entered = bool(args.run_dir or args.transfer or args.altered or args.seeds)
    if args.run_dir and (tuned := expanded(args.run_dir, TclZooError) / "release").is_dir():  # of a fine-tuning
        if not (args.repo_id or args.org or args.dry_run) or args.altered or args.note or args.cards:
            raise TclZooError(f"the release is {tuned} already; --repo-id ORG/NAME alone publishes it")
        folders, indexed, entered = [tuned], False, False
    elif args.run_dir:
        folders = [release(args.run_dir, out, args.data_dir, note=args.note)]
        print(f"released {folders[0]}")
    if args.altered:
        n = add_altered(folders[0], args.altered, args.data_dir)
        print(f"{folders[0].name}: {n:,} test images are the official ones; verify compares on them there")
    if args.seeds:
        print(f"{args.name}: the card knows of {add_seeds(out / args.name, args.seeds, args.data_dir)} seeds")
    if args.transfer:
        print(f"{args.name}: {add_transfer(out / args.name, args.transfer)} settings entered into the card")
    if entered and not (args.repo_id or args.org or args.dry_run):
        folders = []
    if indexed and (entered or args.cards):
        print(f"the index has {len(update_index(out, cards=args.cards))} names")
    try:
        for folder in folders:
            name = read_config(folder)["tcl_zoo"]["name"]
            repo_id = args.repo_id or (f"{args.org}/{name}" if args.org else None)
            if args.dry_run or repo_id is None:
                print(preview(folder, repo_id, args.data_dir, indexed=indexed, tag=args.tag))
                continue
            done = publish(folder, repo_id, args.data_dir, private=args.private, indexed=indexed, tag=args.tag)
            what = f"sent {', '.join(done.sent)}" if done.sent else "nothing to send"
            print(f"{name}: hf-hub:{done.repo_id}@{done.revision} ({done.tag}): {what}")
    except (ReleaseCheckError, DamagedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    return OK


if __name__ == "__main__":
    sys.exit(guarded(main))
