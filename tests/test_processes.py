"""Several processes on one batch: loss and gradient of the single one, and what happens when one of them dies."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from tcl_zoo.batches import Batches
from tcl_zoo.datasets import pretrained_cfg
from tcl_zoo.errors import TrainingError
from tcl_zoo.evaluate import evaluate_run
from tcl_zoo.features import features, normaliser
from tcl_zoo.objectives import Objective, create_objective
from tcl_zoo.processes import main_first, on_main
from tcl_zoo.recipes import SELF_SUPERVISED, recipe
from tcl_zoo.splits import FolderSplit
from tcl_zoo.train import train

DIGITS = normaliser(pretrained_cfg("digits"))
ROOT = Path(__file__).resolve().parent.parent
# Images of each process; 12 in all. Uneven as the last batch of a data set is.
SHARES = {1: [[12]], 2: [[6, 6], [7, 5], [11, 1]], 3: [[4, 4, 4], [5, 4, 3], [9, 2, 1]]}
OBJECTIVES = ("tcl", "supcon", "ce", *SELF_SUPERVISED)
# Nothing at a special value, as small as a batch of 12 allows.
SMALL = {
    "prototypes": 7,
    "queue_size": 20,
    "predictor_hidden": 5,
    "whitening_size": 12,
    "whitening_eps": 0.01,
    "queue_epochs": 0,
    "freeze_epochs": 0,
    "ema_base": 0.9,
}
# In float32: sums of large terms that cancel, and small eigenvalues, magnify the rounding of the rows that come in.
AMPLIFIED = {"vicreg": 5e-6, "barlow": 5e-6, "arb": 5e-6}


def objective_and_views(name: str, dtype: torch.dtype) -> tuple[nn.Module, Objective, torch.Tensor, torch.Tensor]:
    """All without batch norm, which would see its own process's share alone; and the whole batch."""
    torch.manual_seed(0)
    plan = recipe(f"{name}_resnet20_digits")
    if name in SELF_SUPERVISED:
        options = {key: SMALL.get(key, value) for key, value in plan.options.items()}
        plan = dataclasses.replace(
            plan, projector_hidden=10, projector_dim=6, batch_views=plan.views * 12, options=options
        )
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh())
    encoder.num_features = 16
    objective = create_objective(plan, encoder, 10)
    for module in list(objective.modules()):
        for key, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d):
                setattr(module, key, nn.Identity())
    views, labels = torch.randn(plan.views, 12, 1, 8, 8), torch.arange(12) % 4
    return encoder.to(dtype), objective.to(dtype), views.to(dtype), labels


def a_step(name: str, dtype: torch.dtype, part: slice) -> dict[str, torch.Tensor]:
    """Loss, gradients and, after the step, buffers (queues, centre) of the batch's ``part``."""
    encoder, objective, views, labels = objective_and_views(name, dtype)
    loss = objective(encoder, views[:, part].flatten(0, 1), labels[part])
    loss.backward()
    found = {"loss": loss.detach()}
    for network in (encoder, objective):
        found |= {f"gradient of {key}": p.grad for key, p in network.named_parameters() if p.grad is not None}
    with torch.no_grad():
        objective.after_step(encoder, 0.5)
    return found | {key: buffer.to(dtype) for key, buffer in objective.named_buffers()}


