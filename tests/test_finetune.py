"""Fine-tuning: what it leaves is what others load, it goes on bit for bit, and it takes folders as people have them."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from stop_after import StopAfter

import tcl_zoo
from tcl_zoo import cards, cli, index
from tcl_zoo.downstream import open_data
from tcl_zoo.downstream_models import fitted_cfg
from tcl_zoo.errors import DataError, RecipeError, TrainingError, WeightsError
from tcl_zoo.features import predict
from tcl_zoo.finetune import Plan, export, finetune, loop
from tcl_zoo.finetune.tuner import Tuner
from tcl_zoo.sessions import create_accelerator
from tcl_zoo.weights import UncheckedWarning

PARENT = "tcl_resnet20_digits.e1"
ROOT = Path(__file__).resolve().parent.parent


def write(folder: Path, classes: list[str], each: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    """Images that a net can tell apart: noise around a gray value of the class."""
    rng = np.random.default_rng(len(classes))
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            level = 255 * (k + 0.5) / len(classes)
            pixels = np.clip(level + rng.normal(0, 10, (*size, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{i}.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for part, each in (("train", 12), ("val", 4), ("test", 4)):
        write(folder / part, ["dark", "gray", "light"], each, mode="L")
    return folder


def tune(photos: Path, out: Path, released: Path, **values: Any) -> Any:
    plan = {"epochs": 2, "batch_size": 12, "augmentation": "crop", "size": 8} | values
    return finetune(PARENT, photos, out, weights_dir=released, cpu=True, precision="fp32", **plan)


@pytest.fixture(scope="module")
def tuned(photos, released, tmp_path_factory):
    return tune(photos, tmp_path_factory.mktemp("runs") / "photos", released, epochs=12, lr=5e-3)


def test_the_epoch_is_chosen_by_figures_of_fp32(photos, released):
    """Whatever training rounds to: the release is measured in float32, too."""
    plan = Plan(PARENT, epochs=1, batch_size=12, augmentation="crop", size=8)
    net = tcl_zoo.create_model(PARENT, pretrained=True, weights_dir=released, num_classes=3)
    data = open_data(photos).fit(net.pretrained_cfg)
    plain = copy.deepcopy(net)
    tuner = Tuner(plan, net, data.train, data.val, create_accelerator("bf16", True))
    tuner.begin_epoch()
    tuner.step(*next(iter(tuner.batches.epoch(0))))
    plain.load_state_dict(net.state_dict())
    expected = F.cross_entropy(predict(plain, data.val), data.val.labels)
    assert tuner.validate()[1] == pytest.approx(float(expected), abs=1e-6)


def test_what_it_reports_is_what_others_measure(tuned, photos):
    """Every test image through Pillow, create_transform and the loaded model, one by one."""
    model = tcl_zoo.create_model("photos", pretrained=True, weights_dir=tuned.release).eval()
    transform = tcl_zoo.create_transform("photos", weights_dir=tuned.release)
    classes = model.pretrained_cfg["label_names"]
    assert list(classes) == ["dark", "gray", "light"]
    for part in ("val", "test"):
        hits = []
        for file in sorted((photos / part).glob("*/*.png")):
            with torch.no_grad():
                logits = model(transform(Image.open(file))[None])
            hits.append(classes[int(logits.argmax())] == file.parent.name)
        assert tuned.results[part] == pytest.approx(100 * np.mean(hits))
    assert tuned.results["top1"] == tuned.results["test"] > 90 and tuned.results["n"] == 12


def test_an_untrained_model_of_a_release_that_is_no_recipe(tuned, monkeypatch):
    monkeypatch.setenv("TCL_ZOO_WEIGHTS", str(tuned.release))
    trained, untrained = (tcl_zoo.create_model("photos", pretrained=pretrained) for pretrained in (True, False))
    assert untrained.num_classes == 3 and untrained.pretrained_cfg["label_names"] == ["dark", "gray", "light"]
    assert not torch.equal(untrained.fc.weight, trained.fc.weight)


def test_info_of_a_release_of_ones_own(tuned, capsys):
    info = tcl_zoo.model_info("photos", weights_dir=tuned.release)
    assert info["results"]["n"] and info["weights"] == str(tuned.release)
    assert cli.main(["info", "photos", "--weights-dir", str(tuned.release)]) == 0
    assert f"{info['results']['top1']:.2f} %" in capsys.readouterr().out


def test_plain_timm_loads_the_folder(tuned):
    ours = tcl_zoo.create_model("photos", pretrained=True, weights_dir=tuned.release).eval()
    theirs = timm.create_model(f"local-dir:{tuned.release}", pretrained=True).eval()
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(ours(x), theirs(x))
    with pytest.warns(UncheckedWarning):
        again = tcl_zoo.create_model(f"local-dir:{tuned.release}", pretrained=True, num_classes=0).eval()
    assert again(x).shape == (2, 64)


def test_the_card_states_its_parent(tuned, released):
    from huggingface_hub import ModelCard

    parent = json.loads((released / PARENT / "config.json").read_text())["tcl_zoo"]["sha256"]
    card = ModelCard((tuned.release / "README.md").read_text())
    assert PARENT in card.text and parent in card.text and "test, looked at once" in card.text
    (result,) = card.data.eval_results
    assert result.metric_value == round(tuned.results["top1"], 2)
    config = json.loads((tuned.release / "config.json").read_text())
    assert config["tcl_zoo"]["parent"] == {"name": PARENT, "sha256": parent}
    assert card.data.base_model is None  # it is in no place that a Hub could show
    config["tcl_zoo"]["parent"]["hub"] = "org/parent"
    card = ModelCard(cards.card(config))
    assert card.data.base_model == "org/parent" and card.data.to_dict()["base_model_relation"] == "finetune"
    assert "`org/parent` on the Hub" in card.text and parent in card.text
    assert 'place = "hf-hub:org/photos"\n' in cards.card(config, repo_id="org/photos")
    config["architecture"] = "vit_tiny_patch16_224"  # not taken from a Hub here; timm takes it
    foreign = cards.card(config, repo_id="org/photos")
    assert 'timm.create_model("hf-hub:org/photos"' in foreign and "tcl_zoo.create_model" not in foreign


def test_where_a_parent_is_on_the_hub(released, tmp_path, monkeypatch):
    def facts(name: str, **values: Any) -> dict[str, Any]:
        return export.parent_facts(Plan(name, **values), None)

    assert facts("resnet18")["hub"] == facts("resnet18.a1_in1k")["hub"] == "timm/resnet18.a1_in1k"
    assert facts("resnet18", pretrained=False) == {"name": "resnet18", "pretrained": False}
    name, entry = "tcl_resnet20_digits", index.entries()["tcl_resnet20_digits"]
    monkeypatch.setitem(entry, "repo_id", "org/name")
    for word in (name, "resnet20_cifar.tcl_digits", str(ROOT / "model_cards" / name)):
        assert facts(word) == {"name": name, "sha256": entry["sha256"], "hub": "org/name"}
    other = tmp_path / "other"
    shutil.copytree(ROOT / "model_cards" / name, other)
    config = json.loads((other / "config.json").read_text())
    config["tcl_zoo"]["sha256"] = "0" * 64
    (other / "config.json").write_text(json.dumps(config))
    with pytest.warns(UncheckedWarning, match="other weights"):
        assert "hub" not in facts(str(other))  # of the same name, but not those weights
    monkeypatch.setattr(export, "locate", lambda *_, **__: SimpleNamespace(config=config, sha256="1" * 64))
    assert facts("hf-hub:someone/else@main")["hub"] == "someone/else"


def test_latest_within_a_standard_error_of_the_best_is_kept(photos, released, tmp_path, monkeypatch):
    """Top-1 of 12 images as told: 75 % has a standard error of 12.5, so 66.7 is as good, and 50 is not."""
    told, kept = iter([(50.0, 1.0), (75.0, 0.9), (66.7, 1.1), (50.0, 0.1)]), []

    def validate(self: Tuner) -> tuple[float, float]:
        kept.append({k: v.clone() for k, v in self.model.state_dict().items()})
        return next(told)

    monkeypatch.setattr(Tuner, "validate", validate)
    result = tune(photos, tmp_path / "run", released, epochs=4)
    assert result.results["last_epoch"] == 3
    weights = load_file(result.release / "model.safetensors")
    assert all(torch.equal(weights[key], kept[2][key]) for key in weights)
    assert not torch.equal(weights["fc.weight"], kept[3]["fc.weight"])


EVERYTHING = {"epochs": 4, "mixup": 0.4, "cutmix": 1.0, "ema": 0.9, "freeze": 2, "layer_decay": 0.7, "drop_path": 0.1}


def test_resume_is_bit_equal(photos, released, tmp_path, monkeypatch):
    """With everything that draws or averages switched on; stops in the middle of epochs and after them."""
    whole = tune(photos, tmp_path / "whole", released, **EVERYTHING)
    for looks in (0, 4, 3):
        with monkeypatch.context() as m:
            m.setattr(loop, "Stop", lambda _, looks=looks: StopAfter(looks))
            assert not tune(photos, tmp_path / "cut", released, **EVERYTHING).finished
        np.random.rand(3), torch.rand(3)  # whatever else the process draws must not matter
    cut = tune(photos, tmp_path / "cut", released, **EVERYTHING)
    for file in ("best.safetensors", "release/model.safetensors"):
        a, b = load_file(whole.run_dir / file), load_file(cut.run_dir / file)
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    lines = [[json.loads(t) for t in (r.run_dir / "metrics.jsonl").open()] for r in (whole, cut)]
    for line in [*lines[0], *lines[1]]:
        line.pop("seconds")
    assert lines[0] == lines[1] and len(lines[0]) == 4
    with pytest.raises(TrainingError, match=r"other values: lr \("):
        tune(photos, tmp_path / "cut", released, **EVERYTHING, lr=0.5)


def test_head_only_leaves_the_encoder_as_it_was(photos, released, tmp_path):
    before = load_file(released / PARENT / "model.safetensors")
    result = tune(photos, tmp_path / "run", released, freeze=-1)
    after = load_file(result.release / "model.safetensors")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"fc.weight", "fc.bias"}


def test_head_then_all(photos, released, tmp_path, monkeypatch):
    """Two epochs of the head alone, then everything, as seen after each epoch."""
    seen = []
    measure = Tuner.measure

    def look(self: Tuner) -> bool:
        seen.append({k: v.clone() for k, v in self.model.state_dict().items()})
        return measure(self)

    monkeypatch.setattr(Tuner, "measure", look)
    tune(photos, tmp_path / "run", released, epochs=4, freeze=2)
    before = load_file(released / PARENT / "model.safetensors")
    for epoch, state in enumerate(seen):
        same = all(torch.equal(state[key], before[key]) for key in before if not key.startswith("fc."))
        assert same == (epoch < 2)


def test_layer_decay_and_weight_decay_are_timms(photos, released, tmp_path, monkeypatch):
    groups: list[dict[str, Any]] = []
    step = Tuner.step

    def look(self: Tuner, *args: Any) -> Any:
        step(self, *args)
        names = {id(p): n for n, p in self.model.named_parameters()}
        for group in self.optimizer.param_groups:
            groups.extend({"name": names[id(p)], "lr": group["lr"], "wd": group["weight_decay"]}
                          for p in group["params"])  # fmt: skip
        raise KeyboardInterrupt

    monkeypatch.setattr(Tuner, "step", look)
    with pytest.raises(KeyboardInterrupt):
        tune(photos, tmp_path / "run", released, layer_decay=0.5, lr=0.1, warmup=0.0)
    by_name = {group["name"]: group for group in groups}
    assert by_name["fc.weight"]["lr"] == pytest.approx(0.1)
    assert by_name["layer3.2.conv2.weight"]["lr"] == pytest.approx(0.05)
    assert by_name["layer3.1.conv2.weight"]["lr"] == pytest.approx(0.025)
    assert by_name["conv1.weight"]["lr"] < 1e-3
    assert by_name["layer3.2.conv2.weight"]["wd"] == 0.05 and by_name["layer3.2.bn2.weight"]["wd"] == 0


def test_early_stopping(photos, released, tmp_path):
    """A learning rate of next to nothing improves nothing."""
    result = tune(photos, tmp_path / "run", released, epochs=50, lr=1e-12, smoothing=0.0, freeze=-1, patience=3,
                  measure=1)  # fmt: skip
    assert result.finished and result.epoch < 50
    again = tune(photos, tmp_path / "run", released, epochs=50, lr=1e-12, smoothing=0.0, freeze=-1, patience=3,
                 measure=1)  # fmt: skip
    assert again.epoch == result.epoch and again.results == result.results


def test_gray_encoder_on_colour_images_and_back(released, tmp_path):
    """timm's adaptation: a gray net on the colour copy of a gray image says the same as on the gray one."""
    write(tmp_path / "colour", ["a", "b"], 6)
    result = tune(tmp_path / "colour", tmp_path / "run", released, epochs=1, lr=1e-12, freeze=-1, size=8)
    ours = load_file(result.release / "model.safetensors")["conv1.weight"]
    parent = load_file(released / PARENT / "model.safetensors")["conv1.weight"]
    assert ours.shape[1] == 3
    torch.testing.assert_close(ours.sum(1, keepdim=True), parent)
    config = json.loads((result.release / "config.json").read_text())
    assert config["pretrained_cfg"]["mean"] == [0.3054] * 3 and config["model_args"] == {"in_chans": 3}
    write(tmp_path / "gray", ["a", "b"], 6, mode="L")
    back = finetune(str(result.release), tmp_path / "gray", tmp_path / "back", cpu=True, epochs=1, lr=1e-12, freeze=-1)
    torch.testing.assert_close(load_file(back.release / "model.safetensors")["conv1.weight"], parent)


