"""Embeddings in the making: whatever a kill leaves behind, the same call ends with the same bytes."""

from __future__ import annotations

import json
import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tcl_zoo.embed import files
from tcl_zoo.embed.partial import Partial, skipped_file
from tcl_zoo.errors import DataError
from tcl_zoo.images import batched

DIM, BATCH = 5, 4
META = {"model": "m", "weights": "0", "dim": DIM}


@pytest.fixture
def paths(tmp_path) -> list[str]:
    names = [f"{i:02d}" for i in range(23)] + ["ä 日本", os.fsdecode(b"\xff"), "line\nbreak", "x" * 200]
    (tmp_path / "in").mkdir()
    files = [tmp_path / "in" / f"{name}.png" for name in names]
    for file in files:
        file.touch()
    return [*map(str, files), str(tmp_path / "gone.png")]


def row(path: str) -> np.ndarray:
    return np.random.default_rng(len(path) + sum(map(ord, path))).normal(size=DIM).astype(np.float32)


def why(path: str) -> str | None:
    return "no image" if path.endswith(("3.png", "gone.png")) else None


def run(out: Path, paths: list[str], batches: int | None = None, meta: dict = META) -> None:
    """Appends up to ``batches`` batches; all and the end where not given."""
    with Partial(out, iter(paths), meta) as partial:
        for some in batched(partial.remaining(), BATCH):
            if batches == 0:
                return
            batches = batches and batches - 1
            kept = [row(path) for path in some if not why(path)]
            partial.append(np.array(kept, np.float32).reshape(-1, DIM), [why(path) for path in some])
        partial.finish()


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_rows_paths_and_skipped_in_order(tmp_path, paths, suffix):
    if suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / f"out{suffix}"
    run(out, paths)
    kept = [path for path in paths if not why(path)]
    expected = np.array([row(path) for path in kept])
    if suffix == ".npz":
        with np.load(out) as archive:
            names, rows, meta = archive["paths"].tolist(), archive["embeddings"], str(archive["meta"])
        assert rows.dtype == np.float32
    else:
        table = parquet.read_table(out)
        names, meta = table["path"].to_pylist(), table.schema.metadata[b"tcl_zoo"]
        rows = np.array(table["embedding"].to_pylist(), np.float32)
        kept = [path.encode("utf-8", "backslashreplace").decode() for path in kept]  # Parquet holds text alone
    assert names == kept
    np.testing.assert_array_equal(rows, expected)
    assert json.loads(meta)["images"]["n"] == len(paths) and files.read_meta(out) == json.loads(meta)
    lines = skipped_file(out).read_text().splitlines()
    assert lines == [f"{path}\tno image" for path in paths if why(path)]
    assert not (tmp_path / f"out{suffix}.part").exists()


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_chunks(tmp_path, paths, suffix, monkeypatch):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    run(tmp_path / f"out{suffix}", paths)
    whole = list(files.chunks(tmp_path / f"out{suffix}"))
    assert len(whole) == 1
    monkeypatch.setattr(files, "_CHUNK_BYTES", 7 * 4 * DIM)
    parts = list(files.chunks(tmp_path / f"out{suffix}"))
    assert [len(names) for names, _ in parts][:-1] == [7] * (len(parts) - 1)
    assert [name for names, _ in parts for name in names] == whole[0][0]
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in parts]), whole[0][1])
    run(tmp_path / f"small{suffix}", paths)  # written in small parts, too
    small = [rows for _, rows in files.chunks(tmp_path / f"small{suffix}")]
    np.testing.assert_array_equal(np.concatenate(small), whole[0][1])


