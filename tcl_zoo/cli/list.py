"""``tcl-zoo list``."""

from __future__ import annotations

import argparse
import sys

from .. import index
from ..thesis import reported
from ._common import OK, WRONG, Add


def register(add: Add) -> None:
    """Adds the command."""
    sub = add("list", _run, "names, top-1 in the thesis and here, and where the weights are",
              "tcl-zoo list 'tcl_*cifar100*'")  # fmt: skip
    sub.add_argument("pattern", nargs="?", default="*", help="fnmatch pattern, quoted (default: all)")
    sub.add_argument("--pretrained", action="store_true", help="only names with released weights")


def _percent(value: float | None, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if value is not None else "-"


def _where(name: str) -> str:
    entry = index.entries().get(name)
    if entry is None:
        return "-"
    place = "here" if index.bundled_folder(name) else "Hub" if entry.get("repo_id") else "-"
    return f"{place}, {entry['bytes'] / 1e6:.1f} MB"


def _run(args: argparse.Namespace) -> int:
    from ..models import list_models

    found = list_models(args.pattern, pretrained=args.pretrained)
    if not found:
        wider = "" if set(args.pattern) & set("*?[") else f" '*{args.pattern}*' looks inside names,"
        print(f"no name matches {args.pattern!r};{wider} `tcl-zoo list` shows all", file=sys.stderr)
        return WRONG
    width = max(len(name) for name in found)
    print(f"{'name':<{width}}  thesis    ours  weights")
    for name in found:
        thesis, entry = reported(name), index.entries().get(name)
        ours = entry["results"]["top1"] if entry else None
        print(f"{name:<{width}}  {_percent(thesis and thesis[0]):>6}  {_percent(ours):>6}  {_where(name)}")
    if not args.pretrained:
        released = sum(name in index.entries() for name in found)
        print(f"{released} of {len(found)} have weights: tcl-zoo list --pretrained", file=sys.stderr)
    return OK
