"""SIGKILL at random moments and before every file operation of a run: nothing is lost beyond the last epoch."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from forks import PRELUDE, Forks
from test_runs import newest, same

pytestmark = pytest.mark.slow

KILLS = 20
# Two epochs of two steps on 32 digits: file operations and checkpoints are most of it.
TINY = """
tiny = dataclasses.replace(short, epochs=2, batch_views=32)
digits = Split(full.images[:32], full.labels[:32], full.classes)
"""
# Kills the process before its nth operation on a file of the run folder; prints how many there were if it survives.
AT = """
count = 0
def hook(event, args):
    global count
    if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate") and RUN in str(args[0]):
        count += 1
        if count == N:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
status = go(RUN, tiny)
print("operations", count)
"""


@pytest.fixture(scope="module")
def forks():
    server = Forks(PRELUDE + TINY)
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(forks, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    status, said = forks(AT.replace("RUN", repr(str(run_dir))).replace("N:", "0:"))
    assert status == 0, said
    return run_dir, int(said.rpartition("operations ")[2])


def epochs_done(run_dir: Path) -> int:
    saved = run_dir / "checkpoint"
    has = saved.is_dir() and any(p.name.startswith("epoch-") for p in saved.iterdir())
    return int(newest(run_dir).name[6:11]) if has else 0


def test_killed_at_random_moments(forks, whole, tmp_path):
    """Every run is killed again and again until it ends; epochs once saved stay saved."""
    draw, kills, writing, runs = random.Random(0), 0, 0, 0
    seconds = [json.loads(line) for line in (whole[0] / "metrics.jsonl").open()][-1]["seconds"]
    while kills < KILLS:
        run_dir, runs, done = tmp_path / f"run{runs}", runs + 1, 0
        while True:
            code = f"status = go({str(run_dir)!r}, tiny)"
            begun = run_dir / ".lock"
            begun.unlink(missing_ok=True)
            status = forks.kill(code, signal.SIGKILL, draw.uniform(0, 1.5 * seconds), begun)
            assert status in (0, -signal.SIGKILL), forks.log.read_text()
            assert epochs_done(run_dir) >= done
            done = epochs_done(run_dir)
            if status == 0:
                break
            kills += 1
            writing += any((run_dir / "checkpoint").glob(".part-*"))
        assert same(run_dir, whole[0])
        shutil.rmtree(run_dir)
    print(f"{kills} kills in {runs} runs, {writing} of them while a checkpoint was written")


def test_killed_before_every_file_operation(forks, whole, tmp_path):
    operations = whole[1]
    assert operations > 30
    for n in range(1, operations + 1):
        run_dir = tmp_path / "run"
        status, said = forks(AT.replace("RUN", repr(str(run_dir))).replace("N:", f"{n}:"))
        assert status == -signal.SIGKILL, (n, said)
        done = epochs_done(run_dir)
        status, said = forks(f"status = go({str(run_dir)!r}, tiny)")
        assert status == 0 and epochs_done(run_dir) == 2 >= done, (n, said)
        assert "cannot be read" not in said, (n, said)
        assert same(run_dir, whole[0]), n
        assert not [p for p in run_dir.rglob(".*") if p.name != ".lock"], n
        shutil.rmtree(run_dir)
    print(f"{operations} kills, one before each file operation of a run")
