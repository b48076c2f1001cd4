"""Tables and figures of the thesis: the grids, tiny runs of them on digits, and what is written of them."""

from __future__ import annotations

import csv
import dataclasses
import fcntl
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from stop_after import StopAfter

from tcl_zoo import train as train_module
from tcl_zoo.datasets import FolderSplit
from tcl_zoo.errors import RecipeError, TrainingError
from tcl_zoo.intervals import mean_interval, verdict
from tcl_zoo.progress import duration
from tcl_zoo.recipes import SELF_SUPERVISED, override, recipe
from tcl_zoo.reproduce.grids import GRIDS
from tcl_zoo.reproduce.overview import _unlearnt, write_overview
from tcl_zoo.reproduce.plan import Plan
from tcl_zoo.reproduce.results import measure, render, summary
from tcl_zoo.reproduce.runner import Store, checked_shard, rates, run_all, seconds_left, shard
from tcl_zoo.reproduce.scale import MIN_EPOCHS, Job, Scale, balanced, moved, scaled
from tcl_zoo.reproduce.small import small_scale

ROOT = Path(__file__).resolve().parent.parent
SUPERVISED = [name for name in GRIDS if name != "table-5.2"]
TINY = Scale(0.02, "resnet20", "digits")
ARGUMENTS = ["--scale", "0.02", "--encoder", "resnet20", "--dataset", "digits", "--cpu"]


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def command(capsys, monkeypatch, *arguments):
    """Exit code, stdout and stderr of scripts/reproduce.py, in this process."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import reproduce

    monkeypatch.setattr(sys, "argv", ["reproduce.py", *map(str, arguments)])
    from tcl_zoo.cli import guarded

    try:
        code = guarded(reproduce.main)
    except SystemExit as stop:
        code = stop.code
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two seeds of figure 5.5 on digits, six epochs of a few hundred images."""
    root = tmp_path_factory.mktemp("reproduce")
    store, plan = Store(root / "runs", root / "cards"), Plan.of(GRIDS["fig-5.5"], TINY, 2)
    assert run_all(plan.jobs(), store, None, cpu=True) == (True, [])
    return root, store, plan


# Figures of the thesis, typed from its tables.
THESIS = {
    ("table-5.1", "CIFAR-100 (R50)"): [75.3, 79.1, 79.8],
    ("table-5.1", "ImageNet-100 (R18)"): [84.2, 85.9, 86.7],
    ("table-a1", "FashionMNIST (R50)"): [95.5, 95.7],
    ("fig-5.1", "ImageNet-100, R34"): [86.5, 87.2],
    ("fig-5.6", "50000"): [71.8, 76.2],
    ("ci", "CIFAR-100 (R50)"): [74.79, 75.72],
    ("table-5.2", "Barlow Twins, 2048"): [89.6, 69.2, 78.6],
    ("table-5.2", "TCL, 256"): [91.8, 67.2, 78.4],
}


@pytest.mark.parametrize(("place", "figures"), THESIS.items())
def test_the_thesis_figures_stand_beside_ours(place, figures):
    assert [cell.thesis for cell in GRIDS[place[0]].cells if cell.row == place[1]] == figures


@pytest.mark.parametrize("name", SUPERVISED)
def test_every_supervised_cell_has_a_recipe_of_the_thesis(name):
    for cell in GRIDS[name].cells:
        job = scaled(cell, Scale())
        assert job.images is None and job.recipe.seed == 0
        assert job.recipe.name == cell.name and (cell.settings or job.recipe == recipe(cell.name))


def test_what_the_figures_vary():
    def values(name, field, series="TCL"):
        return [getattr(scaled(c, Scale()).recipe, field) for c in GRIDS[name].cells if c.series == series]

    assert values("fig-5.2", "batch_views") == [32, 64, 128, 256, 512, 1024]
    assert values("fig-5.3", "projector_dim") == [64, 128, 256, 512, 1024, 2048]
    assert values("fig-5.6", "k1", "k2 = 3.25") == [0, 10, 100, 1000, 5000, 50000]
    assert set(values("fig-5.6", "k2", "k2 = 1")) == {1.0} and set(values("fig-5.6", "k2", "k2 = 3.25")) == {3.25}
    assert values("fig-5.4", "epochs") == [100, 200] and values("table-a1", "epochs") == [200] * 4
    assert {job.recipe.batch_views for job in Plan.of(GRIDS["ci"], Scale()).jobs()} == {128}
    assert len(Plan.of(GRIDS["ci"], Scale()).jobs()) == 60


