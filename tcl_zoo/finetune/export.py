"""The best checkpoint of a fine-tuning as a release folder: weights, ``config.json``, card, pictures."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from ..downstream import Data
from ..downstream_models import located, own_name
from ..errors import TrainingError
from ..features import confusion_counts, predict
from ..index import entries
from ..models import create_model
from ..outside import POOLS, PRETRAINED_KEYS, complaint
from ..pictures import confusion, training_curve
from ..release import HALF_ABOVE, replacing, rounded, write_card
from ..runs import write_json
from ..splits import FolderSplit, Split
from ..verify import TOLERANCE_GOLDEN, golden_output
from ..weights import CONFIG_FILE, SOURCES, WEIGHTS_FILE, is_release_name, locate
from .plan import Plan


def parent_facts(plan: Plan, weights_dir: str | os.PathLike[str] | None, sha256: str | None = None) -> dict[str, Any]:
    """Where a fine-tuning starts from.

    ``name``; ``sha256`` where it is a release of this zoo; ``hub``, its repository there, where it is on the Hub.
    """
    if not plan.pretrained:
        return {"name": own_name(plan.model), "pretrained": False}
    name, weights_dir, run = located(plan.model, weights_dir)
    if run is not None:
        digest = hashlib.sha256((run / "encoder.safetensors").read_bytes()).hexdigest()
        return {"name": own_name(plan.model), "sha256": digest}
    if name.startswith(SOURCES) or weights_dir or name in entries():
        release = locate(name, weights_dir, sha256=sha256)
        facts = {"name": release.config["tcl_zoo"]["name"], "sha256": release.sha256}
        entry = entries().get(facts["name"], {})
        hub = entry.get("repo_id") if entry.get("sha256") == release.sha256 else None
        if name.startswith("hf-hub:"):
            hub = name.removeprefix("hf-hub:").partition("@")[0]
    else:
        facts = {"name": plan.model}
        hub = getattr(timm.get_pretrained_cfg(plan.model, allow_unregistered=True), "hf_hub_id", None)
    return facts | ({"hub": hub} if hub else {})


def export(
    folder: Path,
    model: nn.Module,
    data: Data,
    plan: Plan,
    parent: dict[str, Any],
    facts: dict[str, Any],
    metrics: list[dict[str, Any]],
    workers: int = 2,
) -> dict[str, Any]:
    """Writes the release folder; what is reported is measured here, on the weights as they are written.

    Args:
        folder: to write; an older one is replaced at the end. Its parent's name is the release's.
        model: with the weights to keep; its ``pretrained_cfg`` says how images are prepared.
        data: fitted to the model.
        plan: resolved.
        parent: what :func:`parent_facts` said.
        facts: ``environment``, ``seconds`` and ``best`` (the measurement that was kept).
        metrics: lines of ``metrics.jsonl``.
        workers: DataLoader workers of streamed images.

    Returns:
        The results of the release: ``top1``, ``n``, ``protocol`` ...

    Raises:
        TrainingError: what was written does not load, or is another model then.
    """
    name, classes = folder.resolve().parent.name, data.train.classes
    weights, parameters, _ = rounded(model)
    measured = {part: _measure(model, split, workers) for part in ("test", "val") if (split := getattr(data, part))}
    results: dict[str, Any] = {"val" if part == "val" else "test": top1 for part, (top1, _) in measured.items()}
    part = "test" if "test" in measured else "val"
    shown: Split | FolderSplit | None = getattr(data, part)
    top1 = measured[part][0] if shown is not None else None
    results |= {
        "top1": top1, "n": len(shown) if shown is not None else 0, "protocol": f"fine-tuned, {part} images",
        "seed": plan.seed, "epochs": plan.epochs, "last_epoch": facts["best"]["epoch"],
        "train_images": len(data.train), "val_images": len(data.val) if data.val is not None else 0,
    }  # fmt: skip
    config = _described(model, classes)
    golden = golden_output(model, config["pretrained_cfg"])
    config |= {
        "tcl_zoo": {
            "name": name,
            "parent": parent,
            "data": data.name,
            "recipe": {key: value for key, value in plan.to_dict().items() if key != "dataset" or value},
            "results": results,
            "fingerprints": _fingerprints(data),
            "sha256": hashlib.sha256(weights).hexdigest(),
            "bytes": len(weights),
            "parameters": parameters,
            "golden": {"inputs": "tcl_zoo.verify.golden_inputs", "logits": golden.tolist()},
            "environment": facts["environment"],
            "seconds": facts["seconds"],
        },
    }
    with replacing(folder) as temporary:
        (temporary / WEIGHTS_FILE).write_bytes(weights)
        write_json(temporary / CONFIG_FILE, config)
        _hold(temporary, name, config, golden)
        training_curve(metrics, f"{name}: fine-tuning", temporary / "training_curve.png")
        if shown is not None and len(classes) <= 200:
            counts = confusion_counts(shown.labels.cpu(), measured[part][1], len(classes))
            with warnings.catch_warnings():  # of class names in a script that matplotlib's font lacks
                warnings.filterwarnings("ignore", "Glyph")
                confusion(counts, classes, f"{name}: {len(shown):,} {part} images", temporary / "confusion.png")
        write_card(temporary)
    return results


def _described(model: nn.Module, classes: Sequence[str]) -> dict[str, Any]:
    """timm's part of ``config.json``: what it takes to build the model again and to prepare its images."""
    cfg: dict[str, Any] = dict(model.pretrained_cfg)  # type: ignore[arg-type]
    architecture = cfg["architecture"]
    cfg = {key: cfg[key] for key in sorted(PRETRAINED_KEYS) if cfg.get(key) is not None}
    cfg |= {"num_classes": len(classes), "label_names": list(classes), "license": cfg.get("license", "other")}
    channels, size, _ = cfg["input_size"]
    args: dict[str, Any] = {"in_chans": channels}
    if hasattr(model, "set_input_size"):
        args["img_size"] = size
    pool = getattr(model, "global_pool", "avg")
    pool = getattr(pool, "pool_type", pool)  # timm's ResNets hold a layer there
    return {
        "architecture": architecture,
        "num_classes": len(classes),
        "num_features": int(model.num_features),  # type: ignore[arg-type]
        "global_pool": pool if isinstance(pool, str) and pool in POOLS else "avg",
        "model_args": args,
        "pretrained_cfg": cfg,
    }


