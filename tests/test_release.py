"""From a run to a verified model: the release folder, loading it here and by plain timm, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import scipy.stats
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image

import tcl_zoo
from tcl_zoo import cli, index
from tcl_zoo._ssl_recipes import SELF_SUPERVISED, TITLES
from tcl_zoo.cards import card
from tcl_zoo.datasets import load, pretrained_cfg
from tcl_zoo.downstream_models import own_name
from tcl_zoo.errors import RecipeError, TrainingError, WeightsError
from tcl_zoo.evaluate import evaluate_run
from tcl_zoo.features import predict
from tcl_zoo.intervals import paired_interval, rate_interval
from tcl_zoo.pictures import confusion, embedding, training_curve
from tcl_zoo.pipeline import pipeline
from tcl_zoo.places import find
from tcl_zoo.release import record, release, update_index
from tcl_zoo.train import train
from tcl_zoo.verify import golden_inputs, verify
from tcl_zoo.weights import UncheckedWarning, locate

NAME = "tcl_resnet20_digits.e1"


@pytest.fixture
def copy(released, tmp_path):
    """A copy of the release that a test may damage."""
    shutil.copytree(released / NAME, tmp_path / NAME)
    return tmp_path


def edit(folder: Path, change) -> None:
    path = folder / NAME / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def test_release_folder(released):
    folder = released / NAME
    assert {p.name for p in folder.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "projector.safetensors", "training_curve.png", "confusion.png",
        "embedding.png",
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    facts = config["tcl_zoo"]
    assert facts["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert facts["fingerprints"]["test"] == load("digits", split="test").fingerprint()
    assert (facts["results"]["n"], facts["results"]["epochs"], facts["results"]["last_epoch"]) == (360, 1, 1)
    assert not [p for p in released.iterdir() if p.name.startswith(".part-")]
    for picture in folder.glob("*.png"):
        with Image.open(picture) as image:
            assert image.width >= 800


def test_card_is_valid_hub_metadata(released):
    written = ModelCard.load(released / NAME / "README.md")
    facts = json.loads((released / NAME / "config.json").read_text())["tcl_zoo"]
    assert (written.data.library_name, written.data.pipeline_tag, written.data.license) == (
        "timm", "image-classification", "apache-2.0"
    )  # fmt: skip
    assert (written.data.datasets, written.data.metrics) == (["digits"], ["accuracy"])
    assert written.data.to_dict()["base_recipe"] == NAME
    (result,) = written.data.eval_results
    assert result.metric_value == round(facts["results"]["top1"], 2)
    assert f"**{facts['results']['top1']:.2f}**" in written.text


def test_card_says_what_a_reader_asks(released):
    text = (released / NAME / "README.md").read_text()
    config = json.loads((released / NAME / "config.json").read_text())
    recipe = config["tcl_zoo"]["recipe"]
    for key in set(recipe) - {"name", "objective", "encoder", "dataset", "variant", "options", "probe_augmentation"}:
        assert f"| `{key}` | {recipe[key]} |" in text
    for picture in ("training_curve", "confusion", "embedding"):
        assert f"]({picture}.png)" in text
    assert f"scripts/train.py {NAME}" in text and config["tcl_zoo"]["sha256"] in text and "arXiv:2305.10675" in text
    assert "| the thesis | no figure for this setting" in text
    published = card(config, pictures=["confusion.png"], repo_id="me/mine")
    assert "hf-hub:me/mine" in published and "embedding.png" not in published


def test_card_has_the_options_that_made_the_weights(tmp_path):
    plan = dataclasses.replace(tcl_zoo.recipe("ce_resnet20_digits.e1"), seed=3)
    train(plan, run_dir=tmp_path / "run", gradient_accumulation_steps=2, cpu=True)
    evaluate_run(tmp_path / "run", device="cpu")
    folder = release(tmp_path / "run", tmp_path / "zoo", device="cpu")
    command = f"scripts/train.py {plan.name} --data-dir DATA --precision fp32 --set seed=3"
    assert f"{command} --gradient-accumulation-steps 2\n" in (folder / "README.md").read_text()
    config = json.loads((folder / "config.json").read_text())
    config["tcl_zoo"]["environment"] = {**config["tcl_zoo"]["environment"], "compile": True}
    assert f"{command} --gradient-accumulation-steps 2 --compile\n" in card(config)


def test_card_puts_the_thesis_beside(released):
    config = json.loads((released / NAME / "config.json").read_text())
    facts = config["tcl_zoo"]
    facts["name"] = "tcl_resnet50_cifar100"
    facts["recipe"] = tcl_zoo.recipe("tcl_resnet50_cifar100").to_dict()
    (row,) = [line for line in card(config).splitlines() if line.startswith("| the thesis")]
    assert "Table 5.1" in row and "| 79.8 |" in row and "50 epochs of SGD" in row
    assert "import tcl_zoo, timm" in card(config)
    assert "import timm  # alone" in card(config | {"architecture": "resnet18"})
    facts["name"], facts["recipe"] = "ce_resnet50_cifar10", tcl_zoo.recipe("ce_resnet50_cifar10").to_dict()
    (row,) = [line for line in card(config).splitlines() if line.startswith("| the thesis")]
    assert row.split(" | ")[4] == "500" and facts["recipe"]["epochs"] == 150  # SupContrast's figure is of its own


@pytest.mark.parametrize("objective", SELF_SUPERVISED)
def test_cards_of_self_supervised_names(released, objective):
    config = json.loads((released / NAME / "config.json").read_text())
    plan = tcl_zoo.recipe(f"{objective}_resnet18_cifar10")
    config["tcl_zoo"] |= {"name": plan.name, "recipe": json.loads(json.dumps(plan.to_dict()))}
    text = card(config)
    assert TITLES[objective] in text and "Table 5.2" in text and "100 epochs of SGD" in text
    for key, value in plan.options.items():
        assert f"| `options.{key}` | {value} |" in text
    assert ("| `k2` |" in text) == (objective in ("tcl_ssl", "simclr"))
    assert f"resnet20_cifar.{objective}_cifar10" in text  # the architecture is that of the borrowed config


def test_self_supervised_release(tmp_path):
    """Trained, probed, released, loaded and verified under its name, as the supervised ones; no teacher in it."""
    pytest.importorskip("lightly", reason="MoCo stands on lightly")
    name = "moco_resnet20_digits.e1"
    train(tcl_zoo.recipe(name), run_dir=tmp_path / "run", cpu=True)
    evaluate_run(tmp_path / "run", device="cpu")
    folder = release(tmp_path / "run", tmp_path / "cards", note="One epoch: a test.", device="cpu")
    assert "\nOne epoch: a test.\n" in (folder / "README.md").read_text()
    assert sorted(path.suffix for path in folder.iterdir()).count(".safetensors") == 2  # model and projector
    assert verify(name, weights_dir=tmp_path / "cards", device="cpu").ok
    encoder = tcl_zoo.create_model(name, pretrained=True, weights_dir=tmp_path / "cards", num_classes=0)
    assert encoder.eval()(torch.zeros(2, 1, 8, 8)).shape == (2, 64)
    assert name.partition(".")[0] in tcl_zoo.list_models("moco_*digits")


def test_code_on_the_card_runs(released, tmp_path, monkeypatch):
    """Every Python block, in one namespace and in order, but for what needs a Hub or a name of the index."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TCL_ZOO_WEIGHTS", str(released))
    Image.new("L", (8, 8)).save("image.png")
    text = (released / NAME / "README.md").read_text()
    names: dict[str, object] = {}
    blocks = [block.split("```")[0] for block in text.split("```python\n")[1:]]
    local = [block for block in blocks if "hf-hub:" not in block and "import timm" not in block]
    assert (len(blocks), len(local)) == (6, 3)
    for block in local:
        exec(block, names)
    assert names["class_index"].shape == (1,) and names["features"].shape == (1, 64)
    assert names["model"].num_classes == 37


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (351, 360), (360, 360), (7980, 10_000)])
def test_interval_is_wilsons(hits, n):
    from scipy.stats import binomtest

    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert rate_interval(100 * hits / n, n) == pytest.approx((100 * expected.low, 100 * expected.high))


