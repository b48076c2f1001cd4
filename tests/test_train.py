"""Training: exact resume, what a run folder holds, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from stop_after import StopAfter

from tcl_zoo import evaluate, sessions
from tcl_zoo import train as train_module
from tcl_zoo.augment import MultiCrop
from tcl_zoo.batches import Batches
from tcl_zoo.datasets import DATASETS, FolderSplit, Split, holdout, load, pretrained_cfg
from tcl_zoo.errors import RecipeError, TrainingError
from tcl_zoo.features import normaliser, predict
from tcl_zoo.recipes import recipe
from tcl_zoo.release import release
from tcl_zoo.runs import load_run
from tcl_zoo.train import train
from tcl_zoo.trainer import Trainer

DIGITS, IMAGENET = (normaliser(pretrained_cfg(name), resize=False) for name in ("digits", "imagenet100"))


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": value
        for name in ("encoder", "projector", "classifier")
        if (run_dir / f"{name}.safetensors").is_file()
        for key, value in load_file(run_dir / f"{name}.safetensors").items()
    }


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys() and a
    for key in a:
        assert torch.equal(a[key], b[key]), key


@pytest.fixture(scope="module")
def undisturbed(short, digits, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    result = train(short, run_dir=run_dir, split=digits, cpu=True)
    assert result.finished and result.epoch == 3
    return run_dir


@pytest.mark.parametrize("stops", [[0], [1, 3], [6], [2, 2, 2]], ids=str)
def test_resume_is_bit_equal(undisturbed, short, digits, tmp_path, monkeypatch, stops):
    for steps in stops:
        with monkeypatch.context() as m:
            m.setattr(train_module, "Stop", lambda _, steps=steps: StopAfter(steps))
            assert not train(short, run_dir=tmp_path / "run", split=digits, cpu=True).finished
        torch.rand(3)  # whatever else the process draws must not matter
    assert train(short, run_dir=tmp_path / "run", split=digits, cpu=True).finished
    assert_same(weights(tmp_path / "run"), weights(undisturbed))
    ours, theirs = (
        [json.loads(line) for line in (d / "metrics.jsonl").open()] for d in (tmp_path / "run", undisturbed)
    )
    assert [(m["epoch"], m["loss"], m["lr"]) for m in ours] == [(m["epoch"], m["loss"], m["lr"]) for m in theirs]


def test_run_folder(undisturbed, short):
    assert json.loads((undisturbed / "recipe.json").read_text())["recipe"] == short.to_dict()
    lines = [json.loads(line) for line in (undisturbed / "metrics.jsonl").open()]
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert lines[-1]["views"] == 3 * 4 * 128
    assert lines[0]["lr"] == pytest.approx(0.1)
    left = sorted(p.name for p in (undisturbed / "checkpoint").iterdir())
    assert left == ["epoch-00002-step-0000000", "epoch-00003-step-0000000"]
    assert not list(undisturbed.glob(".*.part"))


def test_finished_run_is_left_alone(undisturbed, short, digits):
    before = weights(undisturbed)
    assert train(short, run_dir=undisturbed, split=digits, cpu=True).finished
    assert_same(weights(undisturbed), before)


def test_damaged_checkpoint_falls_back(undisturbed, short, digits, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as m:
        m.setattr(train_module, "Stop", lambda _: StopAfter(9))
        train(short, run_dir=tmp_path / "run", split=digits, cpu=True)
    newest = max((tmp_path / "run" / "checkpoint").iterdir())
    (newest / "model.safetensors").write_bytes(b"garbage")
    assert train(short, run_dir=tmp_path / "run", split=digits, cpu=True).finished
    assert "cannot be read" in capsys.readouterr().out
    assert_same(weights(tmp_path / "run"), weights(undisturbed))


def test_checkpoints_further_apart_than_epochs(undisturbed, short, digits, tmp_path, monkeypatch):
    """As on a GPU: what breaks off is trained again from the last checkpoint, a stop and the end leave one."""
    monkeypatch.setitem(train_module._PAUSES, "cpu", 3600.0)

    class PowerCut(StopAfter):
        def __call__(self):
            if super().__call__():
                raise RuntimeError("power cut")
            return False

    run, saved = tmp_path / "run", lambda: sorted(p.name for p in (tmp_path / "run" / "checkpoint").glob("*"))
    with monkeypatch.context() as m:
        m.setattr(train_module, "Stop", lambda _: StopAfter(2))
        assert not train(short, run_dir=run, split=digits, cpu=True).finished
    assert saved() == ["epoch-00000-step-0000003"]
    with monkeypatch.context() as m, pytest.raises(RuntimeError, match="power cut"):
        m.setattr(train_module, "Stop", lambda _: PowerCut(6))
        train(short, run_dir=run, split=digits, cpu=True)
    assert saved() == ["epoch-00000-step-0000003"] and len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert train(short, run_dir=run, split=digits, cpu=True).finished
    assert saved() == ["epoch-00000-step-0000003", "epoch-00003-step-0000000"]
    assert_same(weights(run), weights(undisturbed))
    assert [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").open()] == [0, 1, 2]


def test_every_training_gets_the_device_it_asks_for(tmp_path):
    """accelerate keeps the first one's."""
    from accelerate import PartialState

    sessions.create_accelerator("fp32", True, None, tmp_path)
    PartialState._shared_state["device"] = torch.device("meta")  # of a training before
    assert sessions.create_accelerator("fp32", True, None, tmp_path).device.type == "cpu"
    assert PartialState().device.type == "cpu"