def _rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    where = f"file://{folder}/rendezvous{world}"
    dist.init_process_group("gloo", where, timeout=timedelta(seconds=120), rank=rank, world_size=world)
    found = {}
    for shares in SHARES[world]:
        first = sum(shares[:rank])
        for name in OBJECTIVES:
            for dtype in (torch.float32, torch.float64):
                values = a_step(name, dtype, slice(first, first + shares[rank]))
                for value in values.values():  # the mean over the processes, as DDP takes it
                    dist.all_reduce(value)
                    value /= world
                found[name, dtype, tuple(shares)] = values
    if rank == 0:
        torch.save(found, f"{folder}/found{world}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_objective_is_that_of_one_process(tmp_path, world):
    """Loss, gradients, queues and centres."""
    pytest.importorskip("lightly", reason="the self-supervised objectives stand on lightly")
    mp.spawn(_rank, args=(world, str(tmp_path)), nprocs=world)
    found = torch.load(tmp_path / f"found{world}.pt", weights_only=False)
    assert len(found) == 2 * len(OBJECTIVES) * len(SHARES[world])
    for (name, dtype, shares), values in found.items():
        expected = a_step(name, dtype, slice(0, 12))
        tolerance = 1e-12 if dtype == torch.float64 else AMPLIFIED.get(name, 1e-6)
        assert values.keys() == expected.keys() and len(values) > 2
        # Of the step's largest entry: the gradient of a bias that a loss does not feel is rounding alone.
        largest = max(float(value.abs().max()) for key, value in expected.items() if key.startswith("gradient"))
        for key, theirs in expected.items():
            scale = largest if key.startswith("gradient") else float(theirs.abs().max())
            far = float((values[key] - theirs).abs().max()) / scale
            assert far <= tolerance, (name, dtype, shares, key, far)


def _waits(rank: int, world: int, folder: str) -> None:
    where = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", where, timeout=timedelta(seconds=120), rank=rank, world_size=world)
    done = Path(folder) / "done"

    def fails() -> None:
        raise ValueError("no such\nfolder")

    def fetch() -> bool:
        """Whether it was there; slow enough to be seen half done."""
        there = done.exists()
        if not there:
            time.sleep(0.5)
            done.touch()
        return there

    assert main_first(fetch) == (rank != 0), "the others come when it is there"
    dist.barrier()
    done.unlink(missing_ok=True)
    dist.barrier()
    assert on_main(fetch) is (False if rank == 0 else None)
    assert done.exists(), "nobody goes on before the main process is done"
    for either in (on_main, main_first):
        with pytest.raises(ValueError if rank == 0 else TrainingError, match="no such"):
            either(fails)
    dist.barrier()  # all are where they were
    dist.destroy_process_group()


def test_all_wait_for_the_main_process(tmp_path):
    mp.spawn(_waits, args=(2, str(tmp_path)), nprocs=2)


# whole trainings


def launch(ranks: int, run_dir: Path, *extra: str, name: str = "tcl_resnet20_digits", epochs: int = 2) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # Not accelerate's launcher: with --cpu it starts one process, whatever --num_processes says.
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port", port]
    command += ["scripts/train.py", name, "--set", f"epochs={epochs}", "--cpu", "--run-dir", str(run_dir), *extra]
    return command


def run(command: list[str], timeout: float = 500) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=timeout)


def test_reproduce_on_two_processes(tmp_path):
    """One job after the other: the processes stay together between them, and one alone measures."""
    command = launch(2, tmp_path)
    command = [*command[: command.index("scripts/train.py")], "scripts/reproduce.py", "fig-5.5", "--cpu"]
    command += ["--dataset", "digits", "--encoder", "resnet20", "--scale", "0.005"]
    command += ["--runs-dir", str(tmp_path / "runs"), "--results-dir", str(tmp_path / "results")]
    held = tmp_path / "runs" / "supcon_resnet20_digits-epochs=6-images=70"
    held.mkdir(parents=True)
    with (held / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run(command)
    assert done.returncode == 1, "torchrun's for any code but 0"
    assert "another process is at it" in done.stdout and "stopped; the same command" in done.stdout, done.stdout
    assert len(list((tmp_path / "runs").glob("*/results.json"))) == 1, "the other job was done"
    done = run(command)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = sorted(path.parent for path in (tmp_path / "runs").glob("*/results.json"))
    assert len(runs) == 2 and not list((tmp_path / "runs").glob("*.failed")), done.stdout
    assert all(json.loads((path / "environment.json").read_text())["processes"] == 2 for path in runs)
    assert (tmp_path / "results" / "fig-5.5_digits-resnet20-x0.005.png").is_file()


LEAVING = """
import os, sys
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tcl_zoo.processes import main_alone
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
sys.setswitchinterval(0.5)  # so late does a thread get the interpreter that another one does not give up
PartialState(cpu=True)
net = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 3))
net(torch.ones(2, 3)).sum().backward()
for _ in range(3):
    broadcast_object_list(["said"])
main_alone(cpu=True)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cannot keep processes on one core here")
def test_leaving_does_not_abort(tmp_path):
    """The transport's threads let go of what they sent before the interpreter ends, also on a busy machine."""
    script = tmp_path / "leaving.py"
    script.write_text(LEAVING)
    command = launch(4, tmp_path)
    done = run([*command[: command.index("scripts/train.py")], str(script)])
    assert done.returncode == 0, done.stderr


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(text) for text in (run_dir / "metrics.jsonl").open()]


