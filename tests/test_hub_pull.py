"""Pulling from a Hub with the real client: what is loaded is what was released, whatever happens on the way."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import time
from fnmatch import filter as matching
from pathlib import Path

import pytest
import torch
from hub_client import NAME, PRELUDE, REPO
from hub_server import HubServer, run_client

PATIENCE = 8  # seconds: 4 are the design's, the client alone would take 23; the rest is for a loaded machine
WEIGHTS, CONFIG = "/cdn/*model.safetensors", "/api/resolve-cache/*config.json"


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "cards" / NAME / "model.safetensors").read_bytes()).hexdigest()


def edit_index(folder: Path, **changes: object) -> None:
    entries = json.loads((folder / "index.json").read_text())
    entries[NAME] |= changes
    (folder / "index.json").write_text(json.dumps(entries))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "cards" / NAME).iterdir()}


def test_the_pinned_commit_is_loaded_and_then_needs_no_request(hub, client, published):
    hub.commit(REPO, {"model.safetensors": b"newer", "config.json": b"{}"})
    code = f"""
    import torch, tcl_zoo
    x = torch.linspace(-1, 1, 128).view(2, 1, 8, 8)
    model = tcl_zoo.create_model({NAME!r}, pretrained=True).eval()
    encoder = tcl_zoo.create_model({NAME!r}, pretrained=True, num_classes=0)
    out = [model(x).tolist(), encoder.num_classes]
    """
    logits, classes = client(code, published)
    import tcl_zoo

    ours = tcl_zoo.create_model(NAME, pretrained=True, weights_dir=published / "cards").eval()
    assert torch.equal(torch.tensor(logits), ours(torch.linspace(-1, 1, 128).view(2, 1, 8, 8)))
    assert classes == 0
    fetched = [line.split()[1].rsplit("/", 1)[1] for line in hub.requests if line.split()[0] == "GET" and "/c" in line]
    assert sorted(name for name in fetched if "." in name) == ["config.json", "model.safetensors"]
    hub.requests.clear()
    assert client(code, published) == [logits, classes]
    assert hub.requests == []


def test_what_needs_no_weights_fetches_none(hub, client, published):
    code = f"""
    import tcl_zoo
    place = {"hf-hub:" + REPO!r}
    transform, info = tcl_zoo.create_transform(place), tcl_zoo.model_info(place)
    untrained = tcl_zoo.create_model(place)
    out = [len(transform.transforms), info["sha256"], untrained.num_classes]
    """
    assert client(code, published) == [2, digest(published), 10]
    assert not matching([line.split()[1] for line in hub.requests], "*model.safetensors")
    assert matching([line.split()[1] for line in hub.requests], CONFIG)


def test_revision_cache_dir_and_sha256(hub, client, published):
    hub.repos[REPO].tags["v0"] = hub.repos[REPO].branches["main"]
    newer = files(published)["model.safetensors"]
    newer = newer[:-4] + b"\0\0\0\0"
    config = json.loads(files(published)["config.json"])
    config["tcl_zoo"]["sha256"] = hashlib.sha256(newer).hexdigest()
    hub.commit(REPO, {"model.safetensors": newer, "config.json": json.dumps(config).encode()})
    out = client(
        f"""
        other = {hashlib.sha256(newer).hexdigest()!r}
        out = [load({NAME!r}, revision="v0", cache_dir="elsewhere"), os.path.exists("cache"),
               load({NAME!r}, revision="main"), load({NAME!r}, revision="main", sha256=other.upper()),
               load({NAME!r}, sha256=other)]
        """,
        published,
    )
    right, elsewhere, moved, asked, wrong = out
    assert right == [digest(published), []] and elsewhere is False
    assert "holds other weights" in moved[0] and hashlib.sha256(newer).hexdigest() in moved[0]
    assert asked == [hashlib.sha256(newer).hexdigest(), []]
    assert "holds other weights" in wrong[0]


def test_a_repository_of_ones_own(hub, client, published):
    """Trust comes from sha256= or from the index; without either there is a warning that says what was not checked."""
    config = json.loads(files(published)["config.json"])
    place = f"hf-hub:{REPO}"
    code = f"""
    import tcl_zoo
    from PIL import Image
    names = ["{place}", "{place}@main", "local-dir:cards/{NAME}"]
    out = [[load(name) for name in names], [load(name, sha256={digest(published)!r}) for name in names]]
    out += [[load(name, sha256="0" * 64) for name in names], load("{place}@main", revision="v7")]
    info = tcl_zoo.model_info("{place}")
    out += [info["results"]["n"], info["recipe"]["epochs"]]
    out += [tcl_zoo.create_model("{place}", num_classes=3).num_classes]
    out += [list(tcl_zoo.create_transform("local-dir:cards/{NAME}")(Image.new("L", (8, 8))).shape)]
    """
    out = client(code, published)
    assert out[0] == out[1] == [[digest(published), []]] * 3, "the index vouches for these"
    assert "revision" in out[3][0]
    assert out[4:] == [360, config["tcl_zoo"]["recipe"]["epochs"], 3, [1, 8, 8]]
    (published / "index.json").write_text("{}")
    unknown, given, wrong, *_ = client(code, published)
    for (answer, warned), place in zip(unknown, ("hf-hub", "hf-hub", "local-dir"), strict=True):
        assert answer == digest(published)
        assert len(warned) == 1 and warned[0].startswith(place)
        assert "nobody vouches" in warned[0] and digest(published) in warned[0]
    assert given == [[digest(published), []]] * 3
    assert "holds other weights" in wrong[0][0] and "holds other weights" in wrong[1][0]


def test_local_dir_with_a_wrong_sha256_does_not_load(client, published):
    code = f"""
    import tcl_zoo
    try:
        tcl_zoo.create_model("local-dir:cards/{NAME}", pretrained=True, sha256="0" * 64)
    except WeightsError as error:
        out = str(error)
    """
    assert "instead of 0000000000000000" in client(code, published)


FAULTS = {
    "weights flipped": ("flip", WEIGHTS, {}, "fetching it again"),
    "config flipped": ("flip", CONFIG, {}, "fetching it again"),
    "connection cut": ("cut", WEIGHTS, {"after": 100_000}, None),
    "body short": ("short", WEIGHTS, {"missing": 10}, None),
    "503 on info": ("status", "GET /api/models/*", {"status": 503}, None),
    "503 on head": ("status", "HEAD */resolve/*", {"status": 503}, None),
    "429 on info": ("status", "GET /api/models/*", {"status": 429}, None),
}


@pytest.mark.parametrize(("kind", "pattern", "options", "warned"), FAULTS.values(), ids=FAULTS)
def test_a_fault_that_passes_is_made_up_for(hub, client, published, kind, pattern, options, warned):
    fault = hub.fail(kind, pattern, **options)
    answer, warnings = client(f"out = load({NAME!r})", published)
    assert fault.hits == 1
    assert answer == digest(published)
    assert len(warnings) == (1 if warned else 0) and all(warned in text for text in warnings)


@pytest.mark.parametrize(
    ("kind", "pattern", "options", "message"),
    [
        ("flip", WEIGHTS, {}, "model.safetensors is not the file that was released"),
        ("flip", CONFIG, {}, "config.json is not the file that was released"),
        ("truncate", WEIGHTS, {"missing": 10}, "Consistency check failed"),
        ("status", WEIGHTS, {"status": 404}, "answered 404"),
    ],
)
def test_a_fault_that_stays_is_one_line(hub, client, published, kind, pattern, options, message):
    hub.fail(kind, pattern, times=None, **options)
    answer, _ = client(f"out = load({NAME!r})", published)
    assert message in answer and "\n" not in answer
    if kind == "flip":
        assert "fetched twice" in answer and str(published / "cache/models--org--tcl_resnet20_digits.e1") in answer
    hub.faults.clear()
    assert client(f"out = load({NAME!r})", published)[0] == digest(published), "the next try heals the cache"


def test_damage_in_the_cache_is_healed_or_named(hub, client, published):
    assert client(f"out = load({NAME!r})", published)[0] == digest(published)
    (cached,) = published.glob("cache/models--*/snapshots/*/model.safetensors")
    data = bytearray(cached.read_bytes())
    data[len(data) // 2] ^= 1
    cached.resolve().write_bytes(data)
    hub.fail("status", "*", times=None, status=404, code="RepoNotFound")
    answer, warned = client(f"out = load({NAME!r})", published)
    assert "has no such repository" in answer and str(cached) in warned[0]
    hub.faults.clear()
    assert client(f"out = load({NAME!r})", published)[0] == digest(published)
    assert client(f"out = load({NAME!r})", published)[1] == []


def test_who_may_read(hub, client, published):
    hub.repos[REPO].private = True
    code = f"out = load({NAME!r})[0]"
    assert "no token was sent" in client(code, published, HF_TOKEN="")
    assert "does not accept the token" in client(code, published, HF_TOKEN="hf_wrong")
    assert not matching(hub.requests, "GET /cdn/*")
    hub.fail("status", "GET /api/models/*", status=403, code="GatedRepo")
    assert "terms have to be accepted" in client(code, published)
    hub.fail("status", "GET /api/models/*", status=403)
    assert "lacks the permission" in client(code, published)
    assert client(code, published, HF_TOKEN=hub.read_token) == digest(published)


def test_what_is_not_there(hub, client, published):
    head = hub.repos[REPO].branches["main"]
    answers = client(
        f"out = [load({NAME!r}, revision='v9')[0], load('hf-hub:org/none')[0], load('hf-hub:no/such/name')[0]]",
        published,
    )
    assert "no such revision" in answers[0] and "has no such repository" in answers[1]
    assert "no/such/name" in answers[2] and not any("\n" in answer for answer in answers)
    gone = hub.commit(REPO, {"model.safetensors": None}).id
    edit_index(published, revision=gone)
    assert f"{gone}: the repository has no model.safetensors" in client(f"out = load({NAME!r})[0]", published)
    edit_index(published, repo_id=None)
    assert "neither in this package nor on a Hub" in client(f"out = load({NAME!r})[0]", published)
    edit_index(published, repo_id=REPO, revision=head)
    assert client(f"out = load({NAME!r})[0]", published) == digest(published)


def test_disk_full(hub, client, published):
    """A limit on the size of files stands in for a full disk: write() fails half-way."""
    code = f"""
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    out = load({NAME!r})[0]
    """
    answer = client(code, published)
    assert "cannot fetch" in answer and "File too large" in answer and "\n" not in answer
    assert not list(published.glob("cache/**/*.incomplete"))
    assert client(f"out = load({NAME!r})[0]", published) == digest(published)


def test_two_processes_at_once(hub, client, published):
    hub.fail("delay", "/cdn/*", times=None, seconds=0.3)
    runs = [client.start(f"out = load({NAME!r})", published, out=f"{i}.json") for i in range(2)]
    assert [client.wait(pid) for pid in runs] == [0, 0]
    for i in range(2):
        assert json.loads((published / f"{i}.json").read_text()) == [digest(published), []]


def test_a_killed_download(hub, client, published):
    fault = hub.fail("cut", WEIGHTS, times=None, after=100_000)  # the client resumes a second later, and again
    pid = client.start(f"out = load({NAME!r})", published)
    for _ in range(200):
        if fault.hits:
            break
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    assert client.wait(pid) == -signal.SIGKILL and fault.hits
    assert list(published.glob("cache/**/*.incomplete")), "it was killed half-way"
    hub.faults.clear()
    assert client(f"out = load({NAME!r})", published) == [digest(published), []]


LIGHT = PRELUDE + "start = time.monotonic(); out = load(NAME) + [time.monotonic() - start]; print(json.dumps(out))"


def light(server: HubServer, folder: Path, name: str = NAME, **env: str) -> tuple[str, float]:
    """A process of its own, without torch: the settings that the client reads at its start."""
    done = run_client(server, LIGHT.replace("NAME", repr(name)), folder, HF_HUB_DISABLE_XET=None, **env)
    answer, _, seconds = json.loads(done.stdout.splitlines()[-1])
    return answer, seconds


def test_offline_and_server_down(published, hub):
    """With a cached copy and without, in less than 5 seconds; the client alone would try for 23."""
    branch = f"hf-hub:{REPO}"
    with HubServer(repos=hub.repos) as server:
        answer, _ = light(server, published, HF_HUB_OFFLINE="1")
        assert "HF_HUB_OFFLINE is set" in answer and "no copy in" in answer
        assert server.requests == []
        assert light(server, published, branch)[0] == digest(published)
        server.requests.clear()
        assert light(server, published, branch, HF_HUB_OFFLINE="1")[0] == digest(published)
        assert server.requests == []
        server.fail("status", times=None, status=503)
        answer, seconds = light(server, published, branch)
        assert answer == digest(published) and seconds < PATIENCE
    answer, seconds = light(server, published, branch)
    assert answer == digest(published) and seconds < PATIENCE
    empty = published / "empty"
    empty.mkdir()
    (empty / "index.json").write_bytes((published / "index.json").read_bytes())
    answer, seconds = light(server, empty)
    assert f"{server.endpoint} does not answer" in answer and f"no copy in {empty}/cache" in answer
    assert REPO in answer and seconds < PATIENCE


def test_a_busy_server_does_not_take_the_cached_copy_away(hub, client, published):
    branch = f"hf-hub:{REPO}"
    assert client(f"out = load({branch!r})", published)[0] == digest(published)
    hub.fail("status", "GET /api/models/*", times=None, status=429)
    assert client(f"out = load({branch!r})", published)[0] == digest(published)
    hub.fail("status", "*", times=None, status=429)
    shutil.rmtree(published / "cache")
    assert "asks for fewer requests" in client(f"out = load({branch!r})", published)[0]


def test_a_foreign_repository_is_refused_before_its_weights_are_sent(hub, client, published):
    hub.commit("org/other", {"config.json": b'{"architecture": "x"}', "model.safetensors": bytes(1000)})
    assert "config.json" in client("out = load('hf-hub:org/other')", published)[0]
    assert not matching(hub.requests, "GET /org/other/resolve/*/model.safetensors")


def test_a_transport_that_raises_anything(hub, client, published):
    """As xet's, which no server here speaks."""
    code = f"""
    import huggingface_hub
    def hf_hub_download(*args, **kwargs):
        raise RuntimeError("Task error: File reconstruction error\\nmore")
    huggingface_hub.hf_hub_download = hf_hub_download
    out = load({NAME!r})[0]
    """
    answer = client(code, published)
    assert answer.startswith("cannot fetch") and answer.endswith("File reconstruction error")


