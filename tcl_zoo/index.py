"""The released weights by name: ``index.json``, the trust root. Generated from the cards; standard library only.

An entry says what the weights must be (``sha256`` and ``bytes`` of ``model.safetensors``, ``config_sha256`` of the
``config.json`` beside it), what they reach
(``top1``, ``n``, ``fingerprints``), how timm reads them (``architecture``, ``pretrained_cfg``) and where they are
(``repo_id`` and ``revision`` on a Hub, or a release folder in the package or the checkout).
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent
INDEX_FILE = _PACKAGE / "index.json"


@functools.cache
def entries() -> dict[str, dict[str, Any]]:
    """Name -> entry of every released name; empty where nothing is released yet."""
    return json.loads(INDEX_FILE.read_text(encoding="utf-8")) if INDEX_FILE.is_file() else {}


def bundled_folder(name: str) -> Path | None:
    """The release folder that came with the package or lies in the checkout, or None."""
    for parent in (_PACKAGE, _PACKAGE.parent):
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
