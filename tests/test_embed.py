"""Embedding and searching from the command line: a folder of horrors, stops anywhere, memory, any model."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tcl_zoo import cli
from tcl_zoo.datasets import load
from tcl_zoo.embed import embed, search
from tcl_zoo.embed.files import chunks
from tcl_zoo.errors import DataError
from tcl_zoo.pipeline import Pipeline, pipeline

NAME = "tcl_resnet20_digits"
ROOT = Path(__file__).resolve().parent.parent


def run(capsys, *args: object) -> tuple[int, str, str]:
    try:
        code = cli.main([*map(str, args), "--device", "cpu"])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module")
def loaded() -> Pipeline:
    return pipeline(NAME, device="cpu")


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """100 test digits, <class>/<number>.png."""
    folder, test = tmp_path_factory.mktemp("digits"), load("digits", split="test")
    for i in range(100):
        file = folder / str(int(test.labels[i])) / f"{i:02d}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(test.images[i, 0].numpy()).save(file)
    return folder


@pytest.fixture(scope="module")
def horrors(tmp_path_factory) -> Path:
    """What people have: 13 images, and 8 files that look like some."""
    folder = tmp_path_factory.mktemp("what people have")
    colour = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    image, exif = Image.fromarray(colour), Image.Exif()
    exif[0x0112] = 6
    below = folder / "späte Fotos 日本"
    below.mkdir()
    for name in ("a.png", "b.webp", "c.jpg"):
        image.save(below / name)
    image.convert("L").save(folder / "gray.png")
    image.convert("P").save(folder / "palette.png")
    image.convert("RGBA").save(folder / "alpha.png")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(colour[..., 0].astype(np.uint16) * 257).save(folder / "sixteen.png")
    image.save(folder / "turned.jpg", exif=exif)
    image.save(folder / "moving.gif", save_all=True, append_images=[Image.new("RGB", image.size)])
    Image.new("RGB", (1, 1), "red").save(folder / "one.png")
    Image.new("RGB", (20_000, 20), "red").save(folder / "wide.png")
    (folder / "line\nbreak.png").write_bytes((folder / "gray.png").read_bytes())
    whole = (below / "c.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no image")
    (folder / "notes.txt").write_text("not even by name")
    Image.new("1", (15_000, 15_000)).save(folder / "bomb.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "self.png").symlink_to("self.png")
    (folder / "dangling.png").symlink_to("nowhere")
    (folder / "elsewhere.png").symlink_to(folder)  # a folder that links to where we came from
    (folder / "no_images.png").mkdir()
    (folder / "zip.png").write_bytes(b"PK\3\4" + bytes(99))
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_horrors(capsys, horrors, tmp_path, workers):
    out = tmp_path / "out.npz"
    code, text, err = run(capsys, "embed", NAME, horrors, "--out", out, "--batch-size", 3, "--workers", workers)
    assert code == 0 and f"{out}: 13 images x 64" in text and "skipped 8 that do not decode" in err
    bad = ["bomb.png", "dangling.png", "empty.png", "pipe.png", "self.png", "text.png", "truncated.jpg", "zip.png"]
    lines = (tmp_path / "out.npz.skipped.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(horrors / name) for name in bad]
    assert all(f"{horrors / name}: " in err for name in bad)
    with np.load(out) as archive:
        names, rows = [Path(name).name for name in archive["paths"]], archive["embeddings"]
    good = "alpha.png cmyk.jpg gray.png line\nbreak.png moving.gif one.png palette.png sixteen.png turned.jpg wide.png"
    assert names == [*good.split(" "), "a.png", "b.webp", "c.jpg"]
    assert np.isfinite(rows).all()
    same = rows[names.index("a.png")]
    np.testing.assert_allclose(rows[names.index("alpha.png")], same, atol=1e-4)
    np.testing.assert_allclose(rows[names.index("line\nbreak.png")], rows[names.index("gray.png")], atol=1e-4)
    assert np.abs(rows[names.index("turned.jpg")] - same).max() > 0.01


def test_predict_on_horrors(capsys, horrors):
    code, out, err = run(capsys, "predict", NAME, horrors, "--top", 2)
    assert code == 2
    assert len(out.splitlines()) == 13 * 3 and len(err.splitlines()) == 8
    assert all(line.startswith(f"error: {horrors}") and " does not decode: " in line for line in err.splitlines())


def test_predict(capsys, digits):
    file = next((digits / "7").iterdir())
    code, out, _ = run(capsys, "predict", NAME, file)
    first, *rest = out.splitlines()
    assert code == 0 and first == str(file) and len(rest) == 5
    assert rest[0].endswith("%  7") and all(len(line) <= 80 for line in rest)
    assert run(capsys, "predict", NAME, file, "--top", 0)[0] == 2
    assert "is not there" in run(capsys, "predict", NAME, "nowhere.png")[2]


def test_the_same_again_is_no_work_and_something_else_is_refused(capsys, digits, tmp_path):
    out = tmp_path / "out.npz"
    assert run(capsys, "embed", NAME, "--out", out, "--workers", 0, digits / "1")[0] == 0  # options anywhere
    written = out.stat().st_mtime_ns
    code, text, _ = run(capsys, "embed", NAME, digits / "1", "--out", out)
    assert code == 0 and "as it was" in text and out.stat().st_mtime_ns == written
    code, _, err = run(capsys, "embed", NAME, digits / "2", "--out", out)
    assert code == 2 and "--overwrite" in err and len(err.splitlines()) == 1
    assert run(capsys, "embed", "supcon_resnet20_digits", digits / "1", "--out", out)[0] == 2
    assert out.stat().st_mtime_ns == written
    code, text, _ = run(capsys, "embed", NAME, digits / "2", "--out", out, "--overwrite")
    assert code == 0 and f"{len(list((digits / '2').iterdir()))} images" in text


def test_no_images_leave_nothing_behind(tmp_path):
    for none in ([], iter(())):
        with pytest.raises(DataError, match="no images to embed"):
            embed(NAME, none, tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--out", "a.npz"], "name images"),
        (["nowhere", "--out", "a.npz"], "nowhere is not there"),
        (["empty", "--out", "a.npz"], "no images in empty"),
        (["bad.png", "bad.png", "--out", "a.npz"], "none of 2 images decodes; bad.png: not an image"),
        (["good.png", "--out", "a.csv"], ".npz or a .parquet"),
        (["good.png", "--out", "a.npz", "--batch-size", "0"], "at least 1"),
        (["--search", "good.png", "--out", "a.npz"], "a.npz is not there"),
        (["good.png", "--search", "bad.png", "--out", "b.npz"], "bad.png does not decode"),
        (["good.png", "--search", "good.png", "--top", "0", "--out", "b.npz"], "at least 1"),
    ],
)
def test_wrong_use(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("bad.png").touch()
    Image.new("L", (8, 8)).save("good.png")
    code, _, err = run(capsys, "embed", NAME, *args)
    assert code == 2 and message in err and len(err.splitlines()) == 1
    assert not list(Path().glob("a.*"))


def test_any_timm_model(capsys, digits, tmp_path, monkeypatch):
    create = functools.partial(timm.create_model, pretrained=False)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: create(name))
    code, text, _ = run(capsys, "embed", "test_resnet.r160_in1k", digits / "1", "--out", tmp_path / "out.npz")
    assert code == 0 and f"images x {create('test_resnet').num_features}" in text


def test_release_folder_in_place_of_ours(capsys, released, digits, tmp_path):
    args = ("--weights-dir", released, "--out", tmp_path / "out.npz")
    assert run(capsys, "embed", f"{NAME}.e1", digits / "1", *args)[0] == 0
    assert run(capsys, "predict", f"{NAME}.e1", next((digits / "1").iterdir()), "--weights-dir", released)[0] == 0
    folder = released / f"{NAME}.e1"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "release").symlink_to(folder)  # as in the run folder of a fine-tuning
    for path in (folder, tmp_path / "run"):
        code, text, _ = run(capsys, "embed", path, digits / "1", "--out", tmp_path / "out.npz")
        assert code == 0 and "as it was" in text


def test_search_is_the_cosine_of_all(loaded, digits, tmp_path, monkeypatch):
    from tcl_zoo.embed import files

    out, query = tmp_path / "out.npz", sorted(digits.glob("3/*"))[0]
    embed(loaded, [digits], out)
    ((paths, rows),) = chunks(out)
    rows = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    cosine = rows @ rows[paths.index(str(query))]
    order = [i for i in np.argsort(-cosine) if paths[i] != str(query)][:9]
    for chunk_bytes in (4_000_000, 64 * 4 * 7):
        monkeypatch.setattr(files, "_CHUNK_BYTES", chunk_bytes)
        found = search(loaded, query, out, 9)
        assert [path for path, _ in found] == [paths[i] for i in order]
        np.testing.assert_allclose([similarity for _, similarity in found], cosine[order], atol=1e-5)
    assert sum(Path(path).parent.name == "3" for path, _ in found) >= 8
    assert len(search(loaded, query, out, 1000)) == 99
    with pytest.raises(DataError, match="embed with supcon_resnet20_digits first"):
        search(pipeline("supcon_resnet20_digits", device="cpu"), query, out)


def test_search_command(capsys, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    query = next((digits / "5").iterdir())
    code, out, _ = run(capsys, "embed", NAME, digits, "--out", "out.npz", "--search", query, "--top", 4)
    assert code == 0 and len(out.splitlines()) == 6 and out.splitlines()[-1] == "neighbours.png"
    assert Image.open("neighbours.png").width == 800
    again = run(capsys, "embed", NAME, "--out", "out.npz", "--search", query, "--top", 4, "--picture", "p.png")
    assert again[0] == 0 and again[1].splitlines()[:-1] == out.splitlines()[1:-1] and Path("p.png").is_file()


def _start(folder: Path, out: Path) -> subprocess.Popen[str]:
    args = ("embed", NAME, str(folder), "--out", str(out), "--batch-size", "2", "--workers", "1", "--device", "cpu")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "tcl_zoo.cli", *args], env=environment, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
        # A shell that puts this suite into the background has SIGINT ignored, and children inherit it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 3)])
def test_stopped_and_gone_on_with(loaded, digits, tmp_path, number, code):
    """A process that is killed in the middle; the same command ends with the bytes of one that was not."""
    many = tmp_path / "many"
    many.mkdir()
    for i, file in enumerate(itertools.islice(itertools.cycle(sorted(digits.rglob("*.png"))), 1600)):
        os.link(file, many / f"{i:04d}.png")
    embed(loaded, [many], tmp_path / "whole.npz", batch_size=2)
    process, journal = _start(many, tmp_path / "out.npz"), tmp_path / "out.npz.part" / "journal.jsonl"
    until = time.monotonic() + 120
    while not (journal.is_file() and journal.stat().st_size) and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.kill()  # a terminal's goes to workers, too
    _, err = process.communicate(timeout=60)
    assert process.returncode == code and not (tmp_path / "out.npz").exists()
    if number == signal.SIGINT:
        last = err.splitlines()[-1].rpartition("\r")[2]  # the bar, where it took long, is before it
        assert last == "stopped; the same command goes on" and "Traceback" not in err, err
    lines = journal.read_text().count("\n")
    assert 0 < lines < 800
    embed(loaded, [many], tmp_path / "out.npz", batch_size=2)
    assert (tmp_path / "out.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_workers_leave_ctrl_c_to_the_command(loaded, digits):
    """A terminal sends SIGINT to workers, too, at any moment of their lives."""
    paths, rows = [str(path) for path in sorted(digits.rglob("*.png"))], 0
    for features, _ in loaded.embed(paths, 4, 2):
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGINT)
        rows += len(features)
    assert rows == 100


class Wide(torch.nn.Module):
    """4,096 features at no cost: 25,000 images make 410 MB of them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(4096.0))

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3))

    def forward_head(self, features: torch.Tensor, pre_logits: bool) -> torch.Tensor:
        return torch.cos(features[:, None] * self.weight)


