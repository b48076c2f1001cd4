"""Any encoder, as fine-tuning, embedding and the transfer benchmark take it: of this zoo, a folder, or timm."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from .errors import WeightsError, one_line
from .models import create_model
from .places import Place, find

SMALL = 64  # pixels a side below which an encoder has a CIFAR stem and takes images of any size


def open_model(
    name: str | os.PathLike[str],
    *,
    pretrained: bool = True,
    weights_dir: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
    **timm_kwargs: Any,
) -> nn.Module:
    """A model of this zoo, a release or run folder, or any timm model.

    Args:
        name: a name of this zoo; ``local-dir:PATH``, ``hf-hub:ORG/NAME``; the path of a release folder or of a
            finished run folder, of a training or a fine-tuning; any timm name.
        pretrained: with its weights.
        weights_dir: a release folder, or a folder of them.
        sha256: of ``model.safetensors`` of a release: nothing else is loaded.
        **timm_kwargs: ``num_classes``, ``in_chans``, ``drop_path_rate`` ...

    Raises:
        RecipeError: unknown name.
        WeightsError: no weights, timm cannot build this with them, or a ``weights_dir`` beside a name that brings its
            own.
    """
    import timm

    if pretrained and weights_dir is not None and brings_weights(name):
        raise WeightsError(f"{name} brings its own weights: leave --weights-dir out (in Python: weights_dir)")
    place = located(name, weights_dir)
    if not place.timms:
        return create_model(place.name, pretrained, weights_dir=place.weights_dir, sha256=sha256, **timm_kwargs)
    if sha256 is not None:
        raise WeightsError(f"{name} is timm's, and not held to a sha256: leave it out")
    try:
        return timm.create_model(place.name, pretrained=pretrained, **timm_kwargs)
    except Exception as error:  # no network, no such tag or argument, a damaged cache: timm and the Hub raise anything
        raise WeightsError(f"timm cannot {'load' if pretrained else 'build'} {name}: {one_line(error)}") from error


def brings_weights(name: str | os.PathLike[str]) -> bool:
    """Whether the name stands for weights of its own, whatever ``weights_dir`` says: timm's, or a run folder's."""
    place = find(name)
    return place.run is not None or place.timms


def located(name: str | os.PathLike[str], weights_dir: str | os.PathLike[str] | None) -> Place:
    """:func:`tcl_zoo.places.find`, without the ``weights_dir`` where the name brings its own weights."""
    return find(name, None if brings_weights(name) else weights_dir)


def own_name(name: str) -> str:
    """What a model is called: of a release folder its name, of a run folder the folder's, else what was given."""
    place = find(name)
    return place.run.resolve().name if place.run else place.name


def fitted_cfg(model: nn.Module, channels: int = 0, size: int = 0) -> dict[str, Any]:
    """The model's ``pretrained_cfg`` with other channels and another size; 0 is its own.

    Its own size is the default for smaller images, too: filters expect the scale they were trained at, though a CIFAR
    stem takes any. A model with position embeddings is fitted to the size.

    Gray from colour: the mean of the three means; colour from gray: the one, three times.

    Raises:
        WeightsError: a model that takes its own size only.
    """
    own: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    if size and size != own["input_size"][-1]:
        try:
            if hasattr(model, "set_input_size"):
                model.set_input_size(img_size=size)  # type: ignore[operator]
            elif own.get("fixed_input_size"):
                raise ValueError("its size is fixed")
        except (ValueError, AssertionError, RuntimeError, ZeroDivisionError) as error:
            problem = f"the model takes images of {own['input_size'][-1]} pixels, not of {size}"
            raise WeightsError(f"{problem} ({str(error).splitlines()[0]}); leave the size out") from None
    cfg: dict[str, Any] = dict(own)
    channels, size = channels or cfg["input_size"][0], size or cfg["input_size"][-1]
    for key in ("mean", "std"):
        values = [float(value) for value in cfg[key]]
        same = len(values) == channels
        cfg[key] = values if same else [sum(values) / len(values)] * channels
    if size != own["input_size"][-1]:
        cfg.pop("pool_size", None)  # of the maps at the other size
    cfg["input_size"] = [channels, size, size]
    cfg["crop_pct"] = 1.0 if size < SMALL else cfg.get("crop_pct") or 0.875
    return cfg
