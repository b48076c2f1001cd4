"""What to train: every setting of the thesis by name. The rows are data: ``_supervised_recipes``, ``_ssl_recipes``.

A name is ``<objective>_<encoder>_<dataset>[.<variant>]`` and decides everything. Values are those of the thesis
(SPEC section 3: tables of its section 5.1, 5.2 and appendix A.1); where it is silent the row of the data set holds.

Variants:
    ``.e250``            250 epochs in all, 200 of them contrastive (Table A.1)
    ``.eN``, N <= 100    ours, for small machines: N contrastive epochs, the schedule fitted to them
    ``.vN``              N views per step on CIFAR-100 (figure 5.2)
    ``.pN``              projector output of N dimensions on CIFAR-100 (figure 5.3)
    ``.simaug``          SimAugment instead of AutoAugment on CIFAR-100, 250 epochs in all (figure 5.4)
    ``.supcontrast``     cross-entropy as SupContrast trains it: 500 epochs, random resized crop and flip
Self-supervised (Table 5.2):
    ``.eN``, N <= 500    ours, for small machines
    ``.viewsN``          ``tcl_ssl`` with 2, 3 or 4 views of an image
    ``.p256``            ``barlow`` and ``arb`` with an output of 256 dimensions
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import functools
import math
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ._ssl_recipes import SELF_SUPERVISED, ssl_fields, ssl_variants
from ._supervised_recipes import DATA, PROJECTOR_DIMS, VIEWS, supervised_fields, supervised_variants
from ._validation import AUGMENTATIONS, OPTIMIZERS, check
from .errors import RecipeError

__all__ = [
    "AUGMENTATIONS", "DATA", "ENCODERS", "OBJECTIVES", "OPTIMIZERS", "PROJECTOR_DIMS", "SELF_SUPERVISED", "VIEWS",
    "Recipe", "flat", "from_dict", "names", "nearest", "override", "recipe",
]  # fmt: skip

OBJECTIVES = ("tcl", "supcon", "ce", *SELF_SUPERVISED)
ENCODERS = ("resnet20", "resnet18", "resnet34", "resnet50", "resnet101")
_IDENTITY = ("name", "objective", "encoder", "dataset", "variant")


@dataclass(frozen=True)
class Recipe:
    """One training setting; frozen, so that a run can be compared with what it was asked for.

    Attributes:
        name: the name this recipe was made from.
        objective: ``tcl``, ``supcon``, ``ce``, or self-supervised one of ``SELF_SUPERVISED``.
        encoder: ``resnet18|34|50|101`` or ``resnet20``.
        dataset: ``digits``, ``cifar10``, ``cifar100``, ``fmnist`` or ``imagenet100``.
        variant: what follows the dot of the name, or ``""``.
        epochs: passes over the training images of the objective's own phase (the probe's are not counted).
        views: augmented views of each image in a step.
        batch_views: views per step over all processes (SPEC section 3: batch sizes count views).
        lr: peak learning rate; cosine to ``lr * lr_min_factor``, set once per epoch.
        momentum, weight_decay: of the optimiser; SGD's decay acts on every parameter.
        temperature, k1, k2: of the loss (eq. 4.2-4.4); unused by ``ce``, ``k1, k2`` are 0 and 1 for ``supcon``.
        projector_hidden: width of the projector's hidden layer; 0 is the encoder's own feature width.
        projector_dim: dimensions of the projector's output.
        augmentation: a policy of :class:`tcl_zoo.augment.Augment`.
        crop_padding: zero padding in pixels of the random crop.
        probe_epochs, probe_lr, probe_batch: of the linear phase when the probe's protocol is ``thesis``.
        seed: of the initial weights, the batch order and the augmentation.
        optimizer: ``sgd``, ``lars`` (SPEC section 5: eta 0.02, clipped, none on biases and norms) or ``adam``.
        warmup_epochs: epochs in which the learning rate rises linearly to ``lr``, before the cosine.
        probe_augmentation: of the linear phase; ``""`` is ``augmentation``.
        options: numbers of the objective alone, by name (momentum of the teacher, size of the queue, ...).
    """

    name: str
    objective: str
    encoder: str
    dataset: str
    variant: str = ""
    epochs: int = 100
    views: int = 2
    batch_views: int = 128
    lr: float = 0.1
    lr_min_factor: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    temperature: float = 0.1
    k1: float = 5000.0
    k2: float = 1.0
    projector_hidden: int = 0
    projector_dim: int = 128
    augmentation: str = "autoaugment_thesis"
    crop_padding: int = 4
    probe_epochs: int = 50
    probe_lr: float = 0.5
    probe_batch: int = 64
    seed: int = 0
    optimizer: str = "sgd"
    warmup_epochs: int = 0
    probe_augmentation: str = ""
    options: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check(vars(self))

    @property
    def needs_probe(self) -> bool:
        """Whether the objective trains no classifier, so that a linear phase follows."""
        return self.objective != "ce"

    @property
    def self_supervised(self) -> bool:
        """Whether the objective leaves the labels aside."""
        return self.objective in SELF_SUPERVISED

    @property
    def batch_images(self) -> int:
        """Images per step over all processes."""
        return self.batch_views // self.views

    @property
    def architecture(self) -> str:
        """The name timm builds: CIFAR stem below 64 pixels, stock timm otherwise (SPEC section 2)."""
        return self.encoder if DATA[self.dataset].image_size >= 64 else f"{self.encoder}_cifar"

    def lr_at(self, epoch: int) -> float:
        """Learning rate of an epoch counted from 0: warm-up, then cosine from ``lr`` to ``lr * lr_min_factor``.

        As torch's ``CosineAnnealingLR``: the end belongs to the epoch after the last one.
        """
        if epoch < self.warmup_epochs:
            return self.lr * (epoch + 1) / self.warmup_epochs
        low, warm = self.lr * self.lr_min_factor, self.warmup_epochs
        return low + (self.lr - low) * 0.5 * (1 + math.cos(math.pi * (epoch - warm) / (self.epochs - warm)))

    def to_dict(self) -> dict[str, Any]:
        """All fields, JSON-ready."""
        return dataclasses.asdict(self)


def flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of :meth:`Recipe.to_dict` in one level, as ``--set`` takes them: its options are ``options.KEY``."""
    options = {f"options.{key}": value for key, value in fields.get("options", {}).items()}
    return {key: value for key, value in fields.items() if key != "options"} | options