@pytest.mark.parametrize(("first", "second", "n"), [(330, 309, 10_000), (0, 0, 360), (5, 0, 20), (0, 3, 7)])
def test_paired_interval_is_agrestis_and_mins(first, second, n):
    """Wald's interval of the mean difference, by numpy, over the images and half an image more in each cell."""
    cells, weights = [1, -1, 0, 0], [first + 0.5, second + 0.5, 0.5, n - first - second + 0.5]
    mean = np.average(cells, weights=weights)
    error = math.sqrt(np.average((cells - mean) ** 2, weights=weights) / (n + 2))
    difference, half = paired_interval(first, second, n)
    assert half == pytest.approx(100 * scipy.stats.norm.ppf(0.975) * error, rel=1e-6)
    assert difference == pytest.approx(100 * mean)


def test_against_counts_images_that_one_alone_has_right(released):
    checked = verify(NAME, weights_dir=released, device="cpu")
    assert checked.against(checked) == (0, 0)
    other = (checked.labels + 1) % 10  # all wrong, but for the first ten
    other[:10] = checked.labels[:10]
    right = checked.predictions == checked.labels
    expected = int(right[10:].sum()), int((~right[:10]).sum())
    assert checked.against(dataclasses.replace(checked, predictions=other)) == expected
    assert checked.against(dataclasses.replace(checked, fingerprint="of other images")) is None


