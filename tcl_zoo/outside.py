"""What comes from outside: files of a known kind and a known size at most, and release configurations, checked.

Standard library only, and numpy where an array is looked at. Nothing is read that is no regular file or that is larger
than what it stands for can be; a configuration may set nothing but the values this zoo writes.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import TclZooError
from .recipes import DATA, ENCODERS

KNOWN_ARCHITECTURES = {f"{encoder}_cifar" for encoder in ENCODERS} | set(ENCODERS[1:])
MAX_WEIGHTS_BYTES = 1_000_000_000  # ResNet-101 in float32 has 0.17
_MAX_CLASSES = 25_000
MAX_SIDE, _MAX_FETCHED_SIDE = 2048, 512  # pixels of a fine-tuned model's input, and of one from elsewhere
POOLS = ("avg", "max", "token", "map", "avgmax", "catavgmax", "")  # of a fine-tuned model
_MODEL_ARGS = {"in_chans", "num_classes", "img_size"}
# What a configuration may say of its weights. timm's other keys name places to load from (source, file, url,
# hf_hub_id ...) and would lead past the file that was checked.
PRETRAINED_KEYS = {
    "num_classes", "input_size", "min_input_size", "pool_size", "mean", "std", "interpolation", "crop_pct",
    "first_conv", "classifier", "label_names", "license",
}  # fmt: skip
_FIXED = {"first_conv": "conv1", "classifier": "fc"}
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
SHA256 = re.compile(r"[0-9a-f]{64}")


def expanded(path: str | os.PathLike[str], error: type[TclZooError]) -> Path:
    """A path with its ``~`` resolved.

    Raises:
        error: there is no such home, or no file can have this name.
    """
    try:
        found = Path(path).expanduser()
        found.is_dir()
    except (RuntimeError, OSError, ValueError) as why:
        raise error(f"{short(path)!r} is no path: {why}") from None
    return found


def short(value: object, most: int = 120) -> str:
    """A value from outside for a message: one line of bounded length."""
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[:most]}..."


def read_limited(path: Path, most: int) -> bytes:
    """The bytes of a regular file of at most ``most`` bytes.

    Raises:
        OSError: it cannot be read, is no regular file (a device never ends), or is larger.
    """
    # Without waiting: opening a pipe that nobody writes to would.
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        state = os.fstat(file.fileno())
        if not stat.S_ISREG(state.st_mode):
            raise OSError(0, "not a regular file")
        data = file.read(most + 1) if state.st_size <= most else b""
    if state.st_size > most or len(data) > most:
        raise OSError(0, f"larger than {most:,} bytes")
    return data


def parsed(data: bytes) -> Any:
    """JSON.

    Raises:
        ValueError: it is none, or nested too deep.
    """
    try:
        return json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deep") from None


def bounded(path: Path, keys: Sequence[str], most: int) -> None:
    """Looks at the heads of arrays in an archive: a few packed kilobytes may unpack to more than the memory has.

    Raises:
        ValueError: an array that would take more than ``most`` bytes, or a member that is none.
    """
    import numpy as np

    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.filename.removesuffix(".npy") not in keys:
                continue
            with archive.open(member) as file:
                start = file.read(12)
                wide = start[6:7] != b"\1"
                length = int.from_bytes(start[8 : 12 if wide else 10], "little")
                if start[:6] != b"\x93NUMPY" or length > 10_000:
                    raise ValueError(f"{member.filename} is no array")
            with archive.open(member) as file:
                np.lib.format.read_magic(file)
                head = np.lib.format.read_array_header_2_0 if wide else np.lib.format.read_array_header_1_0
                shape, _, dtype = head(file)
            size = math.prod(shape) * dtype.itemsize
            if size > most:
                raise ValueError(f"{member.filename} would take {size / 1e6:,.0f} MB")


def complaint(config: Any, fetched: bool = False) -> str:
    """What is wrong with a release's ``config.json``, or ``""``.

    What was fine-tuned here may be any model of timm's on any data; what was ``fetched`` may not.
    """
    shape: dict[str, type] = {"architecture": str, "num_classes": int, "pretrained_cfg": dict, "tcl_zoo": dict}
    inner: dict[str, type] = {"name": str, "recipe": dict, "results": dict, "sha256": str, "bytes": int}
    if not isinstance(config, dict):
        return "is not an object"
    for where, keys in ((config, shape), (config.get("tcl_zoo"), inner)):
        if missing := _missing(where, keys):
            return f"lacks {missing}"
    facts, args = config["tcl_zoo"], config.get("model_args", {})
    own = not fetched and isinstance(facts.get("parent"), dict)
    if config["architecture"] not in KNOWN_ARCHITECTURES and not (own and re.fullmatch(r"\w+", config["architecture"])):
        return f"names the architecture {short(config['architecture'])!r}, which is not of this zoo"
    if not isinstance(args, dict):
        return "has model_args that are no object"
    if set(args) - _MODEL_ARGS:
        return f"has model_args this zoo does not use: {short(', '.join(sorted(args)))}"
    if why := cfg_complaint(config["pretrained_cfg"], own):
        return why
    size = config["pretrained_cfg"]["input_size"][-1]
    if args.get("img_size", size) != size:
        return f"has an img_size other than {size}"
    channels, classes = config["pretrained_cfg"]["input_size"][0], config["num_classes"]
    said = (args.get("num_classes", classes), config["pretrained_cfg"].get("num_classes", classes))
    if not 1 <= classes <= _MAX_CLASSES or said != (classes, classes) or args.get("in_chans", channels) != channels:
        return "has an in_chans or num_classes that no release has"
    if len(config["pretrained_cfg"].get("label_names", range(classes))) != classes:
        return f"has other label_names than {classes}"
    pools = POOLS if own else ("avg",)
    if not _number(config.get("num_features", 1), 1, 10_000) or config.get("global_pool", "avg") not in pools:
        return "has a num_features or global_pool that no release has"
    if not SHA256.fullmatch(facts["sha256"]) or not 0 < facts["bytes"] <= MAX_WEIGHTS_BYTES:
        return "has a sha256 or bytes that no file of weights has"
    dataset = facts["recipe"].get("dataset", "digits")  # absent: fine-tuned on somebody's folder
    tuned = "parent" in facts and isinstance(dataset, str) and re.fullmatch(r"[a-z0-9]{1,20}", dataset)
    if dataset not in list(DATA) and not tuned:
        return f"has the unknown data set {short(dataset)}"
    top1 = facts["results"].get("top1", 0)
    unmeasured = own and top1 is None  # there were no test images
    return "" if unmeasured or _number(top1, 0, 100) else f"has the top1 {short(top1)}"


def timms_own(config: Any) -> bool:
    """Whether a configuration is of a model of timm's that is no release, or of one that was fine-tuned here."""
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        return False
    facts = config.get("tcl_zoo")
    tuned = isinstance(facts, dict) and isinstance(facts.get("parent"), dict)
    return "tcl_zoo" not in config or (tuned and config["architecture"] not in KNOWN_ARCHITECTURES)