def _base(objective: str, encoder: str, dataset: str) -> dict[str, Any]:
    return (ssl_fields if objective in SELF_SUPERVISED else supervised_fields)(objective, encoder, dataset)


def _vary(objective: str, encoder: str, dataset: str, variant: str) -> dict[str, Any] | None:
    """What a variant changes, or None where the name has no such variant."""
    vary = ssl_variants if objective in SELF_SUPERVISED else supervised_variants
    return vary(objective, encoder, dataset, variant)


def _listed() -> Iterable[str]:
    for dataset, data in DATA.items():
        for encoder in ENCODERS:
            if (dataset == "digits" and encoder != "resnet20") or (dataset == "imagenet100" and encoder == "resnet20"):
                continue
            for objective in OBJECTIVES:
                if objective in SELF_SUPERVISED and encoder not in ("resnet18", "resnet20"):
                    continue
                if objective in SELF_SUPERVISED and dataset == "fmnist":
                    continue
                name = f"{objective}_{encoder}_{dataset}"
                yield name
                variants: list[str] = []
                if objective in SELF_SUPERVISED:
                    variants = ["views2", "views4", "p256"]
                elif encoder == data.thesis_encoder:
                    variants = ["e250", "supcontrast", "simaug"]
                    variants += [f"v{n}" for n in VIEWS] + [f"p{n}" for n in PROJECTOR_DIMS]
                if encoder == "resnet20" and dataset != "digits":
                    variants.append("e40")
                for variant in variants:
                    if _vary(objective, encoder, dataset, variant) is not None:
                        yield f"{name}.{variant}"


_NAMES = tuple(_listed())


def names(pattern: str | Iterable[str] = "*") -> list[str]:
    """Names of the recipes that match.

    Args:
        pattern: an ``fnmatch`` pattern such as ``"tcl_*cifar100*"``, or several.

    Returns:
        Names in the order of data set, encoder, objective, variant.
    """
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    return [name for name in _NAMES if any(fnmatch.fnmatchcase(name, p) for p in patterns)]


