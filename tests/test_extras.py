"""Further data sets: small files written in the layout that torchvision's loaders read, read back through them."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets as tv

from tcl_zoo.downstream import KNOWN, load_known
from tcl_zoo.errors import DataError
from tcl_zoo.extras import EXTRAS
from tcl_zoo.splits import FolderSplit, Split

N = {"train": 20, "test": 10}


def pixels(part: str, *shape: int) -> np.ndarray:
    return np.random.default_rng(len(part)).integers(0, 256, (N[part], *shape), dtype=np.uint8)


def labels(part: str, classes: int) -> np.ndarray:
    return np.arange(N[part]) % classes


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def save(path: Path, image: np.ndarray) -> None:
    """Written without loss whatever the suffix: PNG is recognised by its first bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, "PPM" if path.suffix == ".ppm" else "PNG")


def mnist(root: Path, _: pytest.MonkeyPatch, part: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = pixels(part, 28, 28), labels(part, 10)
    (root / "MNIST" / "raw").mkdir(parents=True, exist_ok=True)
    for kind, array in (("images-idx3", x), ("labels-idx1", y.astype("u1"))):
        head = struct.pack(f">{1 + array.ndim}i", 0x800 + array.ndim, *array.shape)
        name = f"{'train' if part == 'train' else 't10k'}-{kind}-ubyte"
        (root / "MNIST" / "raw" / name).write_bytes(head + array.tobytes())
    return x[:, None], y


def svhn(root: Path, patch: pytest.MonkeyPatch, part: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = pixels(part, 32, 32, 3), labels(part, 10)
    file = root / f"{part}_32x32.mat"
    savemat(file, {"X": x.transpose(1, 2, 3, 0), "y": np.where(y == 0, 10, y)[:, None].astype("u1")})
    patch.setitem(tv.SVHN.split_list, part, ["", file.name, md5(file)])
    return x.transpose(0, 3, 1, 2), y


def stl10(root: Path, patch: pytest.MonkeyPatch, part: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = pixels(part, 3, 96, 96), labels(part, 10)
    folder = root / "stl10_binary"
    folder.mkdir(exist_ok=True)
    (folder / f"{part}_X.bin").write_bytes(x.transpose(0, 1, 3, 2).tobytes())
    (folder / f"{part}_y.bin").write_bytes((y + 1).astype("u1").tobytes())
    (folder / "class_names.txt").write_text("\n".join(f"class{k}" for k in range(10)))
    files = [[f"{part}_{kind}.bin", md5(folder / f"{part}_{kind}.bin")] for kind in "Xy"]
    patch.setattr(tv.STL10, f"{part}_list", files)
    return x, y


def gtsrb(root: Path, _: pytest.MonkeyPatch, part: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = pixels(part, 40, 33, 3), labels(part, 43)
    base, rows = root / "gtsrb", []
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        name = f"{i:05d}.ppm"
        inside = f"Training/{label:05d}" if part == "train" else "Final_Test/Images"
        save(base / "GTSRB" / inside / name, image)
        rows.append({"Filename": name, "ClassId": label})
    if part == "test":
        with (base / "GT-final_test.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["Filename", "ClassId"], delimiter=";")
            writer.writeheader()
            writer.writerows(rows)
    return x, y


def dtd(root: Path, _: pytest.MonkeyPatch, part: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = pixels(part, 50, 40, 3), np.sort(labels(part, 3))
    names = [f"{'abc'[k]}/{part}{i}.jpg" for i, k in enumerate(y)]
    for name, image in zip(names, x, strict=True):
        save(root / "dtd" / "dtd" / "images" / name, image)
    (root / "dtd" / "dtd" / "labels").mkdir(exist_ok=True)
    halves = {"train": names[::2], "val": names[1::2]} if part == "train" else {"test": names}
    for key, lines in halves.items():
        (root / "dtd" / "dtd" / "labels" / f"{key}1.txt").write_text("\n".join(lines))
    order = [*range(0, 20, 2), *range(1, 20, 2)] if part == "train" else range(10)
    return x[list(order)], y[list(order)]


def flowers102(root: Path, patch: pytest.MonkeyPatch, part: str) -> tuple[np.ndarray, np.ndarray]:
    folder = root / "flowers-102"
    everything, y = np.concatenate([pixels("train", 30, 30, 3), pixels("test", 30, 30, 3)]), np.arange(30) % 102
    for i, image in enumerate(everything, 1):
        save(folder / "jpg" / f"image_{i:05d}.jpg", image)
    savemat(folder / "imagelabels.mat", {"labels": y + 1})
    savemat(folder / "setid.mat", {"trnid": np.arange(1, 13), "valid": np.arange(13, 21), "tstid": np.arange(21, 31)})
    told = {key: (name, md5(folder / name)) for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat"))}
    patch.setattr(tv.Flowers102, "_file_dict", tv.Flowers102._file_dict | told)
    rows = slice(0, 20) if part == "train" else slice(20, 30)
    return everything[rows], y[rows]


def pets(root: Path, _: pytest.MonkeyPatch, part: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = pixels(part, 37, 30, 3), labels(part, 3)
    folder, lines = root / "oxford-iiit-pet", []
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        name = f"{('great_dane', 'pug', 'sphynx')[label]}_{part}{i}".replace(part, str(len(part)))
        save(folder / "images" / f"{name}.jpg", image)
        lines.append(f"{name} {label + 1} 1 1")
    (folder / "annotations").mkdir(exist_ok=True)
    file = "trainval.txt" if part == "train" else "test.txt"
    (folder / "annotations" / file).write_text("\n".join(lines))
    return x, y


def food101(root: Path, _: pytest.MonkeyPatch, part: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = pixels(part, 31, 30, 3), np.sort(labels(part, 4))
    folder, names = root / "food-101", {}
    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        name = f"dish{label}/{part}{i}"
        save(folder / "images" / f"{name}.jpg", image)
        names.setdefault(f"dish{label}", []).append(name)
    (folder / "meta").mkdir(exist_ok=True)
    (folder / "meta" / f"{part}.json").write_text(json.dumps(names))
    return x, y


Writer = Callable[[Path, pytest.MonkeyPatch, str], tuple[np.ndarray, np.ndarray]]
WRITERS: dict[str, Writer] = {
    "mnist": mnist, "svhn": svhn, "stl10": stl10, "gtsrb": gtsrb, "dtd": dtd, "flowers102": flowers102, "pets": pets,
    "food101": food101,
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_read_as_written(name, tmp_path, monkeypatch):
    written = {part: WRITERS[name](tmp_path, monkeypatch, part) for part in ("train", "test")}
    for part, (x, y) in written.items():
        got: Any = load_known(name, tmp_path, part)
        assert len(got) == len(y) and len(got.classes) > max(y)
        if isinstance(got, Split):
            assert got.images.dtype == torch.uint8
            np.testing.assert_array_equal(got.images.numpy(), x)
            assert got.labels.tolist() == y.tolist()
            continue
        assert isinstance(got, FolderSplit)
        found = {(np.asarray(got.image(i)).tobytes(), int(k)) for i, k in enumerate(got.labels)}
        assert found == {(image.tobytes(), int(k)) for image, k in zip(x, y, strict=True)}
        if name != "gtsrb":  # listed by class there
            assert got.labels.tolist() == y.tolist()
        assert got[0][0].shape == (1, 3, 224, 224)


def test_eurosat_has_no_splits_and_gets_seeded_ones(tmp_path):
    for k, name in enumerate(("Forest", "River")):
        for i, image in enumerate(pixels("train", 64, 64, 3)):
            save(tmp_path / "eurosat" / "2750" / name / f"{name}_{i}.jpg", image + k)
    train, test = (load_known("eurosat", tmp_path, part) for part in ("train", "test"))
    assert len(train) == 32 and len(test) == 8 and not set(train.files) & set(test.files)
    assert test.labels.tolist() == [0] * 4 + [1] * 4 and train.classes == ("Forest", "River")
    assert load_known("eurosat", tmp_path, "test").files == test.files


@pytest.mark.parametrize("name", EXTRAS)
def test_missing(name, tmp_path):
    with pytest.raises(DataError, match=r"cannot read .* --download") as caught:
        load_known(name, tmp_path, "train")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    with pytest.raises(DataError, match="needs a data folder"):
        load_known(name, None, "train")


def test_damaged(tmp_path, monkeypatch):
    mnist(tmp_path, monkeypatch, "train")
    file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    whole = file.read_bytes()
    mnist(tmp_path, monkeypatch, "test")
    for bad in (b"", whole[:1000], gzip.compress(whole)):
        file.write_bytes(bad)
        with pytest.raises(DataError, match="cannot read MNIST"):
            load_known("mnist", tmp_path, "train")
    svhn(tmp_path, monkeypatch, "test")
    file = tmp_path / "test_32x32.mat"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(DataError, match="cannot read SVHN"):
        load_known("svhn", tmp_path, "test")


def test_names():
    assert {"mnist", "svhn", "stl10", "eurosat", "gtsrb", "dtd", "flowers102", "pets", "food101"} == set(EXTRAS)
    assert {"cifar10", "fmnist", "digits", "imagenet100"} <= set(KNOWN)
