"""The server in hub_server.py, driven by the real huggingface_hub client in a process of its own.

What should come back is held against the bytes that went in (hashlib), never against the server.

These pass with huggingface_hub 2.4.0 and 1.33.0. The server speaks to 0.34 too, but that client
takes faults differently (no retry after a 503 on HEAD, none after a cut, LFS where xet fails).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

import hub_server
import pytest
from hub_server import HubServer, run_client

README = "---\nlicense: mit\nlibrary_name: timm\ntags:\n- contrastive\n- timm\n---\n# A model\n"
WEIGHTS = hashlib.shake_256(b"weights").digest(2 * 2**20)
FILES = {"README.md": README.encode(), "config.json": b"{}", "model.safetensors": WEIGHTS}
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
PRELUDE = """
import hashlib, json, os, time
from pathlib import Path
import huggingface_hub as h
from huggingface_hub import errors

api = h.HfApi()

def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()

def fetch(name="model.safetensors", **options):
    return h.hf_hub_download("org/name", name, **options)

def raised(function, *args, **options):
    try:
        function(*args, **options)
    except Exception as error:
        response = getattr(error, "response", None)
        return [type(error).__name__, response.status_code if response is not None else None]

"""


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A server with the repository org/name; its log starts empty."""
    with HubServer() as server:
        server.commit("org/name", FILES, title="Release")
        yield server


def ask(hub: HubServer, code: str, tmp_path: Path, **env: str | None) -> Any:
    """What the snippet leaves in `out`, which must be JSON."""
    done = run_client(hub, PRELUDE + code + "\nprint(json.dumps(out))", tmp_path, **env)
    return json.loads(done.stdout.splitlines()[-1])


UPLOADS: dict[str, tuple[dict[str, Any], dict[str, str | None], int]] = {
    "one part": ({}, {}, 1),
    "two parts": ({"multipart_above": 2**20}, {}, 2),
    "three parts": ({"multipart_above": 700_000}, {}, 3),
    "inline": ({"inline": True}, {}, 0),
    "inline, xet on": ({"inline": True}, {"HF_HUB_DISABLE_XET": None}, 0),
}


@pytest.mark.parametrize(("options", "env", "puts"), UPLOADS.values(), ids=UPLOADS)
def test_a_release_goes_up_and_comes_back(
    tmp_path: Path, options: dict[str, Any], env: dict[str, str | None], puts: int
) -> None:
    for name, data in FILES.items():
        (tmp_path / "release").mkdir(exist_ok=True)
        (tmp_path / "release" / name).write_bytes(data)
    code = """
out = {"user": api.whoami()["name"], "url": api.create_repo("org/name")}
api.create_repo("org/name", exist_ok=True)
out["exists"] = raised(api.create_repo, "org/name")
first = api.upload_folder(repo_id="org/name", folder_path="release", commit_message="Release")
again = api.upload_folder(repo_id="org/name", folder_path="release")
out |= {"first": first.oid, "again": again.oid}
api.create_tag("org/name", tag="v1")
out["tagged"] = raised(api.create_tag, "org/name", tag="v1")
info = api.model_info("org/name", revision="v1", files_metadata=True)
out["info"] = [info.id, info.sha, info.private, info.tags, info.library_name]
out["card"] = info.card_data.license
out["sizes"] = {s.rfilename: s.size for s in info.siblings}
out["files"] = api.list_repo_files("org/name")
out["file"] = sha256(fetch(revision="v1"))
folder = Path(h.snapshot_download("org/name", revision="v1"))
out["snapshot"] = {p.name: sha256(p) for p in folder.iterdir()}
out["titles"] = [commit.title for commit in api.list_repo_commits("org/name")]
(weights,) = api.get_paths_info("org/name", ["model.safetensors"])
out["lfs"] = [weights.size, weights.lfs.sha256]
"""
    with HubServer(**options) as hub:
        out = ask(hub, code, tmp_path, **env)
        head = hub.repos["org/name"].branches["main"]
        assert hub.repos["org/name"].tags == {"v1": head}
        assert len(hub.repos["org/name"].commits) == 2, "a second upload of the same is no commit"
        assert len(matching(hub.requests, "PUT /upload/* 200")) == puts
        assert not matching(hub.requests, "*xet*")
        assert not matching(hub.requests, "* 400")
    assert out["user"] == "tester"
    assert out["url"] == f"{hub.endpoint}/org/name"
    assert out["exists"] == out["tagged"] == ["HfHubHTTPError", 409]
    assert out["first"] == out["again"] == head
    assert out["info"] == ["org/name", head, False, ["contrastive", "timm"], "timm"]
    assert out["card"] == "mit"
    assert out["files"] == [".gitattributes", *FILES]
    assert {name: len(data) for name, data in FILES.items()}.items() <= out["sizes"].items()
    assert out["file"] == SHA256
    wanted = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
    assert wanted.items() <= out["snapshot"].items()
    assert out["titles"][0].startswith("Release")
    assert out["lfs"] == [len(WEIGHTS), SHA256]


