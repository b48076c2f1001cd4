"""The picture of a search: size, order, aspect ratios, and names of any length and script."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcl_zoo.embed.neighbours import plot_neighbours

COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200), (200, 0, 200)]


def boxes(picture: Path) -> list[tuple[int, int, int, int]]:
    """Left, top, width, height of the area of each colour."""
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    found = []
    for colour in COLOURS:
        y, x = np.nonzero((pixels == colour).all(-1))
        found.append((x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1))
    return found


@pytest.fixture
def files(tmp_path) -> list[str]:
    """Of one colour each; 1x1 to 20,000 pixels, standing, lying and square."""
    sizes = [(640, 480), (1, 1), (300, 600), (20_000, 5_000), (8, 8), (31, 32)]
    names = ["query", "a b", "$x^2$ _{", "日本" * 9, "x" * 200, "line\nbreak"]
    for name, size, colour in zip(names, sizes, COLOURS, strict=True):
        Image.new("RGB", size, colour).save(tmp_path / f"{name}.png")
    return [str(tmp_path / f"{name}.png") for name in names]


def test_places_and_aspect_ratios(files, tmp_path, recwarn):
    plot_neighbours(files[0], [(file, 1 - i / 10) for i, file in enumerate(files[1:])], tmp_path / "out.png")
    assert not recwarn
    assert Image.open(tmp_path / "out.png").width == 800
    found = boxes(tmp_path / "out.png")
    for (_, _, width, height), aspect in zip(found, [4 / 3, 1, 1 / 2, 4, 1, 31 / 32], strict=True):
        assert abs(width - height * aspect) <= 3 * max(1, aspect)  # the frame covers a pixel at each side
    query, *others = found
    assert query[2] >= 200 and all(max(width, height) >= 150 for _, _, width, height in others)
    assert all(left > query[0] + query[2] for left, *_ in others)
    centres = [(left + width / 2, top + height) for left, top, width, height in others]  # they stand on their names
    assert centres[0][0] < centres[1][0] < centres[2][0] and abs(centres[3][0] - centres[0][0]) <= 2
    assert max(y for _, y in centres[:3]) - min(y for _, y in centres[:3]) <= 2 < centres[3][1] - centres[0][1]


@pytest.mark.parametrize("count", [1, 9, 16, 40])
def test_any_number(files, tmp_path, count):
    plot_neighbours(files[0], [(files[4], 0.5)] * count, tmp_path / "out.png")
    picture = Image.open(tmp_path / "out.png").convert("RGB")
    assert picture.width == 800
    pixels = (np.asarray(picture) == COLOURS[4]).all(-1)
    columns = 3 if count <= 9 else 4 if count <= 16 else 5
    starts = np.count_nonzero(np.diff(pixels.any(0).astype(int)) == 1)
    assert starts == min(count, columns)
    assert np.count_nonzero(np.diff(pixels.any(1).astype(int)) == 1) == -(-count // columns)


def test_nothing_found_and_files_that_are_gone(files, tmp_path):
    plot_neighbours(files[0], [], tmp_path / "none.png")
    plot_neighbours(files[0], [(str(tmp_path / "gone.png"), 0.5)], tmp_path / "gone.out.png")
    assert (tmp_path / "gone.out.png").stat().st_size > (tmp_path / "none.png").stat().st_size


def test_names_stay_beside_each_other(files, tmp_path):
    """No text in the gap between two columns."""
    plot_neighbours(files[0], [(files[4], 0.5), (files[4], 0.5)], tmp_path / "out.png")
    pixels = np.asarray(Image.open(tmp_path / "out.png").convert("L"))
    left = np.nonzero((np.asarray(Image.open(tmp_path / "out.png").convert("RGB")) == COLOURS[4]).all(-1).any(0))[0]
    ends = left[np.nonzero(np.diff(left) > 1)[0]]
    gap = pixels[:, int(ends[0]) + 7]  # the middle of 15 pixels
    assert (gap > 200).all()
