"""The models by name: list, describe, create. What timm's ``create_model`` and ``list_models`` are for its models."""

from __future__ import annotations

import fnmatch
import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import index
from .errors import RecipeError, WeightsError, one_line
from .images import convert
from .outside import parsed, read_limited
from .places import Place, find, run_recipe
from .recipes import DATA, names, recipe
from .thesis import reported
from .weights import SOURCES, locate, read_config, read_weights, release_folder

if TYPE_CHECKING:
    from torch import nn


def list_models(
    pattern: str | Iterable[str] = "*", pretrained: bool = False, exclude_filters: str | Iterable[str] = ()
) -> list[str]:
    """Names that match, as timm's ``list_models``.

    Args:
        pattern: an ``fnmatch`` pattern such as ``"tcl_*cifar100*"``, or several.
        pretrained: only those with released weights.
        exclude_filters: patterns of names to leave out.
    """

    def matches(name: str, patterns: str | Iterable[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, p) for p in ([patterns] if isinstance(patterns, str) else patterns))

    wanted, unwanted = (p if isinstance(p, str) else list(p) for p in (pattern, exclude_filters))
    wanted = "*" if wanted == "" else wanted
    known = index.entries() if pretrained else dict.fromkeys([*names(), *index.entries()])
    return [name for name in known if matches(name, wanted) and not matches(name, unwanted)]