@pytest.mark.parametrize("name", GRIDS)
def test_what_a_cell_is_compared_with_exists_at_every_scale(name):
    for scale in (Scale(), Scale(0.1, "resnet20"), *([TINY] if GRIDS[name].moves else [])):
        grid = moved(GRIDS[name], scale)
        places = {(cell.row, cell.series) for cell in grid.cells}
        assert len(places) == len(grid.cells)
        assert all(cell.against in places for cell in grid.cells if cell.against)


def test_self_supervised_cells_without_a_recipe_are_reported(tmp_path):
    assert all(entry.job for entry in Plan.of(GRIDS["table-5.2"], Scale()).entries)
    plan = Plan.of(GRIDS["table-5.2"], Scale(1.0, "resnet20"))
    missing = [entry for entry in plan.entries if entry.job is None]
    assert missing and len(plan.entries) == 45
    assert all("not available yet" in entry.why for entry in missing)
    assert plan.listing(Store(tmp_path, tmp_path), plan.jobs()).count("not available yet") == len(missing)


@pytest.mark.parametrize("factor", [0.5, 0.1, 0.03, 0.002])
@pytest.mark.parametrize("name", ["table-5.1", "table-a1", "fig-5.4"])
def test_scale_is_the_share_of_the_steps(name, factor):
    for cell in GRIDS[name].cells:
        whole, part = scaled(cell, Scale()), scaled(cell, Scale(factor))
        share = part.recipe.epochs * part.used / (whole.recipe.epochs * whole.used)
        assert share == pytest.approx(factor, rel=0.03)
        assert part.images is None or part.recipe.epochs == (MIN_EPOCHS if part.recipe.needs_probe else 9)
        same = ("epochs", "name")
        changed = {k for k, v in part.recipe.to_dict().items() if whole.recipe.to_dict()[k] != v}
        assert changed <= set(same)


def test_the_settings_say_what_was_trained(tmp_path):
    """What a scaled run has of the thesis's cell, and its namesake among the recipes has not."""
    plan = Plan.of(GRIDS["fig-5.2"], Scale(0.003, "resnet20"))
    table = summary(plan, measure(plan, Store(tmp_path, tmp_path)))
    for row, entry in zip(table, plan.entries, strict=True):
        job = entry.job
        again = override(recipe(row["recipe"]), [text for text in row["settings"].split() if text])
        assert (again.batch_views, again.lr, again.k1) == (job.recipe.batch_views, job.recipe.lr, job.recipe.k1)


def test_another_encoder_keeps_what_the_figure_varies():
    jobs = Plan.of(GRIDS["fig-5.3"], Scale(0.1, "resnet20")).jobs()
    assert {job.recipe.architecture for job in jobs} == {"resnet20_cifar"}
    assert [job.recipe.projector_dim for job in jobs] == [n for n in (64, 128, 256, 512, 1024, 2048) for _ in range(2)]
    assert len({job.key for job in jobs}) == 12
    assert {cell.row for cell in moved(GRIDS["ci"], Scale(0.1, "resnet20")).cells} == {"CIFAR-100 (R20)"}
    assert [cell.row for cell in moved(GRIDS["fig-5.1"], Scale(0.1, "resnet20")).cells[:2]] == ["R20", "R20"]


@pytest.mark.parametrize("factor", [0.0, -1.0, 1.5, float("nan")])
def test_scales_out_of_range_are_refused(factor):
    with pytest.raises(RecipeError, match="--scale"):
        Plan.of(GRIDS["ci"], Scale(factor))


