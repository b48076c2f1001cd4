"""The transfer benchmark against scikit-learn on the same features, and what it draws."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tcl_zoo import cli
from tcl_zoo.datasets import load
from tcl_zoo.downstream import fit
from tcl_zoo.downstream_models import fitted_cfg, open_model, own_name
from tcl_zoo.errors import DataError, RecipeError, WeightsError
from tcl_zoo.features import features
from tcl_zoo.splits import Split, stratified
from tcl_zoo.transfer import Score, picture, read_csv, summarise, table, transfer, write_csv

NAME = "tcl_resnet20_digits"


def test_low_label_scores_are_scikit_learns():
    train, test = load("digits"), load("digits", split="test")
    model = open_model(NAME, num_classes=0)
    x, y = features(model, train).numpy(), features(model, test).numpy()
    scores = transfer([NAME], ["digits"], shots=(2, 5000, 0, 1437), seeds=2, device="cpu")  # as many as there are: all
    linear = [score for score in scores if score.classifier == "linear"]
    assert [(s.shots, s.seed) for s in linear] == [(2, 0), (2, 1), (0, 0)]
    assert [(s.train_images, s.test_images) for s in linear] == [(20, 360)] * 2 + [(1437, 360)]
    for score in linear:
        rows = stratified(train.labels, 2, score.seed)[1] if score.shots else torch.arange(len(train))
        scaler = StandardScaler().fit(x[rows])
        theirs = LogisticRegression(C=1.0, max_iter=3000, tol=1e-6).fit(scaler.transform(x[rows]), train.labels[rows])
        expected = 100 * theirs.score(scaler.transform(y), test.labels)
        assert score.top1 == pytest.approx(expected, abs=0.6)  # two images: where a tie falls


def test_draws():
    labels = torch.arange(7).repeat_interleave(torch.tensor([1, 2, 3, 10, 10, 10, 40]))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    smaller = set(stratified(labels, 2, 3)[1].tolist())
    kept, drawn = stratified(labels, 5, 3)
    assert smaller <= set(drawn.tolist()), "nested"
    assert sorted([*kept.tolist(), *drawn.tolist()]) == list(range(76))
    assert torch.bincount(labels[drawn]).tolist() == [1, 2, 3, 5, 5, 5, 5]
    assert set(stratified(labels, 2, 4)[1].tolist()) != smaller
    kept, held = stratified(labels, 0.2, 0)
    assert torch.bincount(labels[held], minlength=7).tolist() == [0, 1, 1, 2, 2, 2, 8]
    assert torch.equal(held, stratified(labels, 0.2, 0)[1]) and bool((kept.diff() > 0).all())


def test_several_encoders_on_several_sets(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for k, name in enumerate(("dark", "light")):
        (tmp_path / "my photos" / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(128 * k, 128 * k + 128, (12, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "my photos" / name / f"{i}.png")
    args = ["probe", NAME, "ce_resnet20_digits", "--dataset", "digits", str(tmp_path / "my photos")]
    args += ["--shots", "1", "3", "all", "--seeds", "2", "--knn", "5", "--device", "cpu"]
    args += ["--csv", str(tmp_path / "s.csv"), "--picture", str(tmp_path / "s.png"), "--test-images", "100"]
    assert cli.main(args) == 0
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert out.count("±") == 2 * 2 * 2 * 2 and "my photos: top-1" in out and "knn5" in out
    scores = read_csv(tmp_path / "s.csv")
    assert len(scores) == 2 * 2 * 2 * (2 + 2 + 1)
    assert table(summarise(scores)) in out
    folder = [s for s in scores if s.dataset == "my photos" and s.shots == 0]
    assert {(s.train_images, s.test_images) for s in folder} == {(12, 4)} and folder[0].top1 == 100
    with Image.open(tmp_path / "s.png") as image:
        assert image.width >= 800


def test_two_of_one_name_stay_apart(released, tmp_path):
    """Two runs in folders of one name, and two folders of images."""
    rng, paths = np.random.default_rng(0), []
    for place in ("a", "b"):
        shutil.copytree(released.parent / "run", tmp_path / place / "run")
        paths.append(str(tmp_path / place / "run"))
    for part in ("train", "test"):
        for label in ("dark", "light"):
            (tmp_path / "photos" / part / label).mkdir(parents=True)
            for i in range(5):
                pixels = rng.integers(0, 255, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / part / label / f"{i}.png")
    scores = transfer([*paths, paths[0]], [str(tmp_path / "photos")], shots=(0,), k=3, device="cpu")
    assert [s.model for s in scores] == [path for path in paths for _ in range(2)]
    assert {s.train_images for s in scores} == {10}, "nothing is held out where there are test images"


def test_size_reaches_models_with_position_embeddings():
    """A ViT is fitted to another size, one whose size is fixed says so; both would fail in their first layer."""
    model = open_model("vit_tiny_patch16_224", pretrained=False, num_classes=0).eval()
    assert fitted_cfg(model, 3, 64)["input_size"] == [3, 64, 64]
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 192)
    with pytest.raises(WeightsError, match=r"images of 224 pixels, not of 2 .*leave the size out"):
        fitted_cfg(open_model("vit_tiny_patch16_224", pretrained=False), size=2)
    fixed = torch.nn.Identity()
    fixed.pretrained_cfg = {
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
    }
    with pytest.raises(WeightsError, match="its size is fixed"):
        fitted_cfg(fixed, size=64)
    assert fitted_cfg(fixed, size=224)["input_size"] == [3, 224, 224]


def test_summary():
    scores = [Score("m", "d", "linear", 1, seed, top1, 10, 99) for seed, top1 in enumerate((10.0, 20.0, 60.0))]
    (line,) = summarise(scores)
    assert line.mean == pytest.approx(30) and line.std == pytest.approx(np.std([10, 20, 60], ddof=1))
    assert line.draws == 3 and line.test_images == 99


def test_written_and_read(tmp_path):
    scores = [Score("a, b", "mes é", "knn20", 0, 0, 12.3456, 10, 99)]
    write_csv(scores, tmp_path / "x.csv")
    assert read_csv(tmp_path / "x.csv") == scores
    picture(summarise([Score("m", "d", "linear", 0, 0, 50.0, 1, 1)]), tmp_path / "one.png")
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no table"):
        read_csv(tmp_path / "x.csv")


def test_sizes_and_channels():
    """Whatever the images are, the encoder gets them at its own size and in its own channels."""
    cases = (("resnet20_cifar", 28, 1), ("resnet20_cifar", 96, 3), (NAME, 32, 3), ("test_vit", 32, 1))
    for name, side, channels in cases:
        model = open_model(name, pretrained=name == NAME, num_classes=0)
        own = model.pretrained_cfg["input_size"]
        split = Split(torch.full((3, channels, side, side), 99, dtype=torch.uint8), torch.arange(3), tuple("abc"))
        seen = []
        forward = model.forward_features
        model.forward_features = lambda x, f=forward, s=seen: (s.append(tuple(x.shape)), f(x))[1]
        model.pretrained_cfg = fitted_cfg(model)
        features(model, fit(split, model.pretrained_cfg))
        assert seen == [(3, *own)]
    cfg = fitted_cfg(open_model("test_vit", pretrained=False), channels=1, size=64)
    assert cfg["input_size"] == [1, 64, 64] and len(cfg["mean"]) == 1


def test_models_of_every_kind(released, tmp_path):
    """By name, by path of a release or a run, of timm; with weights and without, one weights_dir for all."""
    name, run, folder = "tcl_resnet20_digits.e1", str(released.parent / "run"), str(released / "tcl_resnet20_digits.e1")
    x = torch.randn(2, 1, 8, 8)
    expected = open_model(name, weights_dir=released, num_classes=0).eval()(x)
    for place in (run, folder):
        torch.testing.assert_close(open_model(place, num_classes=0).eval()(x), expected)
        fresh = open_model(place, pretrained=False, num_classes=3)
        assert fresh(x).shape == (2, 3) and fresh.pretrained_cfg["input_size"] == [1, 8, 8]
    assert own_name(run) == "run" and own_name(folder) == name and own_name("resnet18") == "resnet18"
    other = open_model("resnet10t", pretrained=False, weights_dir=released, num_classes=0)
    assert other.pretrained_cfg["architecture"] == "resnet10t"
    (tmp_path / "resnet10t").symlink_to(folder)
    assert open_model(str(tmp_path / "resnet10t"), num_classes=0).eval()(x).allclose(expected)


def test_refused(tmp_path):
    with pytest.raises(DataError, match="neither a folder nor a known data set"):
        transfer([NAME], ["nothing"], tmp_path)
    with pytest.raises(DataError, match="at least"):
        transfer([NAME], ["digits"], seeds=0)
    with pytest.raises(RecipeError, match="did you mean"):
        transfer(["tcl_resnet20_digitz"], ["digits"])
    with pytest.raises(SystemExit, match="2"):  # before anything is measured
        cli.main(["probe", NAME, "--dataset", "digits", "--csv", str(tmp_path / "no" / "x.csv"), "--shots", "1"])
    with pytest.raises(WeightsError, match="resnet10t brings its own weights"):
        open_model("resnet10t", weights_dir=tmp_path)


def test_way_into_a_card(released, tmp_path):
    """From the table of the command to config.json and the card; another's lines stay out."""
    import json
    import shutil

    from tcl_zoo.amend import add_transfer

    shutil.copytree(released / "tcl_resnet20_digits.e1", tmp_path / "x")
    name = "tcl_resnet20_digits.e1"
    scores = [Score(name, "mnist", "linear", 5, seed, top1, 50, 9999) for seed, top1 in enumerate((40.0, 50.0))]
    scores += [
        Score(name, "mnist", "linear", 0, 0, 77.77, 60000, 9999),
        Score("other", "svhn", "linear", 0, 0, 1.0, 1, 1),
    ]
    write_csv(scores, tmp_path / "s.csv")
    assert add_transfer(tmp_path / "x", tmp_path / "s.csv") == 2
    card = (tmp_path / "x" / "README.md").read_text()
    assert "| mnist | linear | 45.0 ± 7.1 | 77.8 | 9,999 |" in card and "svhn" not in card
    seen = "The encoder itself was trained on all training images of digits."  # few labels are then few of many
    assert seen not in card
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert [row["shots"] for row in config["tcl_zoo"]["transfer"]] == [5, 0]
    write_csv([Score(name, "digits", "linear", 1, 0, 99.0, 10, 360)], tmp_path / "s.csv")
    assert add_transfer(tmp_path / "x", tmp_path / "s.csv") == 1
    assert seen in (tmp_path / "x" / "README.md").read_text()
    write_csv(scores[-1:], tmp_path / "s.csv")
    with pytest.raises(DataError, match="nothing on"):
        add_transfer(tmp_path / "x", tmp_path / "s.csv")
