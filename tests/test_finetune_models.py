"""Fine-tuning of any model: what could not be released is refused before the training, and a name is a name."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from test_finetune import PARENT, tune, write

import tcl_zoo
from tcl_zoo import cli
from tcl_zoo.datasets import load
from tcl_zoo.errors import TrainingError, WeightsError
from tcl_zoo.features import normaliser
from tcl_zoo.finetune import export, finetune, tuner
from tcl_zoo.finetune.export import no_release
from tcl_zoo.outside import cfg_complaint, complaint
from tcl_zoo.places import find, is_name


def test_large_inputs_can_be_released():
    model = timm.create_model("test_resnet", num_classes=3)
    for side, fits in ((640, True), (2048, True), (2049, False)):
        model.pretrained_cfg = {**model.pretrained_cfg, "input_size": [3, side, side]}
        assert bool(no_release(model, "abc", "run")) is not fits
    cfg = {"input_size": [3, 640, 640], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    assert not cfg_complaint(cfg, own=True) and "input_size" in cfg_complaint(cfg)  # not from elsewhere


def test_what_could_not_be_loaded_again_is_refused_before_the_training(tmp_path):
    """Swin's windows follow the size it is set to, but not the one it is built with; V2 has them in no weight."""
    write(tmp_path / "photos", ["dark", "light"], 4)
    for name, size in (("swin_tiny_patch4_window7_224", 256), ("swinv2_tiny_window8_256", 320)):
        why = f"(built for {size} pixels it has other shapes|it cannot be built for {size} pixels)"  # by timm's version
        with pytest.raises(TrainingError, match=f"not released: {why}"):
            finetune(name, tmp_path / "photos", tmp_path / "run", size=size, pretrained=False)
    with pytest.raises(TrainingError, match="not released: 'a:b' cannot be a release's name"):
        finetune("test_resnet", tmp_path / "photos", tmp_path / "a:b", pretrained=False)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_fine_tuned_encoder_of_the_zoo_may_come_from_a_hub(released, tmp_path):
    write(tmp_path / "photos", ["dark", "light"], 4)
    done = tune(tmp_path / "photos", tmp_path / "run", released, epochs=1)
    assert complaint(json.loads((done.release / "config.json").read_text()), fetched=True) == ""


def test_a_release_that_is_another_model_after_loading_is_no_release(tmp_path, monkeypatch):
    write(tmp_path / "photos", ["dark", "light"], 4)
    real = export.create_model

    def damaged(*args, **kwargs):
        model = real(*args, **kwargs)
        model.fc.bias.data += 1
        return model

    monkeypatch.setattr(export, "create_model", damaged)
    with pytest.raises(TrainingError, match="another model after loading"):
        finetune("resnet20_cifar", tmp_path / "photos", tmp_path / "run", size=8, epochs=1, pretrained=False, cpu=True)
    assert not (tmp_path / "run" / "release").exists()


def test_images_in_memory_are_prepared_as_the_release_says(tmp_path):
    """create_transform on a picture gives what was trained and measured on, whatever timm's own cfg was."""
    done = finetune(
        "test_efficientnet", None, tmp_path / "run", dataset="digits", per_class=2, size=64, epochs=1, measure=1,
        pretrained=False, cpu=True,
    )  # fmt: skip
    model = tcl_zoo.create_model("run", pretrained=True, weights_dir=done.release)
    transform = tcl_zoo.create_transform("run", weights_dir=done.release)
    image = load("digits", split="test").images[:1]
    ours = normaliser(model.pretrained_cfg)(image)[0]
    theirs = transform(Image.fromarray(image[0, 0].numpy()))
    step = 1 / 255 / min(model.pretrained_cfg["std"])
    assert float((ours - theirs).abs().max()) <= step + 1e-6


