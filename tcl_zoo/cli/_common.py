"""What every command shares, here and in ``scripts/``: exit codes, argparse with one-line errors, common options."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import TclZooError
from ..recipes import nearest

OK, FAILED, WRONG, STOPPED = 0, 1, 2, 3


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, an example at the end of every ``--help``, and options between the arguments."""

    _inside = False

    def __init__(self, *args: Any, example: str = "", **kwargs: Any) -> None:
        if description := kwargs.get("description"):
            parts = (" ".join(part.split()) for part in description.strip().split("\n\n"))
            kwargs["description"] = "\n\n".join(textwrap.fill(part, 78, break_long_words=False) for part in parts)
        if example:
            kwargs["epilog"] = "example:\n" + textwrap.indent(textwrap.dedent(example).strip(), "  ")
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # Before Python 3.13 a list of arguments that may be empty ends at the first option; what stands behind is left.
        args = list(sys.argv[1:] if args is None else args)
        found, left = super().parse_known_args(args, namespace)
        if not left or self._inside or self._subparsers is not None:
            return found, left
        if "--" not in args:
            self._inside = True
            try:
                found, left = self.parse_known_intermixed_args(args)
            finally:
                self._inside = False
        if left:  # said here: the command knows its options
            self.error(f"unrecognized arguments: {' '.join(left)}{nearest(left[0], self._option_string_actions)}")
        return found, left

    def error(self, message: str) -> Any:
        self.exit(WRONG, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def guarded(run: Callable[[], int]) -> int:
    """Runs a command; what a user can cause becomes one line on stderr and exit code 2, a warning one line, once."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn_once(set())
            return run()
    except BrokenPipeError:  # the reader, `head` say, has seen enough; nothing may be flushed into it at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (TclZooError, OSError) as error:
        tell(error)
        return WRONG
    except (MemoryError, RuntimeError) as error:
        # torch's, on a GPU and on a CPU, told without importing it
        torchs = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
        if not isinstance(error, MemoryError) and not torchs:
            raise
        print("error: out of memory; try a smaller size, batch or model, or another --device", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def tell(error: TclZooError | OSError) -> None:
    """An error as one line on stderr."""
    text = str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:  # without its number
        text = " -> ".join(str(name) for name in (error.filename, error.filename2) if name) + f": {error.strerror}"
    print(f"error: {' '.join(text.split())}", file=sys.stderr)


def _warn_once(told: set[str]) -> Any:
    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        if text not in told:
            told.add(text)
            print(f"warning: {text}", file=sys.stderr)

    return show


def seconds(text: str) -> float:
    """``90``, ``90s``, ``9m`` or ``1h30m`` in seconds, for argparse."""
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if not match or not any(match.groups()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 9m or 1h30m")
    hours, minutes, rest = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + rest


def count(text: str) -> int:
    """An integer of at least 1, for argparse."""
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", text.strip()):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not an integer from 1 on")
    return int(text)


def count_or_zero(text: str) -> int:
    """An integer of at least 0, for argparse."""
    if not re.fullmatch(r"[0-9]{1,9}", text.strip()):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not an integer from 0 on")
    return int(text)


def writable(*endings: str) -> Callable[[str], str]:
    """The name of a file that can be written, for argparse: told before hours of measuring, not after.

    Args:
        *endings: of which it has to have one; any where none is given.
    """

    def file(text: str) -> str:
        path = Path(text)
        if endings and path.suffix.lower() not in endings:
            raise argparse.ArgumentTypeError(f"{text[:80]!r} does not end in {', '.join(endings)}")
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"{text[:80]!r} is a folder")
        if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
            raise argparse.ArgumentTypeError(f"{text[:80]!r} cannot be written: is {path.parent} a folder of yours?")
        return text

    return file


picture = writable(".png", ".jpg", ".pdf", ".svg")


def pixels(text: str) -> int:
    """The side of an image, 1 to 2048, for argparse."""
    if not re.fullmatch(r"[0-9]{1,4}", text.strip()) or not 1 <= int(text) <= 2048:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of pixels from 1 to 2048")
    return int(text)


def above_zero(text: str) -> float:
    """A number above 0 that float32 can calculate with, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1e-9 <= value <= 1e9:  # beyond, float32 overflows on the way
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number above 0 (1e-9 to 1e9)")
    return value


def device(text: str) -> str:
    """A device that is there, for argparse."""
    import torch

    try:
        torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no device; cpu, cuda, cuda:1, mps ... are") from None
    try:
        torch.zeros(1, device=text).cpu()  # "meta" holds no values
    except Exception as error:  # each backend has its own
        raise argparse.ArgumentTypeError(f"{text[:40]!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return text


# add(name, run, text, example) -> the command's own parser
Add = Callable[[str, Callable[[argparse.Namespace], int], str, str], Parser]


def data_options(sub: Parser) -> None:
    """``--data-dir``, ``--download`` and ``--device``."""
    sub.add_argument("--data-dir", metavar="DIR", help="where the data sets are; digits needs none")
    sub.add_argument("--download", action="store_true", help="let torchvision fetch a missing data set")
    device_option(sub)


def device_option(sub: Parser) -> None:
    """``--device``."""
    sub.add_argument("--device", type=device, help="cpu, cuda, cuda:1 ...; a GPU where there is one by default")


def weights_option(sub: Parser) -> None:
    """``--weights-dir``."""
    text = "a release folder, or a folder of them, to take the weights from"
    sub.add_argument("--weights-dir", metavar="DIR", help=text)


def digest(text: str) -> str:
    """A sha256, for argparse."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} has not 64 hexadecimal digits")
    return text


def sha256_option(sub: Parser) -> None:
    """``--sha256``."""
    sub.add_argument("--sha256", type=digest, help="of the weights: nothing else is loaded")
