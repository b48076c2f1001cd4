"""``tcl-zoo``: what people who use the models type; one file a command. ``list``, ``info``, ``--help`` load no torch.

Exit codes, here and in ``scripts/``: 0 done, 1 a check failed, 2 wrong use or bad input, 3 stopped before the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from .. import __version__
from . import demo, embed, finetune, info, list, predict, probe, verify
from ._common import FAILED, OK, STOPPED, WRONG, Parser, count, count_or_zero, guarded, seconds

__all__ = ["FAILED", "OK", "STOPPED", "WRONG", "Parser", "count", "count_or_zero", "guarded", "main", "seconds"]

# In the order of ``tcl-zoo --help``.
_COMMANDS = (list, info, verify, probe, predict, embed, finetune, demo)


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

    for command in _COMMANDS:
        command.register(add)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``tcl-zoo``; returns the exit code."""
    args = _parser().parse_args(argv)
    return guarded(lambda: args.run(args))