def model_info(name: str, weights_dir: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """What is known of a name without loading torch.

    Args:
        name: a recipe name, that of a release in ``weights_dir``, ``hf-hub:org/name[@revision]``, ``local-dir:PATH``,
            or the path of a release or run folder.
        weights_dir: a release folder, or a folder of them.

    Returns:
        ``recipe`` (all fields), ``thesis`` (top1, source) or None, ``results`` or None, ``sha256``, ``bytes``,
        ``weights`` (folder or Hub address, or None). Of a run folder ``results`` is what its probe measured, or None.

    Raises:
        RecipeError: unknown name.
        WeightsError: a place that has no release, or cannot be reached.
    """
    name, weights_dir, run = find(name, weights_dir)
    if run is not None:
        return _run_info(run)
    if name.startswith(SOURCES) or release_folder(name, weights_dir) is not None:
        release = locate(name, weights_dir, weights=False)
        facts = release.config["tcl_zoo"]
        info: dict[str, Any] = {key: facts[key] for key in ("recipe", "results", "sha256", "bytes")}
        info |= {"name": name, "architecture": release.config["architecture"], "weights": str(release.folder)}
        return info | {"thesis": reported(facts["name"])}
    info = {"name": name, "recipe": recipe(name).to_dict(), "thesis": reported(name)}
    info |= {"architecture": recipe(name).architecture, "results": None, "sha256": None, "bytes": None, "weights": None}
    folder, entry = index.bundled_folder(name), index.entries().get(name)
    if folder is not None:
        config = read_config(folder)
        info["results"], info["weights"] = config["tcl_zoo"]["results"], str(folder)
        info["sha256"], info["bytes"] = config["tcl_zoo"]["sha256"], config["tcl_zoo"]["bytes"]
    elif entry is not None:
        info["results"], info["sha256"], info["bytes"] = entry["results"], entry["sha256"], entry["bytes"]
        info["weights"] = f"hf-hub:{entry['repo_id']}@{entry['revision']}" if entry.get("repo_id") else None
    return info


def _run_info(folder: Path) -> dict[str, Any]:
    plan, results = run_recipe(folder), None
    if (folder / "results.json").is_file():
        try:
            results = dict(parsed(read_limited(folder / "results.json", 1_000_000)))
        except (OSError, ValueError, TypeError) as error:
            raise WeightsError(f"{folder / 'results.json'} is damaged: {one_line(error)}") from None
        results |= {"seed": plan.seed, "epochs": plan.epochs, "last_epoch": plan.epochs}
    info = {"name": str(folder), "recipe": plan.to_dict(), "architecture": plan.architecture, "results": results}
    return info | {"weights": str(folder), "sha256": None, "bytes": None, "thesis": None}


def create_model(
    name: str,
    pretrained: bool = False,
    num_classes: int | None = None,
    weights_dir: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
    **timm_kwargs: Any,
) -> nn.Module:
    """The timm model of a name.

    Args:
        name: ``<objective>_<encoder>_<dataset>[.<variant>]``, or a model of your own: ``hf-hub:org/name[@revision]``,
            ``local-dir:PATH``, or the path of a release folder or of a finished run folder (the encoder, with its
            classifier where that is fitted).
        pretrained: load the released weights.
        num_classes: outputs of the classifier: those of the data set where not given, 0 for pooled features [N, d];
            any other number gets a fresh classifier.
        weights_dir: a release folder, or a folder of them, to take the weights from.
        revision: of the Hub repository, instead of the pinned one; not with a folder, which has none.
        cache_dir: huggingface_hub's cache.
        sha256: of ``model.safetensors``: nothing else is loaded. Without it a released name is held to the index,
            and what ``hf-hub:`` or ``local-dir:`` name loads with an :class:`tcl_zoo.weights.UncheckedWarning`.
        **timm_kwargs: for ``timm.create_model``: ``features_only``, ``in_chans``, ``drop_path_rate`` ...

    Returns:
        The model, in train mode as timm gives it.

    Raises:
        RecipeError: unknown name.
        WeightsError: no weights, not those that were released, or timm cannot build this with them.
    """
    if "pretrained_cfg" in timm_kwargs:
        raise RecipeError("the name decides the pretrained_cfg; pretrained_cfg_overlay={...} changes some of its keys")
    name, weights_dir, run = _found(name, weights_dir)
    if run is not None:
        from .runs import load_run

        if revision is not None or sha256 is not None:
            raise WeightsError(f"{run} is a run folder, which has no revisions and no sha256: leave them out")
        trained, finished = load_run(run)
        config: dict[str, Any] = {"architecture": trained.architecture, "num_classes": finished.num_classes}
        config["pretrained_cfg"] = finished.pretrained_cfg
        return _built(config, finished.state_dict() if pretrained else None, run, num_classes, timm_kwargs)
    if not pretrained and not name.startswith(SOURCES) and release_folder(name, weights_dir) is None:
        import timm

        from .datasets import pretrained_cfg

        plan = recipe(name)
        data = DATA[plan.dataset]
        timm_kwargs = {"in_chans": data.in_chans} | timm_kwargs
        classes = data.num_classes if num_classes is None else num_classes
        cfg = _complete(plan.architecture, pretrained_cfg(plan.dataset))
        return timm.create_model(plan.architecture, pretrained_cfg=cfg, num_classes=classes, **timm_kwargs)
    release = locate(name, weights_dir, revision, cache_dir, sha256, weights=pretrained)
    state = read_weights(release) if pretrained else None
    return _built(release.config, state, release.folder, num_classes, timm_kwargs)


def _built(
    config: dict[str, Any],
    state: dict[str, Any] | None,
    folder: Path,
    num_classes: int | None,
    timm_kwargs: dict[str, Any],
) -> nn.Module:
    """The model of a ``config.json`` with the weights in ``state``, of ``folder``; None for random ones."""
    import timm
    from timm.models import load_pretrained

    cfg = _complete(config["architecture"], {**config["pretrained_cfg"], "num_classes": config["num_classes"]})
    own = bool(timm_kwargs) or not isinstance(num_classes, (int, type(None)))  # arguments that timm may not take
    asked = [*timm_kwargs, *(["num_classes"] if num_classes is not None else [])]
    own_size = config.get("model_args", {}).get("img_size")  # of a fine-tuned model with position embeddings
    with_weights = {**cfg, "state_dict": state}
    stem = f"{cfg.get('first_conv')}.weight"
    filters = state.get(stem) if state and timm_kwargs.get("in_chans", 1) != 1 else None
    if state and filters is not None and filters.ndim == 4 and filters.shape[1] == 1:
        state[stem] = filters.repeat(1, 3, 1, 1) / 3  # before 1.0.31 timm adapts from three channels only
        with_weights["input_size"] = [3, *cfg["input_size"][1:]]  # later ones compare
    timm_kwargs.setdefault("in_chans", config["pretrained_cfg"]["input_size"][0])
    # timm resamples position embeddings, and loads a checkpoint of the caller's after its own weights.
    resampled = own_size is not None and timm_kwargs.get("img_size", own_size) != own_size
    if own_size is not None:
        timm_kwargs.setdefault("img_size", own_size)
    classes = config["num_classes"] if num_classes is None else num_classes
    # timm copies the state dict of a configuration it is given; loading afterwards spares that. Where it wraps the
    # model (features_only) only the configuration reaches the inside.
    wraps = any((timm_kwargs.get("features_only"), timm_kwargs.get("checkpoint_path"), resampled))
    wraps &= state is not None
    try:
        model = timm.create_model(
            config["architecture"], wraps, with_weights if wraps else cfg, num_classes=classes, **timm_kwargs
        )
        if state is not None and not wraps:
            load_pretrained(model, with_weights, num_classes=classes, in_chans=timm_kwargs["in_chans"])
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        if own and isinstance(error, TypeError):
            raise
        # torch's second line names the first tensor that does not fit.
        reason = " ".join(str(error).split("\n")[:2]).strip() or type(error).__name__
        what = f"{config['architecture']} with {', '.join(asked)}" if asked else config["architecture"]
        raise WeightsError(f"{what} cannot be built with the weights in {folder}: {reason}") from error
    if getattr(model, "pretrained_cfg", None):
        model.pretrained_cfg.pop("state_dict", None)  # the loaded tensors have no business in the model's facts
    return model


def _complete(architecture: str, cfg: dict[str, Any]) -> dict[str, Any]:
    """With what timm's own configurations say beyond ``config.json``: ``pool_size`` and ``min_input_size``."""
    from .encoders import ARCHITECTURES, default_cfg

    return default_cfg(architecture, **cfg) if architecture in ARCHITECTURES else cfg


def _found(name: Any, weights_dir: str | os.PathLike[str] | None) -> Place:
    """:func:`tcl_zoo.places.find`; a model of timm's own is refused with what loads it."""
    place = find(name, weights_dir)
    if place.timms:
        raise RecipeError(f"{place.name} is a model of timm's: timm.create_model({place.name!r}) makes it")
    return place


def create_transform(
    name: str,
    weights_dir: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
) -> Any:
    """PIL image of any mode to model input [C, S, S] float32, as the model is evaluated.

    Args:
        name: any recipe name, released or not; or a model of your own, as for :func:`create_model`.
        weights_dir: a release folder to take the input configuration from.
        revision, cache_dir, sha256: of a Hub repository, as for :func:`create_model`.

    Raises:
        RecipeError: unknown name.
        WeightsError: a place that has no release, or cannot be reached.
    """
    from .datasets import pretrained_cfg

    name, weights_dir, run = _found(name, weights_dir)
    if run is not None:
        cfg = pretrained_cfg(run_recipe(run).dataset)
    elif name.startswith(SOURCES) or revision is not None:
        cfg = locate(name, weights_dir, revision, cache_dir, sha256, weights=False).config["pretrained_cfg"]
    else:
        folder = release_folder(name, weights_dir) or index.bundled_folder(name)
        cfg = read_config(folder)["pretrained_cfg"] if folder else pretrained_cfg(recipe(name).dataset)
    return transform_of(cfg)


def transform_of(cfg: dict[str, Any]) -> Any:
    """PIL image of any mode to model input [C, S, S] float32, by a ``pretrained_cfg``."""
    from timm.data import create_transform as timm_transform
    from torchvision.transforms import v2

    size = tuple(cfg["input_size"])
    transform = timm_transform(
        size, is_training=False, interpolation=cfg["interpolation"], mean=cfg["mean"], std=cfg["std"],
        crop_pct=cfg.get("crop_pct", 1.0), crop_mode=cfg.get("crop_mode"),
    )  # fmt: skip
    return v2.Compose([v2.Lambda(functools.partial(convert, mode="L" if size[0] == 1 else "RGB")), transform])
