"""A run folder under faults: what was trained is not lost, and what cannot go on says so in one line."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import textwrap
import time
from pathlib import Path

import pytest
import torch
from forks import Forks
from safetensors.torch import load_file

from tcl_zoo.errors import RunInUseError, TrainingError
from tcl_zoo.recipes import recipe
from tcl_zoo.runs import Run
from tcl_zoo.train import train
from tcl_zoo.trainer import Trainer


@pytest.fixture(scope="module")
def forks():
    server = Forks()
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(forks, tmp_path_factory):
    """The run folder of the undisturbed training, on one thread: another number of threads rounds otherwise."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert forks(f"status = go({str(run_dir)!r})")[0] == 0
    return run_dir


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def same(a: Path, b: Path) -> bool:
    pairs = [(load_file(d / f"{n}.safetensors")) for n in ("encoder", "projector") for d in (a, b)]
    losses = [[json.loads(line)["loss"] for line in (d / "metrics.jsonl").open()] for d in (a, b)]
    weights = zip(pairs[::2], pairs[1::2], strict=True)
    return losses[0] == losses[1] and all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
                                          for x, y in weights)  # fmt: skip


def newest(run_dir: Path) -> Path:
    return max(p for p in (run_dir / "checkpoint").iterdir() if p.name.startswith("epoch-"))


@pytest.fixture
def two_epochs(whole, tmp_path):
    """A run stopped after its second epoch, with that epoch's checkpoint."""
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    for file in ("encoder.safetensors", "projector.safetensors", "environment.json"):
        (run_dir / file).unlink()
    shutil.rmtree(newest(run_dir))
    (older,) = (run_dir / "checkpoint").iterdir()
    assert older.name.startswith("epoch-00002")
    return run_dir


# Where a checkpoint is bitten: one bit in each of its files, a file cut, a file gone.
@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.bin", "random_states_0.pkl", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_one_bit_of_a_checkpoint_is_noticed(whole, short, digits, tmp_path, capsys, file, damage):
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    bitten = newest(run_dir) / file
    data = bytearray(bitten.read_bytes())
    data[len(data) // 2] ^= 16
    bitten.unlink()
    if damage != "remove":
        bitten.write_bytes(data if damage == "flip" else data[:-9])
    assert train(short, run_dir=run_dir, split=digits, cpu=True).finished
    said = capsys.readouterr().out
    assert f"epoch-00003-step-0000000 cannot be read (TrainingError: {file} is not" in said
    assert "trying the one before" in said
    assert same(run_dir, whole)
    assert (run_dir / "checkpoint" / "damaged-epoch-00003-step-0000000").is_dir()


def test_no_checkpoint_left_to_read(whole, short, digits, tmp_path):
    """Both are damaged: neither a start from nothing in silence, nor one from half a checkpoint."""
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    before = sorted((run_dir / "checkpoint").iterdir())
    assert len(before) == 2
    for checkpoint, file in zip(before, ("model.safetensors", "sha256.json"), strict=True):
        (checkpoint / file).write_bytes(b"")
    with pytest.raises(TrainingError, match=r"none of the checkpoints .* can be read; start again in another"):
        train(short, run_dir=run_dir, split=digits, cpu=True)
    assert sorted((run_dir / "checkpoint").iterdir()) == before, "nothing is thrown away"


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"5\n", b'{"epoch": 7}\n', b"[" * 10_000, b"null\n\n{}\n"])
def test_damaged_metrics(two_epochs, short, digits, text):
    """The curve is lost, the training is not."""
    (two_epochs / "metrics.jsonl").write_bytes(text)
    result = train(short, run_dir=two_epochs, split=digits, cpu=True)
    assert result.finished and result.epoch == 3


@pytest.mark.parametrize("left", [[], ["checkpoint"], [".recipe.json.part"], [".lock", "checkpoint"]], ids=str)
def test_killed_in_its_first_moments(short, tmp_path, left):
    """What is there before ``recipe.json`` is no reason to refuse the folder for ever."""
    for name in left:
        (tmp_path / name).mkdir() if name == "checkpoint" else (tmp_path / name).write_text("")
    run = Run(tmp_path, short, {"precision": "no"}, hold=True)
    assert json.loads((tmp_path / "recipe.json").read_text())["recipe"] == short.to_dict()
    run.release()