def test_any_timm_model_at_another_size(photos, tmp_path):
    """A vision transformer: its position embeddings are resized, the folder says so, both ways of loading agree."""
    result = finetune(
        "test_vit", photos, tmp_path / "vit", cpu=True, epochs=1, batch_size=8, size=64, pretrained=False, workers=0
    )
    config = json.loads((result.release / "config.json").read_text())
    assert config["architecture"] == "test_vit" and config["model_args"] == {"in_chans": 1, "img_size": 64}
    ours = tcl_zoo.create_model("vit", pretrained=True, weights_dir=result.release).eval()
    theirs = timm.create_model(f"local-dir:{result.release}", pretrained=True).eval()
    x = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x))
    assert "random weights" in (result.release / "README.md").read_text()


def test_another_size_has_another_pool(released):
    """``pool_size`` is the map's at the size of training; without one it is worked out when the release is loaded."""
    model = tcl_zoo.create_model(PARENT, weights_dir=released)
    assert model.pretrained_cfg["pool_size"] == (2, 2) and fitted_cfg(model)["pool_size"] == (2, 2)
    assert "pool_size" not in fitted_cfg(model, size=16)


def test_data_set_by_name(tuned, released, tmp_path):
    """Known data: the test images are looked at, verify measures the folder again, and it could be published."""
    from tcl_zoo.publish import preview
    from tcl_zoo.verify import verify

    result = finetune(PARENT, None, tmp_path / "digits", dataset="digits", weights_dir=released, cpu=True, epochs=1,
                      per_class=5, freeze=-1)  # fmt: skip
    assert result.results["train_images"] == 40 and result.results["val_images"] == 10
    assert result.results["n"] == 360
    assert verify("digits", weights_dir=result.release).ok
    assert "digits" in preview(result.release, "org/digits", indexed=False)
    with pytest.raises(WeightsError, match="fine-tuned on a folder of images"):
        verify("photos", weights_dir=tuned.release)
    assert "org/photos" in preview(tuned.release, "org/photos", indexed=False)


