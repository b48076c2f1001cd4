"""Further seeds of a release: what its card and the tables say of them, and which runs are none."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
import scipy.stats

from tcl_zoo.amend import add_seeds
from tcl_zoo.cards import differences, seeds_of, side_by_side, zoo_table
from tcl_zoo.cli import guarded
from tcl_zoo.errors import TrainingError, WeightsError
from tcl_zoo.evaluate import evaluate_run
from tcl_zoo.recipes import recipe
from tcl_zoo.release import release
from tcl_zoo.train import train
from tcl_zoo.verify import verify
from tcl_zoo.weights import read_config

NAME = "tcl_resnet20_digits.e1"
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Seed 1, seed 2, and a run of seed 3 that held images out."""
    root = tmp_path_factory.mktemp("seeds")
    for seed, held in ((1, 0), (2, 0), (3, 200)):
        plan = dataclasses.replace(recipe(NAME), seed=seed)
        train(plan, run_dir=root / str(seed), cpu=True, hold_out=held)
        evaluate_run(root / str(seed), device="cpu")
    return root


@pytest.fixture
def folder(released, tmp_path):
    return Path(shutil.copytree(released / NAME, tmp_path / NAME))


def top1(folder):
    return json.loads((folder / "results.json").read_text())["top1"]


def test_the_card_and_the_table_know_of_them(runs, folder, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import publish

    arguments = ["publish.py", NAME, "--out", str(folder.parent), "--no-index", "--seeds", str(runs / "1")]
    monkeypatch.setattr(sys, "argv", [*arguments, str(runs / "2")])
    assert guarded(publish.main) == 0
    assert "the card knows of 3 seeds" in capsys.readouterr().out
    config = read_config(folder)
    values = [config["tcl_zoo"]["results"]["top1"], top1(runs / "1"), top1(runs / "2")]
    assert [run["top1"] for run in config["tcl_zoo"]["seeds"]] == pytest.approx(values[1:])
    low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    several = f"{(low + high) / 2:.2f} ± {(high - low) / 2:.2f}"
    text = (folder / "README.md").read_text()
    listed = ", ".join(f"{value:.2f}" for value in values)
    assert f"| all trainings | {several} (mean, 95 % interval over seeds) | 360 | 3, seeds 0, 1, 2: {listed} |" in text
    assert f"Over 3 seeds the recipe gives {several} %" in text and "One run with one seed" not in text
    assert f"| 3: {several} |" in zoo_table({NAME: config})
    assert add_seeds(folder, [runs / "2"], device="cpu") == 3, "the same seed again counts once"
    assert verify(NAME, weights_dir=folder, device="cpu").ok


def test_without_them_it_is_one_run(folder):
    config = read_config(folder)
    assert "all trainings" not in (folder / "README.md").read_text()
    assert "1 (seed 0)" in zoo_table({NAME: config}) and seeds_of(config["tcl_zoo"]) == "1 (seed 0)"


def test_other_runs_are_refused(runs, released, folder, tmp_path):
    before = (folder / "config.json").read_bytes()

    def refused(change, message, error=TrainingError):
        run = Path(shutil.copytree(runs / "1", tmp_path / "run"))
        change(run)
        with pytest.raises(error, match=message):
            add_seeds(folder, [runs / "2", run], device="cpu")
        shutil.rmtree(run)
        assert (folder / "config.json").read_bytes() == before

    def stored(part, **values):
        def change(run):
            content = json.loads((run / "recipe.json").read_text())
            content[part] |= values
            (run / "recipe.json").write_text(json.dumps(content))

        return change

    refused(stored("recipe", lr=0.05), "by more than the seed")
    refused(stored("settings", precision="bf16"), "by more than the seed")
    refused(stored("recipe", seed=0), "which is that of the release")
    refused(lambda run: (run / "results.json").unlink(), "is not evaluated")
    refused(
        lambda run: (run / "results.json").write_text('{"protocol": "linear probe, thesis"}'),
        "has no top-1 by linear",
    )
    refused(lambda run: (run / "classifier.safetensors").unlink(), "has no top-1 by linear")
    refused(stored("settings", hold_out="200"), "is damaged .hold_out is 200")
    refused(lambda run: (run / "encoder.safetensors").unlink(), "is not finished")
    with pytest.raises(TrainingError, match="by more than the seed"):
        add_seeds(folder, [runs / "3"], device="cpu")
    config = json.loads(before)
    config["tcl_zoo"]["fingerprints"]["test"] = "0" * 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="are not those of the card"):
        add_seeds(folder, [runs / "2"], device="cpu")