def test_lock(short, tmp_path):
    settings = {"precision": "no"}
    first = Run(tmp_path, short, settings, hold=True)
    with pytest.raises(TrainingError, match="in use by another training"):
        Run(tmp_path, short, settings, hold=True)
    first.release()
    Run(tmp_path, short, settings, hold=True).release()


@pytest.mark.filterwarnings("ignore:.*soft")
def test_lock_on_a_disk_that_knows_none(short, tmp_path, monkeypatch):
    """As some clusters' file systems: that is no other training."""

    def missing(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", missing)
    test_lock(short, tmp_path)


def test_an_error_gives_the_folder_free(short, digits, tmp_path, monkeypatch):
    """In a notebook the traceback keeps the failed call alive; the next one must not meet its lock."""
    with monkeypatch.context() as m:
        m.setattr(Trainer, "step", lambda *_: torch.tensor(float("nan")))
        with pytest.raises(TrainingError) as kept:
            train(short, run_dir=tmp_path / "run", split=digits, cpu=True)
    assert train(dataclasses.replace(short), run_dir=tmp_path / "run", split=digits, cpu=True).finished
    assert "at epoch 1, step 1;" in str(kept.value)


def test_a_loss_that_is_not_finite_stops_at_its_step(short, digits, tmp_path, monkeypatch):
    original = Trainer.step

    def step(self, views, labels):
        poison = float("nan") if (self.epoch, self.step_done) == (1, 2) else 1.0
        return original(self, views * poison, labels)

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(TrainingError, match="the loss became nan at epoch 2, step 3;"):
        train(short, run_dir=tmp_path / "run", split=digits, cpu=True)
    saved = load_file(newest(tmp_path / "run") / "model.safetensors")
    assert all(value.isfinite().all() for value in saved.values())


def test_clock_jumps(short, digits, tmp_path, monkeypatch, whole):
    """The wall clock may go anywhere, for time limits and figures too."""
    original, real, jumps = Trainer.step, time.time, iter([0, 1e9, -1e9, 5e8] * 10)

    def step(self, views, labels):
        offset = next(jumps)
        monkeypatch.setattr(time, "time", lambda: real() + offset)
        return original(self, views, labels)

    monkeypatch.setattr(Trainer, "step", step)
    result = train(short, run_dir=tmp_path / "run", split=digits, cpu=True, time_limit=600)
    assert result.finished and 0 < result.seconds < 300
    assert same(tmp_path / "run", whole)


def test_disk_full(forks, whole, tmp_path):
    """A disk of 3 MB: a checkpoint is 2.4 MB, so that the second one does not fit; then one with room.

    Where no disk can be mounted, files of 1 MB at most: not the first one fits.
    """
    small = tmp_path / "disk"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", small]
    mounted = not subprocess.run(mount, capture_output=True).returncode
    code = f"status = go({str(small / 'run')!r})"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY)); "
    try:
        for _ in range(2):  # and again: the full disk is no reason to lose what is there
            status, said = forks(code if mounted else limit + code)
            assert status == 2, said
            assert "error: cannot write the run folder" in said and "Traceback" not in said, said
            assert "the same command goes on" in said
        assert not list((small / "run" / "checkpoint").glob(".part-*"))
        if mounted:
            assert newest(small / "run").name == "epoch-00001-step-0000000"
            subprocess.run(["mount", "-o", "remount,size=30m", small], check=True)
        assert forks(code)[0] == 0
        assert same(small / "run", whole)
    finally:
        if mounted:
            subprocess.run(["umount", "-l", small], check=True)


@pytest.mark.parametrize("begun", [False, True], ids=["new", "begun"])
def test_read_only_folder(forks, two_epochs, tmp_path, begun):
    root = two_epochs.parent if begun else tmp_path / "empty"
    root.mkdir(exist_ok=True)
    if os.geteuid():
        for folder in (root, *(p for p in root.rglob("*") if p.is_dir())):
            folder.chmod(0o555)
    elif subprocess.run(["mount", "--bind", "-o", "ro", root, root], capture_output=True).returncode:
        pytest.skip("root may write everywhere, and a read-only mount is not to be had")
    try:
        status, said = forks(f"status = go({str(root / 'run')!r})")
    finally:
        if os.geteuid():
            for folder in (root, *root.rglob("*")):
                folder.chmod(0o755)
        else:
            subprocess.run(["umount", "-l", root], check=True)
    assert status == 2 and said.startswith("error: cannot write the run folder"), said
    assert said.count("\n") == 1