def no_release(model: nn.Module, classes: Sequence[str], name: str) -> str:
    """Why this model could not be released under this name after a training, or ``""``: asked before it."""
    if not is_release_name(name):
        return f"{name!r} cannot be a release's name; choose another run folder"
    parameters = sum(p.numel() for p in model.parameters())
    facts: dict[str, Any] = {"name": name, "parent": {}, "recipe": {}, "results": {"top1": None}, "sha256": "0" * 64}
    facts["bytes"] = parameters * (2 if parameters > HALF_ABOVE else 4)
    config = json.loads(json.dumps(_described(model, classes) | {"tcl_zoo": facts}))
    if why := complaint(config):
        return f"its configuration {why}"
    if "img_size" in config["model_args"]:  # windows that were fitted to a size are not what it is built with
        size = config["model_args"]["img_size"]
        try:
            again = timm.create_model(config["architecture"], num_classes=len(classes), **config["model_args"])
        except (RuntimeError, ValueError, AssertionError):
            return f"it cannot be built for {size} pixels, only be set to them; leave the size out"
        if _shape(model) != _shape(again):
            return f"built for {size} pixels it has other shapes than set to them; leave the size out"
    return ""


def _shape(model: nn.Module) -> tuple[object, ...]:
    """Of its weights, and of its windows, which may be in no weight (Swin V2)."""
    weights = {key: value.shape for key, value in model.state_dict().items()}
    return weights, [getattr(module, "window_size", None) for module in model.modules()]


def _hold(folder: Path, name: str, config: dict[str, Any], golden: torch.Tensor) -> None:
    """Loads what was written, as its users will."""
    again = create_model(name, True, weights_dir=folder, sha256=config["tcl_zoo"]["sha256"])
    difference = float((golden_output(again, config["pretrained_cfg"]) - golden).abs().max())
    if not difference <= TOLERANCE_GOLDEN:
        what = f"{config['architecture']} is another model after loading"
        raise TrainingError(f"{what}: its output differs by {difference:.1e}")


def _measure(model: nn.Module, split: Split | FolderSplit, workers: int) -> tuple[float, torch.Tensor]:
    predictions = predict(model, split, workers=workers).argmax(1)
    return 100 * float((predictions == split.labels.cpu()).double().mean()), predictions


def _fingerprints(data: Data) -> dict[str, str]:
    """Of images in memory as they are trained on, of a folder's files."""
    found = {part: getattr(data, part) for part in ("train", "val", "test")}
    return {part: split.fingerprint() for part, split in found.items() if split is not None}