def test_with_xet_on_downloads_work_and_uploads_of_large_files_do_not(hub: HubServer, tmp_path: Path) -> None:
    code = """
up = dict(repo_id="org/name", path_or_fileobj=b"other weights", path_in_repo="new.safetensors")
out = [sha256(fetch()), raised(api.upload_file, **up) is not None]
"""
    assert ask(hub, code, tmp_path, HF_HUB_DISABLE_XET=None) == [SHA256, True]
    assert "GET /api/models/org/name/xet-write-token/main 404" in hub.requests
    assert not matching(hub.requests, "POST */commit/*")


def test_history(hub: HubServer, tmp_path: Path) -> None:
    old = hub.repos["org/name"].branches["main"]
    code = f"""
old = {old!r}
api.create_tag("org/name", tag="v1", revision=old)
api.create_branch("org/name", branch="side", revision="v1")
out = {{"branched": raised(api.create_branch, "org/name", branch="side")}}
add = h.CommitOperationAdd("sub/deep/new.txt", b"new")
gone = h.CommitOperationDelete("config.json")
new = api.create_commit("org/name", [add, gone], commit_message="Two", parent_commit=old).oid
late = h.CommitOperationAdd("late.txt", b"late")
out["late"] = raised(
    api.create_commit, "org/name", [late], commit_message="No", parent_commit=old)
api.upload_file(repo_id="org/name", path_or_fileobj=b"aside", path_in_repo="a.txt", revision="side")
refs = api.list_repo_refs("org/name")
out["branches"] = {{ref.name: ref.target_commit for ref in refs.branches}}
out["tags"] = {{ref.name: ref.target_commit for ref in refs.tags}}
out["files"] = [api.list_repo_files("org/name", revision=r) for r in ("v1", old, "main", "side")]
out["new"] = [new, Path(fetch("sub/deep/new.txt")).read_text()]
out["config"] = [
    Path(fetch("config.json", revision="v1")).read_text(), raised(fetch, "config.json")]
out["tree"] = [entry.path for entry in api.list_repo_tree("org/name", "sub")]
out["commits"] = [commit.commit_id for commit in api.list_repo_commits("org/name")]
api.delete_folder("sub", "org/name")
out["emptied"] = api.list_repo_files("org/name")
"""
    out = ask(hub, code, tmp_path)
    new, before = out["new"][0], list(FILES)
    assert out["branched"] == ["HfHubHTTPError", 409]
    assert out["late"] == ["HfHubHTTPError", 412]
    assert out["branches"]["main"] == new != old
    assert out["branches"]["side"] not in (new, old)
    assert out["tags"] == {"v1": old}
    after = ["README.md", "model.safetensors", "sub/deep/new.txt"]
    assert out["files"] == [before, before, after, sorted([*before, "a.txt"])]
    assert out["new"] == [new, "new"]
    assert out["config"] == ["{}", ["RemoteEntryNotFoundError", 404]]
    assert out["tree"] == ["sub/deep"]
    assert out["commits"] == [new, old]
    assert out["emptied"] == after[:2]