def test_a_data_set_brings_its_encoder():
    plan = Plan.of(GRIDS["ci"], Scale(0.02, dataset="digits"), 1)
    assert plan.stem == "ci_digits-resnet20-x0.02" and plan.grid.cells[0].row == "digits (R20)"
    assert plan.jobs()[1].recipe.k1 == 5000 and plan.jobs()[1].recipe.name == "tcl_resnet20_digits"


@pytest.mark.parametrize("dataset", ["cifar100", "imagenet100", "digits"])
def test_what_a_figure_varies_is_as_named_on_any_data_set(dataset):
    """Whose own recipe may have another k1."""
    for entry in Plan.of(GRIDS["fig-5.6"], Scale(0.1, dataset=dataset), 1).entries:
        assert f"{entry.job.recipe.k1:g}" == entry.cell.row and f"k2 = {entry.job.recipe.k2:g}" == entry.cell.series
    for entry in Plan.of(GRIDS["fig-5.8"], Scale(0.1, dataset=dataset), 1).entries:
        assert entry.cell.series == f"TCL, k1 = {entry.job.recipe.k1:g}, k2 = {entry.job.recipe.k2:g}"


def test_a_table_of_data_sets_keeps_them():
    with pytest.raises(RecipeError, match="stays with its data sets"):
        Plan.of(GRIDS["table-5.1"], TINY)


def test_subsets_are_balanced_and_always_the_same(digits):
    small = balanced(digits, 100)
    assert len(small) == 100 and len(small.images) == 100
    counts, whole = torch.bincount(small.labels), torch.bincount(digits.labels)
    assert (counts - 100 * whole / len(digits)).abs().max() <= 1
    again = balanced(digits, 100)
    assert torch.equal(small.images, again.images) and torch.equal(small.labels, again.labels)
    assert balanced(digits, 10_000) is digits


def test_a_streamed_folder_has_subsets_too(tmp_path):
    for name, colour in (("ant", 10), ("bee", 200)):
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.fromarray(np.full((8, 8, 3), colour + i, np.uint8)).save(tmp_path / name / f"{i}.png")
    whole = FolderSplit(tmp_path, size=8)
    small = balanced(whole, 4)
    assert len(small) == len(small.files) == 4 and len(whole) == 12
    assert [file.split("/")[0] for file in small.files] == ["ant", "ant", "bee", "bee"]
    assert small.labels.tolist() == [small[i][1] for i in range(4)] == [0, 0, 1, 1]


def test_intervals_are_scipys():
    values = [74.2, 75.1, 74.9, 75.6, 73.8]
    mean, half = mean_interval(values)
    low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert mean_interval([3.0]) == (3.0, None)
    assert [verdict(1.0, 0.5, 3), verdict(-1.0, 0.5, 3)] == ["above", "below"]
    assert "no difference" in verdict(0.4, 0.5, 3) and "no interval" in verdict(0.4, None, 1)


def test_shards_share_the_work_out():
    jobs = Plan.of(GRIDS["fig-5.6"], Scale(), 2).jobs()
    parts = [shard(jobs + jobs, i, 5) for i in range(1, 6)]
    assert sorted(job.key for part in parts for job in part) == sorted(job.key for job in jobs)
    assert checked_shard("2/3") == (2, 3)
    for text in ("0/3", "4/3", "2", "a/b", "-1/2", "1/"):
        with pytest.raises(TrainingError, match="i/n"):
            checked_shard(text)


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("name", ["ci", "fig-5.2", "table-5.1"])
def test_what_is_compared_seed_by_seed_is_of_one_shard(name, count):
    """Else TCL would come from one machine and SupCon from another, and their difference be that of the machines."""
    plan = Plan.of(GRIDS[name], Scale())
    parts = [{job.key for job in shard(plan.jobs(), i, count)} for i in range(1, count + 1)]
    jobs = {(entry.cell.row, entry.cell.series, entry.seed): entry.job.key for entry in plan.entries}
    for entry in plan.entries:
        if entry.cell.against:
            other = jobs[(*entry.cell.against, entry.seed)]
            assert any({entry.job.key, other} <= part for part in parts)


