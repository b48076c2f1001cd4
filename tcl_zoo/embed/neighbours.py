"""The picture of a search: the query beside its nearest neighbours, 800 px wide."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..images import read, shown
from ..pictures import new_figure

_DPI, _WIDTH, _GAP, _MARGIN, _QUERY = 100, 8.0, 0.15, 0.2, 2.2  # inches but the first
_LINE = 0.19  # height of a line of text
# Of the scripts that matplotlib's own font lacks, where they are installed.
_FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Arial Unicode MS", "Noto Emoji")


def plot_neighbours(query: str, nearest: Sequence[tuple[str, float]], path: str | os.PathLike[str]) -> None:
    """Writes the query and its neighbours as a PNG: similarity and shortened file name under each.

    The folder's name is added where the neighbours come from several. A file that is gone is an empty frame.

    Args:
        query: an image file.
        nearest: (path, cosine similarity), nearest first; of :func:`tcl_zoo.embed.search`.
        path: of the PNG.
    """
    from matplotlib import font_manager

    several = len({os.path.dirname(name) for name, _ in nearest}) > 1
    columns = 3 if len(nearest) <= 9 else 4 if len(nearest) <= 16 else 5
    rows = max(1, -(-len(nearest) // columns))
    side = (_WIDTH - 2 * _MARGIN - _QUERY - _GAP * (columns + 1)) / columns
    below = _LINE * (3 if several else 2) + _GAP / 2
    height = max(2 * _MARGIN + rows * (side + below), 2 * _MARGIN + _QUERY + 3 * _LINE)
    figure = new_figure(_WIDTH, height, _DPI, facecolor="white", layout="none")
    installed = {font.name for font in font_manager.fontManager.ttflist}
    fonts = [font for font in _FONTS if font in installed]

    def tile(file: str, left: float, top: float, side: float, lines: list[tuple[str, dict[str, Any]]]) -> None:
        box = (left / _WIDTH, 1 - (top + side) / height, side / _WIDTH, side / height)
        axes = figure.add_axes(box, xticks=[], yticks=[], anchor="S")
        axes.spines[:].set_color("0.8")  # where a white image ends
        _draw(axes, file, round(side * _DPI))
        for k, (text, style) in enumerate(lines):
            y = 1 - (top + side + 0.04 + k * _LINE) / height
            x = (left + side / 2) / _WIDTH
            drawn = figure.text(x, y, text, ha="center", va="top", family=fonts, parse_math=False, **style)
            _shorten(drawn, text, (side + _GAP / 2) * _DPI)

    bold: dict[str, Any] = {"size": 11, "weight": "bold"}
    plain: dict[str, Any] = {"size": 9}
    faint: dict[str, Any] = {"size": 9, "color": "0.4"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that no font has: they are drawn as boxes
        tile(query, _MARGIN, _MARGIN, _QUERY, [("query", bold), (_name(query), plain)])
        for k, (file, similarity) in enumerate(nearest):
            left = _MARGIN + _QUERY + 2 * _GAP + k % columns * (side + _GAP)
            lines = [(f"{similarity:.3f}", bold), (_name(file), plain)]
            if several:
                lines.append((_name(os.path.dirname(os.path.abspath(file))) + "/", faint))
            tile(file, left, _MARGIN + k // columns * (side + below), side, lines)
        figure.savefig(Path(path), format="png")


def _name(path: str) -> str:
    return shown(os.path.basename(path))


def _draw(axes: Any, file: str, pixels: int) -> None:
    """The image as large as the square allows: large ones filtered, small ones with their pixels visible."""
    from PIL import Image

    try:
        image = read(file)
    except Exception:  # gone, or damaged since
        axes.set_facecolor("0.93")
        axes.text(0.5, 0.5, "not found" if not os.path.exists(file) else "does not decode", ha="center", va="center")
        return
    scale = pixels / max(image.size)
    size = [max(1, round(length * scale)) for length in image.size]
    axes.imshow(image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST))


def _shorten(drawn: Any, text: str, pixels: float) -> None:
    """Takes characters out of the middle until the text fits: beginnings and endings tell files apart."""
    keep = len(text)
    while (width := drawn.get_window_extent().width) > pixels and keep > 4:
        keep = max(4, min(keep - 1, int(keep * pixels / width)))
        drawn.set_text(f"{text[: keep // 2]}…{text[-(keep - keep // 2) :]}")