def nearest(word: str, known: Iterable[str]) -> str:
    """``"; did you mean a, b?"`` for a mistyped word or a part of one, or ``""`` where nothing is near."""
    known, word = list(known), word[:80]
    same = [other for other in known if other.lower() == word.lower()]
    parts = [other for other in known if word.lower() in re.split(r"[_.]", other)]
    close = same or parts[:3] or difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    return f"; did you mean {', '.join(close)}?" if close else ""


def recipe(name: str) -> Recipe:
    """The recipe of a name.

    Args:
        name: ``<objective>_<encoder>_<dataset>[.<variant>]``.

    Raises:
        RecipeError: unknown name; the message has the nearest ones.
    """
    stem, _, variant = name.partition(".")
    if stem in _NAMES:
        objective, encoder, dataset = stem.rsplit("_", 2)  # an objective's name may have an underscore
        changes = _vary(objective, encoder, dataset, variant)
        if changes is not None and (variant or "." not in name):
            fields = _base(objective, encoder, dataset) | changes
            made = Recipe(name=name, objective=objective, encoder=encoder, dataset=dataset, variant=variant, **fields)
            return _with_probe_batch(made)
    hint = nearest(name, _NAMES) or "; `tcl-zoo list` shows all names"
    raise RecipeError(f"unknown model name {name[:80]!r}{hint}")


def _with_probe_batch(made: Recipe) -> Recipe:
    """The linear phase takes as many images a step as the contrastive one did (SPEC section 3)."""
    supervised = made.needs_probe and not made.self_supervised
    return dataclasses.replace(made, probe_batch=made.batch_images) if supervised else made


@functools.cache
def _types() -> dict[str, Any]:
    return typing.get_type_hints(Recipe)


def override(base: Recipe, settings: Iterable[str]) -> Recipe:
    """A recipe with some fields set from ``key=value`` texts, as ``--set`` gives them.

    Args:
        base: the recipe to change.
        settings: texts such as ``"epochs=5"`` or ``"lr=0.05"``.

    Raises:
        RecipeError: not ``key=value``, an unknown key, a value of the wrong type or out of range, or a key that
            is part of the name (train the other name instead).
    """
    types = dict(_types())
    types |= {f"options.{key}": type(value) for key, value in base.options.items()}
    free = [key for key in types if key not in (*_IDENTITY, "options")]
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals:
            raise RecipeError(f"--set takes key=value, got {setting[:80]!r}")
        if key in _IDENTITY:
            raise RecipeError(f"{key} is part of the name; train another name instead of setting it")
        if key not in free:
            raise RecipeError(f"unknown recipe field {key[:80]!r}{nearest(key, free) or '; known: ' + ', '.join(free)}")
        try:
            changes[key] = types[key](text.strip())
        except ValueError:
            raise RecipeError(f"{key} takes {types[key].__name__}, got {text[:80]!r}") from None
    own = {key.removeprefix("options."): changes.pop(key) for key in list(changes) if key.startswith("options.")}
    made = dataclasses.replace(base, **changes, options={**base.options, **own})
    return made if "probe_batch" in changes or made.batch_images == base.batch_images else _with_probe_batch(made)


def from_dict(fields: dict[str, Any]) -> Recipe:
    """The recipe that :meth:`Recipe.to_dict` wrote; what an older version did not know has its default.

    Raises:
        RecipeError: fields are missing or unknown, or a value is of the wrong type or out of range.
    """
    types = _types()
    try:
        for key, value in fields.items():
            accepted = {int: (int,), float: (int, float), str: (str,)}.get(types.get(key, object))
            if accepted and type(value) not in accepted:
                raise RecipeError(f"not a recipe: {key} takes {types[key].__name__}, got {type(value).__name__}")
        for key, known in (("objective", OBJECTIVES), ("encoder", ENCODERS), ("dataset", tuple(DATA))):
            if key in fields and fields[key] not in known:
                raise RecipeError(f"not a recipe: unknown {key} {fields[key][:80]!r}")
        return Recipe(**fields)
    except (TypeError, AttributeError, OverflowError) as error:
        raise RecipeError(f"not a recipe: {error}") from None