def test_resume_with_another_number_of_processes(tmp_path):
    """1, then 2, then 1; 3 do not divide the batch and are refused. Steps, schedule and views stay those of one run."""
    run_dir = tmp_path / "run"
    plan = ["--set", "batch_views=256", "--protocol", "none"]
    # Of few steps, so that several processes must look at the clock more often than every 20 steps.
    stopped = run(launch(1, run_dir, *plan, "--time-limit", "0.001s", epochs=3))
    assert "stopped (time limit)" in stopped.stdout, stopped.stderr[-2000:]
    refused = run(launch(3, run_dir, *plan, epochs=3))
    assert "a batch of 128 images does not divide over 3 processes; choose another batch" in refused.stderr
    stopped = run(launch(2, run_dir, *plan, "--time-limit", "0.001s", epochs=3))
    assert "stopped (time limit)" in stopped.stdout, stopped.stderr[-2000:]
    assert (max((run_dir / "checkpoint").iterdir()) / "random_states_1.pkl").is_file(), "there were two"
    done = len(lines(run_dir))
    assert done < 3
    assert run(launch(1, run_dir, *plan, epochs=3)).returncode == 0
    found = lines(run_dir)
    assert [line["epoch"] for line in found] == [0, 1, 2]
    whole = dataclasses.replace(recipe("tcl_resnet20_digits"), epochs=3)
    assert [line["lr"] for line in found] == [whole.lr_at(epoch) for epoch in range(3)]
    assert [line["views"] for line in found] == [11 * 256 * (e + 1) for e in range(3)]


