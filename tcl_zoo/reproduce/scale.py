"""A table or figure at a smaller scale: fewer epochs, fewer images, another encoder or data set."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from .._ssl_recipes import shortened
from ..errors import RecipeError
from ..recipes import DATA, Recipe, flat, override, recipe
from ..splits import FolderSplit, Split, holdout
from .grids import ENCODERS, GRIDS, TITLES, Cell, Grid

# A scaled run keeps at least so many epochs, each of fewer images: the cosine schedule needs a few steps.
# Cross-entropy has half as many again, as in the recipes; so all objectives see the same images.
MIN_EPOCHS = 6
# Training images of each data set (imagenet100: of the usual 100 classes).
IMAGES = {"digits": 1437, "cifar10": 50_000, "cifar100": 50_000, "fmnist": 60_000, "imagenet100": 126_689}


@dataclass(frozen=True)
class Scale:
    """What makes a grid smaller than the thesis's; the default is the thesis's own.

    Attributes:
        factor: share of the recipe's steps: first fewer epochs, down to ``MIN_EPOCHS``, then fewer training images,
            as many of each class.
        encoder: takes the place of every encoder, or "".
        dataset: takes the place of the data set, or "" (grids with ``moves`` only).
    """

    factor: float = 1.0
    encoder: str = ""
    dataset: str = ""

    @property
    def label(self) -> str:
        """For file names: ``""`` at full scale, else for example ``resnet20-x0.01``."""
        return "-".join(filter(None, (self.dataset, self.encoder, f"x{self.factor:g}" if self.factor != 1 else "")))


@dataclass(frozen=True)
class Job:
    """What a cell trains at a scale.

    Attributes:
        recipe: with its seed.
        images: training images that are used, or None for all.
    """

    recipe: Recipe
    images: int | None = None

    @property
    def changes(self) -> dict[str, str]:
        """Fields that differ from those of the recipe of this name, as ``--set`` takes them."""
        own, plain = flat(self.recipe.to_dict()), flat(recipe(self.recipe.name).to_dict())
        if own["probe_batch"] == self.recipe.batch_images:
            del own["probe_batch"]  # it follows from the batch
        return {
            key: f"{value:g}" if isinstance(value, float) else str(value)
            for key, value in own.items()
            if value != plain[key]
        }

    @property
    def key(self) -> str:
        """Name of the run folder: the recipe's, and what differs from it."""
        parts = [f"{key}={value}" for key, value in self.changes.items()]
        parts += [f"images={self.images}"] if self.images else []
        return "-".join([self.recipe.name, *parts])

    @property
    def used(self) -> int:
        """Training images."""
        return self.images or IMAGES[self.recipe.dataset]

    @property
    def views(self) -> int:
        """Views of the whole training."""
        return self.recipe.epochs * (self.used // self.recipe.batch_images) * self.recipe.batch_views


def scaled(cell: Cell, scale: Scale, seed: int = 0) -> Job:
    """What a cell trains.

    Raises:
        RecipeError: a name that no recipe has (yet), or a setting that is out of range.
    """
    base = recipe(cell.name)
    if scale.dataset:
        base = recipe(f"{base.objective}_{scale.encoder or base.encoder}_{scale.dataset}")
    elif scale.encoder and scale.encoder != base.encoder and base.self_supervised:
        # Heads and queues are fitted to the encoder: another one has a recipe of its own.
        base = recipe(f"{base.objective}_{scale.encoder}_{base.dataset}{base.variant and '.' + base.variant}")
    elif scale.encoder and scale.encoder != base.encoder:
        # The cell's own values, as they are what the figure varies, on another encoder.
        name = f"{base.objective}_{scale.encoder}_{base.dataset}"
        recipe(name)
        base = dataclasses.replace(base, name=name, encoder=scale.encoder, variant="")
    base = dataclasses.replace(override(base, cell.settings), seed=seed)
    if scale.factor == 1:
        return Job(base)
    least = MIN_EPOCHS if base.needs_probe else MIN_EPOCHS * 3 // 2
    wanted, kept = base.epochs * scale.factor, min(base.epochs, least)
    if wanted >= kept:
        return Job(_with_epochs(base, round(wanted)))
    classes = DATA[base.dataset].num_classes
    images = max(1, round(IMAGES[base.dataset] * wanted / kept / classes)) * classes
    return Job(_with_epochs(base, kept), images)


def _with_epochs(base: Recipe, epochs: int) -> Recipe:
    """The recipe with its schedule fitted to so many epochs: warm-ups and the like shrink with them."""
    if not base.self_supervised:
        return dataclasses.replace(base, epochs=epochs)
    fields, options = shortened(base.to_dict(), dict(base.options), epochs)
    return dataclasses.replace(base, epochs=epochs, warmup_epochs=fields["warmup_epochs"], options=options)


def moved(grid: Grid, scale: Scale) -> Grid:
    """The grid with the rows and title of a scale that replaces data set or encoder.

    Raises:
        RecipeError: the grid compares what is to be replaced.
    """
    if scale.dataset and not grid.moves:
        names = [name for name, other in GRIDS.items() if other.moves]
        raise RecipeError(f"{grid.name} stays with its data sets; --dataset is for {', '.join(names)}")

    def rename(text: str) -> str:
        if scale.encoder:
            text = text.partition(" (ours ")[0]  # the size of another encoder's projector
        for encoder, short in ENCODERS.items():
            if scale.encoder and encoder != scale.encoder and (text.endswith((short, f"({short})"))):
                text = text.replace(short, ENCODERS[scale.encoder])
        return text.replace(TITLES["cifar100"], TITLES[scale.dataset]) if scale.dataset else text

    cells: dict[tuple[str, str], Cell] = {}
    for cell in grid.cells:
        against = (rename(cell.against[0]), cell.against[1]) if cell.against else None
        thesis = None if scale.dataset else cell.thesis
        place = (rename(cell.row), cell.series)
        # Rows that differed by the encoder alone are one now.
        cells.setdefault(place, dataclasses.replace(cell, row=place[0], against=against, thesis=thesis))
    return dataclasses.replace(grid, title=rename(grid.title), cells=tuple(cells.values()))


def balanced(split: Split | FolderSplit, n: int) -> Split | FolderSplit:
    """``n`` images, as many of each class, the same for every run; in the order of ``split``."""
    return split if n >= len(split) else holdout(split, len(split) - n)[0]
