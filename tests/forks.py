"""Children in which a test may do to a training whatever it likes: forked from a process that has imported it all."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

# What every snippet finds: three epochs of four steps on 256 digits, and go(run_dir) to train them on the CPU.
PRELUDE = """
import dataclasses, json, os, signal, sys, time
import torch
torch.set_num_threads(1)
import tcl_zoo.train, tcl_zoo.trainer, tcl_zoo.runs, accelerate
from tcl_zoo.cli import guarded
from tcl_zoo.datasets import Split, load
from tcl_zoo.recipes import recipe
full = load("digits")
digits = Split(full.images[:256], full.labels[:256], full.classes)
short = dataclasses.replace(recipe("tcl_resnet20_digits"), epochs=3)
def go(run_dir, plan=short, **kwargs):
    def main():
        result = tcl_zoo.train.train(plan, run_dir=run_dir, split=digits, cpu=True, **kwargs)
        return 0 if result.finished else 3
    return guarded(main)
"""

_SERVER = """
import json, os, signal, sys, traceback
names = {}
exec(sys.argv[1], names)
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    task = json.loads(line)
    pid = os.fork()
    if pid == 0:
        out = os.open(task["log"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(out, 1), os.dup2(out, 2)
        status = 70
        try:
            exec(compile(task["code"], "snippet", "exec"), names)
            status = names.get("status", 0)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    print(json.dumps(pid), flush=True)
    print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])), flush=True)
"""


class Forks:
    """Runs snippets one after the other, each in a child of its own; ``status`` is what it exits with."""

    def __init__(self, prelude: str = PRELUDE) -> None:
        root = Path(__file__).resolve().parent.parent
        env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._server = subprocess.Popen([sys.executable, "-c", _SERVER, prelude], env=env, cwd=root, **pipes)
        self._folder = tempfile.TemporaryDirectory()
        self.log = Path(self._folder.name) / "log"
        assert self._read() == "ready"

    def _read(self) -> Any:
        assert self._server.stdout is not None
        return json.loads(self._server.stdout.readline())

    def start(self, code: str) -> int:
        """Starts a snippet; its process id. :meth:`wait` must follow."""
        assert self._server.stdin is not None
        task = {"code": textwrap.dedent(code), "log": str(self.log)}
        self._server.stdin.write(json.dumps(task) + "\n")
        self._server.stdin.flush()
        return int(self._read())

    def wait(self) -> int:
        """The exit code of the snippet that was started, negative for a signal."""
        return int(self._read())

    def __call__(self, code: str) -> tuple[int, str]:
        """Exit code and output of a snippet."""
        self.start(code)
        return self.wait(), self.log.read_text(errors="replace")

    def kill(self, code: str, number: int, after: float, until: Path | None = None) -> int:
        """Starts a snippet and sends it a signal ``after`` seconds, counted from when ``until`` exists."""
        pid = self.start(code)
        deadline = time.monotonic() + 60
        while until is not None and not until.exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return self.wait()

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.kill()  # it has nothing to put in order
        self._server.wait()
        self._folder.cleanup()
