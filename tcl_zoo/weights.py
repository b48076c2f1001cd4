"""Find, fetch, check and load released weights. Every byte that comes from outside passes through here.

Where weights come from, in this order: ``weights_dir=`` or ``TCL_ZOO_WEIGHTS``; the package or the checkout's
``model_cards/``; the Hub at the revision that ``index.json`` pins. The file is read once, its sha256 compared, and
the very bytes that were compared are loaded: against ``index.json`` for a released name, against the release's own
``config.json`` for a folder that the caller points at.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import index
from .errors import RecipeError, WeightsError
from .recipes import DATA, ENCODERS, names, nearest, recipe, reported

if TYPE_CHECKING:
    from torch import nn

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


def list_models(pattern: str | Iterable[str] = "*", pretrained: bool = False) -> list[str]:
    """Names that match, as timm's ``list_models``.

    Args:
        pattern: an ``fnmatch`` pattern such as ``"tcl_*cifar100*"``, or several.
        pretrained: only those with released weights.
    """
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    released = index.entries()
    if pretrained:
        return [name for name in released if any(fnmatch.fnmatchcase(name, p) for p in patterns)]
    known = names(patterns)
    return known + [n for n in released if n not in known and any(fnmatch.fnmatchcase(n, p) for p in patterns)]


def model_info(name: str, weights_dir: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """What is known of a name without loading torch.

    Returns:
        ``recipe`` (all fields), ``thesis`` (top1, source) or None, ``results`` or None, ``sha256``, ``bytes``,
        ``weights`` (folder or Hub address, or None).

    Raises:
        RecipeError: unknown name.
    """
    info: dict[str, Any] = {"name": name, "recipe": recipe(name).to_dict(), "thesis": reported(name)}
    info |= {"architecture": recipe(name).architecture, "results": None, "sha256": None, "bytes": None, "weights": None}
    folder = _in_weights_dir(name, weights_dir) or index.bundled_folder(name)
    entry = index.entries().get(name)
    if folder is not None:
        config = read_config(folder)
        info["results"], info["weights"] = config["tcl_zoo"]["results"], str(folder)
        info["sha256"], info["bytes"] = config["tcl_zoo"]["sha256"], config["tcl_zoo"]["bytes"]
    elif entry is not None:
        info["results"], info["sha256"], info["bytes"] = entry["results"], entry["sha256"], entry["bytes"]
        info["weights"] = f"hf-hub:{entry['repo_id']}@{entry['revision']}" if entry.get("repo_id") else None
    return info


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


def _in_weights_dir(name: str, weights_dir: str | os.PathLike[str] | None) -> Path | None:
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
    folder = _in_weights_dir(name, weights_dir)
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


def create_model(
    name: str,
    pretrained: bool = False,
    num_classes: int | None = None,
    weights_dir: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **timm_kwargs: Any,
) -> nn.Module:
    """The timm model of a name.

    Args:
        name: ``<objective>_<encoder>_<dataset>[.<variant>]``.
        pretrained: load the released weights.
        num_classes: outputs of the classifier: those of the data set where not given, 0 for pooled features [N, d];
            any other number gets a fresh classifier.
        weights_dir: a release folder, or a folder of them, to take the weights from.
        revision: of the Hub repository, instead of the pinned one.
        cache_dir: huggingface_hub's cache.
        **timm_kwargs: for ``timm.create_model``: ``features_only``, ``in_chans``, ``drop_path_rate`` ...

    Returns:
        The model, in train mode as timm gives it.

    Raises:
        RecipeError: unknown name.
        WeightsError: no weights, or not those that were released.
    """
    import timm

    if not pretrained:
        data, architecture = DATA[recipe(name).dataset], recipe(name).architecture
        timm_kwargs.setdefault("in_chans", data.in_chans)
        classes = data.num_classes if num_classes is None else num_classes
        return timm.create_model(architecture, num_classes=classes, **timm_kwargs)
    release = locate(name, weights_dir, revision, cache_dir)
    config, state = release.config, read_weights(release)
    cfg = {**config["pretrained_cfg"], "state_dict": state, "num_classes": config["num_classes"]}
    timm_kwargs.setdefault("in_chans", config["pretrained_cfg"]["input_size"][0])
    classes = config["num_classes"] if num_classes is None else num_classes
    try:
        model = timm.create_model(
            config["architecture"], pretrained=True, pretrained_cfg=cfg, num_classes=classes, **timm_kwargs
        )
    except (RuntimeError, KeyError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(f"the weights in {release.folder} do not fit {config['architecture']}: {reason}") from error
    if getattr(model, "pretrained_cfg", None):
        model.pretrained_cfg.pop("state_dict", None)  # the loaded tensors have no business in the model's facts
    return model


def create_transform(name: str, weights_dir: str | os.PathLike[str] | None = None) -> Any:
    """PIL image to model input [C, S, S] float32, as the model is evaluated.

    Args:
        name: any recipe name; released or not.
        weights_dir: a release folder to take the input configuration from.

    Raises:
        RecipeError: unknown name.
    """
    from timm.data import create_transform as timm_transform
    from torchvision.transforms import v2

    folder = _in_weights_dir(name, weights_dir) or index.bundled_folder(name)
    cfg = read_config(folder)["pretrained_cfg"] if folder else pretrained_cfg(recipe(name).dataset)
    size = tuple(cfg["input_size"])
    transform = timm_transform(
        size, is_training=False, interpolation=cfg["interpolation"], mean=cfg["mean"], std=cfg["std"],
        crop_pct=cfg["crop_pct"],
    )  # fmt: skip
    mode = "L" if size[0] == 1 else "RGB"
    return v2.Compose([v2.Lambda(lambda image: image.convert(mode)), transform])


def pretrained_cfg(dataset: str) -> dict[str, Any]:
    """timm's pretrained_cfg of a data set's models: input, normalisation and head (SPEC section 4)."""
    from .datasets import DATASETS, class_names

    info = DATASETS[dataset]
    return {
        "num_classes": info.num_classes,
        "input_size": [info.channels, info.size, info.size],
        "mean": list(info.mean),
        "std": list(info.std),
        "interpolation": "bilinear",
        "crop_pct": 0.875 if info.size >= 64 else 1.0,
        "first_conv": "conv1",
        "classifier": "fc",
        "label_names": list(class_names(dataset)),
        "license": "apache-2.0",
    }


__all__ = [
    "RecipeError",
    "Release",
    "WeightsError",
    "create_model",
    "create_transform",
    "list_models",
    "locate",
    "model_info",
    "pretrained_cfg",
    "read_config",
    "read_weights",
]
