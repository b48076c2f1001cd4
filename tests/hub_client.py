"""The real client against hub_server.py, without paying for ``import torch, timm`` in every test.

One process per session imports everything under the environment of a client in its default settings; every snippet
runs in a fork of it, in the test's folder and with the cache there.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, client_env

ROOT = Path(__file__).parents[1]
NAME = "tcl_resnet20_digits.e1"
REPO = "org/tcl_resnet20_digits.e1"
PRELUDE = """
import hashlib, json, os, sys, time, warnings
from pathlib import Path
from huggingface_hub import constants
from tcl_zoo import index, weights
from tcl_zoo.errors import WeightsError

index.INDEX_FILE = Path("index.json").absolute()
index.entries.cache_clear()
constants.HF_HUB_CACHE = str(Path("cache").absolute())

def load(name, **options):
    '''The sha256 of the weights that were found, or the error; and what was warned of.'''
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = hashlib.sha256((weights.locate(name, **options).folder / "model.safetensors").read_bytes())
            answer = found.hexdigest()
        except WeightsError as error:
            answer = str(error)
    return [answer, [str(w.message) for w in caught if issubclass(w.category, UserWarning)]]
"""
_SERVER = """
import json, os, runpy, signal, sys, traceback
from pathlib import Path
import huggingface_hub, safetensors.torch, timm, torch, tcl_zoo, tcl_zoo.models
import tcl_zoo.publish, tcl_zoo.verify, tcl_zoo.cards, matplotlib.figure
from tcl_zoo.datasets import load
load("digits")
torch.set_num_threads(1)

def answer(value):
    print(json.dumps(value), flush=True)

def child(task):
    status = 1
    try:
        os.chdir(task["cwd"])
        os.environ.update(task["env"])
        log = os.open("client.log", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        names = {}
        exec(compile(task["code"], "snippet", "exec"), names)
        Path(task["out"]).write_text(json.dumps(names.get("out")))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)

answer("ready")
for line in sys.stdin:
    task = json.loads(line)
    if "wait" in task:
        answer(os.waitstatus_to_exitcode(os.waitpid(task["wait"], 0)[1]))
    else:
        pid = os.fork()
        if pid == 0:
            child(task)
        answer(pid)
"""


class Client:
    """Runs snippets as a client of one server."""

    def __init__(self, hub: HubServer, home: Path) -> None:
        env = client_env(hub, home, HF_HUB_DISABLE_XET=None, OMP_NUM_THREADS="1")
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", _SERVER], env=env, cwd=home, **pipes)
        self.ready = False  # not waited for: the test has a release to build meanwhile

    def _read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def _ask(self, **task: Any) -> Any:
        assert self.process.stdin is not None
        self.ready = self.ready or self._read() == "ready"
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return self._read()

    def start(self, code: str, folder: Path, out: str = "out.json", **env: str) -> int:
        """Starts a snippet; its process id."""
        return self._ask(code=PRELUDE + textwrap.dedent(code), cwd=str(folder), env=env, out=out)

    def wait(self, pid: int) -> int:
        """Its exit code, negative for a signal."""
        return self._ask(wait=pid)

    def __call__(self, code: str, folder: Path, **env: str) -> Any:
        """What the snippet left in ``out``."""
        status = self.wait(self.start(code, folder, **env))
        assert status == 0, (folder / "client.log").read_text()
        return json.loads((folder / "out.json").read_text())

    def script(self, folder: Path, *args: str, **env: str) -> tuple[int, str]:
        """Exit code and output of ``scripts/publish.py``, run in ``folder``."""
        code = f"""
        import runpy
        sys.argv = ["publish.py", *{args!r}]
        try:
            runpy.run_path({str(ROOT / "scripts/publish.py")!r}, run_name="__main__")
        except SystemExit as stop:
            out = stop.code
        """
        return self(code, folder, **env), (folder / "client.log").read_text()


@pytest.fixture(scope="session")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubServer, Client]]:
    with HubServer(inline=True) as hub:
        client = Client(hub, tmp_path_factory.mktemp("client"))
        yield hub, client
        assert client.process.stdin is not None
        client.process.stdin.close()
        client.process.wait(20)


@pytest.fixture
def hub(_server: tuple[HubServer, Client]) -> HubServer:
    """The server, empty."""
    hub = _server[0]
    for state in (hub.repos, hub.requests, hub.faults, hub.objects):
        state.clear()
    hub.inline = True
    return hub


@pytest.fixture
def client(_server: tuple[HubServer, Client]) -> Client:
    """The process that runs snippets."""
    return _server[1]


@pytest.fixture
def zoo(released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``cards/NAME``, a release, and ``index.json`` that knows it."""
    from tcl_zoo import index
    from tcl_zoo.release import update_index

    shutil.copytree(released / NAME, tmp_path / "cards" / NAME)
    monkeypatch.setattr(index, "INDEX_FILE", tmp_path / "index.json")
    index.entries.cache_clear()
    update_index(tmp_path / "cards")
    yield tmp_path
    index.entries.cache_clear()


@pytest.fixture
def published(zoo: Path, hub: HubServer) -> Path:
    """:func:`zoo`, its release on the server (put there by nothing of ours) and pinned in the index."""
    folder = zoo / "cards" / NAME
    commit = hub.commit(REPO, {path.name: path.read_bytes() for path in folder.iterdir()})
    entries = json.loads((zoo / "index.json").read_text())
    entries[NAME] |= {"repo_id": REPO, "revision": commit.id}
    (zoo / "index.json").write_text(json.dumps(entries))
    return zoo
