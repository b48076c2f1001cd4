"""``tcl-zoo demo``."""

from __future__ import annotations

import argparse

from ._common import FAILED, OK, STOPPED, Add


def register(add: Add) -> None:
    """Adds the command."""
    sub = add("demo", _run, "train, probe, release, load and verify a model on a laptop, in minutes",
              "tcl-zoo demo --out runs/demo")  # fmt: skip
    sub.add_argument("--out", default="runs/demo", metavar="DIR", help="where everything goes (default: runs/demo)")


def _run(args: argparse.Namespace) -> int:
    from ..demo import demo

    holds = demo(args.out)
    return STOPPED if holds is None else OK if holds else FAILED
