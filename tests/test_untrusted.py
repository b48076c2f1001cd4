"""Whatever comes from outside, damaged or made to harm: an error of our family, and nothing else happens.

Seeded damage of real files and names; ``make torture`` runs the large counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import struct
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from mutate import Mutator, outcome, watched
from PIL import Image

import tcl_zoo
from tcl_zoo import index, models
from tcl_zoo.datasets import load
from tcl_zoo.errors import DataError, TrainingError, WeightsError
from tcl_zoo.recipes import from_dict, names, override, recipe
from tcl_zoo.release import render_card
from tcl_zoo.runs import Run, load_run, read_metrics, read_recipe_file
from tcl_zoo.splits import FolderSplit
from tcl_zoo.verify import verify
from tcl_zoo.weights import Release, read_config, read_weights

CARDS = Path(__file__).resolve().parent.parent / "model_cards"
NAME = "tcl_resnet20_digits"


def counts(quick: int, slow: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("inputs", [quick, pytest.param(slow, marks=pytest.mark.slow)])


@pytest.fixture(scope="module", autouse=True)
def warm():
    """Everything imported before the watch begins: imports open, execute and compile."""
    tcl_zoo.create_model(NAME, pretrained=True)
    tcl_zoo.create_transform(NAME)
    tcl_zoo.create_model(NAME, pretrained=True, features_only=True)
    render_card(CARDS / NAME)
    verify(NAME, device="cpu")
    override(recipe(NAME), [])


@pytest.fixture
def copy(tmp_path):
    """A release folder to damage."""
    shutil.copytree(CARDS / NAME, tmp_path / NAME)
    return tmp_path / NAME


def report(kind: str, seen: Counter[str]) -> None:
    print(f"{kind}: {sum(seen.values()):,} inputs, {dict(seen)}")
    assert seen["refused"] > 0.2 * sum(seen.values())


@counts(1500, 30_000)
def test_config(copy, inputs):
    """``config.json``, and all that is done with those that are accepted."""
    mutator, seen, path = Mutator(1), Counter(), copy / "config.json"
    whole = json.loads(path.read_text())
    whole["tcl_zoo"]["golden"]["logits"] = whole["tcl_zoo"]["golden"]["logits"][:1]
    place = f"local-dir:{copy}"
    uses = [
        lambda: models.create_model(place),
        lambda: models.create_transform(place)(Image.new("RGB", (20, 14))),
        lambda: models.model_info(place),
        lambda: models.create_model(NAME, pretrained=True, weights_dir=copy),
        lambda: render_card(copy),
        lambda: verify(NAME, weights_dir=copy, device="cpu"),
    ]
    with watched(copy), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for n in range(inputs):
            text = mutator.text(whole)
            path.write_bytes(text)
            answer = outcome(lambda: read_config(copy), text)
            seen[answer] += 1
            if answer == "accepted" and n % 40 == 0:
                outcome(uses[n // 40 % len(uses)], text)
    report("config.json", seen)


@counts(1000, 20_000)
def test_index(tmp_path, monkeypatch, inputs):
    mutator, seen, path = Mutator(2), Counter(), tmp_path / "index.json"
    whole = json.loads(index.INDEX_FILE.read_text())
    whole[NAME] |= {"repo_id": "org/name", "revision": "0" * 40}
    monkeypatch.setattr(index, "INDEX_FILE", path)
    try:
        with watched(tmp_path):
            for _ in range(inputs):
                text = mutator.text(whole)
                path.write_bytes(text)
                index.entries.cache_clear()
                answer = outcome(index.entries, text)
                seen[answer] += 1
                if answer == "accepted":
                    outcome(lambda: tcl_zoo.list_models(pretrained=True), text)
                    for name in index.entries():
                        outcome(lambda name=name: (index.source(name), index.timm_tag(name)), text)
                    outcome(lambda: models.model_info(NAME), text)
                    outcome(lambda: models.locate(NAME), text)
    finally:
        index.entries.cache_clear()
    report("index.json", seen)


@counts(1000, 20_000)
def test_safetensors(tmp_path, inputs):
    """The file of weights, its own config vouching for whatever is in it."""
    mutator, seen, path = Mutator(3), Counter(), tmp_path / "model.safetensors"
    state = {"fc.weight": torch.zeros(3, 4), "fc.bias": torch.ones(3), "n": torch.tensor(3)}
    whole = safetensors.torch.save(state, {"format": "pt"})
    (length,) = struct.unpack("<Q", whole[:8])
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    with watched(tmp_path):
        for n in range(inputs):
            if n % 2:
                data = mutator.data(whole)
            else:
                text = mutator.text(header)
                data = struct.pack("<Q", len(text)) + text + body
            path.write_bytes(data)
            release = Release("fuzzed", tmp_path, {}, hashlib.sha256(data).hexdigest(), "local-dir")
            seen[outcome(lambda release=release: read_weights(release), data)] += 1
    report("safetensors", seen)


def npz(members: dict[str, bytes], packed: bool = False) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def arrays() -> dict[str, bytes]:
    draw = np.random.default_rng(0)
    return {
        "x_train.npy": npy(draw.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)),
        "y_train.npy": npy(np.arange(12) % 10),
    }


@counts(800, 12_000)
def test_npz(tmp_path, inputs):
    mutator, seen, path = Mutator(4), Counter(), tmp_path / "cifar10.npz"
    members, whole = arrays(), npz(arrays(), packed=True)
    with watched(tmp_path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for n in range(inputs):
            data = whole
            if n % 3 == 0:
                data = mutator.data(whole)
            elif n % 3 == 1:  # the head of an array, in a sound archive
                key = mutator.random.choice(list(members))
                data = npz(members | {key: mutator.data(members[key][:128]) + members[key][128:]}, packed=n % 2 == 0)
            else:
                key, head = mutator.random.choice(list(members)), "{'descr': %r, 'fortran_order': %r, 'shape': %r, }"
                descr = mutator.random.choice(["|u1", "<i8", "|O", "<f8", "|V9", "|S99999999", "x", ["a"], "<M8[ns]"])
                shape = tuple(
                    mutator.random.choice([0, 1, 12, 32, 3, 2**40, -1]) for _ in range(mutator.random.randrange(6))
                )
                text = (head % (descr, bool(n % 2), shape)).encode()
                text = b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text
                data = npz(members | {key: text + members[key][128:]}, packed=True)
            path.write_bytes(data)
            seen[outcome(lambda: load("cifar10", tmp_path, "train"), data)] += 1
    report("npz", seen)


@counts(600, 12_000)
def test_images(tmp_path, inputs):
    mutator, seen, whole = Mutator(5), Counter(), []
    draw = np.random.default_rng(0)
    picture = Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8))
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF", "GIF"):
        out = io.BytesIO()
        picture.save(out, kind)
        whole.append(out.getvalue())
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "0.png"
    path.write_bytes(whole[0])
    split = FolderSplit(tmp_path, size=16)
    split[0]
    with watched(tmp_path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for n in range(inputs):
            data = mutator.data(whole[n % len(whole)])
            path.write_bytes(data)
            seen[outcome(lambda: split[0], data)] += 1
    report("images", seen)


@counts(2000, 20_000)
def test_overrides_and_recipes(inputs, tmp_path):
    mutator, seen = Mutator(6), Counter()
    base, fields = recipe(NAME), list(recipe(NAME).to_dict())
    values = ["5", "0.1", "1e-9", "none", "crop", "-1", "1e400", "nan", "9" * 5000, "1_0", "0x10", "２", "True"]
    with watched(tmp_path):
        for n in range(inputs):
            if n % 2:
                setting = f"{mutator.random.choice(fields)}={mutator.random.choice(values)}"
                setting = setting if n % 4 == 1 else mutator.word(setting)
                seen[outcome(lambda s=setting: override(base, [s]).lr_at(1), setting)] += 1
            else:
                tree = mutator.tree(base.to_dict())
                if isinstance(tree, dict):
                    use = lambda t=tree: (from_dict(t).architecture, from_dict(t).lr_at(1))  # noqa: E731
                    seen[outcome(use, tree)] += 1
    report("recipes", seen)


@counts(1000, 15_000)
def test_names(tmp_path, monkeypatch, inputs):
    """Names of models and data sets, places and revisions; nothing is asked for over the network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    mutator, seen, known = Mutator(7), Counter(), [*names()[:40], f"local-dir:{tmp_path}", "hf-hub:org/name@main"]
    known += ["tcl_resnet50_cifar100.e250", "~nobody/x", "local-dir:~nobody", "hf-hub:../../x@../..", "hf-hub:"]
    uses = [
        lambda name: tcl_zoo.create_model(name, pretrained=True),
        lambda name: tcl_zoo.create_model(name, pretrained=True, weights_dir=tmp_path),
        lambda name: tcl_zoo.model_info(name),
        lambda name: tcl_zoo.create_transform(name),
        lambda name: tcl_zoo.model_info(NAME, weights_dir=name),
        lambda name: tcl_zoo.recipe(name),
        lambda name: load(name, tmp_path),
        lambda name: load("cifar10", name),
        lambda name: tcl_zoo.create_model("hf-hub:org/name", pretrained=True, revision=name, cache_dir=tmp_path),
        lambda name: tcl_zoo.create_model(NAME, pretrained=True, sha256=name),
    ]
    with watched(tmp_path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for n in range(inputs):
            name = mutator.word(mutator.random.choice(known))
            seen[outcome(lambda name=name, n=n: uses[n % len(uses)](name), (n % len(uses), name))] += 1
    report("names", seen)


@counts(500, 5_000)
def test_run_folders(tmp_path, short, inputs):
    mutator, seen = Mutator(8), Counter()
    settings = {"precision": "no"}
    Run(tmp_path, short, settings)
    stored = json.loads((tmp_path / "recipe.json").read_text())
    lines = [{"epoch": n, "loss": 1.0, "lr": 0.1, "seconds": 1.0, "views": 9} for n in range(3)]
    (tmp_path / "encoder.safetensors").write_bytes(b"\xff" * 50)
    with watched(tmp_path):
        for n in range(inputs):
            text = mutator.text(stored)
            (tmp_path / "recipe.json").write_bytes(text if n % 2 else json.dumps(stored).encode())
            curve = b"\n".join(mutator.text(line) if n % 3 else json.dumps(line).encode() for line in lines)
            (tmp_path / "metrics.jsonl").write_bytes(curve)
            seen[outcome(lambda: read_recipe_file(tmp_path / "recipe.json"), text)] += 1
            outcome(lambda: (Run(tmp_path, short, settings), read_metrics(tmp_path)), (text, curve))
            assert outcome(lambda: load_run(tmp_path), text) == "refused"
    print(f"run folders: {dict(seen)}")


# made to harm


@pytest.mark.filterwarnings("ignore:.*has other weights")  # as it should
def test_headers_of_10_gigabytes(copy, tmp_path):
    """Sizes that are only claimed, and sparse files that really are that large."""
    path, started = copy / "model.safetensors", time.monotonic()
    whole = path.read_bytes()
    config = json.loads((copy / "config.json").read_text())
    with watched(tmp_path, 100):
        for length in (10**10, 2**63, 99_999_999):
            data = struct.pack("<Q", length) + whole[8:]
            path.write_bytes(data)
            config["tcl_zoo"]["sha256"] = hashlib.sha256(data).hexdigest()
            (copy / "config.json").write_text(json.dumps(config))
            with pytest.raises(WeightsError, match="not a safetensors file"):
                tcl_zoo.create_model(NAME, pretrained=True, weights_dir=copy)
        for name in ("model.safetensors", "config.json"):
            with (copy / name).open("wb") as file:
                file.truncate(10**10)
            with pytest.raises(WeightsError, match="larger than"):
                tcl_zoo.create_model(NAME, pretrained=True, weights_dir=copy)
            (copy / "config.json").write_text(json.dumps(config))
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_files_that_are_none(copy, tmp_path, kind):
    for name in ("model.safetensors", "config.json"):
        path = copy / name
        path.unlink()
        if kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.mkdir()
        with watched(tmp_path, 50), pytest.raises(WeightsError, match=r"not a regular file|a directory|no release of"):
            tcl_zoo.create_model(NAME, pretrained=True, weights_dir=copy)


def test_npz_bombs(tmp_path):
    path, labels = tmp_path / "cifar10.npz", npy(np.arange(12) % 10)

    def head(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
        text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
        return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text

    zeros = bytes(150_000_000)
    wide = b"\x93NUMPY\x02\0" + struct.pack("<I", len(zeros))
    bombs = {
        "10 TB claimed": npz({"x_train.npy": head((10**10, 32, 32, 3)) + bytes(99), "y_train.npy": labels}),
        "more than memory": npz({"x_train.npy": head((10**30,)), "y_train.npy": labels}),
        "labels": npz({"x_train.npy": arrays()["x_train.npy"], "y_train.npy": head((10**12,), "<i8")}),
        "no array, packed": npz({"x_train": zeros, "y_train.npy": labels}, packed=True),
        "head of 150 MB": npz({"x_train.npy": wide + zeros, "y_train.npy": labels}, packed=True),
        "text that is long": npz({"x_train.npy": head((1,), "|S2000000000"), "y_train.npy": labels}),
    }
    assert max(map(len, bombs.values())) < 400_000
    del zeros
    for data in bombs.values():
        path.write_bytes(data)
        with (
            watched(tmp_path, 60),
            pytest.raises(DataError, match=r"cannot read x_train and y_train of .*cifar10\.npz"),
        ):
            load("cifar10", tmp_path)


def test_image_bombs(tmp_path):
    """PNGs of 3.6 gigapixels and of 100 megapixels in a few kilobytes, and an EPS that would start a program."""
    import zlib

    def png(side: int) -> bytes:
        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        packed = zlib.compress(bytes(1_000_000), 9)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")

    (tmp_path / "a").mkdir()
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n(%pipe%id) (w) file\n"
    refused = (png(60_000), eps, b"P6\n99999999 99999999\n255\n")
    # within Pillow's 179 million pixels: room is made, 4 bytes a pixel, before the file turns out to be short
    borne = (png(10_000), b"P6\n9400 9700\n255\n")
    for data in refused + borne:
        path = tmp_path / "a" / "0.png"
        path.write_bytes(data)
        with (
            watched(tmp_path, 450 if data in borne else 60),
            warnings.catch_warnings(),
            pytest.raises(DataError, match=r"0\.png does not decode"),
        ):
            warnings.simplefilter("ignore")  # Pillow warns first
            FolderSplit(tmp_path, size=32)[0]
    os.mkfifo(tmp_path / "a" / "1.png")
    assert len(FolderSplit(tmp_path, size=32)) == 1


def test_file_names_that_are_no_text(tmp_path):
    (tmp_path / "a").mkdir()
    out = os.fsencode(tmp_path / "a") + b"/\xff\xfe.png"
    with open(out, "wb") as file:
        Image.new("RGB", (40, 40)).save(file, "PNG")
    split = FolderSplit(tmp_path, size=32)
    assert split[0][0].shape == (1, 3, 32, 32) and len(split.fingerprint()) == 64


def test_damaged_run(tmp_path, short):
    Run(tmp_path, short, {"precision": "no"})
    (tmp_path / "encoder.safetensors").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"are damaged .* run scripts/train.py tcl_resnet20_digits again"):
        load_run(tmp_path)


def test_the_watch_sees(tmp_path):
    """The guard itself: each of these must be noticed."""
    import pickle
    import socket
    import subprocess

    def connect() -> None:
        with socket.socket() as s:
            s.settimeout(0.1)
            s.connect(("127.0.0.1", 9))

    deeds = [
        lambda: (tmp_path.parent / "escaped").write_text(""),
        lambda: eval("1 + 1"),
        lambda: pickle.loads(pickle.dumps(Path)),
        lambda: subprocess.run(["true"]),
        lambda: connect(),
        lambda: os.mkdir(tmp_path.parent / "new"),
        lambda: bytearray(os.urandom(200_000_000)),
    ]
    spike = bytearray(os.urandom(400_000_000))  # what was used and freed before hides nothing
    del spike
    for deed in deeds:
        with pytest.raises(AssertionError), watched(tmp_path, 150), contextlib.suppress(OSError):
            deed()
