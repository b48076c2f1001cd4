"""Find, fetch, check and load released weights. Every byte that comes from outside passes through here.

Where weights come from, in this order: ``weights_dir=`` or ``TCL_ZOO_WEIGHTS``; the package or the checkout's
``model_cards/``; the Hub at the revision that ``index.json`` pins. The file is read once, its sha256 compared, and
the very bytes that were compared are loaded: against ``index.json`` for a released name, against the release's own
``config.json`` for a folder that the caller points at.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import index
from .errors import WeightsError
from .recipes import ENCODERS, nearest, recipe

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
_ARCHITECTURES = {f"{encoder}_cifar" for encoder in ENCODERS} | set(ENCODERS)
_MODEL_ARGS = {"in_chans", "num_classes"}
_MAX_CONFIG_BYTES = 4_000_000


@dataclass(frozen=True)
class Release:
    """A release folder on this machine.

    Attributes:
        name: the released name.
        folder: holds ``config.json`` and ``model.safetensors``.
        config: the parsed and checked ``config.json``.
        sha256: what the weights must hash to.
        source: ``weights_dir``, ``bundled`` or ``hub``.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    sha256: str
    source: str

    @property
    def results(self) -> dict[str, Any]:
        """top1, n, protocol ... as the card reports them."""
        return dict(self.config["tcl_zoo"]["results"])


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a release folder, its keys and their types checked.

    Raises:
        WeightsError: missing, no JSON, keys missing, or an architecture that is not of this zoo.
    """
    path = folder / CONFIG_FILE

    def refuse(why: str) -> WeightsError:
        return WeightsError(f"{path} {why}; fetch or build the release again")

    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise refuse("is too large for a config.json")
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise refuse("is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise refuse(f"cannot be read ({error})") from None
    shape: dict[str, type] = {"architecture": str, "num_classes": int, "pretrained_cfg": dict, "tcl_zoo": dict}
    inner: dict[str, type] = {"name": str, "recipe": dict, "results": dict, "sha256": str, "bytes": int}
    cfg: dict[str, type] = {"input_size": list, "mean": list, "std": list, "interpolation": str}
    if not isinstance(config, dict):
        raise refuse("is not an object")
    for where, keys in ((config, shape), (config.get("tcl_zoo"), inner), (config.get("pretrained_cfg"), cfg)):
        missing = [key for key, kind in keys.items() if not isinstance((where or {}).get(key), kind)]
        if missing:
            raise refuse(f"lacks {', '.join(missing)}")
    if config["architecture"] not in _ARCHITECTURES:
        raise refuse(f"names the architecture {config['architecture']!r}, which is not of this zoo")
    unknown = set(config.get("model_args", {})) - _MODEL_ARGS
    if unknown:
        raise refuse(f"has model_args this zoo does not use: {', '.join(sorted(unknown))}")
    return config


def release_folder(name: str, weights_dir: str | os.PathLike[str] | None) -> Path | None:
    """The release folder of a name in ``weights_dir`` or ``TCL_ZOO_WEIGHTS``, or None."""
    given = weights_dir or os.environ.get("TCL_ZOO_WEIGHTS")
    if not given:
        return None
    root = Path(given).expanduser()
    if (root / name / CONFIG_FILE).is_file():
        return root / name
    if (root / CONFIG_FILE).is_file():
        config = read_config(root)
        if config["tcl_zoo"]["name"] == name:
            return root
        if weights_dir:
            raise WeightsError(f"{root} holds {config['tcl_zoo']['name']}, not {name}")
    if weights_dir:
        raise WeightsError(f"no release of {name} in {root}: looked for {name}/{CONFIG_FILE} and {CONFIG_FILE} there")
    return None


def locate(
    name: str,
    weights_dir: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Release:
    """The release folder of a name, fetched from the Hub where it is not on this machine.

    Args:
        name: a released name.
        weights_dir: a release folder, or a folder of them.
        revision: of the Hub repository; what ``index.json`` pins where not given.
        cache_dir: huggingface_hub's cache.

    Raises:
        RecipeError: unknown name.
        WeightsError: no weights for it, or they cannot be had.
    """
    folder = release_folder(name, weights_dir)
    entry = index.entries().get(name)
    if folder is not None:
        config = read_config(folder)
        return Release(name, folder, config, config["tcl_zoo"]["sha256"], "weights_dir")
    if entry is None:
        recipe(name)
        released = index.entries()
        near = nearest(name, released) or f"; released: {', '.join(released) or 'none yet'}"
        raise WeightsError(
            f"{name} has no released weights{near}. To train it: python scripts/train.py {name} --data-dir DATA"
        )
    folder = index.bundled_folder(name) if revision is None else None
    if folder is not None:
        return Release(name, folder, read_config(folder), entry["sha256"], "bundled")
    if not entry.get("repo_id"):
        raise WeightsError(f"{name} is released, but neither in this package nor on a Hub; pass weights_dir=")
    folder = _fetch(entry["repo_id"], revision or entry["revision"], cache_dir)
    return Release(name, folder, read_config(folder), entry["sha256"], "hub")


def _fetch(repo_id: str, revision: str, cache_dir: str | os.PathLike[str] | None) -> Path:
    """The two files of a Hub repository, through huggingface_hub and its cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        paths = [
            hf_hub_download(repo_id, file, revision=revision, cache_dir=cache_dir)
            for file in (CONFIG_FILE, WEIGHTS_FILE)
        ]
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"cannot fetch {repo_id}@{revision}: {reason}") from error
    return Path(paths[0]).parent


def read_weights(release: Release) -> dict[str, Any]:
    """The state dict of a release; the bytes loaded are those that were hashed.

    Raises:
        WeightsError: missing, another sha256 than promised, or not a safetensors file.
    """
    import safetensors
    import safetensors.torch

    path = release.folder / WEIGHTS_FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != release.sha256:
        raise WeightsError(
            f"{path} is not the file that was released as {release.name}: sha256 {found[:16]}... "
            f"instead of {release.sha256[:16]}...; delete it and fetch it again"
        )
    try:
        return dict(safetensors.torch.load(data))
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise WeightsError(f"{path} is not a safetensors file: {error}") from None
