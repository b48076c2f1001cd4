"""Data sets: what is read equals what PIL, numpy and torchvision read; what is bad is named."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import shutil
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torchvision import datasets as tv_datasets

from tcl_zoo.datasets import (
    DATASETS,
    FolderSplit,
    Split,
    class_names,
    holdout,
    load,
    loader,
)
from tcl_zoo.errors import DataError

DATA = Path(__file__).resolve().parents[1] / "data"
_RAW = DATA / "FashionMNIST" / "raw"

# Sha256 of the official test splits.
FINGERPRINTS = {
    "digits": "a2fc2790f951761efa3de96d98e5fd3fec1bfbc4ef550eb2193c8e5117cf4c96",
    "cifar100": "bd251483addf0530bc3e831455074dfa75f7657056fc2639e6b6aced382c06a9",
    "fmnist": "9a494dc49efeb996f4076c469b31cd058152067b1594ba6ab85dd739fce3775e",
}


def noise(n: int, size: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def arrays(name: str = "cifar10", n: int = 40) -> dict[str, np.ndarray]:
    info = DATASETS[name]
    return {
        "x_train": noise(n, info.size, info.channels, 1),
        "y_train": np.arange(n, dtype=np.uint8) % info.num_classes,
        "x_test": noise(n, info.size, info.channels, 2),
        "y_test": np.arange(n, dtype=np.uint8)[::-1] % info.num_classes,
    }


def write_folders(folder: Path, names: list[str], size: int, channels: int, each: int = 2) -> None:
    for k, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i, pixels in enumerate(noise(each, size, channels, seed=k)):
            Image.fromarray(pixels.squeeze()).save(folder / name / f"{i}.png")


def refused(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and len(message) > 20
    return message


def test_facts_fit_the_classes() -> None:
    assert list(DATASETS) == ["digits", "cifar10", "cifar100", "fmnist", "imagenet100"]
    for name, info in DATASETS.items():
        assert info.name == name and info.title and info.licence
        assert len(info.mean) == len(info.std) == info.channels
        assert len(set(class_names(name))) == len(class_names(name)) == info.num_classes
    assert class_names("fmnist") == tuple(tv_datasets.FashionMNIST.classes)
    for name in ("cifar10", "cifar100", "imagenet100"):  # the official orders are alphabetical
        assert list(class_names(name)) == sorted(class_names(name))


def test_import_is_cheap() -> None:
    code = "import sys, tcl_zoo.datasets; print([m for m in sys.argv[1:] if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code, "torchvision", "sklearn", "PIL"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


# digits


def test_digits_are_those_of_scikit_learn() -> None:
    raw = load_digits()
    expected = train_test_split(raw.images, raw.target, test_size=360, stratify=raw.target, random_state=0)
    for split, images, labels in (
        ("train", expected[0], expected[2]),
        ("test", expected[1], expected[3]),
    ):
        got = load("digits", split=split)
        assert isinstance(got, Split)
        assert got.images.dtype == torch.uint8 and got.labels.dtype == torch.int64
        assert got.images.shape == (len(images), 1, 8, 8)
        assert got.classes == tuple("0123456789")
        assert got.images.flatten().tolist() == [round(v * 255 / 16) for v in images.flatten()]
        assert got.labels.tolist() == labels.tolist()
    assert len(got) == 360


def test_digits_mean_and_std_are_measured() -> None:
    pixels = load("digits").images.double() / 255
    assert DATASETS["digits"].mean == (round(pixels.mean().item(), 4),)
    assert DATASETS["digits"].std == (round(pixels.std(correction=0).item(), 4),)


def test_digits_fingerprint() -> None:
    assert load("digits", split="test").fingerprint() == FINGERPRINTS["digits"]


def test_fingerprint_is_of_nhwc_bytes_then_labels() -> None:
    images, labels = noise(5, 4, 3), [3, 1, 4, 1, 5]
    split = Split(torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor(labels), tuple("abcdef"))
    expected = hashlib.sha256(images.tobytes() + struct.pack("<5q", *labels)).hexdigest()
    assert split.fingerprint() == expected
    strided = Split(split.images.contiguous(), split.labels, split.classes)
    assert strided.fingerprint() == expected


# npz


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fmnist"])
def test_npz(tmp_path: Path, name: str) -> None:
    data = arrays(name)
    np.savez(tmp_path / f"{name}.npz", **data)
    for split in ("train", "test"):
        got = load(name, tmp_path, split)
        assert isinstance(got, Split) and got.images.is_contiguous()
        np.testing.assert_array_equal(got.images.permute(0, 2, 3, 1).numpy(), data[f"x_{split}"])
        assert got.labels.tolist() == data[f"y_{split}"].tolist()
        assert got.classes == class_names(name)


def test_npz_as_keras_writes_it(tmp_path: Path) -> None:
    """Grey images without a channel axis, CIFAR labels as a column, compressed."""
    data = arrays("fmnist")
    np.savez_compressed(tmp_path / "fmnist.npz", x_test=data["x_test"][..., 0], y_test=data["y_test"])
    got = load("fmnist", str(tmp_path), "test")
    np.testing.assert_array_equal(got.images[:, 0].numpy(), data["x_test"][..., 0])
    data = arrays("cifar10")
    np.savez(tmp_path / "cifar10.npz", x_test=data["x_test"], y_test=data["y_test"][:, None])
    assert load("cifar10", tmp_path, "test").labels.tolist() == data["y_test"].tolist()


def test_root_may_start_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "cifar10.npz", **arrays())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load("cifar10", "~")) == 40


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"x_test": None}, "x_test is not a file in the archive"),
        ({"y_test": None}, "y_test is not a file in the archive"),
        ({"x_test": noise(40, 32, 3).astype(np.float32)}, "images are float32"),
        ({"x_test": noise(40, 28, 3)}, "[40, 28, 28, 3], cifar10 has uint8 [N, 32, 32, 3]"),
        ({"x_test": noise(40, 32, 3).transpose(0, 3, 1, 2)}, "[40, 3, 32, 32]"),
        ({"x_test": noise(40, 32, 1)[..., 0]}, "[40, 32, 32]"),
        ({"x_test": np.uint8(3)}, "images are uint8 []"),
        ({"x_test": noise(0, 32, 3), "y_test": np.zeros(0, int)}, "[0, 32, 32, 3]"),
        ({"x_test": noise(39, 32, 3)}, "labels are uint8 [40], expected integers [39]"),
        ({"y_test": np.zeros(40)}, "labels are float64"),
        ({"y_test": np.eye(40, 10, dtype=int)}, "labels are int64 [40, 10]"),
        ({"y_test": np.arange(40) % 11}, "labels run from 0 to 10, expected 0 to 9"),
        ({"y_test": np.arange(40) % 10 - 1}, "labels run from -1 to 8"),
        ({"y_test": np.array([object()] * 40)}, "Object arrays cannot be loaded"),
        (
            {"x_test": noise(200, 32, 3), "y_test": np.arange(200) % 7},
            "only 7 of the 10 classes of CIFAR-10 occur",
        ),
    ],
)
def test_npz_refused(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    data = {k: v for k, v in {**arrays(), **change}.items() if v is not None}
    np.savez(tmp_path / "cifar10.npz", **data)
    message = refused("cifar10", tmp_path, "test")
    assert expected in message and str(tmp_path / "cifar10.npz") in message


@pytest.mark.parametrize("compress", [False, True])
def test_npz_damaged(tmp_path: Path, compress: bool) -> None:
    path = tmp_path / "cifar10.npz"
    (np.savez_compressed if compress else np.savez)(path, **arrays())
    whole = path.read_bytes()
    for keep in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:keep])
        assert str(path) in refused("cifar10", tmp_path)
    flipped = bytearray(whole)
    flipped[2000] ^= 255
    path.write_bytes(flipped)
    assert str(path) in refused("cifar10", tmp_path)
    path.write_bytes(pickle.dumps(arrays()))
    assert str(path) in refused("cifar10", tmp_path)
    with path.open("wb") as file:
        np.save(file, noise(4, 32, 3))
    assert str(path) in refused("cifar10", tmp_path)


# torchvision's layout


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []

    def urlopen(request: Any, *args: Any, **kwargs: Any) -> None:
        asked.append(request.full_url)
        raise urllib.error.URLError("no route\nto host")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, dict[str, np.ndarray], Path]:
    """A small CIFAR in torchvision's layout, its MD5s told to torchvision."""
    name = request.param
    source: Any = tv_datasets.CIFAR10 if name == "cifar10" else tv_datasets.CIFAR100
    folder, data = tmp_path / source.base_folder, arrays(name)
    folder.mkdir()
    (folder / source.meta["filename"]).write_bytes(pickle.dumps({source.meta["key"]: list(class_names(name))}))
    monkeypatch.setitem(source.meta, "md5", md5(folder / source.meta["filename"]))
    for part, files in (("train", source.train_list), ("test", source.test_list)):
        told = []
        images = data[f"x_{part}"].transpose(0, 3, 1, 2).reshape(40, -1)
        for (file, _), x, y in zip(
            files,
            np.array_split(images, len(files)),
            np.array_split(data[f"y_{part}"], len(files)),
            strict=True,
        ):
            key = "labels" if name == "cifar10" else "fine_labels"
            (folder / file).write_bytes(pickle.dumps({"data": x, key: y.tolist()}))
            told.append([file, md5(folder / file)])
        monkeypatch.setattr(source, f"{part}_list", told)
    return name, data, folder


