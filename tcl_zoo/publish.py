"""A release folder onto a Hub: checked here, sent in one commit, tagged (the package's version), read back.

The repository is the release folder: what else lies in it is left alone, but what an older release left there (a
picture, a projector) is deleted in the same commit. What is under a tag never changes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from . import __version__, hub, index
from .errors import WeightsError
from .outside import short
from .release import CARD_FILE, PROJECTOR_FILE, record, render_card, write_card
from .weights import CONFIG_FILE, WEIGHTS_FILE, read_config

TAG = f"v{__version__}"
_NEEDED = (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE)
_FILES = (*_NEEDED, PROJECTOR_FILE, "*.png")


class ReleaseCheckError(WeightsError):
    """A release that must not leave this machine as it is."""


@dataclass(frozen=True)
class Published:
    """Where a release is on a Hub.

    Attributes:
        name, repo_id: of the release and of the repository.
        revision: the commit.
        tag: ``v<package version>``, or the one that was asked for.
        sent: files that the commit changed; empty where the Hub had all of them.
    """

    name: str
    repo_id: str
    revision: str
    tag: str
    sent: tuple[str, ...]


def release_files(folder: Path) -> dict[str, Path]:
    """Name -> path of the files of a release, by name.

    Raises:
        ReleaseCheckError: one is missing, or something lies there that is no part of a release.
    """
    found = {path.name: path for path in sorted(folder.iterdir())} if folder.is_dir() else {}
    if missing := [name for name in _NEEDED if name not in found]:
        raise ReleaseCheckError(f"{folder} is no release folder: it lacks {', '.join(missing)}")
    if foreign := [name for name, path in found.items() if not _ours(name) or path.is_symlink() or path.is_dir()]:
        raise ReleaseCheckError(f"{folder} holds what is no part of a release: {', '.join(foreign)}")
    return found


def _ours(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in _FILES)


def check(folder: Path, data_dir: str | os.PathLike[str] | None = None, *, indexed: bool = True) -> dict[str, Any]:
    """Holds a release against itself, the index and, where the data set is at hand, the test images; nothing is sent.

    Args:
        folder: the release folder.
        data_dir: where the data set is; digits needs none. Without it the golden output alone stands for the top-1.
        indexed: hold it against ``index.json``, too.

    Returns:
        Its ``config.json``.

    Raises:
        ReleaseCheckError: the weights or the configuration are not those of the index, the top-1 or the golden output
            differs, or the card's metadata does not say what the configuration says.
    """
    import yaml
    from huggingface_hub import ModelCard

    from .cards import metadata

    files, config = release_files(folder), read_config(folder)
    facts = config["tcl_zoo"]
    digests = {file: hashlib.sha256(files[file].read_bytes()).hexdigest() for file in (WEIGHTS_FILE, CONFIG_FILE)}
    problems: list[str] = []

    def hold(what: str, found: object, expected: object) -> None:
        if found != expected:
            problems.append(f"{what} is {short(found)} instead of {short(expected)}")

    hold("the sha256 of the weights", digests[WEIGHTS_FILE], facts["sha256"])
    if indexed:
        entry = index.entries().get(facts["name"], {})
        hold("the sha256 of the weights in index.json", entry.get("sha256"), digests[WEIGHTS_FILE])
        hold("the sha256 of config.json in index.json", entry.get("config_sha256"), digests[CONFIG_FILE])
    try:
        text = files[CARD_FILE].read_text(encoding="utf-8")
        found, expected = ModelCard(text).data.to_dict(), metadata(config).to_dict()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        problems.append(f"the card's metadata cannot be read ({short(error)})")
    else:
        for key, value in expected.items():
            how = "the same fine-tuning" if "parent" in facts else "--cards"
            hold(f"{key} in the card ({how} writes it again)", found.get(key), value)
    if not problems:
        problems += _measured(folder, facts, data_dir)
    if problems:
        raise ReleaseCheckError(f"{folder} is not published: {'; '.join(problems)}")
    return config


def _measured(folder: Path, facts: dict[str, Any], data_dir: str | os.PathLike[str] | None) -> list[str]:
    """What the loaded weights do otherwise than the card says."""
    import torch

    from .models import create_model
    from .verify import TOLERANCE_GOLDEN, golden_output, verify

    name, dataset = facts["name"], facts["recipe"].get("dataset")  # none: fine-tuned on somebody's folder
    if dataset == "digits" or (dataset and data_dir is not None):
        checked = verify(name, data_dir, weights_dir=folder)
        if not checked.same_data:
            return ["the test images are not those of the card"]
        what = f"measured top-1 {checked.measured:.2f}, reported {checked.reported:.2f}; "
        return [] if checked.ok else [f"{what}the golden output differs by {checked.golden:.1e}"]
    model = create_model(name, pretrained=True, weights_dir=folder)
    golden = torch.tensor(facts["golden"]["logits"])
    difference = float((golden_output(model, read_config(folder)["pretrained_cfg"]) - golden).abs().max())
    return [] if difference <= TOLERANCE_GOLDEN else [f"the golden output differs by {difference:.1e}"]


def preview(
    folder: Path, repo_id: str | None, data_dir: str | os.PathLike[str] | None = None, *, indexed: bool = True,
    tag: str = TAG,
) -> str:  # fmt: skip
    """What :func:`publish` would send, as text: files, sizes, the card.

    Raises:
        ReleaseCheckError: it would refuse.
    """
    check(folder, data_dir, indexed=indexed)
    files, text = release_files(folder), render_card(folder, repo_id)
    sizes = {name: len(text.encode()) if name == CARD_FILE else path.stat().st_size for name, path in files.items()}
    lines = [f"{folder} -> {repo_id or 'a repository to be named'}, tag {tag}"]
    lines += [f"  {name:<24} {size:>12,} bytes" for name, size in sizes.items()]
    return "\n".join([*lines, f"  {'':<24} {sum(sizes.values()):>12,} bytes in all", "", text])


def publish(
    folder: Path,
    repo_id: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    private: bool = False,
    indexed: bool = True,
    tag: str = TAG,
) -> Published:
    """Puts a release on a Hub and enters it into ``index.json``.

    The card is written again, with the repository in it. A second call with the same content sends nothing.

    Args:
        folder: the release folder.
        repo_id: ``org/name``; made where it does not exist.
        data_dir: as for :func:`check`.
        private: make it private; one that exists is left as it is.
        indexed: hold the release against the index, and enter ``repo_id`` and the commit there.
        tag: under which the commit is found again; what is under a tag never changes.

    Raises:
        ReleaseCheckError: the release is not as its card and the index say.
        WeightsError: the tag holds other files already, or the Hub refuses or does not answer.
    """
    config = check(folder, data_dir, indexed=indexed)
    name = config["tcl_zoo"]["name"]
    card = render_card(folder, repo_id).encode()
    files: dict[str, Path | bytes] = {**release_files(folder), CARD_FILE: card}
    with _refusals(repo_id):
        revision, sent = _send(hub.client(), files, repo_id, name, private, tag)
    write_card(folder, repo_id)  # only now is it true
    if indexed:
        record(name, repo_id, revision)
    return Published(name, repo_id, revision, tag, sent)


@contextmanager
def _refusals(repo_id: str) -> Iterator[None]:
    try:
        yield
    except WeightsError:
        raise
    except hub.failures() as error:
        raise WeightsError(f"cannot publish to {repo_id}: {hub.explain(error)}") from error


def _send(
    api: Any, files: dict[str, Path | bytes], repo_id: str, name: str, private: bool, tag: str
) -> tuple[str, tuple[str, ...]]:
    """The commit that has the files, and which of them it changed."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api.create_repo(repo_id, private=private or None, exist_ok=True)
    refs = api.list_repo_refs(repo_id)
    tagged = {ref.name: ref.target_commit for ref in refs.tags}.get(tag)
    head = tagged or {ref.name: ref.target_commit for ref in refs.branches}["main"]
    changed = _difference(api, files, repo_id, head)
    if tagged and changed:
        raise WeightsError(
            f"{repo_id} has {tag} with another {', '.join(changed)}: what is under a tag does not change; "
            "choose another one (--tag), or publish to another repository"
        )
    if changed:
        operations = [
            CommitOperationAdd(file, files[file]) if file in files else CommitOperationDelete(file) for file in changed
        ]
        title = f"{name}, tcl_zoo {__version__}"
        head = api.create_commit(repo_id, operations, commit_message=title, parent_commit=head).oid
        if wrong := _difference(api, files, repo_id, head):
            raise WeightsError(f"{repo_id}@{head} did not get {', '.join(wrong)} as it was sent; publish again")
    if not tagged:
        api.create_tag(repo_id, tag=tag, revision=head)
    return head, changed


def _difference(api: Any, files: dict[str, Path | bytes], repo_id: str, revision: str) -> tuple[str, ...]:
    """Names that differ from the folder at a revision, by the digests the Hub keeps."""
    remote = {entry.path: entry for entry in api.list_repo_tree(repo_id, revision=revision) if hasattr(entry, "size")}

    def same(file: str, content: Path | bytes) -> bool:
        if (entry := remote.get(file)) is None:
            return False
        data = content if isinstance(content, bytes) else content.read_bytes()
        if entry.lfs is not None:
            return bool(entry.lfs.sha256 == hashlib.sha256(data).hexdigest())
        return bool(entry.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest())

    left = [path for path in remote if path not in files and _ours(path)]
    return tuple([file for file, content in files.items() if not same(file, content)] + left)
