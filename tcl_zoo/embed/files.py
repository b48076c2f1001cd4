"""Files of embeddings, written and read some megabytes at a time.

``.npz`` (not compressed; numpy reads it): ``embeddings`` float32 [N, d], ``paths`` [N], ``meta`` (JSON). ``.parquet``:
columns ``path`` and ``embedding`` (lists of d floats), ``meta`` in the schema under ``tcl_zoo``.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..images import batched
from ..outside import bounded, parsed

_CHUNK_BYTES = 4_000_000
_MOST_BYTES = 64_000_000  # in memory at a time, whatever a file says of itself
_META = b"tcl_zoo"


def check_suffix(out: Path) -> None:
    """Raises a DataError for a file that could not be written in the end."""
    if out.suffix == ".parquet":
        _pyarrow()
    elif out.suffix != ".npz":
        raise DataError(f"{out}: embeddings go into a .npz or a .parquet file")


def write(out: Path, rows: Path, paths: Callable[[], Iterator[str]], n: int, meta: dict[str, Any]) -> None:
    """Writes a file of embeddings.

    Args:
        out: ``.npz`` or ``.parquet``.
        rows: a file of n * d little-endian float32.
        paths: gives the n of them, each time it is called.
        n: images.
        meta: JSON-able, with ``dim``, that is d.
    """
    (_write_npz if out.suffix == ".npz" else _write_parquet)(out, rows, paths, n, meta)


def read_meta(path: Path) -> dict[str, Any]:
    """What a file of embeddings is of: ``model``, ``weights`` (sha256), ``dim``, ``images`` (n, sha256).

    Raises:
        DataError: not a file that :class:`tcl_zoo.embed.partial.Partial` wrote.
    """
    with _reading(path):
        if path.suffix == ".parquet":
            meta = parsed(_pyarrow()[1].read_schema(path).metadata[_META])
        else:
            bounded(path, ("meta",), _MOST_BYTES // 16)
            with np.load(path) as archive:
                meta = parsed(str(archive["meta"]).encode())
        if not isinstance(meta, dict) or type(meta.get("dim")) is not int:
            raise ValueError("its meta says nothing of a model")
        return meta


def chunks(path: Path) -> Iterator[tuple[list[str], np.ndarray]]:
    """(paths, float32 [n, d]) of a file of embeddings, some megabytes at a time, in order.

    Raises:
        DataError: not a file that :class:`tcl_zoo.embed.partial.Partial` wrote.
    """
    count = _per_chunk(read_meta(path)["dim"])
    with _reading(path):
        if path.suffix == ".parquet":
            with _pyarrow()[1].ParquetFile(path) as file:
                for group in range(file.num_row_groups):  # over several, pyarrow keeps those it has given already
                    for batch in file.iter_batches(count, row_groups=[group]):
                        rows = batch["embedding"].flatten().to_numpy()
                        yield batch["path"].to_pylist(), rows.reshape(len(batch), -1)
            return
        with zipfile.ZipFile(path) as archive:
            widest = max(_row_bytes(archive, name) for name in ("paths", "embeddings"))
            if widest > _MOST_BYTES:
                raise ValueError(f"a row would take {widest / 1e6:,.0f} MB")
            count = min(count, _MOST_BYTES // max(1, widest))  # names are all as long as the longest
            names, rows = (_read_npy(archive, name, count) for name in ("paths", "embeddings"))
            for some, part in zip(names, rows, strict=True):
                yield some.tolist(), part


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path} is not there; name images to embed") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a whole file of embeddings ({error}); write it again") from error


def _write_npz(out: Path, rows: Path, paths: Callable[[], Iterator[str]], n: int, meta: dict[str, Any]) -> None:
    longest = max(map(len, paths()), default=1)  # numpy's strings are all as long as the longest
    with zipfile.ZipFile(out, "w") as archive:
        with _member(archive, "embeddings", "<f4", (n, meta["dim"])) as to, rows.open("rb") as file:
            shutil.copyfileobj(file, to, _CHUNK_BYTES)
        with _member(archive, "paths", f"<U{longest}", (n,)) as to:
            for some in batched(paths(), _per_chunk(longest)):
                to.write(np.array(some, f"<U{longest}").tobytes())
        text = json.dumps(meta)
        with _member(archive, "meta", f"<U{len(text)}", ()) as to:
            to.write(np.array(text, f"<U{len(text)}").tobytes())


def _member(archive: zipfile.ZipFile, name: str, descr: str, shape: tuple[int, ...]) -> Any:
    # a fixed time (ZipInfo's own, 1980): the same embeddings give the same bytes
    file = archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file


def _read_npy(archive: zipfile.ZipFile, name: str, count: int) -> Iterator[np.ndarray]:
    """``count`` rows at a time; the last part may be shorter."""
    with archive.open(f"{name}.npy") as file:
        shape, dtype = _head(file, name)
        for start in range(0, shape[0], count):
            part = (min(count, shape[0] - start), *shape[1:])
            yield np.frombuffer(file.read(math.prod(part) * dtype.itemsize), dtype).reshape(part)


def _row_bytes(archive: zipfile.ZipFile, name: str) -> int:
    with archive.open(f"{name}.npy") as file:
        shape, dtype = _head(file, name)
        return math.prod(shape[1:]) * int(dtype.itemsize)


def _head(file: Any, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError(f"{name} is of another version of numpy's format")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype


def _write_parquet(out: Path, rows: Path, paths: Callable[[], Iterator[str]], n: int, meta: dict[str, Any]) -> None:
    pa, parquet = _pyarrow()
    dim, count = meta["dim"], _per_chunk(meta["dim"])
    schema = pa.schema(
        [("path", pa.string()), ("embedding", pa.list_(pa.float32(), dim))], {_META: json.dumps(meta).encode()}
    )
    with rows.open("rb") as file, parquet.ParquetWriter(out, schema, use_dictionary=False) as to:
        for some in batched(paths(), count):
            names = pa.array([path.encode("utf-8", "backslashreplace") for path in some]).cast(pa.string())
            flat = np.frombuffer(file.read(4 * dim * len(some)), "<f4")
            to.write_batch(
                pa.record_batch([names, pa.FixedSizeListArray.from_arrays(pa.array(flat), dim)], schema=schema)
            )


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError('.parquet needs pyarrow: pip install "tcl_zoo[parquet]", or write a .npz') from None
    return pyarrow, pyarrow.parquet


def _per_chunk(numbers: int) -> int:
    return max(1, _CHUNK_BYTES // (4 * max(1, numbers)))
