"""Test images that the copy of the data set behind a release has otherwise than the official files."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import tcl_zoo.verify
from tcl_zoo.amend import add_altered
from tcl_zoo.cli import main
from tcl_zoo.datasets import load
from tcl_zoo.errors import DataError, WeightsError
from tcl_zoo.features import predict
from tcl_zoo.models import create_model
from tcl_zoo.splits import Split
from tcl_zoo.verify import verify

NAME = "tcl_resnet20_digits.e1"
ALTERED = [5, 17, 200]


@pytest.fixture
def folder(released, tmp_path):
    """A release of which three test images are said to be altered."""
    shutil.copytree(released / NAME, tmp_path / NAME)
    np.savez(tmp_path / "altered.npz", test=np.array(ALTERED[::-1], dtype=np.int32))
    assert add_altered(tmp_path / NAME, tmp_path / "altered.npz", device="cpu") == 357
    return tmp_path / NAME


def official(monkeypatch, images=ALTERED) -> Split:
    """The data set as everybody else has it, from here on."""
    test = load("digits", split="test")
    pixels = test.images.clone()
    pixels[images] = 255 - pixels[images]
    other = Split(pixels, test.labels, test.classes)
    monkeypatch.setattr(tcl_zoo.verify, "load_known", lambda *_: other)
    return other


def facts(folder, **changes) -> dict:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["tcl_zoo"]["altered"].update(changes)
    path.write_text(json.dumps(config))
    return config["tcl_zoo"]["altered"]


def test_the_copy_is_compared_as_a_whole(folder):
    checked = verify(NAME, weights_dir=folder, device="cpu")
    assert checked.ok and (checked.n, checked.left_out) == (360, 0)


def test_official_images_are_compared_without_the_altered_ones(folder, monkeypatch):
    test = official(monkeypatch)
    right = predict(create_model(NAME, True, weights_dir=folder), test).argmax(1) == test.labels
    kept = [i for i in range(360) if i not in ALTERED]
    checked = verify(NAME, weights_dir=folder, device="cpu")
    assert checked.ok and checked.same_data
    assert (checked.n, checked.left_out, checked.hits) == (357, 3, int(right[kept].sum()))
    assert checked.reported == pytest.approx(100 * float(right[kept].float().mean()))
    assert checked.confusion().sum() == 357 and torch.equal(checked.labels, test.labels[kept])


def test_the_command_and_the_card_say_so(folder, monkeypatch, capsys):
    official(monkeypatch)
    assert main(["verify", NAME, "--weights-dir", str(folder), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "of 357 test images" in out and "without 3 images" in out and "OK: the card holds" in out
    assert all(len(line) < 80 for line in out.splitlines())
    said = facts(folder)
    sentence = f"compares on the 357 test images that are the same: {100 * said['hits'] / 357:.2f} %"
    assert sentence in (folder / "README.md").read_text()


def test_a_wrong_figure_for_the_others_fails(folder, monkeypatch):
    official(monkeypatch)
    facts(folder, hits=facts(folder)["hits"] - 2)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["tcl_zoo"]["results"]["top1"] -= 100 * 2 / 360
    path.write_text(json.dumps(config))
    checked = verify(NAME, weights_dir=folder, device="cpu")
    assert checked.same_data and not checked.ok


def test_a_top1_that_the_others_contradict_is_refused(folder, monkeypatch):
    """Else a card could claim anything of a copy that nobody has, and be confirmed."""
    official(monkeypatch)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["tcl_zoo"]["results"]["top1"], config["tcl_zoo"]["fingerprints"]["test"] = 99.9, "0" * 64
    path.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="contradict"):
        verify(NAME, weights_dir=folder, device="cpu")


@pytest.mark.parametrize("others", [[*ALTERED, 6], [6]])
def test_other_differences_are_still_not_compared(folder, monkeypatch, others):
    official(monkeypatch, others)
    checked = verify(NAME, weights_dir=folder, device="cpu")
    assert not checked.same_data and not checked.ok and (checked.n, checked.left_out) == (360, 0)


@pytest.mark.parametrize("changes", [
    {"images": [5, 5, 17]}, {"images": []}, {"images": [-1, 5]}, {"images": list(range(100))}, {"images": "abc"},
    {"images": [1.0, 2.0]}, {"images": None}, {"hits": 400}, {"n": 0}, {"further": 1},
])  # fmt: skip
def test_a_damaged_entry_is_refused(folder, changes):
    facts(folder, **changes)
    with pytest.raises(WeightsError, match="lacks what verify compares"):
        verify(NAME, weights_dir=folder, device="cpu")


@pytest.mark.parametrize("images", [[1, 2, 3, 4], [], [360], [-1]])
def test_indices_that_are_none_or_too_many(released, tmp_path, images):
    """At most one image in a hundred: a card must not choose on what it is measured."""
    shutil.copytree(released / NAME, tmp_path / NAME)
    np.savez(tmp_path / "altered.npz", test=np.array(images, dtype=np.int32))
    before = (tmp_path / NAME / "config.json").read_bytes()
    with pytest.raises(DataError, match="names no altered test images"):
        add_altered(tmp_path / NAME, tmp_path / "altered.npz", device="cpu")
    assert (tmp_path / NAME / "config.json").read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "floats", "array", "text"])
def test_a_damaged_table_is_refused(released, tmp_path, damage):
    shutil.copytree(released / NAME, tmp_path / NAME)
    table = tmp_path / "altered.npz"
    np.savez(table, test=np.array([5.7 if damage == "floats" else 5]))
    if damage == "cut":
        table.write_bytes(table.read_bytes()[:-20])
    elif damage == "array":
        np.save(tmp_path / "altered.npy", np.array([5]))
        (tmp_path / "altered.npy").replace(table)
    elif damage == "text":
        table.write_text("5")
    with pytest.raises(DataError, match="names no altered test images"):
        add_altered(tmp_path / NAME, table, device="cpu")


def test_nothing_is_entered_on_other_images(folder, tmp_path, monkeypatch):
    official(monkeypatch)
    with pytest.raises(WeightsError, match="does not verify"):
        add_altered(folder, tmp_path / "altered.npz", device="cpu")
