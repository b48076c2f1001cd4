"""A file of embeddings in the making: written row by row, taken up again after a stop.

``OUT.part/`` holds ``run.json`` (what is computed), ``images.jsonl`` (all paths in order), ``rows.f32`` (the rows so
far) and ``journal.jsonl``: a line per batch, written after its rows, so that whoever goes on knows what a kill cut
off. The finished file appears at once or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from ..errors import DataError
from ..images import shown
from . import files

_COMMIT_SECONDS = 0.5  # at most so much work is lost to a kill; syncing every batch would cost more


class Partial:
    """A file of embeddings in the making, and a lock against a second writer; use it in a ``with``.

    Args:
        out: the file to be, ``.npz`` or ``.parquet``.
        paths: of all images, in order.
        meta: what is computed, JSON-able with ``dim``, the length of a row. A run is gone on with where it and the
            images (paths, sizes, times) are the same.

    Attributes:
        meta: with ``images`` (n and sha256) added.
        done, rows: images dealt with so far, and those of them that have a row.

    Raises:
        DataError: another suffix, no pyarrow for parquet, an unfinished run of something else, or a second writer.
    """

    def __init__(self, out: Path, paths: Iterable[str], meta: dict[str, Any]) -> None:
        files.check_suffix(out)
        self.out, self.folder = out, out.with_name(out.name + ".part")
        self.done = self.rows = 0
        self.folder.mkdir(parents=True, exist_ok=True)
        self._files = contextlib.ExitStack()
        self._lines: list[bytes] = []
        self._committed = time.monotonic()
        lock = FileLock(self.folder / "lock", blocking=False, thread_local=False)
        try:
            self._files.enter_context(lock)
        except Timeout:
            raise DataError(f"another process is writing {out}; wait for it, or choose another file") from None
        run = self.folder / "run.json"
        try:
            fresh = not run.is_file()
            listed = listing(paths, self.folder / "images.jsonl" if fresh else None)
            self.meta = {**meta, "images": listed}
            if not fresh and not same(json.loads(run.read_text()), self.meta):
                raise DataError(f"{self.folder} is of another model or other images; delete it, or choose another file")
            if fresh:  # whatever rows lie there are of another run
                for name in ("rows.f32", "journal.jsonl"):
                    (self.folder / name).unlink(missing_ok=True)
            self._open()
            if fresh:
                _write(run, json.dumps(self.meta))
        except BaseException:
            self.__exit__()
            if not run.is_file():
                self.discard()
            raise

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *_: object) -> None:
        self._commit()
        self._files.close()

    def remaining(self) -> Iterator[str]:
        """The paths not dealt with yet, read from disk as they are needed."""
        return itertools.islice(_lines(self.folder / "images.jsonl"), self.done, None)

    def append(self, rows: np.ndarray, reasons: list[str | None]) -> None:
        """Adds the next images: float32 [n, d], and for each image None or why it has no row."""
        skipped = [[self.done + i, reason] for i, reason in enumerate(reasons) if reason is not None]
        self._rows.write(np.ascontiguousarray(rows, dtype="<f4").data)
        self.done += len(reasons)
        self.rows += len(reasons) - len(skipped)
        line = json.dumps({"done": self.done, "rows": self.rows, "skipped": skipped})
        self._lines.append(line.encode() + b"\n")
        if time.monotonic() > self._committed + _COMMIT_SECONDS:
            self._commit()

    def outcomes(self) -> Iterator[tuple[str, str | None]]:
        """(path, None or why it was skipped) of the images dealt with, in order."""
        self._commit()
        entries = (entry for line in _lines(self.folder / "journal.jsonl") for entry in line["skipped"])
        index, reason = next(entries, (-1, None))
        for i, path in enumerate(itertools.islice(_lines(self.folder / "images.jsonl"), self.done)):
            if i == index:
                yield path, reason
                index, reason = next(entries, (-1, None))
            else:
                yield path, None

    def finish(self) -> Path | None:
        """Puts the file into its place; ``OUT.skipped.txt`` beside it (path, tab, reason) where images were skipped."""
        new, notes = self.folder / self.out.name, self.folder / "skipped.txt"
        self._commit()
        files.write(new, self.folder / "rows.f32", self._kept, self.rows, self.meta)
        skipped = skipped_file(self.out)
        if self.rows < self.done:
            with notes.open("w", encoding="utf-8") as file:
                file.writelines(f"{shown(path)}\t{why}\n" for path, why in self.outcomes() if why is not None)
            os.replace(notes, skipped)
        else:
            skipped.unlink(missing_ok=True)
        with new.open("rb+") as file:
            _sync(file)
        os.replace(new, self.out)
        self.discard()
        return skipped if self.rows < self.done else None

    def _commit(self) -> None:
        """The journal never says more than the disk holds."""
        if self._lines:
            _sync(self._rows)
            self._journal.write(b"".join(self._lines))
            self._journal.flush()
        self._lines, self._committed = [], time.monotonic()

    def _kept(self) -> Iterator[str]:
        return (path for path, why in self.outcomes() if why is None)

    def discard(self) -> None:
        """Removes what is there of it."""
        self._lines = []
        self._files.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _open(self) -> None:
        """Opens rows and journal at the last line of the journal whose rows are all there."""
        paths = rows, journal = self.folder / "rows.f32", self.folder / "journal.jsonl"
        for path in paths:
            path.touch()
        size, end = rows.stat().st_size, 0
        with journal.open("rb") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                except ValueError:
                    break
                if not line.endswith(b"\n") or 4 * self.meta["dim"] * entry["rows"] > size:
                    break
                end, self.done, self.rows = end + len(line), entry["done"], entry["rows"]
        os.truncate(rows, 4 * self.meta["dim"] * self.rows)
        os.truncate(journal, end)
        self._rows, self._journal = (self._files.enter_context(path.open("ab")) for path in paths)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two files are of the same images by the same weights; a model may be spelt in several ways."""
    return {**one, "model": ""} == {**other, "model": ""}


def skipped_file(out: Path) -> Path:
    """Where the skipped images of a file of embeddings are listed."""
    return out.with_name(out.name + ".skipped.txt")


def listing(paths: Iterable[str], to: Path | None = None) -> dict[str, Any]:
    """Number and sha256 of the images (paths, sizes, times), written to a file, a line each, where one is given."""
    digest, n = hashlib.sha256(), 0
    with to.open("wb") if to else contextlib.nullcontext() as file:
        for path in paths:
            line = json.dumps(path).encode() + b"\n"  # escapes what is no UTF-8
            try:
                status = os.stat(path)
                digest.update(line + f"{status.st_size} {status.st_mtime_ns}\n".encode())
            except OSError:
                digest.update(line + b"?\n")
            n += 1
            if file:
                file.write(line)
        if file:
            _sync(file)
    return {"n": n, "sha256": digest.hexdigest()}


def _lines(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        yield from map(json.loads, file)


def _write(path: Path, text: str) -> None:
    """All of it or nothing."""
    new = path.with_name(path.name + ".new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        _sync(file)
    os.replace(new, path)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
