"""Seeded damage for files and texts from outside, and a watch over what the code does with them."""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tcl_zoo.errors import TclZooError
from tcl_zoo.memory import give_back_freed

NASTY: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, -(10**30), 0.0, -0.5, 1e308, 1e-320, float("nan"), float("inf"),
    "", "x", "x" * 3000, "../../../../tmp/escaped", "/etc/passwd", "\0", "\ud800", "a\nb", "%s{}", "__import__('os')",
    "hf-hub:evil/x", "٣", [], {}, [[]], [None], [1, 8, 8], [1e400], {"a": {}}, {"__class__": "os"}, [[[[1]]]],
]  # fmt: skip


class Mutator:
    """Random damage, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def data(self, data: bytes) -> bytes:
        """Bytes flipped, cut, doubled, overwritten or moved in one to four places."""
        out = bytearray(data)
        for _ in range(self.random.randint(1, 4)):
            at, size = self.random.randrange(len(out) + 1), self.random.randint(1, 16)
            kind = self.random.randrange(7)
            if kind == 0 and at < len(out):
                out[at] ^= 1 << self.random.randrange(8)
            elif kind == 1:
                out[at : at + size] = self.random.choice([b"\0", b"\xff", b"\x7f"]) * len(out[at : at + size])
            elif kind == 2:
                del out[at : at + size]
            elif kind == 3:
                del out[at:]
            elif kind == 4:
                out[at:at] = out[at : at + size] * self.random.randint(1, 20)
            elif kind == 5:
                out[at:at] = self.random.randbytes(size)
            else:
                out[at : at + 8] = self.random.choice([2**63, 2**32 - 1, 10**10, 1, 0]).to_bytes(8, "little")
        return bytes(out)

    def tree(self, value: Any) -> Any:
        """JSON with one to three of its values, keys or lists replaced, dropped or added to."""
        value = copy.deepcopy(value)
        for _ in range(self.random.randint(1, 3)):
            holders = [v for v in self._nodes(value) if isinstance(v, (dict, list)) and v]
            if not holders:
                break
            holder = self.random.choice(holders[:60] if self.random.random() < 0.8 else holders)
            key = self.random.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
            kind = self.random.randrange(5)
            if kind <= 1:
                holder[key] = copy.deepcopy(self.random.choice(NASTY))
            elif kind == 2:
                del holder[key]
            elif kind == 3 and isinstance(holder, dict):
                holder[str(self.random.choice(["file", "x" * 200, "", "\ud800", "source", "a\nb"]))] = holder[key]
            else:
                holder[key] = copy.deepcopy(self.random.choice(holders))
        return value

    def text(self, value: Any) -> bytes:
        """A mutated JSON file: its tree, its bytes, or both."""
        kind = self.random.randrange(4)
        try:
            data = json.dumps(self.tree(value) if kind else value).encode()
        except ValueError:  # a list that contains itself
            data = json.dumps(value).encode()
        return self.data(data) if kind in (0, 1) else data

    def word(self, like: str) -> str:
        """A mutated name or setting."""
        kind = self.random.randrange(5)
        if kind == 0:
            return str(self.random.choice(NASTY))
        letters = list(like)
        for _ in range(self.random.randint(1, 3)):
            at = self.random.randrange(len(letters) + 1)
            new = self.random.choice(
                [*"_.:/@~=-+ e19xN\0\n\t\u0663\ud800", "..", "../", "hf-hub:", "9" * 30, "\U0001f40d"]
            )
            letters[at : at + self.random.randint(0, 2)] = [new] * self.random.choice([1, 1, 1, 50])
        return "".join(letters)

    def _nodes(self, value: Any) -> Iterator[Any]:
        stack, seen = [value], 0
        while stack and seen < 5000:
            node, seen = stack.pop(), seen + 1
            yield node
            stack.extend(node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())


_FORBIDDEN = {
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen", "os.system", "os.exec",
    "os.posix_spawn", "os.fork", "pickle.find_class", "ctypes.dlopen",
}  # fmt: skip
_WRITES = {
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "shutil.rmtree",
    "os.chmod",
    "os.truncate",
}
_watching: dict[str, Any] = {}


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if not _watching:
        return
    bad = event in _FORBIDDEN or (event == "exec" and getattr(args[0], "co_filename", "<").startswith("<"))
    if event == "open" and isinstance(args[0], (str, bytes)):
        writes = any(c in "wax+" for c in args[1] or "") or (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        bad = bool(writes) and not _inside(args[0])
    elif event in _WRITES:
        bad = not all(_inside(path) for path in args[:2] if isinstance(path, (str, bytes)))
    if event == "exec" and bad:  # a module that is imported late may build its named tuples
        bad = not any("importlib" in frame.filename for frame in traceback.extract_stack(limit=40))
    if bad:
        where = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack(limit=8)[-2::-1])
        _watching["seen"].append((event, str(args)[:200], where))


def _inside(path: str | bytes) -> bool:
    path = os.path.realpath(os.fsdecode(path))
    return path == "/dev/null" or any(path.startswith(allowed) for allowed in _watching["allowed"])


sys.addaudithook(_hook)


def _peak(anew: bool = False) -> float:
    """The most memory that this process had, in KiB; ``anew``: from here on, where the kernel forgets on request."""
    with suppress(OSError):
        if anew:
            give_back_freed()  # or what was freed before would be taken again without a trace
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return float(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextmanager
def watched(folder: Path, megabytes: float = 600) -> Iterator[None]:
    """Nothing is written outside ``folder``, unpickled, evaluated, started or sent, and the memory stays bounded."""
    before = _peak(anew=True)
    _watching.update(allowed=[os.path.realpath(folder)], seen=[])
    try:
        yield
    finally:
        seen = list(_watching["seen"])
        _watching.clear()
    assert not seen, seen[:5]
    grown = (_peak() - before) / 1024
    assert grown < megabytes, f"the memory grew by {grown:.0f} MB"


def outcome(call: Callable[[], Any], about: object) -> str:
    """``accepted`` or ``refused``; fails where anything but a one-line error of the family comes out."""
    try:
        call()
    except TclZooError as error:
        message = str(error)
        assert 0 < len(message) < 1500 and "Traceback" not in message, (about, message[:2000])
        return "refused"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        keep = Path(tempfile.gettempdir()) / "fuzz-failure.txt"
        keep.write_text(repr(about))
        raise AssertionError(f"{type(error).__name__}: {error} on {str(about)[:500]!r} (whole in {keep})") from error
    return "accepted"
