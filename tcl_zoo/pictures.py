"""The pictures of cards and reports: PNG, legible at 800 px, colour-blind-safe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#B8A800")  # Okabe and Ito
MARKERS = "osD^v"


def new_figure(width: float, height: float, dpi: int = 100, **kwargs: Any) -> Any:
    """An empty matplotlib figure without pyplot's global state, laid out so that nothing overlaps.

    Args:
        width, height: in inches.
        dpi: pixels an inch.
        **kwargs: for ``matplotlib.figure.Figure``.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, **{"layout": "constrained", **kwargs})


def confusion(counts: Tensor, classes: tuple[str, ...], title: str, path: Path) -> None:
    """Row-normalised confusion matrix.

    Args:
        counts: [K, K], true class by row.
        classes: K names; drawn, with the percentages, up to 20 of them.
        title: above the matrix.
        path: of the PNG.
    """
    k = len(classes)
    percent = (100 * counts / counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    figure = new_figure(8, 7)
    axes = figure.add_subplot()
    image = axes.imshow(percent, cmap="cividis", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.85)
    axes.set(title=title, xlabel="predicted class", ylabel="true class")
    if k <= 20:
        axes.set_xticks(range(k), classes, rotation=45, ha="right")
        axes.set_yticks(range(k), classes)
        for i in range(k):
            for j in range(k):
                if shown := int(percent[i, j] + 0.5):
                    colour = "black" if percent[i, j] > 50 else "white"
                    axes.text(j, i, str(shown), ha="center", va="center", color=colour, fontsize=10)
    figure.savefig(path)


def training_curve(metrics: list[dict[str, Any]], title: str, path: Path) -> None:
    """Loss and learning rate over the epochs.

    Args:
        metrics: lines of ``metrics.jsonl``.
        title: above the curve.
        path: of the PNG.
    """
    epochs = [line["epoch"] + 1 for line in metrics]
    figure = new_figure(8, 4.5)
    axes = figure.add_subplot()
    mark = "o" if len(epochs) < 3 else None  # a line of one point would not show
    (loss,) = axes.plot(
        epochs, [line["loss"] for line in metrics], color=COLOURS[0], linewidth=2, marker=mark, label="training loss"
    )
    axes.set(title=title, xlabel="epoch", ylabel="training loss (mean of the epoch)")
    axes.grid(alpha=0.3)
    right = axes.twinx()
    (rate,) = right.plot(
        epochs, [line["lr"] for line in metrics],
        color=COLOURS[3], linewidth=1.5, linestyle="--", marker=mark, label="learning rate",
    )  # fmt: skip
    right.set_ylabel("learning rate")
    right.set_ylim(bottom=0)
    axes.legend(handles=[loss, rate], loc="upper right")
    figure.savefig(path)


def embedding(features: Tensor, labels: Tensor, classes: tuple[str, ...], title: str, path: Path) -> None:
    """Normalised features on their first four principal components; at most 2,000 images of at most 20 classes.

    Principal components and not t-SNE: distances in the picture are distances between features, seen from one side.

    Args:
        features: [N, d] of the test images.
        labels: [N] their classes.
        classes: K names.
        title: above the picture.
        path: of the PNG.
    """
    shown = min(len(classes), 20)
    chosen = (labels.cpu() < shown).nonzero().flatten()
    chosen = chosen[:: -(-len(chosen) // 2000)]
    rows, labels = F.normalize(features.float().cpu()[chosen]), labels.cpu()[chosen]
    rows = rows - rows.mean(0)
    _, strength, axes_of_data = torch.linalg.svd(rows, full_matrices=False)
    points, share = rows @ axes_of_data.T, (100 * strength**2 / (strength**2).sum()).tolist()
    figure = new_figure(8, 5)
    for first, axes in zip((0, 2), figure.subplots(1, 2), strict=True):
        for k in range(shown):
            mine = points[labels == k]
            colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k // len(COLOURS)]
            style = {"s": 16, "c": colour, "marker": marker, "alpha": 0.7, "linewidths": 0}
            axes.scatter(mine[:, first], mine[:, first + 1], label=classes[k], **style)
        axes.set(xlabel=f"component {first + 1} ({share[first]:.0f} %)")
        axes.set(ylabel=f"component {first + 2} ({share[first + 1]:.0f} %)", aspect="equal", adjustable="datalim")
        axes.grid(alpha=0.3)
    some = f"first {shown} of {len(classes)} classes, " if shown < len(classes) else ""
    figure.suptitle(f"{title}\nprincipal components, {some}{len(rows):,} test images", fontsize=11)
    handles, names = figure.axes[0].get_legend_handles_labels()
    columns = 10 if max(map(len, names)) <= 4 else 5
    figure.legend(handles, names, loc="outside lower center", ncols=columns, markerscale=2, frameon=False)
    figure.savefig(path)


def panels(
    found: dict[str, dict[str, list[tuple[int, float, float]]]],
    ticks: list[str],
    xlabel: str,
    ylabel: str,
    path: Path,
) -> None:
    """Small multiples: a panel per key, in it a curve per name with error bars.

    Args:
        found: panel -> curve -> (position on the x axis, value, half length of the bar).
        ticks: labels of the positions.
        xlabel, ylabel: of all panels.
        path: of the PNG.
    """
    columns = 2 if len(found) == 4 else min(3, len(found))
    rows = -(-len(found) // columns)
    names = list(dict.fromkeys(name for curves in found.values() for name in curves))
    figure = new_figure(max(8, 4 * columns), 3.6 * rows + 0.6)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (title, curves) in zip(grid, found.items(), strict=False):
        for name, points in curves.items():
            i = names.index(name)
            x, y, bar = zip(*((at + 0.04 * i, *rest) for at, *rest in sorted(points)), strict=True)  # side by side
            axes.errorbar(
                x, y, bar, color=COLOURS[i % len(COLOURS)], marker=MARKERS[i // len(COLOURS) % len(MARKERS)],
                linewidth=1.8, capsize=3, label=name,
            )  # fmt: skip
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        axes.set_xticks(range(len(ticks)), ticks)
        axes.grid(alpha=0.3)
    for axes in grid[len(found) :]:
        axes.set_axis_off()
    handles = {label: h for axes in grid for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        [handles[name] for name in names], names, loc="outside lower center", ncols=min(3, len(names)), frameon=False
    )
    figure.savefig(path)
