"""The card of a model that somebody fine-tuned."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..datasets import DATASETS
from ..intervals import rate_interval
from ..outside import complaint
from .text import class_list, transfer_section

_MEANING = {
    "epochs": "passes over the training images",
    "batch_size": "images in a step",
    "lr": "peak learning rate, warmed up, cosine by step to a hundredth",
    "weight_decay": "on matrices and convolutions",
    "layer_decay": "learning rate of a layer over that of the layer above",
    "warmup": "share of the steps",
    "freeze": "first epochs of the head alone; -1: all",
    "ema": "decay of the averaged weights, which are these; 0: none",
    "per_class": "training images of each class; 0: all",
    "size": "pixels a side",
    "seed": "of head, order, augmentation, held-out images",
}


_OURS = """\
import tcl_zoo, timm
from PIL import Image

place = "{place}"
sha256 = "{sha256}"
model = tcl_zoo.create_model(place, pretrained=True, sha256=sha256).eval()
transform = tcl_zoo.create_transform(place)
class_index = model(transform(Image.open("image.png"))[None]).argmax(1)
same = timm.create_model(place, pretrained=True)"""
_TIMMS = """\
import timm
from PIL import Image

model = timm.create_model("{place}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
class_index = model(transform(Image.open("image.png").convert("RGB"))[None]).argmax(1)"""


def finetuned_metadata(config: dict[str, Any]) -> Any:
    """The header of a fine-tuned model's card as ``huggingface_hub.ModelCardData``."""
    from huggingface_hub import EvalResult, ModelCardData

    facts, results = config["tcl_zoo"], config["tcl_zoo"]["results"]
    known = DATASETS.get(facts["recipe"].get("dataset", ""))  # a folder may have any name
    hub_id, title = (known.hub_id or known.name, known.title) if known else (facts["data"], facts["data"])
    measured = []
    if results["top1"] is not None:
        measured = [EvalResult(
            task_type="image-classification", task_name="Image Classification", dataset_type=hub_id,
            dataset_name=title, dataset_split="test" if "test" in results else "validation",
            metric_type="accuracy", metric_name="Top-1 accuracy", metric_value=round(results["top1"], 2),
        )]  # fmt: skip
    hub = facts["parent"].get("hub")
    base = {"base_model": hub, "base_model_relation": "finetune"} if hub else {}
    base |= {"datasets": [known.hub_id]} if known and known.hub_id else {}
    return ModelCardData(
        license=config["pretrained_cfg"]["license"], library_name="timm", pipeline_tag="image-classification",
        tags=["image-classification", "image-feature-extraction", "timm", "tcl_zoo"], metrics=["accuracy"],
        model_name=facts["name"], base_recipe=facts["parent"]["name"], eval_results=measured or None, **base,
    )  # fmt: skip


def finetuned_card(config: dict[str, Any], pictures: Collection[str], repo_id: str | None = None) -> str:
    """The README.md of a fine-tuned model: its parent, its results, how it was made.

    Args:
        config: the release's ``config.json``.
        pictures: files beside it to show.
        repo_id: where it is, or will be, on a Hub.
    """
    from huggingface_hub import ModelCard

    facts = config["tcl_zoo"]
    name, parent, results, plan = facts["name"], facts["parent"], facts["results"], facts["recipe"]
    channels, size, _ = config["pretrained_cfg"]["input_size"]
    labels = config["pretrained_cfg"]["label_names"]
    places = ("hub", "`{}` on the Hub"), ("sha256", "sha256 `{}`")
    details = ", ".join(text.format(parent[key]) for key, text in places if key in parent)
    origin = f"`{parent['name']}`" + (f" ({details})" if details else "")
    begun = f"fine-tuned from {origin}" if parent.get("pretrained", True) else f"trained from random weights ({origin})"
    lines = ["| images | top-1 (%) | n |", "|---|---|---|"]
    for part, label in (
        ("test", "test, looked at once"),
        ("val", "validation; chosen was the latest epoch within a standard error of the best"),
    ):
        if part in results:
            n = results["n"] if part == "test" or "test" not in results else results["val_images"]
            low, high = rate_interval(results[part], n)
            lines.append(f"| {label} | {results[part]:.2f} (95 % interval {low:.1f} to {high:.1f}) | {n:,} |")
    if len(lines) == 2:
        lines = ["Not measured: there were neither validation nor test images."]
    values = "\n".join(
        f"| `{key}` | {value} | {_MEANING.get(key, '')} |" for key, value in plan.items()
        if key not in ("model", "pretrained", "measure")
    )  # fmt: skip
    software = ", ".join(f"{key} {value}" for key, value in facts["environment"]["software"].items())
    curve = "![Training loss and learning rate by epoch](training_curve.png)" * ("training_curve.png" in pictures)
    matrix = "![Confusion matrix in percent of the true class](confusion.png)" * ("confusion.png" in pictures)
    results_table = "\n".join(lines)
    place = f"hf-hub:{repo_id}" if repo_id else "local-dir:PATH/OF/THIS/FOLDER"
    # From a Hub this package takes its own architectures alone; timm takes any of its own.
    code = _TIMMS if repo_id and complaint(config, fetched=True) else _OURS
    code = code.format(place=place, sha256=facts["sha256"])
    text = f"""
# {name}

A **{config["architecture"]}** {begun} on {facts["data"]}: {results["train_images"]:,} training images of
{len(labels)} classes. Input: {"gray, " * (channels == 1)}{size} x {size} pixels.

## Results

{results_table}

One run, seed {results["seed"]}; weights of epoch {results["last_epoch"]} of {results["epochs"]}.

{matrix}

{transfer_section(facts.get("transfer"))}## Use

```python
{code}
```

Classes, in the order of the logits: {class_list(config)}.

## Training

| value | | |
|---|---|---|
{values}

{facts["seconds"]:.0f} s on {facts["environment"]["hardware"]}. Software: {software}.

{curve}

## Limits

It knows these {len(labels)} classes and nothing else: it names one of them for any image, and its probabilities are
not calibrated. Terms of the parent and of the training images apply; whoever publishes this states them.
"""
    return str(ModelCard(f"---\n{finetuned_metadata(config).to_yaml()}\n---\n{text}"))