def test_who_may_read_and_write(hub: HubServer, tmp_path: Path) -> None:
    hub.repos["org/name"].private = True
    code = f"""
nobody, reader, wrong = (h.HfApi(token=token) for token in (False, {hub.read_token!r}, "hf_x"))
add = dict(repo_id="org/name", path_or_fileobj=b"x", path_in_repo="x.txt")
out = {{
    "nobody": [raised(nobody.model_info, "org/name"), raised(fetch, token=False)],
    "snapshot": raised(h.snapshot_download, "org/name", token=False),
    "wrong": [raised(wrong.model_info, "org/name"), raised(wrong.whoami)],
    "reader": [raised(reader.upload_file, **add), sha256(fetch(token=reader.token))],
}}
api.create_repo("org/other", private=True)
out["private"] = [api.model_info("org/other").private, api.model_info("org/name").private]
out["hidden"] = nobody.repo_exists("org/other")
api.delete_repo("org/other")
out["deleted"] = [api.repo_exists("org/other"), raised(api.delete_repo, "org/other")]
"""
    out = ask(hub, code, tmp_path)
    assert out["nobody"] == [["RepositoryNotFoundError", 401]] * 2
    assert out["snapshot"] == ["RepositoryNotFoundError", 401]
    assert out["wrong"] == [["HfHubHTTPError", 401]] * 2
    assert out["reader"] == [["HfHubHTTPError", 403], SHA256]
    assert out["private"] == [True, True]
    assert out["hidden"] is False
    assert out["deleted"] == [False, ["RepositoryNotFoundError", 404]]
    assert "org/other" not in hub.repos


def test_errors_become_the_right_exceptions(hub: HubServer, tmp_path: Path) -> None:
    code = """
out = {
    "repo": [raised(api.model_info, "org/none"), raised(h.hf_hub_download, "org/none", "x")],
    "revision": [raised(api.model_info, "org/name", revision="v9"), raised(fetch, revision="v9")],
    "entry": raised(fetch, "none.txt"),
    "exist": [api.file_exists("org/name", name) for name in ("config.json", "none.txt")],
    "parents": issubclass(errors.RemoteEntryNotFoundError, errors.EntryNotFoundError),
    "escape": raised(
        api.upload_file, repo_id="org/name", path_or_fileobj=b"", path_in_repo="a/../../b"),
    "request": raised(
        api.create_pull_request, "org/name", title="not here"),
}
"""
    out = ask(hub, code, tmp_path)
    assert out["repo"] == [["RepositoryNotFoundError", 404]] * 2
    assert out["revision"] == [["RevisionNotFoundError", 404]] * 2
    assert out["entry"] == ["RemoteEntryNotFoundError", 404]
    assert out["exist"] == [True, False]
    assert out["parents"]
    assert out["escape"] is not None
    assert out["request"] == ["HfHubHTTPError", 404]
    assert len(hub.repos["org/name"].commits) == 1


def test_cut_connections_are_made_up_for(hub: HubServer, tmp_path: Path) -> None:
    """The client writes 10 MiB at a time: a cut before that starts over, later ones go on there."""
    big = hashlib.shake_256(b"big").digest(12 * 2**20)
    hub.commit("org/name", {"big.bin": big})
    faults = [
        hub.fail("cut", "/cdn/*model.safetensors", after=100_000),
        hub.fail("cut", "/cdn/*big.bin", after=11 * 2**20),
    ]
    digests = ask(hub, "out = [sha256(fetch()), sha256(fetch('big.bin'))]", tmp_path)
    assert digests == [SHA256, hashlib.sha256(big).hexdigest()]
    assert [fault.hits for fault in faults] == [1, 1]
    sent = [line.split()[-1] for line in matching(hub.requests, "GET /cdn/*")]
    assert sent == ["200", "200", "200", "206"]