def test_a_recipe_of_two_names_is_trained_once():
    names = {cell.name for grid in ("table-5.1", "fig-5.1", "fig-5.2", "fig-5.3") for cell in GRIDS[grid].cells}
    values = {str(recipe(name).to_dict() | {"name": "", "variant": ""}) for name in names}
    assert len(values) == len(names)


def test_a_figure_on_digits_from_end_to_end(world, tmp_path, capsys, monkeypatch):
    root, store, plan = world
    arguments = ["fig-5.5", *ARGUMENTS, "--seeds", 2, "--runs-dir", store.runs, "--results-dir", tmp_path]
    weights = [store.folder(job) / "encoder.safetensors" for job in plan.jobs()]
    before = [file.stat().st_mtime_ns for file in weights]
    code, _, err = command(capsys, monkeypatch, *arguments, "--cards-dir", root / "cards")
    assert code == 0, err
    assert [file.stat().st_mtime_ns for file in weights] == before  # what is done is not done again
    table = rows(tmp_path / f"{plan.stem}.csv")
    for row, objective in zip(table, ("supcon", "tcl"), strict=True):
        measured, responses = [], []
        for seed in range(2):
            (folder,) = store.runs.glob(f"{objective}_*{'seed=1' if seed else 'epochs=6-images'}*")
            measured.append(json.loads((folder / "results.json").read_text())["top1"])
            lines = map(json.loads, (folder / "gradients.jsonl").read_text().splitlines())
            responses.append(np.mean([line["positives"] for line in lines]))
        assert float(row["ours"]) == pytest.approx(np.mean(measured), rel=1e-5)
        assert float(row["positives"]) == pytest.approx(np.mean(responses), rel=1e-5)
        assert (row["n"], row["status"], row["test_images"], row["epochs"]) == ("2", "done", "360", "6")
        assert (row["thesis"], row["difference"], row["scale"]) == ("", "", "digits-resnet20-x0.02")
    pair = {row["measure"]: row for row in rows(tmp_path / f"{plan.stem}.pairs.csv")}
    a, b = ([float(part.split(":")[1]) for part in row["top1_by_seed"].split()] for row in table)
    expected = scipy.stats.ttest_rel(b, a).confidence_interval(0.95)
    middle, half = float(pair["top1"]["difference"]), float(pair["top1"]["ci95"])
    assert (middle - half, middle + half) == pytest.approx(tuple(expected), abs=1e-3)
    curve = rows(tmp_path / f"{plan.stem}.curves.csv")
    assert {row["series"] for row in curve} == {"SupCon", "TCL, k1 = 5000, k2 = 1"}
    assert [int(row["step"]) for row in curve[:3]] == [0, 1, 2]
    page = (tmp_path / f"{plan.stem}.md").read_text()
    assert (
        "SCALED: 0.02 of the training steps, resnet20 on digits, 6 epochs of" in page and f"({plan.stem}.png)" in page
    )
    assert (tmp_path / f"{plan.stem}.png").stat().st_size > 10_000


def test_the_first_step_of_supcon_and_tcl_differs_by_the_loss_alone(world):
    """The same seed: the same weights and views. TCL's positives pull harder there (Theorem 1 holds for hard ones)."""
    _, store, plan = world
    first = {}
    for job in plan.jobs()[:2]:
        line = (store.folder(job) / "gradients.jsonl").read_text().splitlines()[0]
        first[job.recipe.objective] = json.loads(line)
    assert first["tcl"]["positives"] > first["supcon"]["positives"]


def test_top1_figures_are_drawn_too(world, tmp_path, capsys, monkeypatch):
    _, store, _ = world
    for name in ("ci", "fig-5.6"):
        arguments = [name, *ARGUMENTS, "--seeds", 2, "--runs-dir", store.runs, "--results-dir", tmp_path, "--render"]
        assert command(capsys, monkeypatch, *arguments)[0] == 0
        assert (tmp_path / f"{name}_digits-resnet20-x0.02.png").stat().st_size > 10_000
    done = [row for row in rows(tmp_path / "fig-5.6_digits-resnet20-x0.02.csv") if row["status"] == "done"]
    assert [(row["row"], row["series"]) for row in done] == [("0", "k2 = 1"), ("5000", "k2 = 1")]


