"""The card of a model that this zoo trained."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from .._ssl_recipes import TITLES, unused_fields
from ..datasets import DATASETS
from ..intervals import rate_interval
from ..progress import duration
from ..recipes import flat
from ..recipes import recipe as planned
from ..thesis import reported
from .finetuned import finetuned_card, finetuned_metadata
from .text import CACHED, by_seed, class_list, over_seeds, transfer_section
from .usage import usage

_OBJECTIVES = {
    "tcl": "Tuned Contrastive Learning (TCL)",
    "supcon": "supervised contrastive learning (SupCon)",
    "ce": "cross-entropy",
    **TITLES,
}
_PROTOCOL = {  # of the thesis: whether on frozen features
    True: "linear layer, {probe_epochs} epochs of SGD on augmented images",
    False: "classifier trained with the encoder",
}
_MEANING = {
    "epochs": "passes over the training images",
    "views": "augmented views of each image in a step",
    "batch_views": "views in a step",
    "lr": "peak learning rate, cosine by epoch",
    "lr_min_factor": "fraction of lr to which the cosine falls, one step after the last epoch",
    "momentum": "of the optimizer",
    "weight_decay": "on every parameter",
    "temperature": "of the loss",
    "k1": "of the loss: weight of the positives' extra term in the denominator",
    "k2": "of the loss: weight of the negatives in the denominator",
    "projector_hidden": "hidden width of the projector; 0 is the encoder's",
    "projector_dim": "dimensions of the embedding in which the loss compares",
    "augmentation": "policy of the training views",
    "crop_padding": "zero padding of the random crop, in pixels",
    "seed": "of initial weights, order and augmentation",
    "warmup_epochs": "epochs in which lr rises linearly",
    **{f"probe_{key}": "linear phase, protocol `thesis` only" for key in ("epochs", "lr", "batch", "augmentation")},
}
_MEANING_BY_LARS = {
    "weight_decay": "on every parameter but biases and norms",
    "optimizer": "SGD with a rate by layer (eta 0.02, clipped), but for biases and norms",
}
_BUDGET = (
    "Cross-entropy has the budget of the contrastive recipes and their linear phase together: 1.5 times as many "
    "epochs, one view, as many images in a step as they have views."
)
_PICTURES = {
    "training_curve.png": "Training loss and learning rate by epoch",
    "confusion.png": "Confusion matrix on the test images, in percent of the true class",
    "embedding.png": "Normalised features of test images on their first principal components, coloured by class",
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


def metadata(config: dict[str, Any]) -> Any:
    """The card's header as ``huggingface_hub.ModelCardData``; what a published card is held against.

    Args:
        config: the release's ``config.json``.
    """
    from huggingface_hub import EvalResult, ModelCardData

    if "parent" in config["tcl_zoo"]:
        return finetuned_metadata(config)
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
        datasets=[info.hub_id or info.name],
        metrics=["accuracy"],
        base_recipe=name,
        model_name=name,
        eval_results=[result],
    )


def card(
    config: dict[str, Any],
    pictures: Collection[str] = ("confusion.png", "training_curve.png"),
    repo_id: str | None = None,
) -> str:
    """The README.md of a release folder: huggingface_hub metadata and the text.

    Args:
        config: the release's ``config.json``.
        pictures: files beside it to show.
        repo_id: where it is, or will be, on a Hub.
    """
    from huggingface_hub import ModelCard

    facts = config["tcl_zoo"]
    if "parent" in facts:
        return finetuned_card(config, pictures, repo_id)
    recipe, environment = facts["recipe"], facts["environment"]
    name, info = facts["name"], DATASETS[recipe["dataset"]]
    meaning = _MEANING | (_MEANING_BY_LARS if recipe.get("optimizer") == "lars" else {})
    values = "\n".join(f"| `{key}` | {value} | {meaning.get(key, '')} |" for key, value in _values(recipe).items())
    software = ", ".join(f"{k} {v}" for k, v in environment["software"].items())
    options = f" --set seed={recipe['seed']}" if recipe["seed"] else ""
    if parts := environment.get("gradient_accumulation_steps"):
        options += f" --gradient-accumulation-steps {parts}"
    options += " --compile" * environment.get("compile", False)
    label, gray = "float16" if facts["bytes"] < 3 * facts["parameters"] else "float32", "gray, " * (info.channels == 1)
    objective = _OBJECTIVES.get(recipe["objective"], recipe["objective"])
    transfer = transfer_section(facts.get("transfer"), recipe["dataset"])
    note = " ".join(filter(None, (facts.get("note"), _altered(facts))))
    note += "\n\n" * bool(note)
    text = f"""
# {name}

A **{config["architecture"]}** encoder with its linear classifier, trained on {info.title} by {objective}.
{facts["parameters"] / 1e6:.2f} M parameters, {config["num_features"]} features, {config["num_classes"]} classes.
Input: {gray}{info.size} x {info.size} pixels.

## Results

{_results(config)}

{_how(config)}`tcl-zoo verify {name} --data-dir DATA` measures the first line again and compares.
The weights are those of the last epoch ({facts["results"]["last_epoch"]} of {recipe["epochs"]}): none was chosen by the
test images.

