"""Find, fetch, check and load released weights. Every byte that comes from outside passes through here.

Where the weights of a name come from, in this order: ``weights_dir=`` or ``TCL_ZOO_WEIGHTS``; the package or the
checkout's ``model_cards/``; the Hub at the revision that ``index.json`` pins. ``hf-hub:org/name[@revision]`` and
``local-dir:PATH`` name a place instead.

The file is read once, its sha256 compared, and the very bytes that were compared are loaded: against ``sha256=`` where
the caller gives one, against ``index.json`` for a released name, else against the release's own ``config.json``. What
``hf-hub:`` and ``local-dir:`` name, and a folder or revision under a released name, loads with an
:class:`UncheckedWarning` where the index says otherwise; a path, or a name that is not released, is the caller's own.

Only ``config.json`` and ``model.safetensors`` are ever fetched or opened, and a configuration may set nothing but the
values this zoo writes.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import hub, index
from .errors import WeightsError
from .outside import MAX_WEIGHTS_BYTES, SHA256, complaint, expanded, parsed, read_limited, short, timms_own
from .recipes import nearest, recipe

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
SOURCES = ("hf-hub:", "local-dir:")
_MAX_CONFIG_BYTES = 4_000_000


class UncheckedWarning(UserWarning):
    """Weights were loaded that neither ``index.json`` nor a ``sha256=`` vouches for."""


class DamagedError(WeightsError):
    """A file of a release is not what was promised."""


@dataclass(frozen=True)
class Release:
    """A release folder on this machine.

    Attributes:
        name: the released name, or the place that was asked for.
        folder: holds ``config.json`` and ``model.safetensors``.
        config: the parsed and checked ``config.json``.
        sha256: what the weights must hash to.
        source: ``weights_dir``, ``bundled``, ``local-dir`` or ``hub``.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    sha256: str
    source: str


def read_config(folder: Path, fetched: bool = False) -> dict[str, Any]:
    """``config.json`` of a release folder, its keys, types and ranges checked.

    What was fine-tuned here may be any model of timm's; what was ``fetched`` may not.

    Raises:
        DamagedError: missing, no JSON, or keys missing or foreign.
        WeightsError: it is that of another model of timm's.
    """
    path = folder / CONFIG_FILE

    def refuse(why: str) -> DamagedError:
        return DamagedError(f"{path} {why}; fetch or build the release again")

    try:
        config = parsed(read_limited(path, _MAX_CONFIG_BYTES))
    except FileNotFoundError:
        raise refuse("is missing") from None
    except (OSError, ValueError) as error:
        raise refuse(f"cannot be read ({getattr(error, 'strerror', None) or short(error)})") from None
    if why := complaint(config, fetched):
        if timms_own(config):
            raise WeightsError(f"{path} is of a model of timm's that is not of this zoo: timm.create_model loads it")
        raise refuse(why)
    return dict(config)


def release_folder(name: str, weights_dir: str | os.PathLike[str] | None) -> Path | None:
    """The release folder of a name in ``weights_dir`` or ``TCL_ZOO_WEIGHTS``, or None."""
    given = weights_dir or os.environ.get("TCL_ZOO_WEIGHTS")
    if not given:
        return None
    root = expanded(given, WeightsError)
    if not weights_dir and not root.is_dir():
        raise WeightsError(f"TCL_ZOO_WEIGHTS is {given}, and there is no such folder: make it, or unset it")
    if not is_release_name(name):
        recipe(name)
    for folder in (root / name, root):
        if (folder / CONFIG_FILE).is_file():
            held = read_config(folder)["tcl_zoo"]["name"]
            if held == name:
                return folder
            if weights_dir or folder != root:
                raise WeightsError(f"{folder} holds {short(held)}, not {name}")
    if weights_dir:
        raise WeightsError(f"no release of {name} in {root}: looked for {name}/{CONFIG_FILE} and {CONFIG_FILE} there")
    return None


