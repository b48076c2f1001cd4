"""The pictures of cards and reports: PNG, legible at 800 px, colour-blind-safe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor


def _axes(width: float, height: float) -> tuple[Any, Any]:
    """A figure without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


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
    figure, axes = _axes(8, 7)
    image = axes.imshow(percent, cmap="cividis", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="% of the true class", shrink=0.85)
    axes.set(title=title, xlabel="predicted class", ylabel="true class")
    if k <= 20:
        axes.set_xticks(range(k), classes, rotation=45, ha="right")
        axes.set_yticks(range(k), classes)
        for i in range(k):
            for j in range(k):
                if percent[i, j] >= 0.5:
                    colour = "black" if percent[i, j] > 50 else "white"
                    axes.text(j, i, f"{percent[i, j]:.0f}", ha="center", va="center", color=colour, fontsize=10)
    figure.savefig(path)


def training_curve(metrics: list[dict[str, Any]], title: str, path: Path) -> None:
    """Loss and learning rate over the epochs.

    Args:
        metrics: lines of ``metrics.jsonl``.
        title: above the curve.
        path: of the PNG.
    """
    epochs = [line["epoch"] + 1 for line in metrics]
    figure, axes = _axes(8, 4.5)
    (loss,) = axes.plot(epochs, [line["loss"] for line in metrics], color="#0072B2", linewidth=2, label="training loss")
    axes.set(title=title, xlabel="epoch", ylabel="training loss (mean of the epoch)")
    axes.grid(alpha=0.3)
    right = axes.twinx()
    (rate,) = right.plot(
        epochs, [line["lr"] for line in metrics], color="#D55E00", linewidth=1.5, linestyle="--", label="learning rate"
    )
    right.set_ylabel("learning rate")
    right.set_ylim(bottom=0)
    axes.legend(handles=[loss, rate], loc="upper right")
    figure.savefig(path)