# folders as people have them


def test_folder_without_splits_unicode_spaces_and_modes(released, tmp_path):
    folder = tmp_path / "mes photos é"
    write(folder, ["chien noir", "猫", "a'b\"c"], 5)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (8, 8), dtype=np.uint8)
    odd = folder / "猫"
    Image.fromarray(noise).convert("P").save(odd / "palette.png")
    Image.fromarray(np.dstack([noise] * 4)).save(odd / "alpha.png")
    Image.fromarray(np.dstack([noise] * 4), "CMYK").save(odd / "cmyk.tif")
    Image.fromarray(noise > 127).save(odd / "bits.png")
    Image.fromarray(noise.astype(np.uint16) * 257).save(odd / "sixteen bits.png")
    Image.fromarray(rng.integers(0, 256, (31, 9, 3), dtype=np.uint8)).save(odd / "tall.JPG")
    result = tune(folder, tmp_path / "run é x", released)
    assert result.results["train_images"] + result.results["val_images"] == 21
    assert result.results["top1"] == result.results["val"] and "test" not in result.results
    model = tcl_zoo.create_model("run é x", pretrained=True, weights_dir=result.release)
    assert list(model.pretrained_cfg["label_names"]) == sorted(["chien noir", "猫", "a'b\"c"])


def test_one_image_per_class_and_thousands_of_classes(released, tmp_path):
    """Nothing to validate on: the last epoch is kept, and the card says so."""
    write(tmp_path / "many", [f"class {k}" for k in range(1500)], 1)
    result = tune(tmp_path / "many", tmp_path / "run", released, epochs=1, batch_size=500)
    assert result.results["top1"] is None and result.results["train_images"] == 1500
    assert "Not measured" in (result.release / "README.md").read_text()
    assert tcl_zoo.create_model("run", pretrained=True, weights_dir=result.release).fc.out_features == 1500


