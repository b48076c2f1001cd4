"""``tcl-zoo verify``."""

from __future__ import annotations

import argparse
from itertools import combinations
from typing import TYPE_CHECKING

from ._common import FAILED, OK, WRONG, Add, data_options, picture, sha256_option, tell, weights_option

if TYPE_CHECKING:
    from ..verify import Verification


def register(add: Add) -> None:
    """Adds the command."""
    sub = add("verify", _run, "measure releases again and hold them against their cards",
              "tcl-zoo verify tcl_resnet20_digits --per-class --confusion confusion.png")  # fmt: skip
    sub.add_argument(
        "names", nargs="+", metavar="NAME",
        help="a released name, a release folder, or hf-hub:ORG/NAME; several of one data set are compared, too",
    )  # fmt: skip
    data_options(sub)
    weights_option(sub)
    sub.add_argument("--revision", help="of the Hub repository, instead of the pinned one")
    sha256_option(sub)
    sub.add_argument("--per-class", action="store_true", help="a table of recall by class")
    sub.add_argument("--confusion", type=picture, metavar="PNG", help="write the confusion matrix as a picture")


def _run(args: argparse.Namespace) -> int:
    from ..errors import TclZooError
    from ..verify import verify
    from ..weights import DamagedError

    if len(args.names) > 1 and (args.revision or args.sha256 or args.confusion):
        raise TclZooError("--revision, --sha256 and --confusion are for one name")
    codes, measured = [], {}
    for name in dict.fromkeys(args.names):
        try:
            v = verify(
                name, args.data_dir, weights_dir=args.weights_dir, revision=args.revision, sha256=args.sha256,
                device=args.device, download=args.download,
            )  # fmt: skip
        except TclZooError as error:  # what is not as it was released is a check that failed, not wrong use
            tell(error)
            codes.append(FAILED if isinstance(error, DamagedError) else WRONG)
        else:
            codes.append(_report(v, args))
            measured[name] = v
    _compare(measured)
    return next((code for code in (FAILED, WRONG) if code in codes), OK)


def _report(v: Verification, args: argparse.Namespace) -> int:
    from ..verify import TOLERANCE_GOLDEN, plot_confusion

    print(f"{v.name}")
    print(f"  reported  {v.reported:6.2f} %")
    print(f"  measured  {v.measured:6.2f} %  ({v.hits:,} of {v.n:,} test images)")
    if v.left_out:
        print(f"  both without {v.left_out:,} images that the card's copy of the data has otherwise")
    print(f"  golden output differs by {v.golden:.1e} at most")
    if args.per_class:
        width = max(len(name) for name in v.classes)
        print(f"  {'class':<{width}}  images  recall")
        for name, n, recall in v.per_class():
            print(f"  {name:<{width}}  {n:>6}  {recall:6.2f}")
    if args.confusion:
        plot_confusion(v, args.confusion)
        print(f"  confusion matrix: {args.confusion}")
    if v.same_data or v.golden > TOLERANCE_GOLDEN:
        print("  OK: the card holds" if v.ok else "  FAILED: the card does not hold")
        return OK if v.ok else FAILED
    print("  NOT COMPARED: the golden output holds, but these are other test images than")
    print("  the card's (by fingerprint): give those to hold its top-1 to account")
    return WRONG


def _compare(measured: dict[str, Verification]) -> None:
    """Every pair, by names as given. The interval is over images; what another training gives is not in it."""
    from ..intervals import paired_interval

    for (one, first), (other, second) in combinations(measured.items(), 2):
        print(f"{one} - {other}")
        alone = first.against(second)
        if alone is None:
            print("  not compared: other test images")
            continue
        difference, half = paired_interval(*alone, first.n)
        print(f"  {difference:+.2f} ± {half:.2f} points (95 %) on the same {first.n:,} images,")
        print(f"  of which {alone[0]:,} by the first alone and {alone[1]:,} by the second alone are right")