def test_a_figure_of_a_single_point_is_drawn(world, tmp_path):
    """What there is after the first run of a sweep: its only place on the axis is 0."""
    _, store, plan = world
    shutil.copytree(store.folder(plan.jobs()[0]), tmp_path / "runs" / plan.jobs()[0].key)
    files = render(Plan.of(GRIDS["fig-5.6"], TINY), Store(tmp_path / "runs", tmp_path), tmp_path)
    assert files[1].suffix == ".png" and files[1].stat().st_size > 10_000


def test_a_failed_cell_is_reported_and_does_not_stop_the_others(tmp_path, capsys, monkeypatch, world):
    _, store, plan = world
    runs = tmp_path / "runs"
    shutil.copytree(store.runs, runs)
    ours = Store(runs, tmp_path)
    broken = Job(recipe("tcl_resnet20_cifar10"))
    (tmp_path / "empty").mkdir()
    shutil.rmtree(ours.folder(plan.jobs()[0]))
    reached, notes = run_all([broken, plan.jobs()[0]], ours, str(tmp_path / "empty"), cpu=True)
    assert reached and len(notes) == 1 and "cifar10 not found" in notes[0]
    assert ours.state(plan.jobs()[0]).status == "done"
    assert ours.state(broken).status == "failed" and "cifar10 not found" in ours.state(broken).message
    arguments = ["ci", "--data-dir", tmp_path / "empty", "--scale", "0.001", "--encoder", "resnet20", "--seeds", 1]
    arguments += ["--runs-dir", runs, "--results-dir", tmp_path / "results", "--cpu"]
    code, _, err = command(capsys, monkeypatch, *arguments)
    assert code == 1 and err.count("not done: ") == 2
    table = rows(tmp_path / "results" / "ci_resnet20-x0.001.csv")
    assert all("1 failed: cifar100 not found" in row["status"] for row in table)
    assert "1 failed: cifar100 not found" in (tmp_path / "results" / "ci_resnet20-x0.001.md").read_text()
    ours.failed(broken, None)
    assert ours.state(broken).status == "to do"


def test_a_stopped_run_goes_on_and_the_list_says_how_far_it_is(tmp_path, world, capsys, monkeypatch):
    _, _, plan = world
    store, job = Store(tmp_path / "runs", tmp_path / "cards"), plan.jobs()[0]
    arguments = ["fig-5.5", *ARGUMENTS, "--runs-dir", store.runs, "--results-dir", tmp_path, "--time-limit", "0s"]
    code, out, _ = command(capsys, monkeypatch, *arguments)
    assert code == 3 and "the same command goes on" in out
    assert store.state(job).status == "to do"
    real = train_module._epochs  # stopped in its third epoch, as by a signal
    monkeypatch.setattr(train_module, "_epochs", lambda t, r, s: real(t, r, StopAfter(9)))
    assert run_all([job], store, None, cpu=True) == (False, [])
    monkeypatch.setattr(train_module, "_epochs", real)
    assert store.state(job).status == "part" and store.state(job).views == 2 * 4 * 128
    assert "\n  33 %" in plan.listing(store, plan.jobs())
    assert run_all([job], store, None, cpu=True) == (True, [])
    line = plan.listing(store, plan.jobs()).splitlines()
    assert "1 of 4 runs done" in line[-1] and "SupCon, seed 0" in line[1] and " % " in line[1]
    assert "unknown pace" not in line[-1]  # the others are like the one that is done