def test_cifar_as_torchvision_keeps_it(cifar: Any, tmp_path: Path, offline: list[str]) -> None:
    name, data, _ = cifar
    for split in ("train", "test"):
        for download in (False, True):
            got = load(name, tmp_path, split, download)
            expected = data[f"x_{split}"]
            np.testing.assert_array_equal(got.images.permute(0, 2, 3, 1).numpy(), expected)
            assert got.labels.tolist() == data[f"y_{split}"].tolist()
    assert not offline


def test_cifar_with_a_damaged_file(cifar: Any, tmp_path: Path, offline: list[str]) -> None:
    name, _, folder = cifar
    victim = sorted(folder.iterdir())[-1]
    content = victim.read_bytes()
    victim.write_bytes(content[:-1])
    message = refused(name, tmp_path)
    assert str(victim) in message and "MD5" in message and "--download" in message
    victim.unlink()
    assert str(victim) in refused(name, tmp_path)
    assert not offline
    assert "no route to host" in refused(name, tmp_path, download=True)
    assert offline


def test_npz_comes_before_torchvision(cifar: Any, tmp_path: Path) -> None:
    name, data, _ = cifar
    np.savez(tmp_path / f"{name}.npz", **{k: v[:5] for k, v in data.items()})
    assert len(load(name, tmp_path)) == 5


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fmnist"])
def test_download_without_network(tmp_path: Path, name: str, offline: list[str]) -> None:
    message = refused(name, tmp_path / "new", "test", download=True)
    assert "cannot download" in message and "no route to host" in message
    assert offline


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}i", 0x800 + array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], Path]:
    """A small Fashion-MNIST, packed only, its MD5s told to torchvision."""
    data, folder, told = arrays("fmnist"), tmp_path / "FashionMNIST" / "raw", []
    folder.mkdir(parents=True)
    for file, _ in tv_datasets.FashionMNIST.resources:
        part = "train" if file.startswith("train") else "test"
        content = data[f"x_{part}"][..., 0] if "images" in file else data[f"y_{part}"]
        (folder / file).write_bytes(gzip.compress(idx(content)))
        told.append((file, md5(folder / file)))
    monkeypatch.setattr(tv_datasets.FashionMNIST, "resources", told)
    return data, folder