def test_a_server_that_accepts_and_says_nothing(published, hub):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        answer, seconds = light(hub, published, HF_ENDPOINT=endpoint)
    assert f"{endpoint} does not answer" in answer and seconds < PATIENCE


class Trap:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_malicious_repository(hub, client, published):
    """Nothing is executed, nothing outside the cache is written, and only two files are ever asked for."""
    import pickle

    trap = published / "trapped"
    pickled = pickle.dumps(Trap(trap))
    pickle.loads(pickled)
    trap.rmdir()  # it does work
    config = json.loads(files(published)["config.json"])

    def variant(weights: bytes = files(published)["model.safetensors"], **changes: object) -> dict[str, bytes]:
        new = json.loads(json.dumps(config | changes))
        new["tcl_zoo"]["sha256"] = hashlib.sha256(weights).hexdigest()
        return {"config.json": json.dumps(new).encode(), "model.safetensors": weights}

    poisoned = config["pretrained_cfg"] | {"source": "hf-hub", "hf_hub_id": "evil/pickle"}
    repos = {
        "evil/pickle": {"pytorch_model.bin": pickled, "model.pkl": pickled, "config.json": variant()["config.json"]},
        "evil/beside": variant() | {"pytorch_model.bin": pickled, "tcl_zoo.py": b"raise SystemExit"},
        "evil/weights": variant(weights=pickled),
        "evil/architecture": variant(architecture="vit_huge_patch14_224"),
        "evil/redirect": variant(pretrained_cfg=poisoned),
        "evil/arguments": variant(model_args={"in_chans": 1, "block": "os.system"}),
        "evil/name": variant(architecture="../../../../tmp/x"),
        "evil/huge": variant(num_classes=10**15),
        "timm/resnet18.a1_in1k": {"config.json": b'{"architecture": "resnet18"}', "model.safetensors": b"x"},
    }
    for repo, content in repos.items():
        hub.commit(repo, content)
    hub.fail("extra", times=None, files={"../../../../escaped": b"x", "/escaped": b"x", "a/../../escaped": b"x"})
    before = {path for path in published.rglob("*") if "cache" not in path.parts}
    answers = client(
        """
        import tcl_zoo
        out = {}
        for repo in REPOS:
            try:
                tcl_zoo.create_model(f"hf-hub:{repo}", pretrained=True)
                out[repo] = "loaded"
            except WeightsError as error:
                out[repo] = str(error)
        """.replace("REPOS", repr(list(repos))),
        published,
    )
    assert answers.pop("evil/beside") == "loaded", "its two files are sound"
    expected = {
        "evil/pickle": "the repository has no model.safetensors",
        "evil/weights": "not a safetensors file",
        "evil/architecture": "not of this zoo",
        "evil/redirect": "hf_hub_id, source",
        "evil/arguments": "block",
        "evil/name": "not of this zoo",
        "evil/huge": "no release has",
        "timm/resnet18.a1_in1k": "timm.create_model loads it",
    }
    for repo, message in expected.items():
        assert message in answers[repo] and "\n" not in answers[repo], answers[repo]
        damaged = repo.startswith("evil") and repo not in ("evil/pickle", "evil/weights")
        assert ("fetched twice" in answers[repo]) == damaged, "what is sound but of another kind is no damage"
    after = {path for path in published.rglob("*") if "cache" not in path.parts}
    assert {path.name for path in after - before} <= {"client.log", "out.json"}
    assert not trap.exists()
    assert not [line for line in hub.requests if "pytorch_model" in line or ".pkl" in line or ".py" in line]


@pytest.mark.parametrize("revision", ["", "@main"])
def test_verify_of_a_branch_holds_to_one_commit(hub, client, published, revision):
    code = f"""
    from tcl_zoo.verify import verify
    warnings.simplefilter("ignore")
    done = verify("hf-hub:{REPO}{revision}", device="cpu")
    out = [done.ok, done.n]
    """
    assert client(code, published) == [True, 360]