def is_release_name(name: str) -> bool:
    """Whether a release could have this name; a name is no path."""
    return name.isprintable() and len(name.encode()) <= 120 and not set(name) & set("/\\:") and name.strip(". ") != ""


def locate(
    name: str,
    weights_dir: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
    weights: bool = True,
) -> Release:
    """The release folder of a name or place, fetched from the Hub where it is not on this machine.

    Args:
        name: a released name, ``hf-hub:org/name[@revision]`` or ``local-dir:PATH``.
        weights_dir: a release folder, or a folder of them; with another ``config.json`` than was released under its
            name, or with other weights, unless ``sha256`` says that they are meant, it comes with an
            :class:`UncheckedWarning`.
        revision: of the Hub repository; for a released name what ``index.json`` pins where not given.
        cache_dir: huggingface_hub's cache.
        sha256: what ``model.safetensors`` must hash to, instead of what the index or the release says.
        weights: fetch them; without, ``config.json`` alone.

    Raises:
        RecipeError: unknown name.
        WeightsError: no weights for it, they cannot be had, or what the Hub sent is not what it should be.
    """
    sha256 = None if sha256 is None else sha256.lower()
    if sha256 is not None and not SHA256.fullmatch(sha256):
        raise WeightsError(f"sha256={short(sha256)!r} is none: it has 64 hexadecimal digits")
    if revision is not None and (weights_dir is not None or name.startswith("local-dir:")):
        raise WeightsError("a folder has no revisions: leave revision out, or the folder")
    if name.startswith(SOURCES):
        if weights_dir is not None:
            raise WeightsError(f"{name} is a place itself: leave weights_dir out")
        release = _from_place(name, revision, cache_dir, sha256, weights)
        return release if sha256 else _vouch(release)
    folder = release_folder(name, weights_dir) if revision is None else None
    entry = index.entries().get(name)
    if folder is not None:
        config = read_config(folder)
        own = config["tcl_zoo"]["sha256"]
        release = Release(name, folder, config, sha256 or own, "weights_dir")
        if entry and weights and not _holds(release, entry):
            if same := own == entry["sha256"]:
                what = f"another {CONFIG_FILE} than was released as {name}: nobody vouches for labels and figures"
            else:
                what = f'other weights than those released as {name}. Where they are meant, say so: sha256="{own}"'
            if same or sha256 is None:
                warnings.warn(f"{folder} has {what}", UncheckedWarning, stacklevel=3)
        return release
    if entry is None:
        recipe(name)
        released = index.entries()
        raise WeightsError(
            f"{name} has no released weights; to train it: python scripts/train.py {name} --data-dir DATA"
            f"{nearest(name, released)}; released: {', '.join(released) or 'none yet'}"
        )
    # Another revision may describe the same weights otherwise: its config.json is not the one the index knows.
    config_sha256 = entry.get("config_sha256") if revision in (None, entry.get("revision")) else None
    expected = sha256 or entry["sha256"]
    folder = index.bundled_folder(name) if revision is None else None
    if folder is not None:
        if config_sha256:
            _hold(folder / CONFIG_FILE, name, config_sha256)
        return Release(name, folder, read_config(folder), expected, "bundled")
    if not entry.get("repo_id"):
        here = index.bundled_folder(name) is not None
        raise WeightsError(
            f"{name} is in this package alone, which has no revisions: leave revision out"
            if here
            else f"{name} is released, but neither in this package nor on a Hub; pass weights_dir="
        )
    where = entry["repo_id"], revision or entry["revision"], cache_dir
    release = _from_hub(name, *where, expected, config_sha256, weights)
    return release if config_sha256 or sha256 else _vouch(release)