def test_time_limit(short, digits, tmp_path):
    result = train(short, run_dir=tmp_path / "run", split=digits, cpu=True, time_limit=0.001)
    assert not result.finished and result.epoch == 0


def test_interrupt_by_signal(short, digits, tmp_path, monkeypatch):
    def interrupting(self, views, labels, original=Trainer.step):
        if self.epoch == 1 and self.step_done == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, views, labels)

    monkeypatch.setattr(Trainer, "step", interrupting)
    before = signal.getsignal(signal.SIGINT)
    result = train(short, run_dir=tmp_path / "run", split=digits, cpu=True)
    assert (result.finished, result.epoch) == (False, 1)
    assert signal.getsignal(signal.SIGINT) is before


def test_cross_entropy_learns(digits, tmp_path):
    plan = dataclasses.replace(recipe("ce_resnet20_digits"), epochs=10, batch_views=32)
    train(plan, run_dir=tmp_path, split=digits, cpu=True)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").open()]
    assert losses[-1] < 0.6 * losses[0]
    assert "classifier/weight" in weights(tmp_path)


def test_accumulation_only_for_cross_entropy(short, digits, tmp_path):
    with pytest.raises(TrainingError, match="is for ce only"):
        train(short, run_dir=tmp_path / "run", split=digits, gradient_accumulation_steps=2)
    assert not (tmp_path / "run").exists()
    views, labels = torch.arange(8.0).view(8, 1, 1, 1), torch.arange(4)  # view-major: image i is i and 4 + i
    parts = list(Trainer._parts(SimpleNamespace(accumulation=2), views, labels))
    assert [(part.flatten().tolist(), own.tolist()) for part, own in parts] == [
        ([0, 1, 4, 5], [0, 1]), ([2, 3, 6, 7], [2, 3]),
    ]  # fmt: skip
    plan = dataclasses.replace(recipe("ce_resnet20_digits"), epochs=1)
    assert train(plan, run_dir=tmp_path / "ce", split=digits, gradient_accumulation_steps=2, cpu=True).finished
    with pytest.raises(TrainingError, match=r"gradient_accumulation_steps \(2 there, not set now\)"):
        train(plan, run_dir=tmp_path / "ce", split=digits, cpu=True)
    with pytest.raises(TrainingError, match="do not divide"):
        train(plan, run_dir=tmp_path / "ce3", split=digits, gradient_accumulation_steps=3, cpu=True)


