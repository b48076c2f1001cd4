"""What is entered into a release after it was made: results on other data, further seeds, test images that differ."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from .datasets import load
from .errors import DataError, TrainingError, WeightsError
from .features import default_device, predict
from .recipes import from_dict
from .release import read_results, write_card
from .runs import load_run, read_recipe_file, write_json
from .sessions import PRECISIONS
from .splits import subset
from .transfer import read_csv, summarise
from .verify import Altered, verify, without
from .weights import CONFIG_FILE, read_config


def add_transfer(folder: Path, table: str | os.PathLike[str]) -> int:
    """Enters low-label and transfer results into a release's ``config.json`` and writes its card again.

    Args:
        folder: the release folder.
        table: what ``tcl-zoo probe --csv`` wrote; the lines of this release's name are taken, older ones dropped.

    Returns:
        The number of settings.

    Raises:
        DataError: no such table, or nothing in it on this release.
    """
    config = read_config(folder)
    name = config["tcl_zoo"]["name"]
    found = [asdict(line) for line in summarise(read_csv(table)) if line.model == name]
    if not found:
        raise DataError(f"{table} has nothing on {name}; measure it: tcl-zoo probe {name} --dataset ... --csv {table}")
    for line in found:
        del line["model"]
        line |= {"mean": round(line["mean"], 3), "std": round(line["std"], 3)}
    config["tcl_zoo"]["transfer"] = found
    write_json(folder / CONFIG_FILE, config)
    write_card(folder)
    return len(found)


def add_seeds(
    folder: Path,
    run_dirs: Sequence[str | os.PathLike[str]],
    data_dir: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
) -> int:
    """Enters the top-1 of further trainings of a release's recipe, by other seeds, into its ``config.json`` and card.

    Args:
        folder: the release folder.
        run_dirs: finished and evaluated run folders; what was entered before of the same seed is replaced.
        data_dir: where the data set is: their top-1 is measured here, on the test images of the release.
        device: where to compute; a GPU where there is one.

    Returns:
        The number of trainings that the card knows of now, the release's own among them.

    Raises:
        TrainingError: a run that is not finished, not evaluated by the release's protocol, or that differs by more
            than its seed; a fine-tuned release.
        WeightsError: the test images here are not those of the card, or the card lacks what is compared.
    """
    config = read_config(folder)
    facts = config["tcl_zoo"]
    if "parent" in facts:
        raise TrainingError(f"{folder} was fine-tuned: it has no recipe that other seeds could be of")
    try:
        plan, own, protocol = from_dict(facts["recipe"]), facts["results"]["seed"], facts["results"]["protocol"]
        precision, fingerprint = PRECISIONS[facts["environment"]["precision"]], facts["fingerprints"]["test"]
        seeds = {int(run["seed"]): run for run in facts.get("seeds", ())}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{folder / CONFIG_FILE} lacks what seeds are compared by: {error!r}") from None
    test = load(plan.dataset, data_dir, "test")
    if test.fingerprint() != fingerprint:
        raise WeightsError(f"the {plan.dataset} test images in {data_dir} are not those of the card of {plan.name}")
    device = default_device(device)
    for run_dir in map(Path, run_dirs):
        trained, model = load_run(run_dir)
        settings = read_recipe_file(run_dir / "recipe.json")["settings"]
        same = replace(trained, seed=plan.seed) == plan and settings.get("precision") == precision
        if not same or "hold_out" in settings:
            raise TrainingError(f"{run_dir} differs from {plan.name} in its card by more than the seed")
        if trained.seed == own:
            raise TrainingError(f"{run_dir} has the seed {own}, which is that of the release: train --set seed=...")
        measured = read_results(run_dir).get("protocol") if model.num_classes == len(test.classes) else None
        if measured != protocol:
            raise TrainingError(f"{run_dir} has no top-1 by {protocol}: run scripts/train.py on it again")
        predictions = predict(model.to(device), test).argmax(1)
        top1 = 100 * float((predictions == test.labels.cpu()).double().mean())
        digest = hashlib.sha256((run_dir / "encoder.safetensors").read_bytes()).hexdigest()
        seeds[trained.seed] = {"seed": trained.seed, "top1": top1, "sha256": digest}
    facts["seeds"] = [seeds[seed] for seed in sorted(seeds)]
    write_json(folder / CONFIG_FILE, config)
    write_card(folder)
    return 1 + len(seeds)


def add_altered(
    folder: Path,
    table: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
) -> int:
    """Enters which test images are not those of the official files, so that ``verify`` compares on the others there.

    Args:
        folder: the release folder.
        table: ``.npz`` with their indices in ``test`` [n].
        data_dir: where the copy of the data set is on which the release was measured.
        device: where to compute; a GPU where there is one.

    Returns:
        The number of test images that are the official ones.

    Raises:
        DataError: no such table, or indices that are none, or of more than one image in a hundred.
        WeightsError: the test images here are not those of the card.
    """
    checked = verify(read_config(folder)["tcl_zoo"]["name"], data_dir, weights_dir=folder, device=device)
    if not checked.ok or checked.left_out:
        raise WeightsError(f"{folder} does not verify on the test images in {data_dir}, so nothing is said of them")
    config = read_config(folder)
    facts = config["tcl_zoo"]
    try:
        with np.load(table) as arrays:
            if arrays["test"].dtype.kind not in "iu":
                raise ValueError("indices are whole numbers")
            images = sorted(set(arrays["test"].tolist()))
        test = load(facts["recipe"]["dataset"], data_dir, "test")
        kept = without(len(test), images)
        hits = int((checked.predictions == checked.labels)[kept].sum())
        altered = Altered(images, subset(test, kept).fingerprint(), len(kept), hits)
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise DataError(f"{table} names no altered test images: {error}") from None
    facts["altered"] = asdict(altered)
    write_json(folder / CONFIG_FILE, config)
    write_card(folder)
    return altered.n