def test_index_forgets_a_publication_of_something_else(released, copy, monkeypatch):
    monkeypatch.setattr(index, "INDEX_FILE", copy / "index.json")
    index.entries.cache_clear()
    try:
        entry = update_index(copy)[NAME]
        assert entry["sha256"] == hashlib.sha256((copy / NAME / "model.safetensors").read_bytes()).hexdigest()
        assert entry["config_sha256"] == hashlib.sha256((copy / NAME / "config.json").read_bytes()).hexdigest()
        record(NAME, "me/mine", "0" * 40)
        assert update_index(copy)[NAME]["repo_id"] == "me/mine"
        assert "hf-hub:me/mine" not in (copy / NAME / "README.md").read_text()
        update_index(copy, cards=True)
        assert "hf-hub:me/mine" in (copy / NAME / "README.md").read_text()
        edit(copy, lambda config: config["tcl_zoo"].update(seconds=0.0))
        assert update_index(copy)[NAME]["repo_id"] is None
        with pytest.raises(WeightsError, match="is not in"):
            record("tcl_resnet20_digits.e2", "me/mine", "0" * 40)
    finally:
        index.entries.cache_clear()


def test_index_keeps_names_that_are_elsewhere(copy, monkeypatch):
    """A release built into another folder enters the index; the names that are not in it lose nothing."""
    before = {**index.entries()}
    before["tcl_resnet20_digits"] = {**before["tcl_resnet20_digits"], "repo_id": "me/mine", "revision": "0" * 40}
    (copy / "index.json").write_text(json.dumps(before))
    monkeypatch.setattr(index, "INDEX_FILE", copy / "index.json")
    index.entries.cache_clear()
    try:
        assert list(update_index(copy)) == sorted([*before, NAME])
        assert {name: entry for name, entry in index.entries().items() if name != NAME} == before
        assert NAME in (copy / "README.md").read_text()
    finally:
        index.entries.cache_clear()


def test_index_takes_whole_releases_of_the_zoo_alone(copy, monkeypatch):
    """Neither what a killed release left, nor a fine-tuned model, nor a renamed folder; and never what is not read."""
    monkeypatch.setattr(index, "INDEX_FILE", copy / "index.json")
    index.entries.cache_clear()
    try:
        for other in (".part-abc123", "release", "tcl_resnet20_digits.e9"):
            shutil.copytree(copy / NAME, copy / other)
        config = json.loads((copy / "release" / "config.json").read_text())
        config["tcl_zoo"] |= {"name": "release", "parent": {"name": NAME, "sha256": "0" * 64}}
        (copy / "release" / "config.json").write_text(json.dumps(config))
        assert NAME in update_index(copy) and not {".part-abc123", "release", "tcl_resnet20_digits.e9"} & set(
            index.entries()
        )
        before = (copy / "index.json").read_bytes()
        with pytest.raises(WeightsError, match="left as it was"):
            record(NAME, "not a repository", "0" * 40)
        assert (copy / "index.json").read_bytes() == before
    finally:
        index.entries.cache_clear()