def cfg_complaint(cfg: dict[str, Any], own: bool = False) -> str:
    """What is wrong with a ``pretrained_cfg``, or ``""``; ``own``: of any model of timm's."""
    if missing := _missing(cfg, {"input_size": list, "mean": list, "std": list, "interpolation": str}):
        return f"lacks {missing}"
    if foreign := set(cfg) - PRETRAINED_KEYS:
        return f"has pretrained_cfg keys this zoo does not use: {short(', '.join(sorted(foreign)))}"
    size, most = cfg["input_size"], MAX_SIDE if own else _MAX_FETCHED_SIDE
    for key in {"input_size", "min_input_size"} & set(cfg):
        if not _all(cfg[key], 3, lambda n: type(n) is int and 1 <= n <= most):
            return f"has the {key} {short(cfg[key])}"
    if not _all(cfg.get("pool_size", [1, 1]), 2, lambda n: type(n) is int and 1 <= n <= most):
        return f"has the pool_size {short(cfg['pool_size'])}"
    for key, least in (("mean", -1e3), ("std", 1e-6)):
        if not _all(cfg[key], size[0], lambda x, low=least: _number(x, low, 1e3)):
            return f"has the {key} {short(cfg[key])}"
    if cfg["interpolation"] not in _INTERPOLATIONS:
        return f"has the interpolation {short(cfg['interpolation'])!r}"
    if not _number(cfg.get("crop_pct", 1.0), 0.05, 1):
        return f"has the crop_pct {short(cfg['crop_pct'])}"
    labels = cfg.get("label_names", [])
    if not _all(labels, None, lambda name: isinstance(name, str)) or not isinstance(cfg.get("license", ""), str):
        return "has label_names or a license that are no texts"
    if type(cfg.get("num_classes", 1)) is not int:
        return f"has the num_classes {short(cfg['num_classes'])}"
    other = [key for key, value in _FIXED.items() if cfg.get(key, value) != value and not (own and _named(cfg[key]))]
    return f"has the {other[0]} {short(cfg[other[0]])!r}" if other else ""


def _missing(where: Any, keys: Mapping[str, type]) -> str:
    """The keys that are absent or of another type; a bool is no int here."""
    values = where if isinstance(where, dict) else {}
    return ", ".join(key for key, kind in keys.items() if type(values.get(key)) is not kind)


def _named(layers: Any) -> bool:
    """Whether it names layers of a model, as timm's ``first_conv`` and ``classifier`` do."""
    names = layers if isinstance(layers, list) else [layers]
    return all(name is None or (isinstance(name, str) and re.fullmatch(r"[\w.]+", name)) for name in names)


def _number(value: Any, least: float, most: float) -> bool:
    """Whether it is a number in [least, most]; NaN is in no interval, and integers may be huge."""
    return type(value) in (int, float) and least <= value <= most


def _all(values: Any, count: int | None, test: Any) -> bool:
    return isinstance(values, list) and count in (None, len(values)) and all(test(value) for value in values)