MEMORY = """
import resource, sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
import torch
from test_embed import Wide
from tcl_zoo.embed import embed, search
from tcl_zoo.models import create_transform
from tcl_zoo.pipeline import Pipeline
pipeline = Pipeline("wide", Wide(), create_transform("tcl_resnet20_digits"), "L", (), torch.device("cpu"))
def peak():  # not getrusage's, which begins with that of the process that started this one
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
start = peak()
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
embed(pipeline, [folder], out, workers=int(sys.argv[3]))
search(pipeline, folder / "00000.png", out)
print(start, peak(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_memory_does_not_grow_with_the_images(tmp_path, suffix, workers):
    """Peak memory of embedding and searching 5,000 and 25,000 images, 82 and 410 MB of features."""
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    code = MEMORY.format(tests=str(ROOT / "tests"), root=str(ROOT))
    peaks = {}
    Image.new("L", (8, 8), 77).save(tmp_path / "one.png")
    data = (tmp_path / "one.png").read_bytes()
    for n in (5_000, 25_000):
        folder, out = tmp_path / str(n), tmp_path / f"{n}{suffix}"
        folder.mkdir()
        for i in range(n):
            (folder / f"{i:05d}.png").write_bytes(data)
        command = [sys.executable, "-c", code, folder, out, str(workers)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        start, *peaks[n] = map(int, done.stdout.split())
        sizes = [size // 1_000_000 for size in (start, *peaks[n], out.stat().st_size)]
        print("{:,} images: {} MB before, {} MB at most, {} MB in a worker, a file of {} MB".format(n, *sizes))
        out.unlink()
    for small, large in zip(*peaks.values(), strict=True):
        assert large - small < 30_000_000


def test_names_and_single_paths_will_do(loaded, digits, tmp_path):
    file = sorted(digits.rglob("*.png"))[3]
    ((rows, reasons),) = loaded.embed(file)
    assert rows.shape == (1, 64) and reasons == [None]
    done = embed(NAME, str(file.parent), tmp_path / "e.npz")
    assert done.rows == len(list(file.parent.iterdir()))
    with np.load(tmp_path / "e.npz") as stored:
        assert stored["embeddings"].shape == (done.rows, 64)
    assert search(NAME, file, tmp_path / "e.npz", 1) == search(loaded, file, tmp_path / "e.npz", 1)
    with pytest.raises(TypeError, match="a PIL image is wanted, not ndarray"):
        loaded.predict(np.zeros((8, 8)))
