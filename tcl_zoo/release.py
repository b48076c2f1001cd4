"""Run folder to release folder. What leaves this machine is made here, and sent by :mod:`tcl_zoo.publish`.

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from . import index
from .cards import card, zoo_table
from .datasets import load
from .errors import TrainingError, WeightsError
from .features import confusion_counts, default_device, features, predict
from .pictures import confusion, embedding, training_curve
from .recipes import Recipe, recipe
from .runs import load_run, read_metrics, read_recipe_file, write_json, write_text
from .verify import golden_output
from .weights import CONFIG_FILE, WEIGHTS_FILE, read_config

PROJECTOR_FILE, CARD_FILE = "projector.safetensors", "README.md"
_OPTIONS = {"compile", "gradient_accumulation_steps"}  # of a run, for its card's command
HALF_ABOVE = 5_000_000  # parameters from which weights are released in float16


def release(
    run_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str] = "model_cards",
    data_dir: str | os.PathLike[str] | None = None,
    *,
    note: str = "",
    device: torch.device | str | None = None,
) -> Path:
    """Builds ``out_dir/<name>/`` from a finished and evaluated run.

    The top-1 on the card is measured here, on the weights as they are written (rounded to float16 where they are).

    Args:
        run_dir: what ``scripts/train.py`` left.
        out_dir: where release folders live.
        data_dir: where the data set is, for the fingerprints and the final measurement.
        note: for the card: what a reader should know of this run or its data.
        device: where to compute; a GPU where there is one.

    Returns:
        The release folder; an older one of the same name is replaced at the end. What ``amend`` entered into it stays
        where the weights are the same.

    Raises:
        TrainingError: not finished, not evaluated, without the metrics of its epochs, or trained by other values than
            the recipe of its name or without some of the images; or there is something else at ``out_dir/<name>``, a
            run folder say.
    """
    run_dir, out_dir = Path(run_dir), Path(out_dir)
    trained, model = load_run(run_dir)
    target = out_dir / trained.name
    if target.exists() and not _is_release(target):
        raise TrainingError(f"{target} is there and is no release, so it is not replaced; choose another folder")
    _same_recipe(trained)
    results = read_results(run_dir)
    environment = _read(run_dir / "environment.json", "not finished")
    settings = read_recipe_file(run_dir / "recipe.json")["settings"]
    if settings.get("hold_out"):
        raise TrainingError(
            f"this run held {settings['hold_out']:,} training images out, to choose by; train on all of them to release"
        )
    metrics = read_metrics(run_dir)
    if len(metrics) < trained.epochs:
        have = f"{len(metrics)} of {trained.epochs} epochs"
        raise TrainingError(f"{run_dir}/metrics.jsonl is missing or cut: it has {have}; put it back, or train again")
    data, parameters, dtype = rounded(model)
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    golden = golden_output(model, cfg).tolist()
    splits = {part: load(trained.dataset, data_dir, part) for part in ("train", "test")}
    test = splits["test"]
    device = default_device(device)
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
        "environment": environment | {key: settings[key] for key in _OPTIONS & settings.keys()},
        "seconds": round(metrics[-1]["seconds"], 1),
    } | ({"note": note} if note else {})
    facts |= _entered(target, facts["sha256"])
    config = {
        "architecture": trained.architecture,
        "num_classes": len(test.classes),
        "num_features": model.num_features,
        "global_pool": "avg",
        "model_args": {"in_chans": cfg["input_size"][0]},
        "pretrained_cfg": cfg,
        "tcl_zoo": facts,
    }
    with replacing(target) as part:
        (part / WEIGHTS_FILE).write_bytes(data)
        write_json(part / CONFIG_FILE, config)
        training_curve(metrics, f"{trained.name}: training", part / "training_curve.png")
        counts = confusion_counts(test.labels.cpu(), predictions, len(test.classes))
        confusion(counts, test.classes, f"{trained.name}: {len(test):,} test images", part / "confusion.png")
        rows = features(model, test, desc="features for the picture")
        embedding(rows, test.labels, test.classes, f"{trained.name}: features", part / "embedding.png")
        if (run_dir / PROJECTOR_FILE).is_file():
            projector = safetensors.torch.load_file(run_dir / PROJECTOR_FILE)
            projector = {k: cast(v, dtype) for k, v in projector.items()}
            (part / PROJECTOR_FILE).write_bytes(safetensors.torch.save(projector, {"format": "pt"}))
        write_card(part)
    return target


def rounded(model: nn.Module) -> tuple[bytes, int, torch.dtype]:
    """The weights as a release holds them: safetensors, their number, their type (float16 above ``HALF_ABOVE``).

    The model has the rounded values afterwards: what is released is what is measured.
    """
    parameters = sum(p.numel() for p in model.parameters())
    dtype = torch.float16 if parameters > HALF_ABOVE else torch.float32
    state = {key: cast(value.cpu(), dtype) for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    return safetensors.torch.save(state, {"format": "pt"}), parameters, dtype


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder beside ``folder`` to fill, which takes its place at the end, unless something is raised."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
    try:
        part.chmod(0o755)
        yield part
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _is_release(folder: Path) -> bool:
    """Whether a folder holds a release and nothing else: a run folder, or anybody's, is not taken for one."""
    return (folder / CONFIG_FILE).is_file() and not (folder / "recipe.json").exists()