def test_publish_goes_by_the_checkout_from_any_folder(tmp_path):
    import subprocess
    import sys

    script = Path(__file__).resolve().parent.parent / "scripts" / "publish.py"
    args = [sys.executable, script, "tcl_resnet20_digits", "--dry-run"]
    done = subprocess.run(args, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "bytes in all" in done.stdout, done.stderr


@pytest.mark.parametrize(("classes", "n"), [(10, 60), (100, 3000)])
def test_pictures_are_drawn(tmp_path, classes, n):
    """Of ten classes and of a hundred, and of a curve with a single epoch: 800 pixels wide, not blank, nothing cut."""
    names = tuple(f"class {k}" for k in range(classes))
    labels = torch.arange(n) % classes
    title = "supcon_resnet101_imagenet100.supcontrast:"
    embedding(torch.randn(n, 16) + labels[:, None], labels, names, f"{title} features", tmp_path / "embedding.png")
    confusion(torch.eye(classes) * 5, names, f"{title} 10,000 test images", tmp_path / "confusion.png")
    training_curve([{"epoch": 0, "loss": 2.0, "lr": 0.1}], f"{title} training", tmp_path / "curve.png")
    for file in ("embedding", "confusion", "curve"):
        with Image.open(tmp_path / f"{file}.png") as image:
            colours = image.convert("RGB").getcolors(10**6)
            assert image.width == 800 and colours is not None and len(colours) > 50
            edges = (image.convert("L").crop((left, 0, left + 2, image.height)) for left in (0, 798))
            assert all(edge.getextrema() == (255, 255) for edge in edges), file


def test_load_and_verify(released):
    checked = verify(NAME, weights_dir=released, device="cpu")
    assert checked.ok and checked.same_data and checked.n == 360
    assert checked.measured == pytest.approx(checked.reported)
    assert checked.golden == pytest.approx(0, abs=1e-4)
    counts = checked.confusion()
    assert counts.sum() == 360 and counts.diagonal().sum() == checked.hits
    assert sum(n for _, n, _ in checked.per_class()) == 360


def test_independent_measurement(released):
    """Top-1 by nothing of ours but the weights: plain torch on sklearn's digits."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    _, images, _, labels = train_test_split(
        raw.images, raw.target, test_size=360, stratify=raw.target, random_state=0
    )  # fmt: skip
    model = timm.create_model("resnet20_cifar", num_classes=10, in_chans=1).eval()
    model.load_state_dict(safetensors.torch.load_file(released / NAME / "model.safetensors"))
    x = torch.from_numpy(np.rint(images * 255 / 16).astype("float32") / 255)[:, None]
    with torch.no_grad():
        top1 = 100 * (model((x - 0.3054) / 0.3760).argmax(1).numpy() == labels).mean()
    assert top1 == pytest.approx(verify(NAME, weights_dir=released).reported)


def test_what_does_not_fit_is_named(released, tmp_path):
    """What the caller asked for is not the weights' fault, and the tensor that does not fit is said."""
    for asked in ({"global_pool": "catavgmax"}, {"num_classes": 37, "checkpoint_path": str(tmp_path / "other.pth")}):
        torch.save(tcl_zoo.create_model(NAME).state_dict(), tmp_path / "other.pth")
        with pytest.raises(WeightsError) as caught:
            tcl_zoo.create_model(NAME, pretrained=True, weights_dir=released, **asked)
        named = re.search(r"with ([a-z_, ]+) cannot be built", str(caught.value))
        assert named and set(named[1].split(", ")) == set(asked) and "size mismatch for fc." in str(caught.value)
    with pytest.raises(TypeError, match="instances of 'str' and 'int'"):
        tcl_zoo.create_model(NAME, pretrained=True, weights_dir=released, num_classes="10")
    shutil.copytree(released / NAME, tmp_path / "odd")
    config = json.loads((tmp_path / "odd" / "config.json").read_text())
    config["model_args"]["img_size"] = 16
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="img_size"):  # not the caller's
        tcl_zoo.create_model(NAME, pretrained=True, weights_dir=tmp_path / "odd", num_classes=0)
    for pretrained in (True, False):
        with pytest.raises(RecipeError, match="pretrained_cfg_overlay"):
            tcl_zoo.create_model(NAME, pretrained, weights_dir=released, pretrained_cfg={"mean": (0,)})
    model = tcl_zoo.create_model(NAME, True, weights_dir=released, pretrained_cfg_overlay={"crop_pct": 0.5})
    assert model.pretrained_cfg["crop_pct"] == 0.5