def test_a_flipped_byte_is_not_noticed_by_the_client(hub: HubServer, tmp_path: Path) -> None:
    hub.fail("flip", "*model.safetensors", offset=7)
    hub.fail("flip", "*config.json")
    code = "out = [list(Path(fetch(name)).read_bytes()) for name in NAMES]"
    code = code.replace("NAMES", "('model.safetensors', 'config.json')")
    weights, config = (bytes(data) for data in ask(hub, code, tmp_path))
    assert [i for i in range(len(WEIGHTS)) if weights[i] != WEIGHTS[i]] == [7]
    assert len(weights) == len(WEIGHTS)
    assert config[:1] == b"{" and config[1:] != b"}" and len(config) == 2


def test_short_objects(hub: HubServer, tmp_path: Path) -> None:
    hub.fail("truncate", "*model.safetensors", missing=10)
    hub.fail("short", "*README.md", missing=3)
    code = "out = [raised(fetch), sha256(fetch('README.md')), sha256(fetch())]"
    readme = hashlib.sha256(README.encode()).hexdigest()
    assert ask(hub, code, tmp_path) == [["OSError", None], readme, SHA256]
    readmes = matching(hub.requests, "GET /api/resolve-cache/*/README.md *")
    assert [line.split()[-1] for line in readmes] == ["200", "200"]


def test_503_is_retried(hub: HubServer, tmp_path: Path) -> None:
    download = hub.fail("status", "HEAD */resolve/*")
    upload = hub.fail("status", "PUT /upload/*")
    code = """
new = dict(repo_id="org/name", path_or_fileobj=b"other weights", path_in_repo="new.safetensors")
out = [sha256(fetch()), api.upload_file(**new).oid]
"""
    out = ask(hub, code, tmp_path)
    assert out == [SHA256, hub.repos["org/name"].branches["main"]]
    assert download.hits == upload.hits == 1
    assert len(matching(hub.requests, "* 503")) == 2


def test_offline(hub: HubServer, tmp_path: Path) -> None:
    ask(hub, "out = fetch('config.json')", tmp_path)
    hub.requests.clear()
    code = "out = [Path(fetch('config.json')).read_text(), raised(fetch)]"
    out = ask(hub, code, tmp_path, HF_HUB_OFFLINE="1")
    assert out == ["{}", ["LocalEntryNotFoundError", None]]
    assert hub.requests == []


def test_delays_refusals_and_extra_files(hub: HubServer, tmp_path: Path) -> None:
    hub.fail("delay", "/api/models/org/name", seconds=1.5)
    hub.fail("status", "HEAD *config.json", status=403, code="GatedRepo")
    hub.fail("status", "GET /cdn/*", status=401)
    hub.fail("extra", times=None, files={"evil.pkl": b"evil", "evil.bin": b"evil too"})
    code = """
start = time.monotonic()
names = [sibling.rfilename for sibling in api.model_info("org/name").siblings]
out = {"seconds": time.monotonic() - start, "names": names}
out["refused"] = [raised(fetch, "config.json"), raised(fetch)]
out["evil"] = [Path(fetch(name)).read_text() for name in ("evil.pkl", "evil.bin")]
"""
    out = ask(hub, code, tmp_path)
    assert out["seconds"] >= 1.5
    assert {"evil.pkl", "evil.bin"} <= set(out["names"])
    assert out["refused"] == [["GatedRepoError", 403], ["HfHubHTTPError", 401]]
    assert out["evil"] == ["evil", "evil too"]
    hub.faults.clear()
    out = ask(hub, "out = api.list_repo_files('org/name'), raised(fetch)", tmp_path)
    assert out == [list(FILES), None]