def test_step_is_sgd_on_the_loss(short, digits):
    """One step against torch written out by hand: loss of the two views, decay on everything, momentum."""
    import timm
    from accelerate import Accelerator

    from tcl_zoo.losses import tuned_contrastive_loss

    trainer = Trainer(short, digits, Accelerator(cpu=True), 0, 1)
    network = trainer.accelerator.unwrap_model(trainer.network).train()
    twin = timm.create_model("resnet20_cifar", num_classes=0, in_chans=1).train()
    twin.load_state_dict(network.encoder.state_dict())
    first, second = (network.objective.projector.layers[i] for i in (0, 2))
    views, labels = next(trainer.batches.epoch(0))
    hidden = torch.relu(twin(views) @ first.weight.detach().T + first.bias.detach())
    out = hidden @ second.weight.detach().T + second.bias.detach()
    expected = tuned_contrastive_loss(out / out.norm(dim=1, keepdim=True), torch.cat([labels, labels]), 0.1, 5000, 1)
    expected.backward()
    before = twin.conv1.weight.detach().clone()
    loss = trainer.step(views, labels)
    torch.testing.assert_close(loss, expected.detach())
    updated = before - 0.1 * (twin.conv1.weight.grad + 1e-4 * before)
    torch.testing.assert_close(network.encoder.conv1.weight.detach(), updated)


@pytest.mark.parametrize("change", [{"lr": 1e30}, {"lr": 1e12, "weight_decay": 10.0}])
def test_nan_loss_stops_with_the_step(short, digits, tmp_path, change):
    plan = dataclasses.replace(short, **change)
    with pytest.raises(TrainingError, match=r"epoch \d+, step \d+; try a lower learning rate"):
        train(plan, run_dir=tmp_path / "run", split=digits, cpu=True)


def test_refused_run_folders(undisturbed, short, digits, tmp_path):
    with pytest.raises(TrainingError, match=r"lr \(0.1 there, 0.2 now\)"):
        train(dataclasses.replace(short, lr=0.2), run_dir=undisturbed, split=digits, cpu=True)
    with pytest.raises(TrainingError, match=r"precision \(fp32 there, bf16 now\)"):
        train(short, run_dir=undisturbed, split=digits, cpu=True, precision="bf16")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(TrainingError, match="not a run folder"):
        train(short, run_dir=tmp_path / "mine", split=digits, cpu=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot write the run folder"):
        train(short, run_dir=tmp_path / "file", split=digits, cpu=True)
    with pytest.raises(TrainingError, match="do not fill one batch"):
        train(dataclasses.replace(short, batch_views=2048), run_dir=tmp_path / "big", split=digits, cpu=True)
    assert not (tmp_path / "big").exists()
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "recipe.json").write_text("{")
    with pytest.raises(TrainingError, match="is damaged"):
        train(short, run_dir=damaged, split=digits, cpu=True)