def _train_rank(rank: int, world: int, folder: str, port: int, deed: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    torch.set_num_threads(1)
    from tcl_zoo import train as train_module
    from tcl_zoo.cli import guarded
    from tcl_zoo.datasets import Split, load
    from tcl_zoo.trainer import Trainer

    out = os.open(f"{folder}/log{rank}", os.O_CREAT | os.O_WRONLY)
    os.dup2(out, 1), os.dup2(out, 2)
    original = Trainer.step

    def step(self: Trainer, views: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if rank == 1 and self.epoch == 1:
            if deed == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if deed == "fail":
                raise ValueError("an image is missing")
            if deed == "nan":
                views = views * float("nan")
        return original(self, views, labels)

    Trainer.step = step  # type: ignore[method-assign]
    full = load("digits")
    split = Split(full.images[:240], full.labels[:240], full.classes)
    plan = dataclasses.replace(recipe("tcl_resnet20_digits"), epochs=3, batch_views=120)
    os._exit(guarded(lambda: train_module.train(plan, run_dir=f"{folder}/run", split=split, cpu=True).epoch))


@pytest.mark.parametrize(("deed", "said"), [
    ("die", "error: process 1 of 3 is gone; the training goes on from its last checkpoint"),
    pytest.param("fail", "error: process 1 of 3 failed: ValueError: an image is missing; the training goes on",
                 marks=pytest.mark.slow),
    pytest.param("nan", "error: the loss became nan at epoch 2, step 1;", marks=pytest.mark.slow),
])  # fmt: skip
def test_a_process_that_dies_ends_the_others(tmp_path, deed, said):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    children = [context.Process(target=_train_rank, args=(r, 3, str(tmp_path), port, deed)) for r in range(3)]
    for child in children:
        child.start()
    children[1].join(240)
    died = time.monotonic()
    for child in children:
        child.join(60)
    took = time.monotonic() - died
    logs = [(tmp_path / f"log{rank}").read_text() for rank in range(3)]
    assert took < 30, (took, logs)
    assert [c.exitcode for c in children][:1] == [2] and children[2].exitcode == 2, logs
    assert said in logs[0] and said in logs[2], logs
    saved = {p.name for p in (tmp_path / "run" / "checkpoint").iterdir()}
    assert "epoch-00001-step-0000000" in saved


@pytest.mark.parametrize("world", [2, 3, 4])
def test_batches_are_slices_of_the_single_run(digits, world):
    """Order, augmentation and share: what one process sees, cut among them, in any epoch and from any step."""
    whole = Batches(digits, DIGITS, "crop", 1, 2, 24, seed=5)
    parts = [Batches(digits, DIGITS, "crop", 1, 2, 24, seed=5, rank=r, world=world) for r in range(world)]
    for epoch, start in ((0, 0), (3, 7)):
        cut = (part.epoch(epoch, start) for part in parts)
        for (views, labels), *pieces in zip(whole.epoch(epoch, start), *cut, strict=True):
            assert torch.equal(torch.cat([labels for _, labels in pieces]), labels)
            joined = torch.cat([v.unflatten(0, (2, -1)) for v, _ in pieces], dim=1).flatten(0, 1)
            assert torch.equal(joined, views)


def test_evaluation_counts_every_image_once(short, tmp_path, monkeypatch):
    """Each of the 360 test digits goes through the encoder once, with batches that do not divide them."""
    from tcl_zoo import probe
    from tcl_zoo.datasets import load

    train(dataclasses.replace(short, epochs=1), run_dir=tmp_path / "run", cpu=True)
    seen: list[torch.Tensor] = []
    original = probe.pooled

    def pooled(model):
        return lambda images: (seen.append(images.clone()), original(model)(images))[1]

    monkeypatch.setattr("tcl_zoo.features.pooled", pooled)
    results = evaluate_run(tmp_path / "run", device="cpu")
    test = load("digits", split="test")
    assert results["n"] == len(test) == 360
    rows = torch.cat(seen).flatten(1)
    assert len(rows) == 1437 + 360
    expected = DIGITS(torch.cat([load("digits").images, test.images])).flatten(1)
    assert torch.equal(rows, expected), "in order, each once"


def test_streamed_evaluation_counts_every_image_once(tmp_path):
    import numpy as np
    from PIL import Image

    import tcl_zoo

    for label in range(3):
        (tmp_path / f"c{label}").mkdir()
        for i in range(7):
            Image.fromarray(np.full((8, 8), 10 * (7 * label + i), np.uint8)).save(tmp_path / f"c{label}" / f"{i}.png")
    split = FolderSplit(tmp_path, size=8, channels=1)
    split.transform = lambda image: image
    model = tcl_zoo.create_model("tcl_resnet20_digits", pretrained=True)
    seen: list[int] = []

    def look(_: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        mean, std = (float(model.pretrained_cfg[key][0]) for key in ("mean", "std"))
        seen.extend((255 * (inputs[0][:, 0, 0, 0] * std + mean) / 10).round().int().tolist())

    model.conv1.register_forward_pre_hook(look)
    assert len(features(model, split)) == 21
    assert seen == list(range(21))
    assert re.fullmatch(r"[0-9a-f]{64}", split.fingerprint())