def test_create_model_variants(released):
    full = tcl_zoo.create_model(NAME, pretrained=True, weights_dir=released).eval()
    encoder = tcl_zoo.create_model(NAME, pretrained=True, weights_dir=released / NAME, num_classes=0).eval()
    fresh = tcl_zoo.create_model(NAME, pretrained=True, weights_dir=released, num_classes=37).eval()
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(full.fc(encoder(x)), full(x))
        assert fresh(x).shape == (2, 37)
        torch.testing.assert_close(fresh.forward_features(x), full.forward_features(x))
        maps = tcl_zoo.create_model(NAME, pretrained=True, weights_dir=released, features_only=True).eval()(x)
        torch.testing.assert_close(maps[-1], full.forward_features(x))
        rgb = tcl_zoo.create_model(NAME, pretrained=True, weights_dir=released, in_chans=3).eval()
        assert rgb(torch.randn(2, 3, 8, 8)).shape == (2, 10)
    assert "state_dict" not in full.pretrained_cfg
    assert tcl_zoo.create_model("tcl_resnet50_cifar100", num_classes=0).num_features == 2048


def test_environment_variable(released, monkeypatch):
    monkeypatch.setenv("TCL_ZOO_WEIGHTS", str(released))
    assert locate(NAME).folder == released / NAME
    with pytest.raises(WeightsError, match="has no released weights"):
        locate("tcl_resnet50_cifar100")  # not there: the search goes on


def test_other_weights_under_a_released_name(tmp_path, monkeypatch, recwarn):
    """The index does not know them: they load, with a warning, or by their sha256 without one."""
    name = "tcl_resnet20_digits"
    shutil.copytree(index.bundled_folder(name), tmp_path / name)
    tcl_zoo.create_model(name, pretrained=True, weights_dir=tmp_path)
    assert not recwarn.list
    path = tmp_path / name / "model.safetensors"
    state = safetensors.torch.load_file(path)
    state["fc.bias"] += 1
    data = safetensors.torch.save(state, {"format": "pt"})
    path.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    config = json.loads((tmp_path / name / "config.json").read_text())
    config["tcl_zoo"] |= {"sha256": sha256, "bytes": len(data)}
    (tmp_path / name / "config.json").write_text(json.dumps(config))
    tcl_zoo.create_model(name, pretrained=True, weights_dir=tmp_path, sha256=sha256)
    assert not recwarn.list
    with pytest.warns(UncheckedWarning, match=f"other weights than those released as {name}.*{sha256}"):
        tcl_zoo.create_model(name, pretrained=True, weights_dir=tmp_path)
    monkeypatch.setenv("TCL_ZOO_WEIGHTS", str(tmp_path))
    with pytest.warns(UncheckedWarning, match="other weights"):
        timm.create_model("resnet20_cifar.tcl_digits", pretrained=True)


def test_other_labels_beside_released_weights(tmp_path, recwarn):
    """Nobody vouches for a config.json that the index does not know, whatever the weights are."""
    name = "tcl_resnet20_digits"
    shutil.copytree(index.bundled_folder(name), tmp_path / name)
    tcl_zoo.create_model(f"local-dir:{tmp_path / name}", pretrained=True)
    assert not recwarn.list
    config = json.loads((tmp_path / name / "config.json").read_text())
    config["pretrained_cfg"]["label_names"] = [f"not a {i}" for i in range(10)]
    (tmp_path / name / "config.json").write_text(json.dumps(config))
    for place in ({"name": name, "weights_dir": tmp_path}, {"name": str(tmp_path / name)}):
        for known in ({}, {"sha256": config["tcl_zoo"]["sha256"]}):  # which says nothing of the labels
            with pytest.warns(UncheckedWarning, match="another config.json than was released"):
                tcl_zoo.create_model(**place, pretrained=True, **known)
    with pytest.warns(UncheckedWarning, match="nobody vouches for its weights, labels and figures"):
        tcl_zoo.create_model(f"local-dir:{tmp_path / name}", pretrained=True)


