"""Embed any number of image files with a frozen model into one file, and find what is near a picture in it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import DataError
from ..images import find, shown
from ..pipeline import Pipeline
from ..pipeline import pipeline as load
from ..progress import progress
from .files import check_suffix, chunks, read_meta
from .partial import Partial, listing, same, skipped_file


@dataclass(frozen=True)
class Embedded:
    """What :func:`embed` did.

    Attributes:
        out: the file.
        n: images in all.
        rows: of them embedded, in the order given.
        width: d.
        skipped: the list of the others (path, tab, reason), or None.
        new: False where the file was there already and is of these images.
    """

    out: Path
    n: int
    rows: int
    width: int
    skipped: Path | None
    new: bool


def embed(
    pipeline: Pipeline | str | os.PathLike[str],
    images: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    batch_size: int = 64,
    workers: int = 0,
    overwrite: bool = False,
) -> Embedded:
    """Pooled features of image files, in order, into one file; goes on where the same call was stopped.

    Memory does not grow with the number of images, but for the names in one folder while it is listed (they
    are sorted); they are let go before the first image is read.

    Args:
        pipeline: of :func:`tcl_zoo.pipeline.pipeline`, or the name that it takes.
        images: files, folders and glob patterns; see :func:`tcl_zoo.images.find`.
        out: ``.npz`` or ``.parquet``; see :mod:`tcl_zoo.embed.files`.
        batch_size: images at a time.
        workers: processes that decode.
        overwrite: replace a file of other images or of another model.

    Raises:
        DataError: no images, none that decodes, a file that is there and is of something else, or a second writer.
    """
    if batch_size < 1 or workers < 0:
        raise DataError("the batch size must be at least 1 and the workers at least 0")
    check_suffix(out := Path(out))
    pipeline = pipeline if isinstance(pipeline, Pipeline) else load(pipeline)
    meta = _meta(pipeline)
    if out.exists() and not overwrite:
        there = read_meta(out)
        if not same(there, {**meta, "images": listing(find(images))}):
            raise DataError(f"{out} is there already, of other images or another model; --overwrite replaces it")
        rows, skipped = sum(len(paths) for paths, _ in chunks(out)), skipped_file(out)
        return Embedded(out, there["images"]["n"], rows, meta["dim"], skipped if skipped.is_file() else None, False)
    with Partial(out, find(images), meta) as partial:
        if not (n := partial.meta["images"]["n"]):
            partial.discard()
            raise DataError("no images to embed")
        workers = workers if n - partial.done > batch_size else 0
        with progress(n, "embed", "image", initial=partial.done) as bar:
            try:
                for features, reasons in pipeline.embed(partial.remaining(), batch_size, workers):
                    partial.append(features.numpy(), reasons)
                    bar.update(len(reasons))
            except torch.OutOfMemoryError:
                raise DataError(f"batches of {batch_size} do not fit the device: a smaller --batch-size") from None
            except RuntimeError as error:
                if not str(error).startswith("DataLoader worker"):
                    raise
                died = f"a process that decodes died after {partial.done:,} images (out of memory?)"
                raise DataError(f"{died}; the same command with --workers 0 goes on") from error
        if not partial.rows:
            first, why = next(partial.outcomes())
            partial.discard()
            raise DataError(f"none of {n:,} images decodes; {shown(first)}: {why}")
        return Embedded(out, n, partial.rows, meta["dim"], partial.finish(), True)


def search(
    pipeline: Pipeline | str | os.PathLike[str],
    query: str | os.PathLike[str],
    embeddings: str | os.PathLike[str],
    top: int = 9,
) -> list[tuple[str, float]]:
    """(path, cosine similarity) of the images nearest to ``query``, nearest first; the query itself left out.

    Args:
        pipeline: the one that made ``embeddings``, or its name.
        query: an image file.
        embeddings: a file that :func:`embed` wrote.
        top: how many.

    Raises:
        DataError: a query that does not decode, or embeddings of another model.
    """
    if top < 1:
        raise DataError("--top must be at least 1")
    query, embeddings = os.fspath(query), Path(embeddings)
    pipeline = pipeline if isinstance(pipeline, Pipeline) else load(pipeline)
    there, meta = read_meta(embeddings), _meta(pipeline)
    if any(there.get(key) != value for key, value in meta.items() if key != "model"):
        what = f"{embeddings} is of {there.get('model')} with other weights or other preparation of images"
        raise DataError(f"{what}; embed with {meta['model']} first")
    ((row, (why,)),) = pipeline.embed([query])
    if why:
        raise DataError(f"{shown(query)} does not decode: {why}")
    unit = _unit(row.numpy())[0]
    best: list[tuple[float, str]] = []
    for paths, rows in chunks(embeddings):
        similarity = _unit(rows) @ unit
        likely = np.argsort(-similarity, kind="stable")
        near = ((float(similarity[i]), paths[i]) for i in likely if not _same(paths[i], query))
        best = sorted(best + list(itertools.islice(near, top)), key=lambda pair: -pair[0])[:top]
    return [(path, similarity) for similarity, path in best]


def _meta(pipeline: Pipeline) -> dict[str, Any]:
    prepared = pipeline.preparation()
    return {"model": pipeline.name, "weights": pipeline.fingerprint(), "prepared": prepared, "dim": pipeline.width()}


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