def _from_place(
    name: str, revision: str | None, cache_dir: str | os.PathLike[str] | None, sha256: str | None, weights: bool
) -> Release:
    kind, _, place = name.partition(":")
    if kind == "local-dir":
        folder = expanded(place, WeightsError)
        if not (folder / CONFIG_FILE).is_file() and (folder / "release" / CONFIG_FILE).is_file():
            raise WeightsError(f"{folder} is a run folder: the release in it is local-dir:{place}/release")
        if not folder.is_dir():
            raise WeightsError(f"there is no folder {folder}")
        config = read_config(folder)
        return Release(name, folder, config, sha256 or config["tcl_zoo"]["sha256"], kind)
    repo_id, _, named = place.partition("@")
    if named and revision not in (None, named):
        raise WeightsError(f"{name} names a revision and revision={revision!r} another one")
    return _from_hub(name, repo_id, revision or named or None, cache_dir, sha256, None, weights)


def _from_hub(
    name: str,
    repo_id: str,
    revision: str | None,
    cache_dir: str | os.PathLike[str] | None,
    sha256: str | None,
    config_sha256: str | None,
    weights: bool,
) -> Release:
    """Fetches and checks, and fetches once again what was damaged on the way: the client does not notice."""

    def once(force: bool) -> Release:
        def configuration(folder: Path) -> dict[str, Any]:
            if config_sha256:
                _hold(folder / CONFIG_FILE, name, config_sha256)
            return read_config(folder, fetched=True)

        # A foreign repository is refused before its weights are asked for.
        files = (CONFIG_FILE, WEIGHTS_FILE) if weights else (CONFIG_FILE,)
        folder = hub.fetch(repo_id, files, revision, cache_dir, force, check=configuration)
        config = configuration(folder)
        own = str(config["tcl_zoo"]["sha256"])
        if weights:
            _hold(folder / WEIGHTS_FILE, name, own)
        if sha256 not in (None, own):
            raise WeightsError(
                f"hf-hub:{repo_id}@{folder.name} holds other weights than {name} should be: sha256 {own} "
                f"instead of {sha256}; choose the revision that has them"
            )
        return Release(name, folder, config, own, "hub")

    try:
        return once(False)
    except DamagedError as damage:
        warnings.warn(f"{damage}; fetching it again", stacklevel=4)
    try:
        return once(True)
    except DamagedError as damage:
        raise DamagedError(
            f"{damage} (fetched twice: either the network alters it, or the repository is not what it was; "
            f"delete {hub.cache_folder(repo_id, cache_dir)} and try elsewhere)"
        ) from damage


def _hold(path: Path, name: str, expected: str) -> bytes:
    """The bytes of a file, if they are the ones expected."""
    try:
        data = read_limited(path, MAX_WEIGHTS_BYTES)
    except (OSError, ValueError) as error:
        raise DamagedError(f"cannot read {path}: {getattr(error, 'strerror', None) or short(error)}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise DamagedError(
            f"{path} is not the file that was released as {name}: sha256 {found[:16]}... instead of {expected[:16]}..."
        )
    return data


def _holds(release: Release, entry: dict[str, Any]) -> bool:
    """Whether a release says of itself what the index says of it: its weights, and all else in ``config.json``."""
    said = hashlib.sha256((release.folder / CONFIG_FILE).read_bytes()).hexdigest()
    return release.sha256 == entry["sha256"] and said == entry.get("config_sha256", said)


def _vouch(release: Release) -> Release:
    """Warns of a place that the index does not vouch for."""
    if not any(_holds(release, entry) for entry in index.entries().values()):
        warnings.warn(
            f"{release.name} was checked against its own config.json alone: nobody vouches for its weights, labels "
            f'and figures. Pass sha256="{release.sha256}" to hold the weights to what they are now',
            UncheckedWarning,
            stacklevel=4,
        )
    return release


def read_weights(release: Release) -> dict[str, Any]:
    """The state dict of a release; the bytes loaded are those that were hashed.

    Raises:
        WeightsError: missing, another sha256 than promised, or not a safetensors file.
    """
    import safetensors.torch

    path = release.folder / WEIGHTS_FILE
    data = _hold(path, release.name, release.sha256)
    try:
        return dict(safetensors.torch.load(data))
    except Exception as error:  # a damaged header raises whatever its first bad byte meets
        raise WeightsError(f"{path} is not a safetensors file: {short(error)}") from None