def test_sha256_holds_in_every_way_in(released, tmp_path, recwarn):
    """Given, it is compared and nothing is warned of; another is refused."""
    place = f"local-dir:{released / NAME}"
    own = json.loads((released / NAME / "config.json").read_text())["tcl_zoo"]["sha256"]
    assert pipeline(place, sha256=own).labels
    assert not recwarn.list
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    assert len(tcl_zoo.predict(place, tmp_path / "a.png", sha256=own)) == 5
    photos = [str(tmp_path / "a.png"), "--out", str(tmp_path / "a.npz")]
    folders = ["--data-dir", str(tmp_path / "photos"), "--out", str(tmp_path / "run"), "--cpu", "--epochs", "1"]
    for kind in "ab":
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (8, 8), 40 * i).save(tmp_path / "photos" / kind / f"{i}.png")
    probed = ["--dataset", "digits"]
    for command, *more in (["predict", photos[0]], ["embed", *photos], ["finetune", *folders], ["probe", *probed]):
        assert cli.main([command, place, *more, "--sha256", "0" * 64]) != 0
        assert cli.main([command, place, *more, "--sha256", own]) == 0
    assert not [w for w in recwarn.list if issubclass(w.category, UncheckedWarning)]
    with pytest.raises(WeightsError, match="timm's, and not held to a sha256"):
        pipeline("test_resnet", pretrained=False, sha256=own)
    with pytest.raises(WeightsError, match="sha256='' is none"):
        pipeline("tcl_resnet20_digits", sha256="")
    with pytest.raises(SystemExit):
        cli.main(["verify", "tcl_resnet20_digits", "--sha256", ""])


def test_a_place_warns_once(released, recwarn):
    pipeline(f"local-dir:{released / NAME}")
    assert [w.category for w in recwarn.list] == [UncheckedWarning]


def test_a_folder_has_no_revisions(released):
    for place in ({"name": NAME, "weights_dir": released}, {"name": f"local-dir:{released / NAME}"}):
        with pytest.raises(WeightsError, match="a folder has no revisions"):
            tcl_zoo.create_model(**place, pretrained=True, revision="main")


def test_a_name_without_weights_says_which_have_some():
    unreleased = next(name for name in tcl_zoo.list_models("*_cifar10") if name not in index.entries())
    with pytest.raises(WeightsError, match="did you mean") as caught:
        locate(unreleased)
    assert all(name in str(caught.value).partition("released: ")[2] for name in index.entries())


@pytest.mark.parametrize("dataset", ["digits", "cifar100"])
def test_an_untrained_model_knows_its_images(dataset):
    name = f"tcl_resnet20_{dataset}"
    model = tcl_zoo.create_model(name, num_classes=0)
    for key in ("input_size", "mean", "std", "label_names"):
        assert list(model.pretrained_cfg[key]) == pretrained_cfg(dataset)[key]
    with pytest.raises(TypeError, match="nonsense"):
        tcl_zoo.create_model("tcl_resnet20_digits", True, nonsense=1)


def test_plain_timm_reads_the_folder(released):
    ours = tcl_zoo.create_model(NAME, pretrained=True, weights_dir=released).eval()
    theirs = timm.create_model(f"local-dir:{released / NAME}", pretrained=True).eval()
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
    assert theirs.pretrained_cfg["label_names"][3] == "3"


def test_transform_is_what_was_evaluated(released):
    test = load("digits", split="test")
    transform = tcl_zoo.create_transform(NAME, weights_dir=released)
    model = tcl_zoo.create_model(NAME, pretrained=True, weights_dir=released).eval()
    pictures = [Image.fromarray(test.images[i, 0].numpy()) for i in range(8)]
    batch = torch.stack([transform(p) for p in pictures])
    with torch.no_grad():
        torch.testing.assert_close(model(batch), predict(model, test)[:8], rtol=1e-4, atol=1e-4)
    colour = tcl_zoo.create_transform("tcl_resnet50_cifar100")
    assert colour(pictures[0]).shape == (3, 32, 32)


def test_golden_inputs_are_pinned():
    assert hashlib.sha256(golden_inputs(3, 32).numpy().tobytes()).hexdigest().startswith("b4a262216347db10")
    assert golden_inputs(1, 8).float().std() > 50


def test_model_info(released):
    info = tcl_zoo.model_info(NAME, weights_dir=released)
    assert info["results"]["n"] == 360 and info["recipe"]["epochs"] == 1
    assert tcl_zoo.model_info("tcl_resnet50_cifar100")["thesis"] == (79.8, "Table 5.1")


