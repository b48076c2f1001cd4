"""Every table and figure of the thesis as data: which recipes stand behind it (SPEC section 6).

A :class:`Grid` is a table or figure, a :class:`Cell` one of its entries: a recipe's name and what is set beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from ..recipes import PROJECTOR_DIMS, VIEWS, recipe
from ..thesis import reported

SUPCON, TCL = "SupCon", "TCL"
_SERIES = {"ce": "cross-entropy", "supcon": SUPCON, "tcl": TCL}
TITLES = {
    "digits": "digits",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "fmnist": "FashionMNIST",
    "imagenet100": "ImageNet-100",
}
ENCODERS = {f"resnet{n}": f"R{n}" for n in (18, 20, 34, 50, 101)}


@dataclass(frozen=True)
class Cell:
    """One entry of a table, or one point or line of a figure.

    Attributes:
        row: of the table, or the place on the figure's axis.
        series: column of the table, or line of the figure.
        name: recipe.
        settings: ``key=value`` texts that change the recipe.
        thesis: top-1 in percent as the thesis reports it, or None.
        against: (row, series) of the cell it is compared with seed by seed, or None.
    """

    row: str
    series: str
    name: str
    settings: tuple[str, ...] = ()
    thesis: float | None = None
    against: tuple[str, str] | None = None


@dataclass(frozen=True)
class Grid:
    """One table or figure.

    Attributes:
        name: as the command takes it.
        title: what it shows.
        kind: ``top1`` (a value for each cell, over the rows) or ``gradients`` (curves over the training).
        axis: what the rows are, with the unit.
        cells: its entries.
        expected: what the thesis says of it, in one line.
        numeric: rows are numbers on a logarithmic axis.
        seeds: runs of each cell in the thesis.
        moves: may be asked of another data set, as its cells are the plain recipes of one.
    """

    name: str
    title: str
    kind: str
    axis: str
    cells: tuple[Cell, ...]
    expected: str
    numeric: bool = False
    seeds: int = 1
    moves: bool = False


def _cell(name: str, row: str, below: str = "") -> Cell:
    """The cell of a recipe; ``below`` is the objective that it is compared with."""
    found, objective = reported(name), name.split("_")[0]
    against = (row, _SERIES[below]) if below else None
    there = found and found[1] != "Table 5.2"  # whose figure is of that table's setting
    return Cell(row, _SERIES[objective], name, (), found[0] if found and there else None, against)


def _pairs(rows: Iterable[tuple[str, str]], objectives: tuple[str, ...] = ("supcon", "tcl")) -> tuple[Cell, ...]:
    """Cells of recipes ``<objective>_<rest>``: (row, rest) for every row and objective, each against the one before."""
    compared = list(zip(objectives, ("", *objectives), strict=False))
    return tuple(_cell(f"{objective}_{rest}", row, below) for row, rest in rows for objective, below in compared)


_DATASETS = ("resnet50_cifar10", "resnet50_cifar100", "resnet50_fmnist", "resnet18_imagenet100")


def _row(rest: str) -> str:
    encoder, dataset = rest.split("_")
    return f"{TITLES[dataset]} ({ENCODERS[encoder]})"


_128 = "resnet50_cifar100.v128"


def _plain(rest: str) -> str:
    """The name under which the same recipe has other figures, too: 256 views and 128 dimensions are the plain ones."""
    return {"resnet50_cifar100.v256": "resnet50_cifar100", "resnet50_cifar100.p128": _128}.get(rest, rest)


K1 = (0, 10, 100, 1000, 5000, 50_000)
K2 = (1, 3.25)
_SECTION_54: dict[tuple[float, float], float] = {(50_000, 1): 71.8, (50_000, 3.25): 76.2}


def _loss(k1: float, k2: float, against: tuple[float, float] | None = (0, 1)) -> Cell:
    """TCL at k1 and k2 as a line of a figure; SupCon, which is (0, 1), under its own name."""
    supcon, plain = (k1, k2) == (0, 1), (k1, k2) == (5000, 1)
    cell = _cell(f"supcon_{_128}" if supcon else f"tcl_{_128}", "")
    thesis = cell.thesis if supcon or plain else _SECTION_54.get((k1, k2))
    settings = (f"k1={k1:g}", f"k2={k2:g}")  # the recipe's, too: another data set's may have others
    other = ("", _line(*against)) if against and against != (k1, k2) else None
    return dataclasses.replace(cell, series=_line(k1, k2), settings=settings, thesis=thesis, against=other)


def _line(k1: float, k2: float) -> str:
    return SUPCON if (k1, k2) == (0, 1) else f"TCL, k1 = {k1:g}, k2 = {k2:g}"


def _sweep() -> tuple[Cell, ...]:
    cells = []
    for k2 in K2:
        for k1 in K1:
            against = ("0", "k2 = 1") if (k1, k2) != (0, 1) else None
            cells.append(dataclasses.replace(_loss(k1, k2), row=f"{k1:g}", series=f"k2 = {k2:g}", against=against))
    return tuple(cells)


# Table 5.2: title and projector size (ResNet-18, no labels in training); what each row reached is in ``thesis``.
_SELF_SUPERVISED = {
    "byol": ("BYOL", 4096),
    "dino": ("DINO", 256),
    "simsiam": ("SimSiam", 2048),
    "moco": ("MoCo v2", 256),
    "ressl": ("ReSSL", 256),
    "vicreg": ("VICReg", 2048),
    "swav": ("SwAV", 256),
    "wmse": ("W-MSE", 256),
    "arb.p256": ("ARB", 256),
    "arb": ("ARB", 2048),
    "barlow.p256": ("Barlow Twins", 256),
    "barlow": ("Barlow Twins", 2048),
    "simclr": ("SimCLR", 256),
    "tcl_ssl": ("TCL", 256),
    "tcl": ("supervised TCL", 128),
}


def _table_52() -> tuple[Cell, ...]:
    cells = []
    for key, (title, size) in _SELF_SUPERVISED.items():
        objective, dot, variant = key.partition(".")
        ours = recipe(f"{objective}_resnet18_cifar10{dot}{variant}").projector_dim
        row = f"{title}, {size}" + (f" (ours {ours})" if ours != size else "")
        for dataset in ("cifar10", "cifar100", "imagenet100"):
            name = f"{objective}_resnet18_{dataset}{dot}{variant}"
            found = reported(name)
            cells.append(Cell(row, TITLES[dataset], name, (), found[0] if found else None))
    return tuple(cells)


_FIG_51 = [(ENCODERS[e], f"{e}_cifar100") for e in ("resnet18", "resnet34")]
_FIG_51 += [("R50", _128), ("R101", "resnet101_cifar100"), ("ImageNet-100, R34", "resnet34_imagenet100")]
_ABOVE = "TCL is above SupCon everywhere"

GRIDS: dict[str, Grid] = {
    grid.name: grid
    for grid in (
        Grid(
            "table-5.1", "Cross-entropy, SupCon and TCL, 150 epochs in all", "top1", "data set (encoder)",
            _pairs([(_row(rest), rest) for rest in _DATASETS], ("ce", "supcon", "tcl")),
            "TCL is above SupCon, SupCon above cross-entropy (on CIFAR SupContrast's, of 500 epochs; ours has 150)",
        ),
        Grid(
            "table-a1", "SupCon and TCL, 250 epochs in all", "top1", "data set (encoder)",
            _pairs([(_row(rest), f"{rest}.e250") for rest in _DATASETS]), _ABOVE,
        ),
        Grid("fig-5.1", "Encoders on CIFAR-100, 128 views", "top1", "encoder", _pairs(_FIG_51), _ABOVE),
        Grid(
            "fig-5.2", "Batch sizes on CIFAR-100", "top1", "batch size (views)",
            _pairs((f"{n}", _plain(f"resnet50_cifar100.v{n}")) for n in VIEWS), _ABOVE, numeric=True,
        ),
        Grid(
            "fig-5.3", "Projector sizes on CIFAR-100", "top1", "projector output (dimensions)",
            _pairs((f"{n}", _plain(f"resnet50_cifar100.p{n}")) for n in PROJECTOR_DIMS),
            f"{_ABOVE}, at 2048 dimensions by 1.2 points", numeric=True,
        ),
        Grid(
            "fig-5.4", "Augmentations on CIFAR-100", "top1", "augmentation",
            _pairs([("AutoAugment, 150 epochs", _128), ("SimAugment, 250 epochs", "resnet50_cifar100.simaug")]), _ABOVE,
        ),
        Grid(
            "fig-5.5", "Gradient responses of SupCon and TCL on CIFAR-100", "gradients", "optimisation step",
            (_loss(0, 1), _loss(5000, 1)),
            "TCL's positives pull harder than SupCon's (Theorem 1: hard positives)", moves=True,
        ),
        Grid(
            "fig-5.6", "Top-1 against k1 on CIFAR-100", "top1", "k1 (0 at k2 = 1 is SupCon)", _sweep(),
            "a peak at k1 of 1,000 to 10,000, then a fall, which a larger k2 undoes", numeric=True, moves=True,
        ),
        Grid(
            "fig-5.7", "Gradient responses at several k1, k2 = 1, on CIFAR-100", "gradients", "optimisation step",
            tuple(_loss(k1, 1) for k1 in K1),
            "the positives' response grows with k1 (Theorem 1: hard positives)", moves=True,
        ),
        Grid(
            "fig-5.8", "Gradient responses at two k2 on CIFAR-100", "gradients", "optimisation step",
            tuple(_loss(k1, k2, (k1, 1)) for k1 in (5000, 50_000) for k2 in K2),
            "the negatives' response grows with k2 (Theorem 2)", moves=True,
        ),
        Grid(
            "ci", "SupCon and TCL on CIFAR-100 over many seeds", "top1", "data set (encoder)",
            _pairs([("CIFAR-100 (R50)", _128)]), "TCL above SupCon by 0.93, intervals apart", seeds=30, moves=True,
        ),
        Grid("table-5.2", "Self-supervised methods, ResNet-18", "top1", "method, projector output of the thesis",
             _table_52(), "TCL is above SimCLR"),
    )
}  # fmt: skip