def test_refused(photos, released, tmp_path):
    write(tmp_path / "one" / "train", ["only"], 3)
    with pytest.raises(DataError, match="one class only, 'only'"):
        tune(tmp_path / "one", tmp_path / "run", released)
    write(tmp_path / "more" / "train", ["a", "b"], 3)
    write(tmp_path / "more" / "val", ["a", "c"], 3)
    with pytest.raises(DataError, match="'c', which train has not"):
        tune(tmp_path / "more", tmp_path / "run", released)
    with pytest.raises(DataError, match="no class folders"):
        tune(tmp_path / "nowhere", tmp_path / "run", released)
    with pytest.raises(DataError, match="unknown data set 'cifar11'; did you mean cifar10"):
        tune(photos, tmp_path / "run", released, dataset="cifar11")
    with pytest.raises(TrainingError, match="smoothing is 2"):
        tune(photos, tmp_path / "run", released, smoothing=2)
    with pytest.raises(TrainingError, match="no such value"):
        tune(photos, tmp_path / "run", released, surprise=2)
    with pytest.raises(TrainingError, match="no optimizer 'adamww'"):
        tune(photos, tmp_path / "run", released, optimizer="adamww")
    with pytest.raises(TrainingError, match="adahessian needs gradients of gradients"):
        tune(photos, tmp_path / "run", released, optimizer="adahessian")
    with pytest.raises(TrainingError, match="lower learning rate"):
        tune(photos, tmp_path / "nan", released, lr=1e30, optimizer="sgd", warmup=0.0, epochs=5)
    with pytest.raises(RecipeError, match="did you mean"):
        finetune("tcl_resnet20_digitz", photos, tmp_path / "run", cpu=True)
    with pytest.raises(WeightsError, match="no released weights"):
        finetune("tcl_resnet50_cifar100", photos, tmp_path / "run", cpu=True)
    assert not (tmp_path / "run").exists()


