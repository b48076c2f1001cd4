"""The C library's free memory: training keeps it, embedding a large folder gives it back. Nothing happens elsewhere."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from typing import Any

_LIBC: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed() -> None:
    """Lets this process keep the memory that it frees, for commands that train on a CPU.

    glibc returns every large block to the system and asks for it again, page by page, at the next step, which makes
    steps of large batches slower. The price is a higher peak: what is kept is in pieces.
    """
    with contextlib.suppress(AttributeError):  # another C library
        _LIBC.mallopt(_M_MMAP_MAX, 0)
        _LIBC.mallopt(_M_TRIM_THRESHOLD, -1)


def give_back_freed() -> None:
    """Gives free memory back to the system.

    glibc cannot put an aligned block (torch's are) into the hole that one of its size left: with a small block between
    any two of them the heap grows by holes, up to 100 MB of them over 25,000 images.
    """
    with contextlib.suppress(AttributeError):  # another C library
        _LIBC.malloc_trim(0)