def test_unreleased_and_unknown_names():
    with pytest.raises(WeightsError, match=r"python scripts/train.py tcl_resnet50_cifar100 --data-dir"):
        tcl_zoo.create_model("tcl_resnet50_cifar100", pretrained=True)
    for pretrained in (True, False):
        with pytest.raises(RecipeError, match="did you mean"):
            tcl_zoo.create_model("tcl_resnet50_cifar1000", pretrained=pretrained)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "missing", "foreign"])
def test_damaged_weights(copy, damage):
    path = copy / NAME / "model.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "truncate":
        del data[-100:]
    elif damage == "empty":
        data.clear()
    elif damage == "foreign":
        data[:] = safetensors.torch.save({"x": torch.zeros(3)})
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data)
    with pytest.raises(WeightsError) as caught:
        tcl_zoo.create_model(NAME, pretrained=True, weights_dir=copy)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["foreign", "pickle", "garbage", "shapes"])
def test_wrong_content_with_the_right_hash(copy, content):
    """A release whose own config vouches for a file that is no weights of this architecture."""
    path = copy / NAME / "model.safetensors"
    state = safetensors.torch.load_file(path)
    if content == "foreign":
        path.write_bytes(safetensors.torch.save({"x": torch.zeros(3)}))
    elif content == "pickle":
        torch.save({"x": torch.zeros(3)}, path)
    elif content == "garbage":
        path.write_bytes(b"\xff" * 1000)
    else:
        path.write_bytes(safetensors.torch.save(state | {"conv1.weight": torch.zeros(99, 1, 3, 3)}))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit(copy, lambda config: config["tcl_zoo"].update(sha256=digest))
    with pytest.raises(WeightsError):
        tcl_zoo.create_model(NAME, pretrained=True, weights_dir=copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("architecture"), "lacks architecture"),
        (lambda c: c.pop("tcl_zoo"), "not of this zoo: timm.create_model loads it"),
        (lambda c: c["tcl_zoo"].pop("sha256"), "lacks sha256"),
        (lambda c: c["pretrained_cfg"].pop("mean"), "lacks mean"),
        (lambda c: c.update(num_classes="ten"), "lacks num_classes"),
        (lambda c: c.update(architecture="vit_base_patch16_224"), "not of this zoo"),
        (lambda c: c.update(model_args={"block": "os.system"}), "model_args this zoo does not use"),
        (lambda c: c["pretrained_cfg"].update(surprise=1), "keys this zoo does not use: surprise"),
        (lambda c: c["pretrained_cfg"].update(source="hf-hub", hf_hub_id="evil/x"), "hf_hub_id, source"),
        (lambda c: c["pretrained_cfg"].update(input_size=[1, 8, 10**9]), "has the input_size"),
        (lambda c: c["pretrained_cfg"].update(std=[0.0]), "has the std"),
        (lambda c: c["pretrained_cfg"].update(mean=[float("nan")]), "has the mean"),
        (lambda c: c.update(num_classes=10**12), "num_classes that no release has"),
        (lambda c: c["model_args"].update(in_chans=3), "in_chans or num_classes"),
        (lambda c: c["tcl_zoo"].update(name="tcl_resnet20_digits.e2"), "holds tcl_resnet20_digits.e2"),
    ],
)
def test_damaged_config(copy, change, message):
    edit(copy, change)
    with pytest.raises(WeightsError, match=message):
        tcl_zoo.create_model(NAME, pretrained=True, weights_dir=copy / NAME)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_config_that_is_no_config(copy, text):
    (copy / NAME / "config.json").write_text(text)
    with pytest.raises(WeightsError):
        tcl_zoo.create_model(NAME, pretrained=True, weights_dir=copy)


@pytest.mark.parametrize("wrong", ["top-1", "test images", "golden output"])
def test_verify_notices(copy, wrong):
    """A card that claims two images too many, other test images, or other golden logits: each alone."""
    assert verify(NAME, weights_dir=copy).ok
    if wrong == "top-1":
        edit(copy, lambda c: c["tcl_zoo"]["results"].update(top1=c["tcl_zoo"]["results"]["top1"] + 100 * 2 / 360))
    elif wrong == "test images":
        edit(copy, lambda c: c["tcl_zoo"]["fingerprints"].update(test="0" * 64))
    else:
        edit(copy, lambda c: c["tcl_zoo"]["golden"].update(logits=[[0.0] * 10] * 4))
    checked = verify(NAME, weights_dir=copy)
    assert not checked.ok
    assert (checked.same_data, checked.golden < 1e-3) == (wrong != "test images", wrong != "golden output")