def test_foreign_architecture_needs_a_parent(tuned, tmp_path):
    """A config.json that came from elsewhere may not name any model of timm's."""
    from tcl_zoo.weights import read_config

    config = json.loads((tuned.release / "config.json").read_text())
    config["architecture"] = "vit_huge_patch14_224"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_config(tmp_path)["architecture"] == "vit_huge_patch14_224"
    with pytest.raises(WeightsError, match="not of this zoo"):
        read_config(tmp_path, fetched=True)
    config["architecture"] = "hf-hub:evil/x"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="not of this zoo"):
        read_config(tmp_path)


def test_command(photos, released, tmp_path, capsys):
    args = ["finetune", PARENT, "--data-dir", str(photos), "--weights-dir", str(released), "--cpu"]
    args += ["--epochs", "1", "--batch-size", "12", "--size", "8", "--freeze", "all"]
    assert cli.main([*args, "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "of 12 test images" in out and str(tmp_path / "out" / "release") in out
    told = re.search(r'^load: tcl_zoo\.create_model\("(.+)", pretrained=True\)$', out, re.M)
    assert tcl_zoo.create_model(told[1], pretrained=True).num_classes == 3
    assert cli.main([*args, "--out", str(tmp_path / "cut"), "--time-limit", "0s"]) == 3
    assert cli.main([*args, "--out", str(tmp_path / "cut")]) == 0
    assert cli.main(["finetune", PARENT, "--cpu"]) == 2
    assert Plan(PARENT).freeze == 0


def test_two_processes(photos, released, tmp_path):
    """Two gloo processes, head first: as many steps, and about the losses of one process."""
    values = {"epochs": 3, "freeze": 1, "ema": 0.9}
    one = tune(photos, tmp_path / "one", released, **values)
    # Not accelerate's launcher: with --cpu it starts one process, whatever --num_processes says.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command += ["tcl_zoo.cli", "finetune", PARENT, "--data-dir", str(photos), "--weights-dir", str(released), "--cpu"]
    command += ["--batch-size", "12", "--size", "8", "--augmentation", "crop", "--out", str(tmp_path / "two")]
    command += [text for key, value in values.items() for text in (f"--{key}", str(value))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("test images") == 1
    ours, theirs = ([json.loads(t) for t in (d / "metrics.jsonl").open()] for d in (one.run_dir, tmp_path / "two"))
    for a, b in zip(ours, theirs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=0.05)  # later batch norm sees half a batch on each


@pytest.mark.parametrize("size", [8, 70])
def test_all_images_that_do_not_decode_are_told_at_once(released, tmp_path, size):
    """Those in memory before training, those read on the way when the first one is met."""
    write(tmp_path / "photos", ["dark", "light"], 4)
    for name in ("dark/a.png", "light/b.jpg", "light/c.png"):
        (tmp_path / "photos" / name).write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"dark/a\.png .*light/b\.jpg .*light/c\.png .*; replace or remove them$"):
        tune(tmp_path / "photos", tmp_path / "run", released, size=size)