def test_a_run_that_another_process_holds_is_left_to_it(tmp_path, world, capsys):
    _, original, plan = world
    shutil.copytree(original.runs, tmp_path / "runs")
    store, job = Store(tmp_path / "runs", tmp_path), plan.jobs()[0]
    (store.folder(job) / "results.json").unlink()
    with (store.folder(job) / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run_all(plan.jobs(), store, None, cpu=True) == (False, [])
        assert "another process" in capsys.readouterr().out
    assert run_all(plan.jobs(), store, None, cpu=True) == (True, [])


def test_what_is_rendered_of_nothing_is_the_theses(tmp_path):
    assert Plan.found(GRIDS["ci"], Scale(), Store(tmp_path, tmp_path)).seeds == 30


def test_the_estimate_comes_from_the_first_epochs(tmp_path):
    store, plan = Store(tmp_path, tmp_path), Plan.of(GRIDS["ci"], Scale(0.1, "resnet20"), 1)
    ours, other = plan.jobs()
    assert seconds_left(ours, store.state(ours), rates(store)) is None
    store.folder(ours).mkdir()
    (store.folder(ours) / "recipe.json").write_text(json.dumps({"recipe": ours.recipe.to_dict(), "settings": {}}))
    line = {"epoch": 1, "seconds": 50.0, "views": ours.views // 5}
    (store.folder(ours) / "metrics.jsonl").write_text(json.dumps(line) + "\n" + '{"epoch": 2, "sec')  # cut by a kill
    assert seconds_left(ours, store.state(ours), rates(store)) == pytest.approx(200, rel=1e-3)
    assert seconds_left(other, store.state(other), rates(store)) == pytest.approx(250, rel=1e-3)
    slower = dataclasses.replace(other, recipe=recipe("tcl_resnet50_cifar100"))
    assert seconds_left(slower, store.state(slower), rates(store)) is None
    assert "20 %" in plan.listing(store, plan.jobs()) or "19 %" in plan.listing(store, plan.jobs())


def test_a_released_model_counts_as_its_run(tmp_path):
    store, job = Store(tmp_path, ROOT / "model_cards"), Job(recipe("tcl_resnet20_digits"))
    card = json.loads((ROOT / "model_cards/tcl_resnet20_digits/config.json").read_text())["tcl_zoo"]
    state = store.state(job)
    assert (state.status, state.top1, state.n) == ("done", card["results"]["top1"], card["results"]["n"])
    for other in (dataclasses.replace(job.recipe, seed=1), dataclasses.replace(job.recipe, k1=10.0)):
        assert store.state(Job(other)).status == "to do"
    assert store.state(Job(job.recipe, 100)).status == "to do"


def test_a_run_of_other_settings_is_no_result(world, tmp_path):
    """What `train.py NAME --set lr=0.2` leaves under the name of the thesis's own run."""
    _, store, plan = world
    ours, job = Store(tmp_path, tmp_path / "cards"), plan.jobs()[0]
    shutil.copytree(store.folder(job), ours.folder(job))
    assert ours.state(job).status == "done"
    file = ours.folder(job) / "recipe.json"
    stored = json.loads(file.read_text())
    stored["recipe"]["lr"] = 0.2
    file.write_text(json.dumps(stored))
    state = ours.state(job)
    assert (state.status, state.top1) == ("failed", None) and state.message.endswith("other settings: lr 0.2")
    assert run_all([job], ours, None, cpu=True)[1]


def test_another_protocol_is_measured_again(world, tmp_path):
    _, store, plan = world
    job = plan.jobs()[0]
    assert store.measured(job, "cached") and not store.measured(job, "thesis")
    released = Job(recipe("ce_resnet20_digits"))
    cards = Store(tmp_path, ROOT / "model_cards")
    assert cards.measured(released, "thesis")  # its own classifier
    probed = Job(recipe("tcl_resnet20_digits"))
    assert cards.measured(probed, "cached") and not cards.measured(probed, "thesis")


def test_a_gradient_figure_says_which_run_has_no_log(world, tmp_path):
    _, store, plan = world
    shutil.copytree(store.runs, tmp_path / "runs")
    ours = Store(tmp_path / "runs", tmp_path)
    (ours.folder(plan.jobs()[1]) / "gradients.jsonl").unlink()
    table = rows(render(plan, ours, tmp_path)[0])
    assert [row["status"] for row in table] == ["done", "done; seed 0 trained without a log of its gradients"]


def test_rendering_takes_the_seeds_that_are_there_and_keeps_more(world, tmp_path, capsys, monkeypatch):
    _, store, plan = world
    arguments = ["fig-5.5", *ARGUMENTS, "--results-dir", tmp_path, "--cards-dir", tmp_path, "--render"]
    table = tmp_path / f"{plan.stem}.csv"
    assert command(capsys, monkeypatch, *arguments, "--runs-dir", store.runs)[0] == 0
    assert [row["n"] for row in rows(table)] == ["2", "2"]
    assert "--seeds 2" in (tmp_path / f"{plan.stem}.md").read_text()
    before = {file: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    code, out, _ = command(capsys, monkeypatch, *arguments, "--runs-dir", tmp_path / "none")
    assert code == 0 and "--overwrite" in out and all(file.read_bytes() == text for file, text in before.items())
    assert command(capsys, monkeypatch, *arguments, "--runs-dir", tmp_path / "none", "--overwrite")[0] == 0
    assert [row["n"] for row in rows(table)] == ["0", "0"]


def test_a_missing_seed_does_not_hide_those_after_it(world, tmp_path):
    _, store, plan = world
    for entry in plan.entries:
        if entry.seed == 1:
            shutil.copytree(store.folder(entry.job), tmp_path / entry.job.key)
    found = Plan.found(GRIDS["fig-5.5"], plan.scale, Store(tmp_path, tmp_path / "none"))
    assert found.seeds == 2
    assert [(len(item.values["top1"]), item.status) for item in measure(found, Store(tmp_path, tmp_path))] == [
        (1, "1 of 2 done"), (1, "1 of 2 done"),
    ]  # fmt: skip


def test_cells_below_an_untrained_network_are_named(tmp_path):
    results, benchmarks = tmp_path / "results", tmp_path / "benchmarks"
    results.mkdir(), benchmarks.mkdir()
    (benchmarks / "ssl_digits.csv").write_text("method,linear,encoder\nsimclr,98,resnet20\nrandom encoder,85.56,\n")
    table = "row,series,ours,ci95,n\n,SupCon,91.0,1,3\n,TCL,79.7,5.8,3\n,near,84,1.6,3\n,one,70,,1\n,other,,,0\n"
    for name in (*(f"fig-5.7_{kind}-x0.05" for kind in ("digits-resnet20", "cifar10-resnet20", "digits-resnet18")),):
        (results / f"{name}.csv").write_text(table)
    assert _unlearnt(results)[2:-1] == ["- fig-5.7_digits-resnet20-x0.05, untrained 85.56: TCL (79.70 ± 5.80)"]


def test_the_overview_has_everything(world, tmp_path, capsys, monkeypatch):
    _, store, plan = world
    results = tmp_path / "results"
    arguments = ["fig-5.5", *ARGUMENTS, "--seeds", 2, "--runs-dir", store.runs, "--results-dir", results, "--render"]
    assert command(capsys, monkeypatch, *arguments)[0] == 0
    text = write_overview(results, ROOT / "model_cards", tmp_path / "RESULTS.md").read_text()
    assert all(f"\n## {name}\n" in text for name in GRIDS)
    assert f"](results/{plan.stem}.png)" in text and (results / f"{plan.stem}.png").is_file()
    link = re.search(r"\| \[tcl_resnet20_digits\]\((\S+)\) \| - \| 100\.00 \|", text)
    assert (tmp_path / link[1]).resolve() == ROOT / "model_cards" / "tcl_resnet20_digits" / "README.md"
    assert "digits-resnet20-x0.02: 2 of 2 cells" in text
    said = text.partition("## What the intervals say")[2].partition("\n## ")[0]
    assert said.count(f"| {plan.stem} |") == 3 and "top-1" in said
    for name, row in {
        "tcl_resnet50_cifar100": "79.8 | Table 5.1 | 10 M views of ResNet-50: waits for a GPU",
        "tcl_resnet20_cifar10": "- | - | 10 M views of ResNet-20: hours of a small CPU",
        "supcon_resnet20_cifar100": "- | - | 10 M views of ResNet-20: hours of a small CPU",
    }.items():
        assert (f"\n| {name} | {row}" in text) != (f"\n| [{name}](" in text)
    assert text.count("not run yet") >= len(GRIDS) - 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fig-9"], "invalid choice"),
        (["ci", "--scale", "2"], "--scale"),
        (["ci", "--shard", "3/2"], "--shard"),
        (["ci", "--seeds", "0"], "--seeds"),
        (["ci", "--list", "--render"], "--list"),
        (["table-5.1", "--dataset", "digits"], "stays with its data sets"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(arguments, message, capsys, monkeypatch):
    code, _, err = command(capsys, monkeypatch, *arguments)
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1


def test_durations():
    assert [duration(s) for s in (40, 300, 20_000, 300_000)] == ["40 s", "5 min", "5.6 h", "3.5 days"]


def test_the_small_scale_stands_beside_the_thesis(tmp_path):
    """From what the benchmark wrote; a folder without it adds nothing."""
    (tmp_path / "benchmarks").mkdir()
    columns = "method,linear,few,knn20,seconds_per_epoch,cpu_seconds,peak_mb,gain,"
    columns += "encoder,side,epochs,train_images,batch_images,augmentation,test_images\n"
    end = "resnet20,8,7,1437,128,simaugment_mild,360\n"
    text = f'{columns}random encoder,85.5,66,73,{"," * 10}\n"tcl_ssl, 4 views",97.25,90,95,1.5,60,128,11.75,{end}'
    text += f"swav,80.5,60,70,1,40,99,-5,{end}"
    plan, store = Plan.of(GRIDS["table-5.2"], Scale()), Store(tmp_path / "runs", tmp_path / "cards")
    without = render(plan, store, tmp_path / "results")[-1].read_text()
    (tmp_path / "benchmarks" / "ssl_digits.csv").write_text(text)
    page = render(plan, store, tmp_path / "results")[-1].read_text()
    assert "SMALL SCALE" not in without and page.startswith(without)
    assert "SMALL SCALE: resnet20 on digits at 8 px, 7 epochs of 1,437 images, 128 a step" in page
    assert "one is 0.28 points" in page
    assert "| random encoder | - | - | - | 85.50 | - | 66.00 | 73.00 | - | - | - |" in page
    assert "| tcl_ssl, 4 views | - | - | - | 97.25 | +11.75 | 90.00 | 95.00 | 1.50 | 60 | 128 |" in page
    assert "| swav | 89.2 | 64.7 | 74.3 | 80.50 | -5.00 |" in page
    overview = write_overview(tmp_path / "results", ROOT / "model_cards", tmp_path / "RESULTS.md").read_text()
    assert overview.index("\n## table-5.2\n") < overview.index("SMALL SCALE") and "| 97.25 | +11.75 |" in overview


def test_the_committed_small_scale_has_every_method():
    lines = small_scale(ROOT / "benchmarks")
    named = {line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("|")}
    assert {"tcl_ssl, 2 views", "tcl_ssl, 3 views", "tcl_ssl, 4 views", *SELF_SUPERVISED} - named == {"tcl_ssl"}


@pytest.mark.parametrize("factor", [1.0, 0.5, 0.05, 0.001])
@pytest.mark.parametrize("encoder", ["", "resnet20"])
def test_self_supervised_runs_scale(factor, encoder):
    """Every cell that the encoder has is there; warm-ups end early; names fit a file system."""
    entries = Plan.of(GRIDS["table-5.2"], Scale(factor, encoder)).entries
    # resnet20 has no recipe for ImageNet-100, and no second size of projector.
    missing = [e.cell.name for e in entries if e.job is None]
    assert all(encoder and (name.endswith(".p256") or "imagenet100" in name) for name in missing), missing
    assert len(entries) - len(missing) >= 20
    for job in (entry.job for entry in entries if entry.job):
        assert len(f"{job.key}.failed".encode()) < 200, job.key
        warm = [v for k, v in job.recipe.options.items() if k.endswith("_epochs")]
        assert job.recipe.warmup_epochs <= job.recipe.epochs / 10 or factor == 1
        assert max(warm, default=0) <= job.recipe.epochs / 4, (job.key, warm)
