"""Any encoder, as fine-tuning and the transfer benchmark take it: of this zoo, of a folder, or of timm."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from .errors import RecipeError, WeightsError
from .models import create_model
from .places import find, is_timms, run_folder

SMALL = 64  # pixels a side below which an encoder has a CIFAR stem and takes images of any size


def open_model(
    name: str, *, pretrained: bool = True, weights_dir: str | os.PathLike[str] | None = None, **timm_kwargs: Any
) -> nn.Module:
    """A model of this zoo, a release or run folder, or any timm model.

    Args:
        name: a name of this zoo; ``local-dir:PATH``, ``hf-hub:ORG/NAME``; the path of a release folder or of a
            finished run folder, of a training or a fine-tuning; any timm name.
        pretrained: with its weights.
        weights_dir: a release folder, or a folder of them.
        **timm_kwargs: ``num_classes``, ``in_chans``, ``drop_path_rate`` ...

    Raises:
        RecipeError: unknown name.
        WeightsError: no weights, or a ``weights_dir`` beside a name that brings its own.
    """
    import timm

    if pretrained and weights_dir is not None and brings_weights(name):
        raise WeightsError(f"{name} brings its own weights: leave --weights-dir out (in Python: weights_dir)")
    place = find(name, None if brings_weights(name) else weights_dir)
    name, weights_dir, run = place
    if run is not None:
        return create_model(name, pretrained, **{"num_classes": 0, **timm_kwargs})
    if place.timms:
        try:
            return timm.create_model(name, pretrained=pretrained, **timm_kwargs)
        except (RuntimeError, TypeError) as error:  # a TypeError: an argument that this model has not
            raise RecipeError(f"{name}: {str(error).splitlines()[0]}") from None
    return create_model(name, pretrained, weights_dir=weights_dir, **timm_kwargs)


def brings_weights(name: str) -> bool:
    """Whether the name stands for weights of its own, whatever ``weights_dir`` says: timm's, or a run folder's."""
    return run_folder(name) is not None or is_timms(str(name))


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