def test_run_folder_in_use(short, digits, tmp_path):
    code = (
        "import sys; from tcl_zoo.runs import Run; from tcl_zoo.recipes import from_dict; import json\n"
        f"recipe = from_dict(json.loads({json.dumps(short.to_dict())!r}))\n"
        f"r = Run({str(tmp_path / 'run')!r}, recipe, {{'precision': 'no'}})\n"
        "r.lock(); print('locked', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline().strip() == "locked"
        with pytest.raises(TrainingError, match="in use by another training"):
            train(short, run_dir=tmp_path / "run", split=digits, cpu=True)
    finally:
        holder.communicate("")


def test_bf16_and_unknown_precision(short, digits, tmp_path):
    plan = dataclasses.replace(short, epochs=1)
    assert train(plan, run_dir=tmp_path / "bf16", split=digits, cpu=True, precision="bf16").finished
    with pytest.raises(TrainingError, match="unknown precision"):
        train(plan, run_dir=tmp_path / "x", split=digits, cpu=True, precision="fp8")
    with pytest.raises(TrainingError, match="precision"):
        train(plan, run_dir=tmp_path / "bf16", split=digits, cpu=True, precision="fp32")


def test_batches_are_a_function_of_epoch_and_step(digits):
    def make(**kwargs) -> Batches:
        return Batches(digits, DIGITS, "crop", 1, 2, 64, seed=3, **kwargs)

    whole = list(make().epoch(1))
    assert len(whole) == 4 and whole[0][0].shape == (128, 1, 8, 8)
    for (views, labels), (again, labels_again) in zip(whole[2:], make().epoch(1, start=2), strict=True):
        assert torch.equal(views, again) and torch.equal(labels, labels_again)
    halves = [list(make(rank=rank, world=2).epoch(1)) for rank in (0, 1)]
    for step, (views, labels) in enumerate(whole):
        v = torch.cat([h[step][0].unflatten(0, (2, 32)) for h in halves], dim=1).flatten(0, 1)
        assert torch.equal(v, views)
        assert torch.equal(torch.cat([h[step][1] for h in halves]), labels)
    assert not torch.equal(next(make().epoch(2))[0], whole[0][0])
    assert not torch.equal(whole[0][0][:64], whole[0][0][64:])  # the two views differ


@pytest.mark.parametrize("augmentation, multi", [("asymmetric", None), ("simaugment", MultiCrop(3, 4, 0.25))])
def test_views_of_several_kinds(digits, augmentation, multi):
    """Views that differ and small crops: a function of epoch and step, the same over two processes."""

    def make(**kwargs) -> list[list[torch.Tensor]]:
        batches = Batches(digits, DIGITS, augmentation, 1, 2, 64, seed=3, multi=multi, **kwargs)
        steps = [views for views, _ in batches.epoch(1)]
        return [views if isinstance(views, list) else [views] for views in steps]

    whole = make()
    assert [tuple(v.shape) for v in whole[0]] == [(128, 1, 8, 8)] + ([(192, 1, 4, 4)] if multi else [])
    assert not torch.equal(whole[0][0][:64], whole[0][0][64:])
    halves = [make(rank=rank, world=2) for rank in (0, 1)]
    for step, views in enumerate(whole):
        for kind, value in enumerate(views):
            parts = [half[step][kind].unflatten(0, (-1, 32)) for half in halves]
            assert torch.equal(torch.cat(parts, dim=1).flatten(0, 1), value)


def test_run_folders_of_older_versions(short, digits, tmp_path):
    """A recipe.json from before optimizer, warmup_epochs ... goes on."""
    plan = dataclasses.replace(short, epochs=1)
    train(plan, run_dir=tmp_path / "run", split=digits, cpu=True, time_limit=0.001)
    path = tmp_path / "run" / "recipe.json"
    stored = json.loads(path.read_text())
    for key in ("optimizer", "warmup_epochs", "probe_augmentation", "options"):
        del stored["recipe"][key]
    path.write_text(json.dumps(stored))
    assert train(plan, run_dir=tmp_path / "run", split=digits, cpu=True).finished


def test_batches_visit_every_image_once(digits):
    indices = torch.arange(256)
    marked = Split((indices % 256).to(torch.uint8)[:, None, None, None].repeat(1, 1, 8, 8), indices, digits.classes)
    batches = Batches(marked, DIGITS, "none", 1, 1, 60, seed=0)
    seen = torch.cat([labels for _, labels in batches.epoch(0)])
    assert len(seen) == 240 == len(seen.unique())  # the partial batch is dropped
    for views, labels in batches.epoch(0):
        info = DATASETS["digits"]
        np.testing.assert_allclose(views[:, 0, 0, 0], (labels / 255 - info.mean[0]) / info.std[0], rtol=1e-4, atol=1e-5)


def test_missing_tracker(short, digits, tmp_path):
    with pytest.raises(TrainingError, match="clearml is not installed: pip install clearml"):
        train(short, run_dir=tmp_path / "run", split=digits, cpu=True, log_with="clearml")
    assert not (tmp_path / "run").exists()


def test_trackers_get_plain_numbers_and_texts(digits, tmp_path, monkeypatch):
    """TensorBoard's hparams refuse anything else; a tracker of ours sees what they would get."""
    from accelerate.tracking import GeneralTracker

    config, losses = {}, []

    class Recorder(GeneralTracker):
        name, requires_logging_directory, tracker = "recorder", False, None

        def store_init_configuration(self, values):
            config.update(values)

        def log(self, values, step=None, **kwargs):
            losses.append(values["loss"])

    recorder, made = Recorder(), sessions.Accelerator
    monkeypatch.setattr(sessions, "get_available_trackers", lambda: ["recorder"])
    monkeypatch.setattr(sessions, "Accelerator", lambda log_with, **kwargs: made(log_with=recorder, **kwargs))
    plan = dataclasses.replace(recipe("dino_resnet20_digits.e1"), objective="tcl_ssl")  # options, and no lightly
    train(plan, run_dir=tmp_path / "run", split=digits, cpu=True, log_with="recorder")
    assert {type(value) for value in config.values()} <= {int, float, str, bool}
    assert config["options.prototypes"] == plan.options["prototypes"] and len(losses) == 1


def test_tensorboard_takes_a_recipe(digits, tmp_path):
    pytest.importorskip("tensorboard")
    train(recipe("tcl_ssl_resnet20_digits.e1"), run_dir=tmp_path / "r", split=digits, cpu=True, log_with="tensorboard")
    assert list((tmp_path / "r").rglob("*tfevents*"))


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nGPU 0 has ..."),
     RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")],
)  # fmt: skip
def test_out_of_memory_is_one_line_with_advice(short, digits, tmp_path, monkeypatch, error):
    def step(*_):
        raise error

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(TrainingError, match=r"128 views .*--set batch_views=64.*--precision bf16"):
        train(short, run_dir=tmp_path / "run", split=digits, cpu=True)
    plain = dataclasses.replace(recipe("ce_resnet20_digits"), epochs=1)
    with pytest.raises(TrainingError, match="--gradient-accumulation-steps 2"):
        train(plain, run_dir=tmp_path / "ce", split=digits, cpu=True)
    monkeypatch.undo()  # the advice, followed in the folder that is there now
    smaller = dataclasses.replace(short, batch_views=64, epochs=1)
    assert train(smaller, run_dir=tmp_path / "run", split=digits, cpu=True).finished
    assert load_run(tmp_path / "run")[0].batch_views == 64
    assert train(plain, run_dir=tmp_path / "ce", split=digits, gradient_accumulation_steps=2, cpu=True).finished