def cast(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Floating-point tensors in ``dtype``, all contiguous."""
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


def read_results(run_dir: Path) -> dict[str, Any]:
    """What :func:`tcl_zoo.evaluate.evaluate_run` left in a run folder.

    Raises:
        TrainingError: nothing, or something damaged.
    """
    return _read(run_dir / "results.json", "not evaluated")


def _entered(target: Path, sha256: str) -> dict[str, Any]:
    """What ``amend`` entered into an older release of the same weights."""
    try:
        old = read_config(target)["tcl_zoo"]
    except WeightsError:
        return {}
    return {key: old[key] for key in ("altered", "seeds", "transfer") if key in old and old["sha256"] == sha256}


def _read(path: Path, otherwise: str) -> dict[str, Any]:
    try:
        loaded = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise TrainingError(f"{path.parent} is {otherwise}: run scripts/train.py on it again") from None
    return loaded


def write_card(folder: Path, repo_id: str | None = None) -> str:
    """Writes ``README.md`` of a release folder from its ``config.json`` and the pictures that are there.

    Args:
        folder: the release folder.
        repo_id: where it is, or will be, on a Hub.

    Raises:
        WeightsError: the folder's ``config.json`` is not one of a release.
    """
    text = render_card(folder, repo_id)
    write_text(folder / CARD_FILE, text)
    return text


def render_card(folder: Path, repo_id: str | None = None) -> str:
    """The text that :func:`write_card` writes."""
    config = read_config(folder)
    try:
        return card(config, [path.name for path in folder.glob("*.png")], repo_id)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, ZeroDivisionError) as error:
        raise WeightsError(f"{folder / CONFIG_FILE} lacks what a card says: {error!r}; release the run again") from None


def update_index(
    model_cards: str | os.PathLike[str] = index.MODEL_CARDS, *, cards: bool = False
) -> dict[str, dict[str, Any]]:
    """Enters release folders into ``tcl_zoo/index.json`` and writes their table, ``README.md`` beside them.

    Names without a folder here stay as they are: the index is what their weights are trusted by. What a publication
    wrote (``repo_id``, ``revision``) is kept while the weights and their configuration are the same.

    Args:
        model_cards: where the release folders are; the checkout's.
        cards: write their ``README.md`` again, too.

    Returns:
        The entries of all names.
    """
    index.entries.cache_clear()  # another process may have written since
    old = index.entries()
    entries = dict(old)
    folders = {path.parent.name: path.parent for path in sorted(Path(model_cards).glob(f"[!.]*/{CONFIG_FILE}"))}
    configs = {name: config for name, folder in folders.items() if _of_zoo(name, config := read_config(folder))}
    for name, config in configs.items():
        facts = config["tcl_zoo"]
        entry = {key: facts[key] for key in ("sha256", "bytes", "results", "fingerprints")}
        entry["config_sha256"] = hashlib.sha256((folders[name] / CONFIG_FILE).read_bytes()).hexdigest()
        entry["architecture"] = config["architecture"]
        entry["pretrained_cfg"] = {k: v for k, v in config["pretrained_cfg"].items() if k != "label_names"}
        published = old.get(name, {})
        same = all(published.get(key) == entry[key] for key in ("sha256", "config_sha256"))
        entry |= {key: published.get(key) if same else None for key in ("repo_id", "revision")}
        entries[name] = entry
        if cards:
            write_card(folders[name], entry["repo_id"])
    entries = dict(sorted(entries.items()))
    _write_index(entries)
    if configs:
        table = zoo_table(configs)
        write_text(Path(model_cards) / CARD_FILE, table)
    return entries


def _of_zoo(name: str, config: dict[str, Any]) -> bool:
    """Whether a folder is a release of that name: neither renamed, nor fine-tuned by somebody."""
    return bool(config["tcl_zoo"]["name"] == name and "parent" not in config["tcl_zoo"])


def record(name: str, repo_id: str, revision: str) -> None:
    """Enters into the index where a release is on a Hub.

    Raises:
        WeightsError: the index does not know the name.
    """
    index.entries.cache_clear()  # another process may have written since
    entries = index.entries()
    if name not in entries:
        raise WeightsError(f"{name} is not in {index.INDEX_FILE}; build the index first: scripts/publish.py --cards")
    _write_index({**entries, name: {**entries[name], "repo_id": repo_id, "revision": revision}})


def _write_index(entries: dict[str, dict[str, Any]]) -> None:
    if why := index.complaint(entries):
        raise WeightsError(f"{index.INDEX_FILE} is left as it was, which would not be read again: {why}")
    write_json(index.INDEX_FILE, entries)
    index.entries.cache_clear()
