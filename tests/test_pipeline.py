"""Files in, features and labels out: the same as timm and Pillow by hand, whatever model it is."""

from __future__ import annotations

import copy
import dataclasses
import errno
import functools
import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

import tcl_zoo
from tcl_zoo.datasets import load
from tcl_zoo.errors import DataError, RecipeError, WeightsError
from tcl_zoo.pipeline import Pipeline, pipeline

NAME = "tcl_resnet20_digits"


@pytest.fixture(scope="module")
def loaded() -> Pipeline:
    return pipeline(NAME, device="cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    folder, test = tmp_path_factory.mktemp("digits"), load("digits", split="test")
    for i in range(25):
        Image.fromarray(test.images[i, 0].numpy()).save(folder / f"{i:02d}.png")
    return sorted(map(str, folder.iterdir()))


def test_predict_names_the_digits(loaded, files):
    labels = load("digits", split="test").labels[:25].tolist()
    for file, label in zip(files, labels, strict=True):
        (first, probability), *_ = loaded.predict(file)
        assert first == str(label) and probability > 0.3
    with pytest.raises(DataError, match="from 1 on, got 0"):
        loaded.predict(files[0], top=0)
    with pytest.raises(DataError, match="from 1 on, got 0"):
        next(loaded.embed(files, batch_size=0))
    likeliest = loaded.predict(files[0], top=99)
    assert sorted(name for name, _ in likeliest) == [str(i) for i in range(10)]
    assert sum(p for _, p in likeliest) == pytest.approx(1, abs=1e-5)
    assert [p for _, p in likeliest] == sorted((p for _, p in likeliest), reverse=True)


def test_predict_is_the_models_softmax(loaded, files):
    model = tcl_zoo.create_model(NAME, pretrained=True).eval()
    with torch.no_grad():
        logits = model(tcl_zoo.create_transform(NAME)(Image.open(files[3]))[None])[0].double().numpy()
    expected = np.exp(logits) / np.exp(logits).sum()
    got = tcl_zoo.predict(NAME, Image.open(files[3]), device="cpu")
    assert len(got) == 5
    np.testing.assert_allclose([p for _, p in got], np.sort(expected)[::-1][:5], atol=1e-6)


def test_predict_refuses(loaded, tmp_path):
    (tmp_path / "a b.png").write_text("no image")
    for path in (tmp_path / "a b.png", tmp_path / "missing.png"):
        with pytest.raises(DataError, match=f"{path} does not decode: ") as caught:
            loaded.predict(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError, match="resnet"):
        tcl_zoo.predict("resnet1888", tmp_path / "a b.png")
    with pytest.raises(WeightsError, match="no released weights"):
        tcl_zoo.predict("tcl_resnet101_cifar100", tmp_path / "a b.png")


@pytest.mark.parametrize("workers", [0, 2])
def test_embed_keeps_the_order_and_says_why(loaded, files, tmp_path, workers):
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    paths = [*files[:3], str(bad), *files[3:], str(tmp_path / "missing.png")]
    batches = list(loaded.embed(iter(paths), batch_size=4, workers=workers))
    reasons = [why for _, whys in batches for why in whys]
    assert [len(whys) for _, whys in batches] == [4] * 6 + [3]
    assert {i: why for i, why in enumerate(reasons) if why} == {
        3: "not an image, or of an unknown format", 26: "No such file or directory",
    }  # fmt: skip
    got = torch.cat([rows for rows, _ in batches])
    encoder = tcl_zoo.create_model(NAME, pretrained=True, num_classes=0).eval()
    transform = tcl_zoo.create_transform(NAME)
    with torch.no_grad():
        expected = torch.cat([encoder(transform(Image.open(file))[None]) for file in files])
    assert got.dtype == torch.float32 and got.shape == (25, loaded.width()) == (25, 64)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_a_batch_of_nothing_but_damage(loaded, tmp_path):
    ((rows, reasons),) = loaded.embed([str(tmp_path / "a"), str(tmp_path / "b")])
    assert len(rows) == 0 and len(reasons) == 2 and all(reasons)


def test_nothing_is_learnt_from_the_images(loaded, files):
    before = loaded.fingerprint()
    list(loaded.embed(files))
    loaded.predict(files[0])
    assert loaded.fingerprint() == before and not loaded.model.training
    assert pipeline(NAME, device="cpu").fingerprint() == before
    assert pipeline(NAME, device="cpu", pretrained=False).fingerprint() != before


@pytest.mark.parametrize("name", ["test_resnet", "test_vit.r160_in1k", "test_efficientnet", "mobilenetv3_small_050"])
def test_any_timm_model(name, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (50, 70, 3), np.uint8)).save(tmp_path / "a.png")
    loaded = pipeline(name, device="cpu", pretrained=False)
    ((rows, _),) = loaded.embed([str(tmp_path / "a.png")])
    data = timm.data.resolve_model_data_config(loaded.model)
    image = timm.data.create_transform(**data)(Image.open(tmp_path / "a.png"))[None]
    with torch.no_grad():
        logits = loaded.model(image)[0]
        loaded.model.reset_classifier(0)
        expected = loaded.model(image)
    assert rows.shape == (1, loaded.width())
    torch.testing.assert_close(rows, expected)
    assert len(loaded.labels) == 1000 and "tench" in loaded.labels[0]  # ImageNet's first class
    loaded = Pipeline(name, _Constant(logits), loaded.transform, "RGB", loaded.labels, loaded.device)
    assert loaded.predict(tmp_path / "a.png", 1)[0][0] == loaded.labels[int(logits.argmax())]


