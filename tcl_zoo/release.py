"""Run folder to release folder. Every byte that leaves passes through here.

A release folder is a Hub repository: ``model.safetensors`` (encoder and classifier in timm's keys), ``config.json``
(timm's, plus the key ``tcl_zoo``), ``README.md`` (the card), pictures, and the projector. ``index.json`` is generated
from all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from . import index
from .cards import card, zoo_table
from .datasets import load
from .errors import TrainingError
from .evaluate import load_run
from .models import pretrained_cfg
from .pictures import confusion, training_curve
from .probe import predict
from .recipes import Recipe, recipe
from .runs import Run, read_recipe_file, write_atomically, write_json
from .verify import golden_output
from .weights import CONFIG_FILE, WEIGHTS_FILE, read_config

_HALF_ABOVE = 5_000_000  # parameters from which weights are released in float16


def release(
    run_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str] = "model_cards",
    data_dir: str | os.PathLike[str] | None = None,
    *,
    device: torch.device | str | None = None,
) -> Path:
    """Builds ``out_dir/<name>/`` from a finished and evaluated run.

    The top-1 on the card is measured here, on the weights as they are written (rounded to float16 where they are).

    Args:
        run_dir: what ``scripts/train.py`` left.
        out_dir: where release folders live.
        data_dir: where the data set is, for the fingerprints and the final measurement.
        device: where to compute; a GPU where there is one.

    Returns:
        The release folder; an older one of the same name is replaced at the end.

    Raises:
        TrainingError: not finished, not evaluated, or trained by other values than the recipe of its name.
    """
    run_dir, out_dir = Path(run_dir), Path(out_dir)
    trained, model = load_run(run_dir)
    _same_recipe(trained)
    results = _read(run_dir / "results.json", "not evaluated")
    environment = _read(run_dir / "environment.json", "not finished")
    settings = read_recipe_file(run_dir / "recipe.json")["settings"]
    metrics = Run(run_dir, trained, settings).metrics()
    parameters = sum(p.numel() for p in model.parameters())
    dtype = torch.float16 if parameters > _HALF_ABOVE else torch.float32
    state = {k: _cast(v, dtype) for k, v in model.state_dict().items()}
    model.load_state_dict(state)  # measure what is released: load_state_dict widens the rounded values again
    data = safetensors.torch.save(state, {"format": "pt"})
    cfg = pretrained_cfg(trained.dataset)
    golden = golden_output(model, cfg).tolist()
    splits = {part: load(trained.dataset, data_dir, part) for part in ("train", "test")}
    test = splits["test"]
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model.pretrained_cfg = cfg  # type: ignore[assignment]
    predictions = predict(model.to(device), test).argmax(1)
    hits = int((predictions == test.labels.cpu()).sum())
    results |= {"top1": 100 * hits / len(test), "n": len(test), "seed": trained.seed}
    results |= {"epochs": trained.epochs, "last_epoch": metrics[-1]["epoch"] + 1}
    facts = {
        "name": trained.name,
        "recipe": trained.to_dict(),
        "results": results,
        "fingerprints": {part: split.fingerprint() for part, split in splits.items()},
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "parameters": parameters,
        "golden": {"inputs": "tcl_zoo.verify.golden_inputs", "logits": golden},
        "environment": environment,
        "seconds": round(metrics[-1]["seconds"], 1),
    }
    config = {
        "architecture": trained.architecture,
        "num_classes": len(test.classes),
        "num_features": model.num_features,
        "global_pool": "avg",
        "model_args": {"in_chans": cfg["input_size"][0]},
        "pretrained_cfg": cfg,
        "tcl_zoo": facts,
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=out_dir))
    try:
        part.chmod(0o755)
        (part / WEIGHTS_FILE).write_bytes(data)
        write_json(part / CONFIG_FILE, config)
        training_curve(metrics, f"{trained.name}: training", part / "training_curve.png")
        k = len(test.classes)
        counts = torch.bincount(test.labels.cpu() * k + predictions, minlength=k * k).view(k, k)
        confusion(counts, test.classes, f"{trained.name}: {len(test):,} test images", part / "confusion.png")
        if (run_dir / "projector.safetensors").is_file():
            projector = safetensors.torch.load_file(run_dir / "projector.safetensors")
            projector = {k: _cast(v, dtype) for k, v in projector.items()}
            safetensors.torch.save_file(projector, part / "projector.safetensors", {"format": "pt"})
        (part / "README.md").write_text(card(config), encoding="utf-8")
        target = out_dir / trained.name
        if target.exists():
            shutil.rmtree(target)
        os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _cast(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return value.to(dtype).contiguous() if value.is_floating_point() else value.contiguous()


def _same_recipe(trained: Recipe) -> None:
    """A card must not pass a shortened or altered run off as the recipe of its name."""
    ours, theirs = recipe(trained.name).to_dict(), trained.to_dict()
    differing = [f"{k}={theirs[k]} (recipe: {v})" for k, v in ours.items() if k != "seed" and theirs[k] != v]
    if differing:
        raise TrainingError(
            f"this run is not the recipe {trained.name}: {', '.join(differing)}; "
            "train a named variant such as .e40 to release a shorter run"
        )


def _read(path: Path, otherwise: str) -> dict[str, Any]:
    try:
        loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise TrainingError(f"{path.parent} is {otherwise}: run scripts/train.py on it again") from None
    return loaded


def update_index(model_cards: str | os.PathLike[str] = "model_cards") -> dict[str, dict[str, Any]]:
    """Regenerates ``tcl_zoo/index.json`` and ``model_cards/README.md`` from the release folders.

    What a publication wrote (``repo_id``, ``revision``) is kept while the weights are the same.
    """
    old = index.entries()
    entries: dict[str, dict[str, Any]] = {}
    configs = {p.parent.name: read_config(p.parent) for p in sorted(Path(model_cards).glob(f"*/{CONFIG_FILE}"))}
    for name, config in configs.items():
        facts = config["tcl_zoo"]
        entry = {key: facts[key] for key in ("sha256", "bytes", "results", "fingerprints")}
        entry["architecture"] = config["architecture"]
        entry["pretrained_cfg"] = {k: v for k, v in config["pretrained_cfg"].items() if k != "label_names"}
        published = old.get(name, {})
        same = published.get("sha256") == entry["sha256"]
        entry |= {key: published.get(key) if same else None for key in ("repo_id", "revision")}
        entries[name] = entry
    write_json(index.INDEX_FILE, entries)
    index.entries.cache_clear()
    table = zoo_table(configs)
    write_atomically(Path(model_cards) / "README.md", lambda part: part.write_text(table, encoding="utf-8"))
    return entries