def test_objectives_are_compared_seed_by_seed(folder):
    def config(objective, own, *others):
        made = read_config(folder)
        made["tcl_zoo"]["recipe"]["objective"] = objective
        made["tcl_zoo"]["results"] |= {"top1": own, "seed": 0}
        made["tcl_zoo"]["seeds"] = [{"seed": seed, "top1": value} for seed, value in enumerate(others, 1)]
        return made

    tcl, supcon, ce = (90.1, 90.5, 91.0), (89.0, 89.7, 89.9), (90.0,)
    table = differences({"a": config("tcl", *tcl), "b": config("supcon", *supcon), "c": config("ce", *ce)})
    low, high = scipy.stats.ttest_rel(tcl, supcon).confidence_interval(0.95)
    line = f"| TCL | SupCon | {(low + high) / 2:+.2f} ± {(high - low) / 2:.2f} | 3 | above |"
    assert len(table) == 3 and table[2].endswith(line)
    assert differences({"a": config("tcl", 90.1), "c": config("ce", *ce)}) == []
    other = config("ce", *ce)
    other["tcl_zoo"]["results"]["seed"] = 7
    assert differences({"a": config("tcl", *tcl), "c": other}) == [], "no seed in common"
    same = differences({"a": config("tcl", *tcl), "b": config("supcon", *(value - 0.25 for value in tcl))})
    assert same[2].endswith("| +0.25 ± 0.00 | 3 | the same in every run: no interval |")
    apart = differences({"a": config("tcl_ssl", *tcl), "b": config("simclr", *supcon), "c": config("supcon", *supcon)})
    assert len(apart) == 3 and apart[2].endswith(f", without labels {line}".replace("SupCon", "SimCLR"))


def test_objectives_without_labels_have_a_table_of_their_own(folder):
    def config(objective, top1, variant=""):
        made = read_config(folder)
        made["tcl_zoo"]["recipe"] |= {"objective": objective, "variant": variant}
        made["tcl_zoo"] |= {"name": objective + variant, "results": made["tcl_zoo"]["results"] | {"top1": top1}}
        return made

    labelled = {"a": config("supcon", 90.0)}
    only = side_by_side(labelled, "in/")
    assert [line.count("|") for line in only] == [5, 5, 5] and "| - | [90.00](in/supcon/README.md) | - |" in only[2]
    both = side_by_side(labelled | {"b": config("byol", 80.0), "c": config("tcl_ssl", 81.0, "views2")})
    assert both[:3] == [line.replace("in/", "") for line in only]
    assert both[4:6] == ["| without labels | TCL | BYOL |", "|---|---|---|"]
    assert both[6].endswith("| - | [80.00](byol/README.md) |")
    assert both[7].endswith(", `.views2` | [81.00](tcl_sslviews2/README.md) | - |")


def test_what_cannot_be_compared_is_told_in_one_line(runs, folder):
    config = read_config(folder)
    for key, value in (
        ("environment", {}),
        ("fingerprints", {}),
        ("seeds", [{}]),
        ("results", {"top1": 1.0}),
        ("seeds", None),
    ):
        changed = config | {"tcl_zoo": config["tcl_zoo"] | {key: value}}
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(WeightsError, match="lacks what seeds are compared by"):
            add_seeds(folder, [runs / "1"], device="cpu")
    changed = config | {"tcl_zoo": config["tcl_zoo"] | {"parent": {"name": NAME}}}
    (folder / "config.json").write_text(json.dumps(changed))
    with pytest.raises(TrainingError, match="was fine-tuned"):
        add_seeds(folder, [runs / "1"], device="cpu")


def test_a_release_made_again_keeps_what_was_entered(runs, released, folder):
    add_seeds(folder, [runs / "1"], device="cpu")
    entered = read_config(folder)["tcl_zoo"]["seeds"]
    release(released.parent / "run", folder.parent, device="cpu")
    assert read_config(folder)["tcl_zoo"]["seeds"] == entered and "all trainings" in (folder / "README.md").read_text()
    config = read_config(folder)
    config["tcl_zoo"]["sha256"] = "0" * 64
    (folder / "config.json").write_text(json.dumps(config))
    release(released.parent / "run", folder.parent, device="cpu")
    assert "seeds" not in read_config(folder)["tcl_zoo"], "of other weights"
