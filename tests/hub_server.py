"""A small server that speaks the Hugging Face Hub's protocol on loopback. Standard library only.

In a test, with the real client in a process of its own (it reads its settings at import)::

    with HubServer() as hub:
        hub.fail("cut", "/cdn/*model.safetensors", after=1000)
        run_client(hub, "import huggingface_hub as h; h.create_repo('org/name')", tmp_path)
        assert "POST /api/repos/create 200" in hub.requests

A person gets the lines to export from ``python tests/hub_server.py --port 8000 --root DIR``.

Xet, the client's default way to move large files, is left out and never advertised. Downloads work
with xet on or off. To upload a large file with xet on, the client asks for a xet token and never
tries LFS: it fails here on the 404. So switch xet off (``HF_HUB_DISABLE_XET=1``, as `run_client`
does by default), or start ``HubServer(inline=True)``, which asks for every file inside the commit:
either client can do that, but LFS is then not exercised. Left out too: data sets, spaces, pull
requests, gated repositories, settings, search, `expand`, deleting tags and branches, and the nested
part of a card's metadata.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

FAULTS: dict[str, dict[str, Any]] = {  # kind -> its options and their defaults
    "flip": {"offset": None},  # one byte inverted on the way (None: the middle one), same size
    "truncate": {"missing": 1},  # the object itself is short, and Content-Length agrees with it
    "short": {"missing": 1},  # Content-Length in full, that many bytes fewer, then closed
    "cut": {"after": 1024},  # Content-Length in full, closed after that many bytes
    "status": {"status": 503, "code": "", "message": "As told"},  # code: X-Error-Code
    "delay": {"seconds": 1.0},
    "extra": {"files": {}},  # path -> bytes, shown and served though no commit holds them
}
Changes = Mapping[str, bytes | None]  # path -> content, None deletes the file
_REPO, _FILE = r"(?P<repo>[^/]+/[^/]+)", r"/(?P<rev>[^/]+)/(?P<path>.+)"
_PATHS = (  # GET /api/models/org/name/tree/main is answered by GET_tree("org/name", "main")
    r"/api/(?P<verb>whoami-v2|validate-yaml|repos/create|repos/delete)",
    r"/(?:api/)?(?P<verb>cdn|resolve-cache)/" + _REPO + _FILE,
    r"/api/models/" + _REPO + r"(?:/(?P<verb>[a-z-]+)(?:/(?P<rev>[^/]+)(?:/(?P<path>.+))?)?)?",
    r"/" + _REPO + r"\.git/info/lfs/(?P<verb>objects/batch|verify)",
    r"/" + _REPO + r"/(?P<verb>resolve)" + _FILE,
    r"/(?P<verb>upload)/(?P<oid>[0-9a-f]{64})/(?P<part>\d+)",
)


def is_lfs(path: str, size: int, head: bytes) -> bool:
    """Whether a file is an LFS object: by its suffix, over 10 MiB, or for a NUL in its head."""
    suffixes = (".safetensors", ".bin", ".pt", ".pth", ".npz", ".zip", ".gz")
    return size > 0 and (path.endswith(suffixes) or size > 10 * 2**20 or b"\0" in head[:512])


def git_oid(data: bytes) -> str:
    """The sha1 under which git knows these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def entries(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """Files and folders by path, as `tree` and `paths-info` show them."""
    shown: dict[str, dict[str, Any]] = {}
    for path, data in sorted(files.items()):
        for folder in map(str, PurePosixPath(path).parents[:-1]):
            shown[folder] = {"type": "directory", "path": folder, "oid": git_oid(folder.encode())}
        shown[path] = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
        if is_lfs(path, len(data), data):
            sha256 = hashlib.sha256(data).hexdigest()
            shown[path]["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 128}
    return shown


def card_data(readme: str) -> dict[str, Any]:
    """The top-level scalars and plain lists of a model card's YAML header."""
    header = re.match(r"---\n(.*?)\n---", readme, re.DOTALL)
    rows = re.findall(r"^([\w-]+): *(.*)((?:\n *- .+)*)", header[1] if header else "", re.MULTILINE)
    data = {key: value.strip("'\"") or re.findall(r"- (.+)", items) for key, value, items in rows}
    return {key: value for key, value in data.items() if value and key != "model-index"}


@dataclass(frozen=True)
class Commit:
    """A snapshot of all files."""

    id: str
    parent: str | None
    title: str
    message: str
    date: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """Commits by id, oldest first, and the branches and tags that point at them."""

    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class Fault:
    """Something to go wrong, see `HubServer.fail`; `hits` counts how often it did."""

    kind: str
    pattern: str
    times: int | None
    options: dict[str, Any]
    hits: int = 0


@dataclass(eq=False)
class Reply(Exception):
    """An answer other than plain JSON: returned by a handler, or raised to refuse."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None  # close the connection after that many bytes


def refuse(when: object, status: int, code: str, message: str, **headers: str) -> None:
    """Raises an error for the client, which turns `code` into an exception of its own."""
    headers |= {"X-Error-Message": message, "X-Error-Code": code}
    if when:
        raise Reply(status, json.dumps({"error": message}).encode(), headers)


@dataclass
class HubServer:
    """The server, a context manager; listens on loopback only."""

    port: int = 0  # 0 takes a free one
    root: str | Path | None = None  # a folder to mirror `main` to, as ORG/NAME/PATH
    inline: bool = False  # take large files inside the commit, not through LFS (see the module)
    multipart_above: int = 5 * 2**20  # bytes; a larger LFS upload goes in parts of that size
    page_size: int = 1000  # entries per page of trees and commit lists
    token: str = "hf_made_up_for_tests"
    read_token: str = "hf_made_up_read_only"  # may read private repositories, and not write
    repos: dict[str, Repo] = field(default_factory=dict)  # by "ORG/NAME"
    requests: list[str] = field(default_factory=list)  # "METHOD /path STATUS", as answered
    faults: list[Fault] = field(default_factory=list)  # clear() ends them all
    objects: dict[str, bytes] = field(default_factory=dict)  # LFS: by sha256, parts by sha256/n

    def __post_init__(self) -> None:
        self.secret, self.lock = os.urandom(16), threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        # Another host, so that the client sees a redirect to it as one that leaves the Hub.
        self.cdn = f"http://localhost:{self.server.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def env(self, hf_home: str | Path) -> dict[str, str]:
        """The settings with which a client talks to this server."""
        settings = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(hf_home), "HF_TOKEN": self.token}
        return settings | {"HF_HUB_DISABLE_XET": "1"}

    def fail(self, kind: str, pattern: str = "*", times: int | None = 1, **options: Any) -> Fault:
        """Makes the next `times` matching requests (None: all of them) go wrong.

        `kind` and its options are those of `FAULTS`. `pattern` (fnmatch) is held against "/path",
        or against "METHOD /path" if it has a space. The kinds that touch a file's bytes count
        only the GETs that deliver some: /cdn/ORG/NAME/COMMIT/PATH for LFS files,
        /api/resolve-cache/ORG/NAME/COMMIT/PATH for others. The rest count any request; a
        download begins with HEAD /ORG/NAME/resolve/REVISION/PATH.
        """
        if unknown := options.keys() - FAULTS[kind].keys():
            raise TypeError(f"{kind!r} has no option {unknown}; it has {FAULTS[kind]}")
        self.faults.append(Fault(kind, pattern, times, FAULTS[kind] | options))
        return self.faults[-1]

    def commit(self, repo: str, files: Changes, branch: str = "main", title: str = "", message: str = "") -> Commit:
        """Adds a commit (None deletes a file), to a new repository if there is none."""
        found = self.repos.setdefault(repo, Repo())
        parent = found.branches.get(branch)
        kept = dict(found.commits[parent].files) if parent else {}
        for path, data in files.items():
            outside = path.startswith("/") or ".." in path.split("/")
            refuse(outside, 400, "", f"Not a path inside the repository: {path}")
            refuse(data is None and path not in kept, 404, "EntryNotFound", f"No file {path}")
            kept = {key: kept[key] for key in kept if key != path}
            kept |= {} if data is None else {path: data}
            if self.root and branch == "main":
                file = Path(self.root, repo, path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.unlink(missing_ok=True) if data is None else file.write_bytes(data)
        when = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        oids = [(path, git_oid(data)) for path, data in sorted(kept.items())]
        commit_id = git_oid(repr((parent, title, message, len(found.commits), oids)).encode())
        found.commits[commit_id] = Commit(commit_id, parent, title, message, when, kept)
        found.branches[branch] = commit_id
        return found.commits[commit_id]


class _Handler(BaseHTTPRequestHandler):
    """A connection. A request is answered by the method METHOD_verb, see `_PATHS`."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_request(self) -> None:
        self.url, self.query = urlsplit(self.path), parse_qs(urlsplit(self.path).query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if delay := self.fault("delay"):
            time.sleep(delay["seconds"])
        with self.hub.lock:
            try:
                if told := self.fault("status"):
                    refuse(True, **told)
                answer = self.dispatch()
            except Reply as early:
                answer = early
            except (KeyError, TypeError, ValueError) as error:
                answer = Reply(400, json.dumps({"error": f"Bad request: {error!r}"}).encode())
            reply = answer if isinstance(answer, Reply) else Reply(body=json.dumps(answer).encode())
            self.hub.requests.append(f"{self.command} {unquote(self.url.path)} {reply.status}")
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with suppress(ConnectionError):  # a client may hang up
                self.wfile.write(reply.body[: reply.cut])
        self.close_connection |= reply.cut is not None

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing to stderr: `HubServer.requests` is the log."""

    def fault(self, kind: str) -> dict[str, Any] | None:
        path = unquote(self.url.path)
        for fault in self.hub.faults:
            text = f"{self.command} {path}" if " " in fault.pattern else path
            due = fault.kind == kind and fault.hits != fault.times
            if due and fnmatchcase(text, fault.pattern):
                fault.hits += 1
                return fault.options
        return None

    def dispatch(self) -> Any:
        for pattern in _PATHS:
            if found := re.fullmatch(pattern, self.url.path):
                given = {key: unquote(text) for key, text in found.groupdict().items() if text}
                verb = given.pop("verb", "revision")
                self.check(verb, given.get("repo"))
                name = f"{self.command}_{verb}".replace("HEAD", "GET")
                if handler := getattr(self, re.sub("[/-]", "_", name), None):
                    return handler(**given)
        return Reply(404, b'{"error": "Not served here"}')

    def check(self, verb: str, repo: str | None) -> None:
        """Whether the token, or the signature in its place, gives the right to this."""
        hub, token = self.hub, self.headers.get("Authorization", "").removeprefix("Bearer ")
        if verb in ("cdn", "upload"):
            wrong = token or self.path != self.signed(self.url.path)
            return refuse(wrong, 403, "", "A wrong signature, or a token where it must not go")
        known = token in ("", hub.token, hub.read_token)
        refuse(not known, 401, "", "Invalid credentials in Authorization header")
        hidden = repo and (repo not in hub.repos or (hub.repos[repo].private and not token))
        refuse(hidden, 404 if token else 401, "RepoNotFound", "Repository not found")
        writes = self.command in ("POST", "DELETE") and verb != "paths-info"
        refuse(not token and (writes or verb == "whoami-v2"), 401, "", "This takes a token")
        refuse(writes and token != hub.token, 403, "", "This takes a token that may write")

    def signed(self, path: str) -> str:
        return f"{path}?signature={hmac.new(self.hub.secret, path.encode(), 'sha256').hexdigest()}"

    def at(self, repo: str, rev: str) -> Commit:
        found = self.hub.repos[repo]
        oid = found.branches.get(rev) or found.tags.get(rev) or rev
        refuse(oid not in found.commits, 404, "RevisionNotFound", f"Invalid rev id: {rev}")
        commit, extra = found.commits[oid], self.fault("extra") or {"files": {}}
        return replace(commit, files=commit.files | extra["files"])

    def page(self, items: list[Any]) -> Reply:
        start = int(self.query.get("cursor", ["0"])[0])
        stop, headers = start + self.hub.page_size, {}
        if stop < len(items):
            query = urlencode(self.query | {"cursor": [str(stop)]}, doseq=True)
            headers["Link"] = f'<{self.hub.endpoint}{self.url.path}?{query}>; rel="next"'
        return Reply(200, json.dumps(items[start:stop]).encode(), headers)

    def GET_whoami_v2(self) -> Any:
        return {"type": "user", "name": "tester", "orgs": [], "auth": {"type": "access_token"}}

    def POST_validate_yaml(self) -> Any:
        return {"errors": [], "warnings": []}

    def named(self) -> str:
        wanted = json.loads(self.body)
        return f"{wanted.get('organization') or 'tester'}/{wanted['name']}"

    def POST_repos_create(self) -> Any:
        wanted, repo = json.loads(self.body), self.named()
        answer = {"url": f"{self.hub.endpoint}/{repo}"}
        if repo in self.hub.repos:
            answer["error"] = "You already created this repo"
            raise Reply(409, json.dumps(answer).encode())
        self.hub.commit(repo, {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.hub.repos[repo].private = wanted.get("private", wanted.get("visibility") == "private")
        return answer

    def DELETE_repos_delete(self) -> Any:
        self.check("", self.named())
        self.hub.commit(self.named(), dict.fromkeys(self.at(self.named(), "main").files))
        return self.hub.repos.pop(self.named()) and {}

    def GET_revision(self, repo: str, rev: str = "main") -> Any:
        commit, found = self.at(repo, rev), self.hub.repos[repo]
        card = card_data(commit.files.get("README.md", b"").decode())
        shown = [entry for entry in entries(commit.files).values() if entry["type"] == "file"]
        names = {"rfilename": "path", "size": "size", "blobId": "oid"}
        siblings = [{name: entry[key] for name, key in names.items()} for entry in shown]
        info: dict[str, Any] = {"id": repo, "author": repo.split("/")[0], "sha": commit.id}
        info |= {"private": found.private, "gated": False, "disabled": False, "siblings": siblings}
        info |= {"lastModified": commit.date, "cardData": card, "tags": card.get("tags", [])}
        return info | {key: card.get(key) for key in ("library_name", "pipeline_tag")}

    def GET_tree(self, repo: str, rev: str, path: str = "") -> Any:
        shown = entries(self.at(repo, rev).files)
        refuse(path and path not in shown, 404, "EntryNotFound", f"No {path} on {rev}")
        start = f"{path}/" if path else ""
        deep = self.query.get("recursive", [""])[0].lower() == "true"
        inside = [name for name in shown if name.startswith(start)]
        return self.page([shown[n] for n in inside if deep or "/" not in n[len(start) :]])

    def POST_paths_info(self, repo: str, rev: str) -> Any:
        shown = entries(self.at(repo, rev).files)
        return [shown[path] for path in parse_qs(self.body.decode())["paths"] if path in shown]

    def GET_commits(self, repo: str, rev: str) -> Any:
        history: list[dict[str, Any]] = []
        commit: Commit | None = self.at(repo, rev)
        while commit:
            shown = {"id": commit.id, "title": commit.title, "message": commit.message}
            history.append(shown | {"date": commit.date, "authors": [{"user": "tester"}]})
            commit = self.hub.repos[repo].commits.get(commit.parent or "")
        return self.page(history)

    def GET_refs(self, repo: str) -> Any:
        def shown(kind: str, refs: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": refs[n]} for n in refs]

        found = self.hub.repos[repo]
        branches, tags = shown("heads", found.branches), shown("tags", found.tags)
        return {"branches": branches, "tags": tags, "converts": [], "pullRequests": []}

    def POST_tag(self, repo: str, rev: str) -> Any:
        return self.point(self.hub.repos[repo].tags, json.loads(self.body)["tag"], repo, rev)

    def POST_branch(self, repo: str, rev: str) -> Any:
        start = json.loads(self.body).get("startingPoint", "main")
        return self.point(self.hub.repos[repo].branches, rev, repo, start)

    def point(self, refs: dict[str, str], name: str, repo: str, rev: str) -> Any:
        refuse(name in refs, 409, "", f"Reference already exists: {name}")
        refs[name] = self.at(repo, rev).id
        return {}

    def POST_preupload(self, repo: str, rev: str) -> Any:
        answers = []
        for new in json.loads(self.body)["files"]:
            lfs = is_lfs(new["path"], new["size"], base64.b64decode(new["sample"]))
            lfs &= not self.hub.inline
            answer = {"path": new["path"], "uploadMode": "lfs" if lfs else "regular"}
            if old := self.at(repo, rev).files.get(new["path"]):
                answer["oid"] = hashlib.sha256(old).hexdigest() if lfs else git_oid(old)
            answers.append(answer | {"shouldIgnore": False})
        return {"files": answers}

    def POST_objects_batch(self, repo: str) -> Any:
        objects, size = json.loads(self.body)["objects"], self.hub.multipart_above
        for wanted in (one for one in objects if one["oid"] not in self.hub.objects):
            count = -(-wanted["size"] // size) if wanted["size"] > size else 0
            url = [self.signed(f"/upload/{wanted['oid']}/{part}") for part in range(count + 1)]
            parts = {f"{part:05}": self.hub.cdn + url[part] for part in range(1, count + 1)}
            upload = {"href": self.hub.cdn + url[0], "header": parts}
            if parts:
                parts["chunk_size"] = str(size)
            verify = {"href": f"{self.hub.endpoint}/{repo}.git/info/lfs/verify"}
            wanted["actions"] = {"upload": upload, "verify": verify}
        return {"objects": objects}

    def POST_verify(self, repo: str) -> Any:
        return {} if json.loads(self.body)["oid"] in self.hub.objects else Reply(404)

    def PUT_upload(self, oid: str, part: str) -> Any:
        wrong = part == "0" and hashlib.sha256(self.body).hexdigest() != oid
        refuse(wrong, 400, "", "The bytes are not those that were announced")
        self.hub.objects[oid if part == "0" else f"{oid}/{part}"] = self.body
        return Reply(headers={"ETag": git_oid(self.body)})

    def POST_upload(self, oid: str, part: str) -> Any:
        parts = json.loads(self.body)["parts"]
        pieces = [self.hub.objects.pop(f"{oid}/{part['partNumber']}") for part in parts]
        right = [part["etag"] for part in parts] == [git_oid(piece) for piece in pieces]
        refuse(not right, 400, "", "An ETag is not that of its part")
        self.body = b"".join(pieces)
        return self.PUT_upload(oid, part)

    def POST_commit(self, repo: str, rev: str) -> Any:
        refuse("create_pr" in self.query, 400, "", "Pull requests are left out here")
        head, header = self.hub.repos[repo].branches.get(rev, ""), {}
        refuse(not head, 404, "RevisionNotFound", f"Not a branch: {rev}")
        changes: dict[str, bytes | None] = {}
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                header = value
            elif line["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changes[value["path"]] = self.hub.objects[value["oid"]]
            else:  # deletedFile, deletedFolder
                path, files = value["path"].rstrip("/"), self.hub.repos[repo].commits[head].files
                changes |= dict.fromkeys([f for f in files if f.startswith(f"{path}/")] or [path])
        moved = not head.startswith(header.get("parentCommit", ""))
        refuse(moved, 412, "", "A commit has happened since. Please refresh and try again.")
        oid = self.hub.commit(repo, changes, rev, header["summary"], header["description"]).id
        return {"commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{repo}/commit/{oid}"}

    def GET_resolve(self, repo: str, rev: str, path: str) -> Any:
        commit = self.at(repo, rev)
        headers = {"X-Repo-Commit": commit.id}
        refuse(path not in commit.files, 404, "EntryNotFound", "Entry not found", **headers)
        place = quote(f"/{repo}/{commit.id}/{path}")
        location = "/api/resolve-cache" + place
        if lfs := entries(commit.files)[path].get("lfs"):
            headers |= {"X-Linked-ETag": f'"{lfs["oid"]}"', "X-Linked-Size": str(lfs["size"])}
            location = self.hub.cdn + self.signed("/cdn" + place)
        return Reply(302 if lfs else 307, b"", headers | {"Location": location})

    def GET_cdn(self, repo: str, rev: str, path: str) -> Any:
        data = self.at(repo, rev).files[path]
        reply = Reply(200, data, {"X-Repo-Commit": rev, "ETag": f'"{git_oid(data)}"'})
        if self.command == "HEAD":
            return reply
        if fault := self.fault("truncate"):
            reply.body = data[: -fault["missing"]]
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, size = int(asked[1]), len(reply.body)
            if start >= size:
                raise Reply(416, b"", {"Content-Range": f"bytes */{size}"})
            reply.status, reply.body = 206, reply.body[start : int(asked[2] or size) + 1]
            stop = start + len(reply.body) - 1
            reply.headers["Content-Range"] = f"bytes {start}-{stop}/{size}"
        if fault := self.fault("flip"):
            at = len(reply.body) // 2 if fault["offset"] is None else fault["offset"]
            flipped = bytes([reply.body[at] ^ 255])
            reply.body = reply.body[:at] + flipped + reply.body[at + 1 :]
        if fault := self.fault("short"):
            reply.cut = len(reply.body) - fault["missing"]
        if fault := self.fault("cut"):
            reply.cut = fault["after"]
        return reply

    GET_resolve_cache = GET_cdn


def run_client(
    hub: HubServer, code: str, tmp_path: Path, *, check: bool = True, **env: str | None
) -> subprocess.CompletedProcess[str]:
    """Runs a Python snippet as a client of `hub`, in `tmp_path` and with its cache there.

    The snippet may be indented, and can import this project. `env` adds settings, None takes one
    away (``HF_HUB_DISABLE_XET=None``). A snippet that fails is an AssertionError if `check`.
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run(command, cwd=tmp_path, env=client_env(hub, tmp_path, **env), **options)
    assert not check or done.returncode == 0, done.stderr
    return done


def client_env(hub: HubServer, tmp_path: Path, **env: str | None) -> dict[str, str]:
    """The environment of a client of `hub`: nothing of the Hub's own settings is inherited."""
    ours = re.compile("HF_|HUGGING|.*_proxy$", re.IGNORECASE)
    settings: dict[str, str | None] = {k: v for k, v in os.environ.items() if not ours.match(k)}
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    settings |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    settings |= {**hub.env(tmp_path / "hf_home"), **env}
    return {key: value for key, value in settings.items() if value is not None}


def main() -> None:
    """Prints what to export and serves until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A Hugging Face Hub on loopback, for trying out.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--root", type=Path, help="mirror the repositories to this folder")
    parser.add_argument("--inline", action="store_true", help="lets clients with xet upload too")
    with HubServer(**vars(parser.parse_args())) as hub:
        for name, value in hub.env(tempfile.mkdtemp(prefix="hf_home_")).items():
            print(f"export {name}={value}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