def test_verify_needs_what_it_compares(copy):
    edit(copy, lambda c: c["tcl_zoo"].pop("golden"))
    with pytest.raises(WeightsError, match="lacks what verify compares"):
        verify(NAME, weights_dir=copy)


def test_release_refuses(released, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(released.parent / "run", run)
    stored = json.loads((run / "recipe.json").read_text())
    stored["recipe"]["lr"] = 0.2
    (run / "recipe.json").write_text(json.dumps(stored))
    with pytest.raises(TrainingError, match=r"not the recipe .*lr=0.2 \(recipe: 0.1\)"):
        release(run, tmp_path / "out")
    stored["recipe"]["lr"] = 0.1
    (run / "recipe.json").write_text(json.dumps(stored))
    metrics = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").unlink()
    with pytest.raises(TrainingError, match=r"metrics.jsonl is missing or cut: it has 0 of 1 epochs"):
        release(run, tmp_path / "out")
    (run / "metrics.jsonl").write_text(metrics)
    (run / "results.json").write_text("3")
    with pytest.raises(TrainingError, match="not evaluated"):
        release(run, tmp_path / "out")
    (run / "results.json").unlink()
    with pytest.raises(TrainingError, match="not evaluated"):
        release(run, tmp_path / "out")
    (run / "encoder.safetensors").unlink()
    with pytest.raises(TrainingError, match="not finished"):
        release(run, tmp_path / "out")
    with pytest.raises(TrainingError, match="not a run folder"):
        release(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_release_replaces_nothing_but_a_release(released, tmp_path):
    """`publish.py --run-dir runs/NAME --out runs` would have replaced the run by its release."""
    shutil.copytree(released.parent / "run", tmp_path / NAME)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TrainingError, match="is there and is no release, so it is not replaced"):
        release(tmp_path / NAME, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    for _ in range(2):
        assert release(tmp_path / NAME, tmp_path / "cards", device="cpu") == tmp_path / "cards" / NAME


def test_a_folder_is_what_it_holds(released, tmp_path, monkeypatch):
    """Not what it is called."""
    shutil.copytree(released / NAME, tmp_path / "tcl_resnet20_digits")
    with pytest.raises(WeightsError, match=rf"tcl_resnet20_digits holds {NAME}, not tcl_resnet20_digits"):
        tcl_zoo.create_model("tcl_resnet20_digits", pretrained=True, weights_dir=tmp_path)
    # A released name is one, whatever lies in the current folder.
    monkeypatch.chdir(tmp_path)
    assert find("tcl_resnet20_digits") == ("tcl_resnet20_digits", None, None)
    shutil.copytree(released.parent / "run", tmp_path / "ce_resnet20_digits")
    assert own_name("ce_resnet20_digits") == "ce_resnet20_digits"
    assert find("./ce_resnet20_digits").run is not None
    with pytest.raises(WeightsError, match="in this package alone, which has no revisions"):
        tcl_zoo.create_model("tcl_resnet20_digits", pretrained=True, revision="main")


def test_large_encoders_are_released_in_float16(tmp_path, monkeypatch, released):
    monkeypatch.setattr("tcl_zoo.release.HALF_ABOVE", 1000)
    folder = release(released.parent / "run", tmp_path, device="cpu")
    state = safetensors.torch.load_file(folder / "model.safetensors")
    assert state["conv1.weight"].dtype == torch.float16
    assert verify(NAME, weights_dir=tmp_path).ok
    model = tcl_zoo.create_model(NAME, pretrained=True, weights_dir=tmp_path)
    assert model.conv1.weight.dtype == torch.float32


def test_images_are_prepared_as_the_transform_does():
    from torchvision.transforms.v2.functional import to_pil_image

    from tcl_zoo.features import normaliser

    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    transform = tcl_zoo.create_transform("tcl_resnet20_cifar10")
    theirs = torch.stack([transform(to_pil_image(image)) for image in images])
    torch.testing.assert_close(normaliser(pretrained_cfg("cifar10"))(images), theirs, rtol=1e-5, atol=1e-5)
