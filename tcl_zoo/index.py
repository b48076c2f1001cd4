"""The released weights by name: ``index.json``, the trust root. Generated from the cards; standard library only.

An entry says what the weights must be (``sha256`` and ``bytes`` of ``model.safetensors``, ``config_sha256`` of the
``config.json`` beside it), what they reach
(``top1``, ``n``, ``fingerprints``), how timm reads them (``architecture``, ``pretrained_cfg``) and where they are
(``repo_id`` and ``revision`` on a Hub, or a release folder in the package or the checkout).
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from .errors import WeightsError
from .outside import KNOWN_ARCHITECTURES, MAX_WEIGHTS_BYTES, SHA256, cfg_complaint, parsed, read_limited, short

_PACKAGE = Path(__file__).resolve().parent
INDEX_FILE = _PACKAGE / "index.json"
MODEL_CARDS = _PACKAGE.parent / "model_cards"  # of the checkout, wherever a command is run
_MAX_BYTES = 20_000_000
_NAME = re.compile(r"(?=.{1,120}$)[a-z]+(_[a-z0-9]+){2,3}(\.[a-z0-9]+)?")
_REPO = re.compile(r"[\w.-]+(/[\w.-]+)?")


@functools.cache
def entries() -> dict[str, dict[str, Any]]:
    """Name -> entry of every released name; empty where nothing is released yet.

    Raises:
        WeightsError: the file is damaged.
    """
    try:
        found = parsed(read_limited(INDEX_FILE, _MAX_BYTES))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        why = f"it cannot be read ({short(error)})"
    else:
        why = complaint(found)
    if why:
        raise WeightsError(f"{INDEX_FILE} is damaged: {why}; install tcl_zoo again")
    return dict(found)


def complaint(found: Any) -> str:
    """What keeps something from being the content of ``index.json``, or ``""``."""
    if not isinstance(found, dict):
        return "it is not an object"
    kinds = {"bytes": int, "results": dict, "fingerprints": dict, "pretrained_cfg": dict}
    for name, entry in found.items():
        if not _NAME.fullmatch(name) or not isinstance(entry, dict):
            return f"it has an entry {short(name)!r}"
        sums = {key: entry.get(key) for key in ("sha256", "config_sha256") if key == "sha256" or entry.get(key)}
        places = [entry[key] for key in ("repo_id", "revision") if entry.get(key) is not None]
        sound = (
            all(type(entry.get(key)) is kind for key, kind in kinds.items())
            and entry.get("architecture") in list(KNOWN_ARCHITECTURES)
            and all(isinstance(value, str) and SHA256.fullmatch(value) for value in sums.values())
            and 0 < entry["bytes"] <= MAX_WEIGHTS_BYTES
            and all(isinstance(place, str) and _REPO.fullmatch(place) for place in places)
            and (entry.get("revision") or not entry.get("repo_id"))
            and isinstance(entry["results"].get("top1", 0.0), (int, float))
        )
        why = cfg_complaint(entry["pretrained_cfg"]) if sound else ""
        if not sound or why:
            return f"the entry of {name} {why or 'lacks a value or has one of the wrong type'}"
    return ""


def bundled_folder(name: str) -> Path | None:
    """The release folder that came with the package or lies in the checkout, or None."""
    for parent in (_PACKAGE, _PACKAGE.parent) if _NAME.fullmatch(name) else ():
        folder = parent / "model_cards" / name
        if (folder / "model.safetensors").is_file():
            return folder
    return None


def timm_tag(name: str) -> str:
    """``tcl_resnet20_digits.e40`` -> ``tcl_digits.e40``: the pretrained tag of timm's ``architecture.tag``."""
    stem, dot, variant = name.partition(".")
    objective, _, dataset = stem.rsplit("_", 2)
    return f"{objective}_{dataset}{dot}{variant}"


def name_of(architecture: str, tag: str) -> str | None:
    """The released name that timm calls ``architecture.tag``, or None."""
    found = (name for name, entry in entries().items() if entry["architecture"] == architecture)
    return next((name for name in found if timm_tag(name) == tag), None)


def source(name: str) -> dict[str, str]:
    """timm's keys for where the weights are: ``file``, or ``hf_hub_id`` pinned to the released revision, or nothing."""
    folder, entry = bundled_folder(name), entries()[name]
    if folder is not None:
        return {"file": str(folder / "model.safetensors")}
    if entry.get("repo_id"):
        return {"hf_hub_id": f"{entry['repo_id']}@{entry['revision']}"}
    return {}