def test_pages(tmp_path: Path) -> None:
    files = [f"{folder}/{i}.txt" for folder in "abc" for i in range(5)]
    code = """
tree = list(api.list_repo_tree("org/name", recursive=True))
files = [entry.path for entry in tree if hasattr(entry, "size")]
out = [files, len(tree), len(api.list_repo_commits("org/name"))]
"""
    with HubServer(page_size=4) as hub:
        for name in files:
            hub.commit("org/name", {name: b"text"})
        assert ask(hub, code, tmp_path) == [files, len(files) + 3, len(files)]
        assert len(matching(hub.requests, "GET */tree/*")) == 5  # 18 entries
        assert len(matching(hub.requests, "GET */commits/*")) == 4


def test_mirror(tmp_path: Path) -> None:
    with HubServer(root=tmp_path / "mirror") as hub:
        hub.commit("org/name", {**FILES, "sub/a.txt": b"a"})
        hub.commit("org/name", {"side.txt": b"side"}, branch="side")
        hub.commit("org/name", {"config.json": None, "sub/a.txt": b"b"})
        folder = tmp_path / "mirror/org/name"
        found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert found == {"README.md", "model.safetensors", "sub/a.txt"}
        assert (folder / "sub/a.txt").read_bytes() == b"b"
        assert (folder / "model.safetensors").read_bytes() == WEIGHTS
        with pytest.raises(hub_server.Reply):
            hub.commit("org/name", {"../../escaped.txt": b""})
    assert not (tmp_path / "mirror/escaped.txt").exists()


def get(url: str, **headers: str) -> tuple[int, bytes, str]:
    """Status, body and Content-Range of a plain GET."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, answer.read(), answer.headers.get("Content-Range", "")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers.get("Content-Range", "")


def test_ranges_and_signed_addresses(hub: HubServer) -> None:
    url = f"{hub.endpoint}/org/name/resolve/main/model.safetensors"
    assert get(url)[1] == WEIGHTS
    assert get(url, Range="bytes=10-19") == (206, WEIGHTS[10:20], f"bytes 10-19/{len(WEIGHTS)}")
    size = len(WEIGHTS)
    tail = get(url, Range=f"bytes={size - 1}-")
    assert tail == (206, WEIGHTS[-1:], f"bytes {size - 1}-{size - 1}/{size}")
    assert get(url, Range=f"bytes={size}-") == (416, b"", f"bytes */{size}")
    head = hub.repos["org/name"].branches["main"]
    unsigned = f"{hub.cdn}/cdn/org/name/{head}/model.safetensors"
    assert get(unsigned)[0] == get(f"{unsigned}?signature=0")[0] == 403
    with urllib.request.urlopen(url) as answer:
        signed = answer.geturl()
    assert signed.startswith(unsigned)
    assert get(signed)[0] == 200
    assert get(signed, Authorization=f"Bearer {hub.token}")[0] == 403, "tokens stay with the Hub"


def test_wrong_faults_are_refused() -> None:
    with HubServer() as hub:
        with pytest.raises(KeyError):
            hub.fail("nothing")
        with pytest.raises(TypeError, match="after"):
            hub.fail("cut", missing=1)


def test_command_line(tmp_path: Path) -> None:
    command = [sys.executable, hub_server.__file__, "--port", "0", "--root", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            lines = [server.stdout.readline().split() for _ in range(4)]
            settings = dict(line[1].split("=", 1) for line in lines)
            assert {line[0] for line in lines} == {"export"}
            assert set(settings) == {"HF_ENDPOINT", "HF_HOME", "HF_TOKEN", "HF_HUB_DISABLE_XET"}
            url = settings["HF_ENDPOINT"] + "/api/whoami-v2"
            assert get(url, Authorization="Bearer " + settings["HF_TOKEN"])[0] == 200
            assert get(url)[0] == 401
        finally:
            server.terminate()
    os.rmdir(settings["HF_HOME"])