{note}{_shown(pictures, "confusion.png", "embedding.png")}{transfer}## Use

{usage(config, repo_id)}

Classes, in the order of the logits: {class_list(config)}.

## Training

```
python scripts/train.py {name} --data-dir DATA --precision {environment["precision"]}{options}
```

| value | | |
|---|---|---|
{values}

Trained in {duration(facts["seconds"])} on {environment["hardware"]}, {environment["processes"]} process(es),
{environment["precision"]}. Software: {software}.

{_shown(pictures, "training_curve.png")}## Limits and intended use

For research and teaching on contrastive learning, as a starting point for fine-tuning, and as a baseline. It knows
the {config["num_classes"]} classes of {info.title} at {info.size} x {info.size} pixels and nothing else: it will name
one of them for any image, and its probabilities are not calibrated. {_runs(facts)}
It was not examined for fairness or for safety-critical use.

## Licence

Weights ({label}, `sha256 {facts["sha256"]}`): Apache-2.0. The training images have terms of their own: {info.licence}.

## Citation

```bibtex
{CITATION}
```
"""
    return str(ModelCard(f"---\n{metadata(config).to_yaml()}\n---\n{text}"))


def _runs(facts: dict[str, Any]) -> str:
    if several := over_seeds(facts):
        seeds = f"Over {len(by_seed(facts))} seeds the recipe gives {several} % (mean, 95 % interval)"
        return f"{seeds};\nthese weights are those of one."
    return "One run with one seed: differences of a few\ntenths of a percent between models mean little."


def _results(config: dict[str, Any]) -> str:
    """Our figure and the thesis's, side by side."""
    facts = config["tcl_zoo"]
    recipe, results, thesis = facts["recipe"], facts["results"], reported(facts["name"])
    low, high = rate_interval(results["top1"], results["n"])
    lines = [
        "| | top-1 (%) | test images | runs | epochs | protocol |",
        "|---|---|---|---|---|---|",
        f"| this checkpoint | **{results['top1']:.2f}** (95 % interval over test images {low:.1f} to {high:.1f}) "
        f"| {results['n']:,} | 1, seed {results['seed']} | {recipe['epochs']} | {results['protocol']} |",
    ]
    if several := over_seeds(facts):
        found = by_seed(facts)
        runs = f"{len(found)}, seeds {', '.join(map(str, found))}: {', '.join(f'{v:.2f}' for v in found.values())}"
        lines.append(
            f"| all trainings | {several} (mean, 95 % interval over seeds) | {results['n']:,} | {runs} "
            f"| {recipe['epochs']} | {results['protocol']} |"
        )
    if thesis:
        how = _PROTOCOL[recipe["objective"] != "ce"].format(**recipe)
        runs = "30" if "30 runs" in thesis[1] else "not stated"
        epochs = "500" if "500 epochs" in thesis[1] else recipe["epochs"]
        lines.append(f"| the thesis ({thesis[1]}) | {thesis[0]} | test split | {runs} | {epochs} | {how} |")
    else:
        lines.append("| the thesis | no figure for this setting | | | | |")
    for key, value in results.get("knn", {}).items():
        lines.append(
            f"| nearest neighbours | {value:.2f} | {results['n']:,} | 1 | | weighted {key[3:]}-NN on its features |"
        )
    return "\n".join(lines)


def _how(config: dict[str, Any]) -> str:
    """What the protocol and the variant of a name mean."""
    recipe, lines = config["tcl_zoo"]["recipe"], []
    if config["tcl_zoo"]["results"]["protocol"].endswith("cached"):
        lines.append(CACHED)
    if recipe["objective"] == "ce" and recipe["variant"] != "supcontrast":
        contrast = " It is not SupContrast's of 500 epochs." if recipe["dataset"].startswith("cifar") else ""
        lines.append(_BUDGET + contrast)
    if re.fullmatch(r"e\d+", recipe["variant"]):
        whole = planned(recipe["name"].rpartition(".")[0]).epochs
        if recipe["epochs"] < whole:
            lines.append(f"`.{recipe['variant']}` is a shorter schedule: {recipe['epochs']} epochs, not {whole}.")
    return " ".join(lines) + "\n\n" * bool(lines)


def _altered(facts: dict[str, Any]) -> str:
    """What ``verify`` compares on the official files, where the card's copy has some test images otherwise."""
    if "altered" not in facts:
        return ""
    n, hits = facts["altered"]["n"], facts["altered"]["hits"]
    top1 = f"{100 * hits / n:.2f} %"
    return f"On the official files `verify` compares on the {n:,} test images that are the same: {top1}."


def _shown(pictures: Collection[str], *files: str) -> str:
    return "".join(f"![{_PICTURES[file]}]({file})\n\n" for file in files if file in pictures)


def _values(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe as a card shows it: what its name says already, and what its objective does not use, left out."""
    hidden = {"name", "objective", "encoder", "dataset", "variant"} | unused_fields(recipe["objective"])
    hidden |= {"momentum"} if recipe.get("optimizer") == "adam" else set()
    return {key: value for key, value in flat(recipe).items() if key not in hidden and value != ""}