SIGNALLED = """
original, seen = tcl_zoo.trainer.Trainer.step, []
def step(self, views, labels):
    seen.append(0)
    for number in SIGNALS.get(len(seen), ()):
        os.kill(os.getpid(), number)
    return original(self, views, labels)
tcl_zoo.trainer.Trainer.step = step
status = go(RUN)
"""


@pytest.mark.parametrize(
    ("signals", "status", "steps"),
    [
        ({6: [signal.SIGTERM]}, 3, 6),
        ({6: [signal.SIGTERM, signal.SIGTERM]}, 3, 6),  # from the scheduler, and passed on by the launcher
        ({6: [signal.SIGINT]}, 3, 6),
        ({6: [signal.SIGTERM, signal.SIGINT]}, 3, 6),
        ({6: [signal.SIGINT, signal.SIGINT]}, 130, 4),  # twice: at once, the last epoch's checkpoint stays
        ({12: [signal.SIGTERM]}, 0, 12),  # in the last step: finished
    ],
    ids=["SIGTERM", "SIGTERM twice", "Ctrl-C", "SIGTERM and Ctrl-C", "Ctrl-C twice", "in the last step"],
)
def test_signals(forks, tmp_path, whole, signals, status, steps):
    run_dir = tmp_path / "run"
    code = SIGNALLED.replace("SIGNALS", repr({k: [int(n) for n in v] for k, v in signals.items()}))
    found, said = forks(code.replace("RUN", repr(str(run_dir))))
    assert found == status and "Traceback" not in said, said
    assert newest(run_dir).name == f"epoch-{steps // 4:05d}-step-{steps % 4:07d}"
    assert forks(f"status = go({str(run_dir)!r})")[0] == 0
    assert same(run_dir, whole)


def test_stopped_while_a_checkpoint_is_written(forks, tmp_path, whole):
    code = """
    original = accelerate.Accelerator.save_state
    def save_state(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)
    accelerate.Accelerator.save_state = save_state
    """
    run_dir = tmp_path / "run"
    status, said = forks(f"{code}\n    status = go({str(run_dir)!r})")
    assert status == 3 and "stopped (SIGTERM) after epoch 1 of 3" in said
    assert newest(run_dir).name == "epoch-00001-step-0000000"
    assert forks(f"status = go({str(run_dir)!r})")[0] == 0
    assert same(run_dir, whole)


def test_one_that_starts_between_two_looks(tmp_path, monkeypatch):
    """No recipe.json yet, but by the time the folder is listed: it is in use, not somebody else's."""
    plan, settings, look, first = recipe("tcl_resnet20_digits"), {"precision": "no"}, Path.iterdir, []

    def iterdir(folder):
        if not first:
            first.append(0)
            first[0] = Run(tmp_path, plan, settings, hold=True)
        return look(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(RunInUseError):
        Run(tmp_path, plan, settings, hold=True)
    first[0].release()


def test_two_start_at_the_same_moment(forks, tmp_path, whole):
    """Of several trainings on one new folder exactly one goes on; the others say that it is in use."""
    run_dir, servers = tmp_path / "run", [forks, Forks()]
    meet = tmp_path / "go"
    code = f"""
    while not os.path.exists({str(meet)!r}): pass
    status = go({str(run_dir)!r})
    """
    for number, server in enumerate(servers):
        server.start(f"open({str(tmp_path)!r} + '/ready{number}', 'w')\n{textwrap.dedent(code)}")
    while not all((tmp_path / f"ready{number}").exists() for number in range(len(servers))):
        time.sleep(0.01)
    meet.write_text("")
    codes = sorted(server.wait() for server in servers)
    said = [server.log.read_text() for server in servers]
    servers[1].close()
    assert codes == [0, 2], said
    assert any("in use by another training" in text for text in said)
    assert same(run_dir, whole)
