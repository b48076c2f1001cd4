"""What somebody means by a name: a model of this zoo, timm's word for one, or the path of a release or run folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from . import index
from .errors import RecipeError, WeightsError, one_line
from .outside import expanded, parsed, read_limited
from .recipes import Recipe, from_dict, recipe
from .weights import CONFIG_FILE, SOURCES, read_config

_MAX_BYTES = 1_000_000


class Place(NamedTuple):
    """Where a model is: a release, or the run folder of a training.

    Attributes:
        name, weights_dir: of a release, as :func:`tcl_zoo.weights.locate` takes them.
        run: the run folder; ``name`` is its path then, as it was given, and ``weights_dir`` None.
    """

    name: str
    weights_dir: str | os.PathLike[str] | None = None
    run: Path | None = None

    @property
    def timms(self) -> bool:
        """Whether it is a model of timm's own, by its name there."""
        return self.run is None and self.weights_dir is None and is_timms(self.name)


def find(name: Any, weights_dir: str | os.PathLike[str] | None = None) -> Place:
    """Where the model of a name, or of a path, is.

    The path of a release folder, or of a fine-tuning's run folder, becomes the name of its release and that folder;
    timm's ``architecture.tag`` of a released model becomes its name; all else stays. A model's name is one, whatever
    lies in the current folder; ``./NAME`` is a path. With a ``weights_dir`` only releases are looked for.

    Raises:
        RecipeError: neither text nor a path.
        WeightsError: a path without a release, one whose ``config.json`` is not that of a release, or that of a run
            which is not finished.
    """
    if weights_dir is None and (run := run_folder(name)) is not None:
        return Place(os.fspath(name), None, run)
    if not isinstance(name, (str, os.PathLike)):
        raise RecipeError(f"a model's name or a path is wanted, not {type(name).__name__}")
    name = os.fspath(name)
    if name.startswith("hf_hub:"):  # timm's older spelling
        name = "hf-hub:" + name.removeprefix("hf_hub:")
    if name.startswith(SOURCES):
        return Place(name, weights_dir)
    architecture, _, tag = name.partition(".")
    if weights_dir is None and (place := _folder(name)) is not None:
        for folder in (place, place / "release"):
            if (folder / CONFIG_FILE).is_file():
                return Place(str(read_config(folder)["tcl_zoo"]["name"]), folder)
    if os.sep in name:
        raise WeightsError(f"no release in {name}: looked for {CONFIG_FILE} and release/{CONFIG_FILE} there")
    return Place(index.name_of(architecture, tag) or name, weights_dir)


def run_folder(name: Any) -> Path | None:
    """The run folder of a training that has this path, or None.

    Raises:
        WeightsError: its training is not finished.
    """
    known = isinstance(name, (str, os.PathLike)) and not str(name).startswith(SOURCES)
    place = _folder(os.fspath(name)) if known else None
    if place is None or not (place / "recipe.json").is_file() or (place / "release").exists():
        return None
    if (place / "encoder.safetensors").is_file():
        return place
    raise WeightsError(f"the run in {place} is not finished: start it again to go on")


def run_recipe(folder: Path) -> Recipe:
    """What a run folder was trained by.

    Raises:
        WeightsError: its ``recipe.json`` is damaged.
    """
    try:
        return from_dict(parsed(read_limited(folder / "recipe.json", _MAX_BYTES))["recipe"])
    except (OSError, ValueError, KeyError, TypeError, RecipeError) as error:
        raise WeightsError(f"{folder / 'recipe.json'} is damaged: {one_line(error)}") from None


def _folder(name: str) -> Path | None:
    """The folder of this path, or None where there is none, or where it is the name of a model."""
    place = expanded(name, WeightsError)
    return place if place.is_dir() and not is_name(name) else None


def is_timms(name: str) -> bool:
    """Whether timm has a model of this name, with or without a tag."""
    import timm

    return bool(timm.is_model(name.partition(".")[0]))


def is_name(name: str) -> bool:
    """Whether it is the name of a recipe, a release or a model of timm's, rather than a path; ``./NAME`` is one."""
    if os.sep in name:
        return False
    try:
        recipe(name)
    except RecipeError:
        return name in index.entries() or is_timms(name)
    return True