def test_fine_tuning_out_of_memory_names_its_own_option(tmp_path, monkeypatch):
    from tcl_zoo.finetune import finetune
    from tcl_zoo.finetune.tuner import Tuner

    def step(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Tuner, "step", step)
    with pytest.raises(TrainingError, match=r"64 images .*--batch-size 32 or --precision bf16"):
        finetune("tcl_resnet20_digits", out=tmp_path / "run", dataset="digits", cpu=True, epochs=1, precision="fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of eight noisy colour images of different sizes, streamed at 32 pixels."""
    root = tmp_path_factory.mktemp("folder")
    random = np.random.default_rng(0)
    for label in range(3):
        (root / f"class{label}").mkdir()
        for i in range(8):
            pixels = random.integers(0, 256, (40 + i, 50 - i, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"class{label}" / f"{i}.png")
    return FolderSplit(root, size=32)


@pytest.mark.parametrize("augmentation", ["autoaugment_thesis", "simaugment", "asymmetric_blur"])
def test_streamed_batches(folder, augmentation):
    """From a folder as from memory: workers, a start in the middle and several processes change nothing."""

    def make(**kwargs) -> Batches:
        return Batches(folder, IMAGENET, augmentation, 4, 2, 8, seed=3, **kwargs)

    whole = list(make().epoch(1))
    assert len(whole) == 3 and whole[0][0].shape == (16, 3, 32, 32)
    for (views, labels), (again, labels_again) in zip(whole[1:], make(workers=2).epoch(1, start=1), strict=True):
        assert torch.equal(views, again) and torch.equal(labels, labels_again)
    halves = [list(make(rank=rank, world=2).epoch(1)) for rank in (0, 1)]
    for step, (views, _) in enumerate(whole):
        both = torch.cat([h[step][0].unflatten(0, (2, 4)) for h in halves], dim=1).flatten(0, 1)
        assert torch.equal(both, views)
    assert sorted(torch.cat([labels for _, labels in whole]).tolist()) == sorted([0, 1, 2] * 8)


@pytest.mark.parametrize("augmentation", ["none", "crop"])
def test_streamed_images_as_they_are(folder, augmentation):
    """Without an augmentation, or with shifts by no pixel, what is evaluated."""
    plain = IMAGENET(torch.cat([folder[i][0] for i in range(len(folder))]))
    for views, labels in Batches(folder, IMAGENET, augmentation, 0, 1, 8, seed=3).epoch(0):
        for view, label in zip(views, labels, strict=True):
            assert any(torch.equal(view, whole) for whole in plain[folder.labels == label])


def test_small_crops_are_smaller(folder):
    with pytest.raises(RecipeError, match=r"options.local_size \(32\) must be below the images' 32 pixels"):
        Batches(folder, IMAGENET, "simaugment", 4, 2, 8, seed=3, multi=MultiCrop(3, 32, 0.2))


def test_small_crops_of_a_streamed_folder(folder):
    """The views are what they were without them; workers and several processes change nothing."""

    def make(crops=3, **kwargs) -> list[list[torch.Tensor]]:
        multi = MultiCrop(crops, 12, 0.2)
        batches = Batches(folder, IMAGENET, "simaugment", 4, 2, 8, seed=3, multi=multi, **kwargs)
        return [views for views, _ in batches.epoch(1)]

    whole = make()
    assert [tuple(v.shape) for v in whole[0]] == [(16, 3, 32, 32), (24, 3, 12, 12)]
    first, second = whole[0][1][:8], whole[0][1][8:16]
    assert not torch.equal(first, second)
    for a, b in zip(whole, make(workers=2), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    halves = [make(rank=rank, world=2) for rank in (0, 1)]
    for step, views in enumerate(whole):
        for kind, value in enumerate(views):
            parts = [half[step][kind].unflatten(0, (-1, 4)) for half in halves]
            assert torch.equal(torch.cat(parts, dim=1).flatten(0, 1), value)


def test_training_streams_a_folder(folder, tmp_path):
    plan = dataclasses.replace(recipe("tcl_resnet20_cifar10"), epochs=2, batch_views=16)
    whole = train(plan, run_dir=tmp_path / "run", split=folder, cpu=True, workers=0)
    assert whole.finished and np.isfinite(whole.loss)


def test_held_out_images_are_measured_on_and_nothing_else(tmp_path, monkeypatch):
    def only_train(name, data_dir, part, **options):
        assert part == "train", "the test images are not looked at"
        return load(name, data_dir, part, **options)

    monkeypatch.setattr(evaluate, "load", only_train)
    monkeypatch.setattr(train_module, "load", only_train)
    one = recipe("tcl_resnet20_digits.e1")
    kept, held = holdout(load("digits"), 200)
    assert train(one, run_dir=tmp_path / "run", cpu=True, hold_out=200).finished
    results = evaluate.evaluate_run(tmp_path / "run", device="cpu")
    assert results["n"] == 200 and results["protocol"] == "linear probe, cached, held-out images"
    train(one, run_dir=tmp_path / "kept", split=kept, cpu=True)
    with_probe = weights(tmp_path / "run")
    assert_same(weights(tmp_path / "kept"), {k: v for k, v in with_probe.items() if not k.startswith("classifier")})
    predicted = predict(load_run(tmp_path / "run")[1], held).argmax(1)
    assert results["top1"] == pytest.approx(100 * float((predicted == held.labels).double().mean()))
    with pytest.raises(TrainingError, match=r"hold_out \(200 there, not set now\)"):
        train(one, run_dir=tmp_path / "run", cpu=True)
    with pytest.raises(TrainingError, match="held 200 training images out"):
        release(tmp_path / "run", tmp_path / "cards")
