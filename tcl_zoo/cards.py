"""Model cards and tables of results, written from ``config.json`` alone."""

from __future__ import annotations

from typing import Any

from .datasets import DATASETS
from .thesis import reported

_OBJECTIVES = {
    "tcl": "Tuned Contrastive Learning (TCL)",
    "supcon": "supervised contrastive learning (SupCon)",
    "ce": "cross-entropy",
}
CITATION = """\
@mastersthesis{animesh2023tcl,
  title  = {Tuned Contrastive Learning},
  author = {Animesh, Chaitanya},
  school = {University of California San Diego},
  year   = {2023}
}

@inproceedings{animesh2025tcl,
  title     = {Tuned Contrastive Learning},
  author    = {Animesh, Chaitanya and Chandraker, Manmohan},
  booktitle = {IEEE/CVF Winter Conference on Applications of Computer Vision (WACV)},
  year      = {2025},
  note      = {arXiv:2305.10675}
}"""


def duration(seconds: float) -> str:
    """``42 s``, ``7 min`` or ``2.3 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _metadata(config: dict[str, Any]) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    facts, name = config["tcl_zoo"], config["tcl_zoo"]["name"]
    info = DATASETS[facts["recipe"]["dataset"]]
    result = EvalResult(
        task_type="image-classification",
        task_name="Image Classification",
        dataset_type=info.hub_id or info.name,
        dataset_name=info.title,
        dataset_split="test",
        metric_type="accuracy",
        metric_name=f"Top-1 accuracy ({facts['results']['protocol']})",
        metric_value=round(facts["results"]["top1"], 2),
    )
    return ModelCardData(
        language="en",
        license="apache-2.0",
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "image-feature-extraction", "timm", "tcl_zoo", facts["recipe"]["objective"]],
        datasets=[info.hub_id] if info.hub_id else None,
        metrics=["accuracy"],
        model_name=name,
        eval_results=[result],
    )


def card(config: dict[str, Any]) -> str:
    """The README.md of a release folder: huggingface_hub metadata and the text.

    Args:
        config: the release's ``config.json``.
    """
    from huggingface_hub import ModelCard

    facts = config["tcl_zoo"]
    recipe, results, environment = facts["recipe"], facts["results"], facts["environment"]
    name, info = facts["name"], DATASETS[recipe["dataset"]]
    thesis = reported(name)
    figure = f"{thesis[0]:.1f} ({thesis[1]})" if thesis else "no figure for this setting"
    how = f"{results['protocol']}; {results['n']:,} test images; n = 1 run, seed {results['seed']}"
    knn = ", ".join(f"{v:.2f} (k = {k.removeprefix('knn')})" for k, v in results.get("knn", {}).items())
    epochs = f"{results['last_epoch']} of {recipe['epochs']}"
    values = "\n".join(f"| {key} | {value} |" for key, value in _values(recipe).items())
    software = ", ".join(f"{k} {v}" for k, v in environment["software"].items())
    label = "float16" if facts["bytes"] < 3 * facts["parameters"] else "float32"
    gray = "gray " if info.channels == 1 else ""
    text = f"""
# {name}

A {recipe["encoder"]} encoder with its linear classifier, trained on {info.title} by
{_OBJECTIVES.get(recipe["objective"], recipe["objective"])}: {facts["parameters"] / 1e6:.2f} M parameters,
{config["num_features"]} features, {gray}input of {info.size} x {info.size} pixels, {config["num_classes"]} classes.

## Results

| | top-1 (%) | |
|---|---|---|
| this checkpoint | **{results["top1"]:.2f}** | {how} |
| the thesis | {figure} | |
| weighted kNN on the features | {knn} | no training |

`tcl-zoo verify {name} --data-dir DATA` measures the first line again and compares. The weights are those of the last
epoch ({epochs}); nothing was chosen on the test images.

![Confusion matrix](confusion.png)

## Use

```python
import tcl_zoo
model = tcl_zoo.create_model("{name}", pretrained=True).eval()                  # classifier
encoder = tcl_zoo.create_model("{name}", pretrained=True, num_classes=0)        # features [N, {config["num_features"]}]
fresh = tcl_zoo.create_model("{name}", pretrained=True, num_classes=37)         # new head, to fine-tune
transform = tcl_zoo.create_transform("{name}")                                  # PIL image -> input
```

The classes, in the order of the logits: {_classes(config)}.

## Training

`python scripts/train.py {name} --data-dir DATA --precision {environment["precision"]}{_seed(recipe)}`

| value | |
|---|---|
{values}

Trained in {duration(facts["seconds"])} on {environment["hardware"]}, {environment["processes"]} process(es),
{environment["precision"]}. Software: {software}.

![Training curve](training_curve.png)

## Limits and intended use

For research and teaching on contrastive learning, as a starting point for fine-tuning, and as a baseline. It knows
the {config["num_classes"]} classes of {info.title} at {info.size} x {info.size} pixels and nothing else: it will name
one of them for any image. It was not examined for fairness or for safety-critical use.

Weights: {label}, Apache-2.0. The training images have terms of their own: {info.licence}.

## Citation

```bibtex
{CITATION}
```
"""
    header = _metadata(config).to_yaml()
    return str(ModelCard(f"---\n{header}\n---\n{text}"))


def _values(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe as a card shows it: what its name says already, and what its objective does not use, left out."""
    hidden = {"name", "objective", "encoder", "dataset", "variant"}
    if recipe["objective"] == "ce":
        hidden |= {"temperature", "k1", "k2", "projector_hidden", "projector_dim"}
        hidden |= {"probe_epochs", "probe_lr", "probe_batch"}
    return {key: value for key, value in recipe.items() if key not in hidden}


def _seed(recipe: dict[str, Any]) -> str:
    return f" --set seed={recipe['seed']}" if recipe["seed"] else ""


def _classes(config: dict[str, Any]) -> str:
    labels = config["pretrained_cfg"]["label_names"]
    shown = ", ".join(labels[:20])
    return shown if len(labels) <= 20 else f"{shown}, ... ({len(labels)} in `config.json`)"


def zoo_table(configs: dict[str, dict[str, Any]]) -> str:
    """``model_cards/README.md``: one line per release.

    Args:
        configs: name to ``config.json``.
    """
    lines = [
        "# The released models",
        "",
        "Generated from the cards. Top-1 in percent on the test split, last epoch, one run each.",
        "",
        "| name | top-1 | thesis | n | protocol | seed | parameters | size | trained in |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, config in configs.items():
        facts = config["tcl_zoo"]
        results, thesis = facts["results"], reported(name)
        lines.append(
            f"| [{name}]({name}/README.md) | {results['top1']:.2f} | {thesis[0] if thesis else '-'} "
            f"| {results['n']:,} | {results['protocol']} | {results['seed']} | {facts['parameters'] / 1e6:.2f} M "
            f"| {facts['bytes'] / 1e6:.1f} MB | {duration(facts['seconds'])} |"
        )
    return "\n".join(lines) + "\n"