def test_stopped_between_any_two_batches(tmp_path, paths):
    run(tmp_path / "whole.npz", paths)
    for batches in range(1, 7):
        out = tmp_path / f"{batches}.npz"
        run(out, paths, batches)
        assert not out.exists()
        run(out, paths, 1)
        run(out, paths)
        assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_cut_anywhere(tmp_path, paths):
    """Rows without their line, a line without its end, and a line whose rows never reached the disk."""
    run(tmp_path / "whole.npz", paths)
    out = tmp_path / "out.npz"
    part = tmp_path / "out.npz.part"
    for name, keep in [(n, k) for n in ("rows.f32", "journal.jsonl") for k in (0, 1, 30, 100, 150)]:
        run(out, paths, 4)
        os.truncate(part / name, min(keep, (part / name).stat().st_size))
        with Partial(out, paths, META) as partial:
            assert partial.done % BATCH == 0 and partial.done < 4 * BATCH
            assert (part / "rows.f32").stat().st_size == 4 * DIM * partial.rows
        run(out, paths)
        assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()
        out.unlink()
    run(out, paths, 3)
    with (part / "rows.f32").open("ab") as rows, (part / "journal.jsonl").open("ab") as journal:
        rows.write(b"\0" * 33)
        journal.write(b'{"done": 99, "ro')
    run(out, paths)
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_killed_before_anything_was_listed(tmp_path, paths):
    part = tmp_path / "out.npz.part"
    part.mkdir()
    (part / "images.jsonl").write_text('"half a li')
    run(tmp_path / "out.npz", paths)
    run(tmp_path / "whole.npz", paths)
    assert (tmp_path / "out.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_rows_of_another_run_are_not_taken_over(tmp_path, paths):
    """A kill while a finished run's folder is removed may leave its rows without what they are of."""
    out = tmp_path / "out.npz"
    run(out, paths, 2, {**META, "weights": "1"})
    (tmp_path / "out.npz.part" / "run.json").unlink()
    run(out, paths)
    run(tmp_path / "whole.npz", paths)
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_a_model_may_be_spelt_in_another_way(tmp_path, paths):
    out = tmp_path / "out.npz"
    run(out, paths, 2)
    run(out, paths, meta={**META, "model": "another word for m"})
    assert out.is_file()


def test_only_the_same_goes_on(tmp_path, paths):
    out = tmp_path / "out.npz"
    run(out, paths, 2)
    for other, meta in ((paths[:-1], META), (paths, {**META, "weights": "1"}), (paths[::-1], META)):
        with pytest.raises(DataError, match=r"out\.npz\.part is of another model or other images"):
            run(out, other, meta=meta)
    Path(paths[20]).write_text("changed since")
    with pytest.raises(DataError, match="other images"):
        run(out, paths)


def test_a_second_writer_is_refused(tmp_path, paths):
    with Partial(tmp_path / "out.npz", paths, META):
        with pytest.raises(DataError, match="another process is writing"):
            Partial(tmp_path / "out.npz", paths, META)
        run(tmp_path / "other.npz", paths)
    run(tmp_path / "out.npz", paths)


def test_a_wrong_start_leaves_nothing(tmp_path):
    def paths():
        yield "a.png"
        raise DataError("b is not there")

    with pytest.raises(DataError, match="b is not there"):
        Partial(tmp_path / "out.npz", paths(), META)
    with pytest.raises(DataError, match=r"\.npz or a \.parquet"):
        Partial(tmp_path / "out.csv", ["a.png"], META)
    assert list(tmp_path.iterdir()) == []


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r'pip install "tcl_zoo\[parquet\]"'):
        Partial(tmp_path / "out.parquet", [], META)


def test_files_of_something_else_are_refused(tmp_path, paths):
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    (tmp_path / "text.npz").write_text("no archive")
    run(tmp_path / "cut.npz", paths)
    data = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[: len(data) // 2])
    for name in ("other.npz", "text.npz", "cut.npz", "missing.npz"):
        with pytest.raises(DataError, match=name):
            files.read_meta(tmp_path / name)


def test_what_unpacks_to_more_than_it_can_be_is_refused_unread(tmp_path):
    """Some kilobytes that claim, and hold, hundreds of megabytes: told by the heads of the arrays, at no cost."""
    meta = json.dumps({**META, "note": "x"})

    def bomb(name: str, **arrays: np.ndarray) -> Path:
        np.savez_compressed(tmp_path / name, **{"paths": np.array(["a"]), "meta": np.array(meta), **arrays})
        assert (tmp_path / name).stat().st_size < 500_000
        return tmp_path / name

    rows = np.zeros((1, DIM), np.float32)
    bombs = {
        bomb("meta.npz", embeddings=rows, meta=np.array(meta.ljust(40_000_000))): files.read_meta,
        bomb("path.npz", embeddings=rows, paths=np.array(["a".ljust(40_000_000)])): lambda file: list(
            files.chunks(file)
        ),
        bomb("list.npz", embeddings=rows, meta=np.array("[" * 200_000)): files.read_meta,
        bomb("none.npz", embeddings=rows, meta=np.array("[]")): files.read_meta,
    }
    for file, read in bombs.items():
        tracemalloc.start()
        try:
            with pytest.raises(DataError, match=f"{file.name} is not a whole file of embeddings"):
                read(file)
            assert tracemalloc.get_traced_memory()[1] < 20_000_000
        finally:
            tracemalloc.stop()


def test_long_names_are_read_in_small_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MOST_BYTES", 5000)
    names = [f"{i}".rjust(200) for i in range(20)]  # 800 bytes each as numpy keeps them
    meta = np.array(json.dumps(META))
    np.savez(tmp_path / "a.npz", paths=names, embeddings=np.zeros((20, DIM), np.float32), meta=meta)
    assert [len(part) for part, _ in files.chunks(tmp_path / "a.npz")] == [6, 6, 6, 2]


def test_a_flipped_byte_is_noticed(tmp_path, paths):
    out = tmp_path / "out.npz"
    run(out, paths)
    data = bytearray(out.read_bytes())
    with zipfile.ZipFile(out) as archive:
        data[archive.getinfo("embeddings.npy").header_offset + 200] ^= 1
    out.write_bytes(data)
    with pytest.raises(DataError, match="not a whole file"):
        list(files.chunks(out))
