"""From a trained run to its classifier: the step between training and release.

Reads ``encoder.safetensors`` of a run folder; leaves ``classifier.safetensors`` and ``results.json`` in it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from .datasets import FolderSplit, Split, holdout, load
from .features import default_device, features, predict
from .probe import ProbeResult, knn_probe, linear_probe
from .runs import load_run, read_recipe_file, save_module, write_json


def evaluate_run(
    run_dir: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    *,
    protocol: str = "cached",
    device: torch.device | str | None = None,
    train: Split | FolderSplit | None = None,
    workers: int = 2,
) -> dict[str, Any]:
    """Fits the linear classifier of a contrastive run (``ce`` has its own) and measures top-1.

    On the test split; of a run that held training images out, on those: it never sees the test images.

    Args:
        run_dir: a finished run.
        data_dir: where the data set is; see :func:`tcl_zoo.datasets.load`.
        protocol: ``cached`` or ``thesis``; see :func:`tcl_zoo.probe.linear_probe`.
        device: where to compute; a GPU where there is one.
        train: fit on these images instead of the data set's training split: what the run was given as ``split``.
        workers: DataLoader workers of a streamed folder.

    Returns:
        What ``results.json`` holds: top1 and knn in percent, n, protocol, which says where the images are no test
        images.
    """
    folder = Path(run_dir)
    recipe, model = load_run(folder)
    device = default_device(device)
    model = model.to(device)
    train = train or load(recipe.dataset, data_dir, "train")
    held_out = read_recipe_file(folder / "recipe.json")["settings"].get("hold_out", 0)
    train, test = holdout(train, held_out) if held_out else (train, load(recipe.dataset, data_dir, "test"))
    extracted = (
        features(model, train, device, "train features", workers),
        features(model, test, device, "test features", workers),
    )
    if recipe.needs_probe:
        result: ProbeResult = linear_probe(
            model,
            train,
            test,
            protocol=protocol,
            recipe=recipe,
            device=device,
            extracted=extracted,
            workers=workers,
        )
        assert result.classifier is not None
        save_module(folder / "classifier.safetensors", result.classifier)
        top1, n, how = result.top1, result.n, f"linear probe, {protocol}"
    else:
        hits = predict(model, test, device, workers).argmax(1) == test.labels.cpu()
        top1, n, how = 100 * float(hits.double().mean()), len(hits), "trained classifier"
    how += ", held-out images" if held_out else ""
    knn = {r.protocol: r.top1 for r in knn_probe(model, train, test, extracted=extracted)}
    results = {"top1": top1, "n": n, "protocol": how, "knn": knn}
    write_json(folder / "results.json", results)
    return results