def test_a_run_knows_its_images(released, tmp_path):
    """Folders of one shape, as the folds of a cross-validation have it, are not taken for one another."""
    for fold in ("a", "b"):
        write(tmp_path / fold / "photos", ["dark", "light"], 8)
    file = tmp_path / "b" / "photos" / "dark" / "0.png"
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(file)
    tune(tmp_path / "a" / "photos", tmp_path / "run", released, epochs=1)
    with pytest.raises(TrainingError, match="other values: images"):
        tune(tmp_path / "b" / "photos", tmp_path / "run", released, epochs=1)
    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    assert tune(tmp_path / "moved" / "photos", tmp_path / "run", released, epochs=1).finished


def test_activations_survive_on_several_gpus():
    """torch's own conversion replaces timm's norms, which hold the activations, by bare ones."""
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=3).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        after = tuner.convert_sync_batchnorm(model).eval()(images)
    assert torch.equal(before, after)
    assert any("SyncBatchNorm" in type(module).__name__ for module in model.modules())


@pytest.mark.parametrize(("args", "problem"), [
    (["vgg11", "--drop-path", "0.1"], "drop_path_rate"), (["test_vit", "--size", "8"], "leave the size out"),
])  # fmt: skip
def test_what_a_model_does_not_take_is_one_line(tmp_path, capsys, args, problem):
    write(tmp_path / "photos", ["dark", "light"], 4)
    where = ["--data-dir", str(tmp_path / "photos"), "--out", str(tmp_path / "run")]
    assert cli.main(["finetune", *args, *where, "--scratch"]) == 2
    err = capsys.readouterr().err
    assert problem in err and err.count("\n") == 1


def test_a_models_name_is_no_path(released, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(released / PARENT, tmp_path / "test_resnet")
    assert find("test_resnet") == ("test_resnet", None, None)
    name, folder, _ = find("./test_resnet")
    assert (name, folder.resolve()) == (PARENT, tmp_path / "test_resnet")
    assert is_name("test_resnet.r160_in1k") and not is_name("nothing")


def test_workers_reach_every_measurement(tmp_path, monkeypatch):
    import tcl_zoo.features as rooms

    write(tmp_path / "photos", ["dark", "light"], 8, (70, 70))
    seen, real = [], rooms.loader
    monkeypatch.setattr(rooms, "loader", lambda *args: seen.append(args[2]) or real(*args))
    values = {"size": 64, "epochs": 1, "pretrained": False, "cpu": True, "workers": 0}
    finetune("test_resnet", tmp_path / "photos", tmp_path / "run", **values)
    assert seen and set(seen) == {0}


def test_weights_error_names_the_size(tmp_path):
    write(tmp_path / "photos", ["dark", "light"], 4)
    with pytest.raises(WeightsError, match="leave the size out"):
        finetune("test_vit", tmp_path / "photos", tmp_path / "run", size=8, pretrained=False)


def test_position_embeddings_are_resampled_to_the_callers_size(tmp_path):
    write(tmp_path / "photos", ["dark", "light"], 8, (70, 70))
    done = finetune(
        "test_vit", tmp_path / "photos", tmp_path / "run", size=64, epochs=1, pretrained=False, cpu=True, workers=0
    )
    model = tcl_zoo.create_model("run", pretrained=True, weights_dir=done.release, img_size=96).eval()
    own = tcl_zoo.create_model("run", pretrained=True, weights_dir=done.release).eval()
    assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 2)
    assert torch.equal(model.head.weight, own.head.weight) and model.pos_embed.shape != own.pos_embed.shape


def test_a_checkpoint_of_the_callers_has_the_last_word(released, tmp_path):
    torch.manual_seed(1)
    mine = tcl_zoo.create_model(PARENT, weights_dir=released, num_classes=7)
    torch.save(mine.state_dict(), tmp_path / "mine.pth")
    loaded = tcl_zoo.create_model(
        PARENT, pretrained=True, weights_dir=released, num_classes=7, checkpoint_path=str(tmp_path / "mine.pth")
    )
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in mine.state_dict().items())