class _Constant(torch.nn.Module):
    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.logits[None]


def test_ours_in_timms_words(loaded, files):
    same = pipeline("resnet20_cifar.tcl_digits", device="cpu")
    assert same.fingerprint() == loaded.fingerprint() and same.predict(files[0]) == loaded.predict(files[0])


def test_pretrained_timm_model(tmp_path, monkeypatch, files):
    """timm's own loading, its weights in a file instead of on the Hub."""
    torch.manual_seed(0)
    trained = timm.create_model("test_resnet", num_classes=1000)
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "w.safetensors")
    create = functools.partial(timm.create_model, pretrained_cfg_overlay={"file": str(tmp_path / "w.safetensors")})
    monkeypatch.setattr(timm, "create_model", create)
    there = pipeline("test_resnet", device="cpu").model.state_dict()
    assert all(torch.equal(there[key], value) for key, value in trained.state_dict().items())


def test_timm_weights_that_cannot_be_had():
    with pytest.raises(WeightsError, match=r"timm cannot load test_resnet\.nonsense") as caught:
        pipeline("test_resnet.nonsense")
    assert "\n" not in str(caught.value)


def test_release_folders(released, tmp_path, files):
    name = f"{NAME}.e1"
    shutil.copytree(released / name, tmp_path / name)
    config = json.loads((tmp_path / name / "config.json").read_text())
    config["pretrained_cfg"]["label_names"] = [f"digit {i}" for i in range(10)]
    (tmp_path / name / "config.json").write_text(json.dumps(config))
    got = tcl_zoo.predict(name, files[0], weights_dir=tmp_path, device="cpu")
    with pytest.warns(UserWarning, match="vouches"):
        assert tcl_zoo.predict(f"local-dir:{tmp_path / name}", files[0], device="cpu") == got
    assert got[0][0].startswith("digit ")


def test_a_model_without_a_classifier(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    loaded = pipeline("test_resnet", device="cpu", pretrained=False)
    loaded = Pipeline("headless", loaded.model, loaded.transform, "RGB", (), loaded.device)
    with pytest.raises(WeightsError, match="headless has no classifier"):
        loaded.predict(tmp_path / "a.png")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_disk_that_fails_stops_the_run_and_damages_nothing(loaded, files, tmp_path, monkeypatch, workers):
    """What is wrong with the disk is not written down as wrong with its files."""
    import tcl_zoo.pipeline as room

    real = room.read

    def read(path, mode):
        if path.endswith("gone.png"):
            raise OSError(errno.EIO, "Input/output error")
        if path.endswith("large.png"):
            raise MemoryError
        return real(path, mode)

    monkeypatch.setattr(room, "read", read)
    for name, message in (("gone.png", "cannot go on reading"), ("large.png", "fewer --workers")):
        with pytest.raises(DataError, match=message):
            list(loaded.embed([*files[:2], str(tmp_path / name)], workers=workers))
    with pytest.raises(DataError, match="cannot go on reading"):
        list(loaded.embed([str(tmp_path / "unplugged" / "a.png")], workers=workers))
    ((_, (why,)),) = loaded.embed([str(tmp_path / "deleted.png")], workers=workers)
    assert why == "No such file or directory"


def test_preparation_is_part_of_what_embeddings_are_of(loaded, files, tmp_path):
    from tcl_zoo.embed import embed, search

    embed(loaded, files[:3], tmp_path / "e.npz")
    other = copy.deepcopy(loaded)
    other.model.pretrained_cfg = {**other.model.pretrained_cfg, "mean": (0.1,)}
    with pytest.raises(DataError, match="other preparation of images"):
        search(other, files[0], tmp_path / "e.npz")
    spelt = dataclasses.replace(loaded, name="the same in other words")
    assert search(spelt, files[0], tmp_path / "e.npz")