def test_fashion_mnist_packed_then_unpacked(fashion: Any, tmp_path: Path, offline: list[str]) -> None:
    data, folder = fashion
    for packed in (True, False):
        for split in ("test", "train"):
            got = load("fmnist", tmp_path, split)
            np.testing.assert_array_equal(got.images[:, 0].numpy(), data[f"x_{split}"][..., 0])
            assert got.labels.tolist() == data[f"y_{split}"].tolist()
        if packed:
            for file in folder.glob("*.gz"):
                file.unlink()
    assert not offline


def test_fashion_mnist_damaged(fashion: Any, tmp_path: Path, offline: list[str]) -> None:
    _, folder = fashion
    packed = folder / "t10k-images-idx3-ubyte.gz"
    content = packed.read_bytes()
    packed.write_bytes(content[: len(content) // 2])
    message = refused("fmnist", tmp_path, "test")
    assert str(packed) in message and "MD5" in message
    packed.unlink()
    assert str(packed) in refused("fmnist", tmp_path, "test")
    assert not offline
    packed.write_bytes(content)
    load("fmnist", tmp_path, "test")
    unpacked = packed.with_suffix("")
    whole = unpacked.read_bytes()
    for keep in (0, 3, 20, len(whole) - 1):
        unpacked.write_bytes(whole[:keep])
        assert str(folder) in refused("fmnist", tmp_path, "test")
    assert not offline


# class folders in memory


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("numbered", [True, False])
def test_folders_in_memory(tmp_path: Path, nested: bool, numbered: bool) -> None:
    base = tmp_path / "fmnist" if nested else tmp_path
    names = [f"{k:02}" if numbered else n for k, n in enumerate(class_names("fmnist"))]
    names = [name.replace("/", "-") for name in names]
    write_folders(base / "train", names, 28, 1)
    write_folders(base / "val", names, 28, 1, each=3)
    (base / "train" / names[0] / "notes.txt").write_text("no image")
    (base / "train" / names[0] / "._0.png").write_bytes(b"left by a file manager")
    (base / "train" / ".cache").mkdir()
    got = load("fmnist", tmp_path)
    assert isinstance(got, Split) and got.classes == class_names("fmnist")
    assert got.labels.tolist() == [k for k in range(10) for _ in range(2)]
    expected = np.concatenate([noise(2, 28, 1, seed=k) for k in range(10)])
    np.testing.assert_array_equal(got.images.permute(0, 2, 3, 1).numpy(), expected)
    assert len(load("fmnist", tmp_path, "test")) == 30


def test_folders_of_colour_and_other_modes(tmp_path: Path) -> None:
    write_folders(tmp_path / "train", list(class_names("cifar10")), 32, 3, each=1)
    file = tmp_path / "train" / "bird" / "0.png"
    grey = noise(1, 32, 1)[0, ..., 0]
    Image.fromarray(grey).save(file)
    got = load("cifar10", tmp_path)
    np.testing.assert_array_equal(got.images[2].numpy(), np.stack([grey] * 3))
    truck = tmp_path / "train" / "truck" / "0.png"
    expected = np.asarray(Image.open(truck)).transpose(2, 0, 1)
    np.testing.assert_array_equal(got.images[9].numpy(), expected)


def test_upright_and_sixteen_bits(tmp_path: Path) -> None:
    """A photograph lying on its side by EXIF is turned; 16 bits are scaled to 8, not cut at 255."""
    folder = tmp_path / "x"
    folder.mkdir()
    pixels = noise(1, 6, 3)[0][:, :4]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    Image.fromarray(pixels).save(folder / "a.png", exif=exif)
    deep = np.arange(24, dtype=np.uint16).reshape(6, 4) * 2500
    Image.fromarray(deep).save(folder / "b.png")
    Image.fromarray(deep).save(folder / "c.tif")
    split = FolderSplit(tmp_path)
    np.testing.assert_array_equal(np.asarray(split.image(0)), np.rot90(pixels, -1))
    for index in (1, 2):
        np.testing.assert_array_equal(np.asarray(split.image(index)), np.dstack([np.rint(deep / 257)] * 3))


def test_folders_refused(tmp_path: Path) -> None:
    names = list(class_names("cifar10"))
    train = tmp_path / "cifar10" / "train"
    write_folders(train, names, 32, 3)
    file = train / "cat" / "1.png"
    whole = file.read_bytes()
    for bad in (b"", b"not an image", whole[: len(whole) // 2]):
        file.write_bytes(bad)
        assert f"{file} does not decode" in refused("cifar10", tmp_path)
    Image.new("RGB", (32, 30)).save(file)
    assert f"{file} has 32 x 30 pixels, not 32 x 32" in refused("cifar10", tmp_path)
    file.unlink()
    (train / "cat" / "0.png").rename(train / "cat" / "0.txt")
    assert f"class folder {train / 'cat'} has no images" in refused("cifar10", tmp_path)
    shutil.rmtree(train / "cat")
    assert "has 9 class folders" in refused("cifar10", tmp_path)
    (train / "tiger").mkdir()
    assert "expected the 10 of CIFAR-10: airplane .. truck" in refused("cifar10", tmp_path)
    (train / "cat").mkdir()
    assert "has 11 class folders" in refused("cifar10", tmp_path)


# nothing there


def test_not_found_says_what_and_where(tmp_path: Path) -> None:
    message = refused("cifar10", tmp_path)
    for part in (str(tmp_path), "cifar10.npz", "cifar-10-batches-py/", "train/<class>/"):
        assert part in message
    assert "--download" in message and "--data-dir" in message
    assert "test|val/<class>/" in refused("fmnist", tmp_path, "test")
    assert "no such folder" in refused("cifar100", tmp_path / "missing")
    (tmp_path / "file").write_text("")
    assert "no such folder" in refused("cifar100", tmp_path / "file")
    assert "--data-dir" in refused("cifar100")
    message = refused("imagenet100", tmp_path, "test", download=True)
    assert "image-net.org" in message and "--download" not in message


def test_unknown_names(tmp_path: Path) -> None:
    message = refused("cifar-10", tmp_path)
    assert "did you mean cifar10?" in message and "imagenet100" in message
    assert "did you mean" not in refused("zzzzzzzz")
    assert "'val'" in refused("digits", split="val")


# streamed folders


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for k, name in enumerate(("b_cats", "a_dogs")):
        (tmp_path / name).mkdir()
        for i in range(4):
            pixels = noise(1, 60, 3, seed=10 * k + i)[0, : 40 + 5 * i]
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.JPEG", quality=95)
    return tmp_path


def test_folder_order(photos: Path) -> None:
    split = FolderSplit(photos, size=32)
    assert split.classes == ("a_dogs", "b_cats") and len(split) == 8
    assert split.labels.dtype == torch.int64 and split.labels.tolist() == [0] * 4 + [1] * 4
    assert split.files[0] == "a_dogs/0.JPEG" and split.files[-1] == "b_cats/3.JPEG"
    other = FolderSplit(photos, ["b_cats", "a_dogs"], ["cat", "dog"], size=32)
    assert other.classes == ("cat", "dog") and other.files[0] == "b_cats/0.JPEG"


@pytest.mark.parametrize("channels", [1, 3])
def test_evaluation_view_is_pils(photos: Path, channels: int) -> None:
    """Shorter side to 256 / 224 of the size, then the centre."""
    split = FolderSplit(photos, size=28, channels=channels)
    for index in (0, 3, 6):
        views, label, got_index = split[index]
        mode = "RGB" if channels == 3 else "L"
        image = Image.open(photos / split.files[index]).convert(mode)
        width, height = 32 * 60 // image.height, 32
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - 28) / 2), 2
        expected = np.asarray(image.crop((left, top, left + 28, top + 28))).reshape(28, 28, -1)
        assert views.dtype == torch.uint8 and views.shape == (1, channels, 28, 28)
        np.testing.assert_array_equal(views[0].permute(1, 2, 0).numpy(), expected)
        assert (label, got_index) == (index // 4, index)


def test_training_views_are_resized_crops(tmp_path: Path) -> None:
    """A picture whose pixels tell their place: each view must be one window of it."""
    rows, columns = np.mgrid[0:200, 0:200].astype(np.uint8)
    pixels = np.stack([rows, columns, np.zeros_like(rows)], -1)
    (tmp_path / "x").mkdir()
    Image.fromarray(pixels).save(tmp_path / "x" / "0.png")
    split = FolderSplit(tmp_path, size=50)
    windows = []
    for epoch in range(200):
        training = split.view(2, seed=3)
        training.set_epoch(epoch)
        views, _, _ = training[0]
        assert views.shape == (2, 3, 50, 50)
        for view in views.double():
            height = (view[0, -1, 0] - view[0, 0, 0]).item() * 50 / 49
            width = (view[1, 0, -1] - view[1, 0, 0]).item() * 50 / 49
            windows.append((height, width))
    heights, widths = np.array(windows).T
    area, ratio = heights * widths / 200**2, widths / heights
    assert 0.18 < area.min() < 0.3 and 0.85 < area.max() < 1.02
    assert 0.72 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.39
    assert len(set(windows)) > 300


def test_a_view_of_everything_is_pils_resize(photos: Path) -> None:
    square = Image.fromarray(noise(1, 60, 3)[0])
    square.save(photos / "a_dogs" / "0.png")
    split = FolderSplit(photos, size=32)
    from torchvision.transforms import v2

    everything = v2.RandomResizedCrop(32, (1, 1), (1, 1))
    views, _, _ = split.view(1, transform=everything)[split.files.index("a_dogs/0.png")]
    expected = np.asarray(square.resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(views[0].permute(1, 2, 0).numpy(), expected)


def test_views_depend_on_seed_epoch_and_index_alone(photos: Path) -> None:
    (photos / "b_cats" / "4.JPEG").write_bytes((photos / "b_cats" / "3.JPEG").read_bytes())
    split = FolderSplit(photos, size=32)
    training = split.view(2, seed=7)
    state = torch.get_rng_state()
    first = training[7][0]
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    torch.manual_seed(99)
    assert torch.equal(training[7][0], first)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(training[8][0], first)  # the same picture under another index
    assert torch.equal(split.view(3, seed=7)[7][0][:2], first)
    assert not torch.equal(split.view(2, seed=8)[7][0], first)
    training.set_epoch(1)
    assert not torch.equal(training[7][0], first)
    training.set_epoch(0)
    assert torch.equal(training[7][0], first)
    assert split[7][0].shape == (1, 3, 32, 32)  # the split itself still evaluates


def test_workers_and_resume_change_nothing(photos: Path) -> None:
    training = FolderSplit(photos, size=32).view(2, seed=1)
    training.set_epoch(3)
    batches = [[5, 0, 2], [7, 1], [3, 6, 4]]
    here, state = list(loader(training, batches)), torch.get_rng_state()
    there, resumed = list(loader(training, batches, 2)), list(loader(training, batches[1:], 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(here) == len(there) == len(loader(training, batches)) == 3
    for batch, one, two in zip(batches, here, there, strict=True):
        assert one[0].shape == (len(batch), 2, 3, 32, 32) and one[0].dtype == torch.uint8
        assert one[2].tolist() == batch and one[1].tolist() == [i // 4 for i in batch]
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    for one, two in zip(here[1:], resumed, strict=True):
        assert torch.equal(one[0], two[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_undecodable_image_is_named(photos: Path, workers: int) -> None:
    file = photos / "b_cats" / "2.JPEG"
    file.write_bytes(file.read_bytes()[:200])
    batches = loader(FolderSplit(photos, size=32).view(), [[0, 1], [6]], workers)
    with pytest.raises(DataError) as caught:
        list(batches)
    assert str(caught.value).startswith(f"{file} does not decode: ")
    assert "\n" not in str(caught.value)


def test_folder_split_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match="has no class folders"):
            FolderSplit(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty has no images"):
        FolderSplit(tmp_path)


def test_folder_fingerprint(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    split = FolderSplit(photos, ["b_cats", "a_dogs"], size=32)
    expected = hashlib.sha256()
    for file in sorted(photos.glob("*/*")):
        expected.update(f"{file.parent.name}/{file.name}".encode() + b"\0")
        expected.update(hashlib.sha256(file.read_bytes()).digest())
    assert split.fingerprint() == expected.hexdigest()
    moved = tmp_path_factory.mktemp("moved") / "photos"
    shutil.copytree(photos, moved)
    assert FolderSplit(moved).fingerprint() == split.fingerprint()
    (moved / "a_dogs" / "0.JPEG").write_bytes(b"other")
    assert FolderSplit(moved).fingerprint() != split.fingerprint()


# imagenet100


def test_imagenet100_among_other_classes(tmp_path: Path) -> None:
    names = class_names("imagenet100")
    write_folders(tmp_path / "train", [*names, "n00000000", "n99999999"], 16, 3, each=1)
    write_folders(tmp_path / "val", list(names), 16, 3, each=2)
    (tmp_path / "test").mkdir()  # ImageNet's own: images without labels
    (tmp_path / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(b"")
    train, test = load("imagenet100", tmp_path), load("imagenet100", tmp_path, "test")
    assert isinstance(train, FolderSplit) and isinstance(test, FolderSplit)
    assert (len(train), len(test)) == (100, 200) and train.classes == names
    assert train.files[99] == f"{names[99]}/0.png" and train.labels.tolist() == list(range(100))
    assert train.view(2)[99][0].shape == (2, 3, 224, 224) and test[0][0].shape[0] == 1
    nested = tmp_path / "nested" / "imagenet100"
    nested.mkdir(parents=True)
    (tmp_path / "train").rename(nested / "train")
    assert len(load("imagenet100", tmp_path / "nested")) == 100
    shutil.rmtree(nested / "train" / names[3])
    message = refused("imagenet100", tmp_path / "nested")
    assert f"lacks 1 of the 100 classes, {names[3]} first" in message
    (nested / "train" / names[3]).mkdir()
    assert f"{nested / 'train' / names[3]} has no images" in refused("imagenet100", nested.parent)


# holdout


def test_holdout() -> None:
    split = load("digits")
    train, held = holdout(split, 200, seed=5)
    assert (len(train), len(held)) == (1237, 200) and held.classes == split.classes
    share = held.labels.bincount() / split.labels.bincount()
    assert (share - 200 / 1437).abs().max() < 1 / 140
    rows = [image.flatten().tolist() for image in split.images]
    positions = [rows.index(image.flatten().tolist()) for image in held.images]
    assert positions == sorted(set(positions))
    assert [split.labels[p].item() for p in positions] == held.labels.tolist()
    assert not {*positions} & {rows.index(image.flatten().tolist()) for image in train.images}
    assert torch.equal(holdout(split, 200, seed=5)[1].images, held.images)
    assert not torch.equal(holdout(split, 200, seed=6)[1].images, held.images)


@pytest.mark.parametrize("n", [0, 5, 1432, 5000])
def test_holdout_refused(n: int) -> None:
    with pytest.raises(DataError, match=f"cannot hold out {n} of 1437 images") as caught:
        holdout(load("digits"), n)
    assert "\n" not in str(caught.value)


# real images


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fmnist"])
def test_real_test_split(name: str) -> None:
    try:
        split, info = load(name, DATA, "test"), DATASETS[name]
    except DataError as error:
        pytest.skip(str(error))
    assert isinstance(split, Split)
    assert split.images.shape == (10_000, info.channels, info.size, info.size)
    assert split.labels.bincount().tolist() == [10_000 // info.num_classes] * info.num_classes
    if name in FINGERPRINTS:
        assert split.fingerprint() == FINGERPRINTS[name]
    if name != "fmnist":  # whose mean and std of .5 are a convention
        mean = (split.images.double() / 255).mean((0, 2, 3)).tolist()
        assert mean == pytest.approx(info.mean, abs=0.01)


@pytest.mark.skipif(not (_RAW / "train-images-idx3-ubyte.gz").is_file(), reason=f"no Fashion-MNIST in {DATA}")
def test_real_fashion_mnist_is_what_numpy_reads() -> None:
    split = load("fmnist", DATA, "train")
    raw = gzip.decompress((_RAW / "train-images-idx3-ubyte.gz").read_bytes())
    images = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)
    raw = gzip.decompress((_RAW / "train-labels-idx1-ubyte.gz").read_bytes())
    np.testing.assert_array_equal(split.images[:, 0].numpy(), images)
    assert split.labels.tolist() == list(raw[8:])
