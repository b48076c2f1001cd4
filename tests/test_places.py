"""Names, words of timm's, and paths of release and run folders: all of them load, by every door."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import tcl_zoo
from tcl_zoo import cli, index
from tcl_zoo.downstream_models import open_model
from tcl_zoo.errors import RecipeError, WeightsError
from tcl_zoo.pipeline import pipeline

NAME = "tcl_resnet20_digits.e1"
X = torch.linspace(-1, 1, 128).view(2, 1, 8, 8)


@pytest.fixture(scope="module")
def run(released: Path) -> str:
    return str(released.parent / "run")


def logits(name: object, **kwargs: object) -> torch.Tensor:
    with torch.no_grad():
        return tcl_zoo.create_model(name, pretrained=True, **kwargs).eval()(X)


def test_a_release_and_its_run_by_path(released, run):
    expected = logits(NAME, weights_dir=released)
    for place in (run, Path(run), str(released / NAME)):
        torch.testing.assert_close(logits(place), expected, rtol=0, atol=0)
    features = logits(NAME, weights_dir=released, num_classes=0)
    assert torch.equal(logits(run, num_classes=0), features) and features.shape == (2, 64)
    maps = tcl_zoo.create_model(run, pretrained=True, features_only=True).eval()(X)
    torch.testing.assert_close(maps[-1].mean((2, 3)), features)
    assert tcl_zoo.create_model(run, pretrained=True, num_classes=5, in_chans=3)(X.expand(-1, 3, -1, -1)).shape == (
        2,
        5,
    )
    assert not torch.equal(tcl_zoo.create_model(run, num_classes=0).eval()(X), features)


def test_without_a_classifier_a_run_gives_features(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "classifier.safetensors").unlink()
    (tmp_path / "run" / "results.json").unlink()
    assert logits(str(tmp_path / "run")).shape == (2, 64)
    with pytest.raises(WeightsError, match="has no classifier"):
        pipeline(str(tmp_path / "run"), device="cpu").predict(Image.new("L", (8, 8)))
    assert tcl_zoo.model_info(str(tmp_path / "run"))["results"] is None


def test_transform_and_pipeline_of_a_run(released, run):
    image = Image.linear_gradient("L").resize((20, 13))
    expected = tcl_zoo.create_transform(NAME, weights_dir=released)(image)
    assert torch.equal(tcl_zoo.create_transform(run)(image), expected)
    ours, theirs = (pipeline(place, device="cpu").predict(image) for place in (run, str(released / NAME)))
    assert ours == theirs and len(ours) == 5


def test_commands_take_paths(released, run, capsys):
    assert cli.main(["info", run]) == 0
    out = capsys.readouterr().out
    measured = json.loads((Path(run) / "results.json").read_text())
    assert f"{measured['top1']:.2f} %" in out and "epoch 1 of 1" in out
    assert cli.main(["verify", str(released / NAME), "--device", "cpu"]) == 0
    assert "the card holds" in capsys.readouterr().out
    assert cli.main(["verify", run]) == 2
    assert "publish.py --run-dir" in capsys.readouterr().err
    assert cli.main(["probe", run, "--knn", "20", "--device", "cpu"]) == 0  # on the data set it was trained on
    assert "on digits" in capsys.readouterr().out


def test_words_of_timms():
    x = logits("tcl_resnet20_digits")
    assert torch.equal(logits("resnet20_cifar.tcl_digits"), x)
    with pytest.raises(RecipeError, match=r"timm\.create_model\('resnet18'\)"):
        tcl_zoo.create_model("resnet18")
    with pytest.raises(WeightsError, match="hf-hub:"):  # its older spelling: the same place, here out of reach
        tcl_zoo.create_model("hf_hub:nobody/nothing", pretrained=True)


def test_what_is_no_model_says_so(run, released, tmp_path):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "recipe.json").write_text("{}")
    (tmp_path / "tuned").mkdir()
    shutil.copytree(released / NAME, tmp_path / "tuned" / "release")
    for name, message in (
        (str(tmp_path / "nowhere"), "no release in .*nowhere: looked for config.json"),
        (str(tmp_path), "no release in"),
        (str(unfinished), "is not finished"),
        (f"local-dir:{tmp_path / 'nowhere'}", "there is no folder"),
        (f"local-dir:{tmp_path / 'tuned'}", "the release in it is local-dir:.*tuned/release"),
    ):
        with pytest.raises(WeightsError, match=message):
            tcl_zoo.create_model(name, pretrained=True)
    assert logits(str(tmp_path / "tuned")).shape == (2, 10)
    with pytest.raises(WeightsError, match="has no revisions and no sha256"):
        tcl_zoo.create_model(run, pretrained=True, sha256="0" * 64)
    for thing in (torch.nn.Identity(), None, 3):
        with pytest.raises(RecipeError, match=f"not {type(thing).__name__}"):
            tcl_zoo.create_transform(thing)


def test_a_models_name_is_one_whatever_lies_here(released, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tcl_resnet20_cifar100", "tcl_resnet20_digits"):
        shutil.copytree(run, tmp_path / name)
    assert tcl_zoo.create_model("tcl_resnet20_cifar100").num_classes == 100
    assert torch.equal(logits("./tcl_resnet20_cifar100"), logits(run))
    for opened in (open_model("./tcl_resnet20_digits", num_classes=10), pipeline("./tcl_resnet20_digits").model.cpu()):
        assert torch.equal(opened.eval()(X), logits(run)), "the path, by every door"
    assert not torch.equal(logits("tcl_resnet20_digits"), logits(run))


def test_a_place_for_weights_that_is_not_there(monkeypatch):
    monkeypatch.setenv("TCL_ZOO_WEIGHTS", "/nowhere")
    with pytest.raises(WeightsError, match="TCL_ZOO_WEIGHTS is /nowhere, and there is no such folder"):
        tcl_zoo.create_model("tcl_resnet20_digits", pretrained=True)


def test_a_damaged_release_fails_the_check_and_a_warning_is_one_line(released, tmp_path, capsys):
    shutil.copytree(released / NAME, tmp_path / "own")
    assert cli.main(["verify", f"local-dir:{tmp_path / 'own'}", "--device", "cpu"]) == 0
    err = [line for line in capsys.readouterr().err.splitlines() if "vouches" in line]
    assert len(err) == 1 and err[0].startswith("warning: ")
    digest = json.loads((tmp_path / "own" / "config.json").read_text())["tcl_zoo"]["sha256"]
    assert cli.main(["verify", str(tmp_path / "own"), "--sha256", digest, "--device", "cpu"]) == 0
    data = bytearray((tmp_path / "own" / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (tmp_path / "own" / "model.safetensors").write_bytes(data)
    assert cli.main(["verify", str(tmp_path / "own")]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_a_folder_brings_its_own_transform(released, tmp_path):
    """By path, whatever name the release in it has, and whatever that name has elsewhere."""
    for name in ("mine", "tcl_resnet20_cifar10.e40"):
        folder = tmp_path / name
        shutil.copytree(released / NAME, folder)
        config = json.loads((folder / "config.json").read_text())
        config["tcl_zoo"]["name"] = name
        (folder / "config.json").write_text(json.dumps(config))
        assert tcl_zoo.create_transform(str(folder))(Image.new("RGB", (9, 9))).shape == (1, 8, 8)


def test_the_callers_checkpoint_comes_last(run, tmp_path):
    state = {
        key: torch.zeros_like(value) for key, value in tcl_zoo.create_model(run, num_classes=10).state_dict().items()
    }
    torch.save(state, tmp_path / "mine.pt")
    model = tcl_zoo.create_model(run, pretrained=True, checkpoint_path=str(tmp_path / "mine.pt"))
    assert not model.conv1.weight.any() and not model.fc.weight.any()


def test_gray_filters_on_colour(run):
    gray, colour = (tcl_zoo.create_model(run, pretrained=True, in_chans=n).eval() for n in (1, 3))
    torch.testing.assert_close(colour(X.expand(-1, 3, -1, -1)), gray(X), rtol=1e-4, atol=1e-4)


def test_words_of_timms_to_fine_tune_and_probe():
    model = open_model("resnet20_cifar.tcl_digits", num_classes=0).eval()
    assert pipeline("resnet20_cifar.tcl_digits", index.MODEL_CARDS).name == "tcl_resnet20_digits"
    assert torch.equal(model(X), logits("tcl_resnet20_digits", num_classes=0))


def test_info_of_a_path_loads_no_torch(released, run):
    code = f"import sys, tcl_zoo\nfor place in ({run!r}, {str(released / NAME)!r}):\n    tcl_zoo.model_info(place)\n"
    code += "assert not {'torch', 'timm'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
