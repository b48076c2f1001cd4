"""Whatever people have as images, found and decoded: the one place where a file becomes pixels."""

from __future__ import annotations

import functools
import glob
import itertools
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from .errors import DataError, one_line

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff",
    ".avif", ".jp2",
)  # fmt: skip
# By content, whatever the suffix. Pillow knows more, some of which run other programs (EPS starts Ghostscript).
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "PPM", "TIFF", "AVIF", "JPEG2000")
_ORIENTATION = 0x0112
# A strip longer than this many times its width loses its ends: no centre crop sees them, and scaled to a model's
# shorter side, 20,000 x 1 pixels would take gigabytes.
_MAX_ASPECT = 32


class WrongSizeError(DataError):
    """An image that is whole, but of another size than asked for."""


def convert(image: Any, mode: str) -> Any:
    """A PIL image of any kind as people see it, in ``mode`` "RGB" or "L".

    Rotated as its EXIF says; transparency over white; 16-bit and float gray scaled to 8 bits; the first frame of an
    animation; of a strip more than 32 times as long as wide, the middle.

    Raises:
        TypeError: no PIL image.
    """
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise TypeError(
            f"a PIL image is wanted, not {type(image).__name__}: PIL.Image.open reads one, fromarray makes one"
        )
    image = _trimmed(_upright(image))
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def read(path: str | os.PathLike[str], mode: str = "RGB", side: int | None = None) -> Any:
    """The PIL image of a file, by :func:`convert`.

    Args:
        path: the file.
        mode: "RGB" or "L".
        side: refuse an image that is not side x side pixels, before it is decoded.

    Raises:
        WrongSizeError: not ``side`` x ``side`` pixels.
        DataError: no regular file, or no image of a known format; ``OSError``, ``Image.DecompressionBombError`` (over
            179 million pixels) or whatever the first bad byte of a damaged file meets in Pillow.
    """
    from PIL import Image, UnidentifiedImageError

    if not stat.S_ISREG(os.stat(path).st_mode):  # a named pipe would wait for ever
        raise DataError("not a regular file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd EXIF, of large but bearable sizes
        try:
            with Image.open(path, formats=_formats()) as image:
                if side and image.size != (side, side):
                    found = f"{image.width} x {image.height} pixels, not {side} x {side}"
                    raise WrongSizeError(f"{os.fspath(path)} has {found}; resize it")
                return convert(image, mode)
        except UnidentifiedImageError:
            raise DataError("not an image, or of an unknown format") from None


def find(inputs: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Iterator[str]:
    """Image files of files, folders and glob patterns, in the order given.

    A folder gives the files with an image's suffix in it and below it, sorted by name, hidden ones left out; links to
    folders are followed, each folder once. Files named one by one are given back whatever they are. All matches of a
    pattern are listed before the first one is given.

    Raises:
        DataError: an input that is not there, or has no images.
    """
    for each in [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs:
        name = os.fspath(each)
        if os.path.isdir(name):
            count = yield from _counted(_walk(name))
            if not count:
                raise DataError(f"no images in {name} ({' '.join(SUFFIXES)}); name files one by one to have them tried")
        elif os.path.lexists(name):
            yield name
        elif glob.has_magic(name):
            if not (yield from _counted(_matching(name))):
                raise DataError(f"nothing matches {name}")
        else:
            raise DataError(f"{name} is not there")


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of ``size`` items, the last one shorter."""
    items = iter(items)
    while some := list(itertools.islice(items, size)):
        yield some


def reason(error: Exception) -> str:
    """Why a file did not decode, in one line and without its path."""
    return (isinstance(error, OSError) and error.strerror) or one_line(error)


def shown(path: str) -> str:
    """A path that any terminal and any file can take: bytes that are no text, and line breaks, as escapes."""
    text = path.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _counted(paths: Iterator[str]) -> Any:
    count = 0
    for count, path in enumerate(paths, 1):  # noqa: B007 (returned)
        yield path
    return count


def _matching(pattern: str) -> Iterator[str]:
    matches = (
        found
        for path in sorted(glob.iglob(pattern, recursive=True))
        for found in (_walk(path) if os.path.isdir(path) else [path])
    )
    # ``**`` names the files below itself, and through links some of them again.
    yield from _once(matches) if "**" in pattern else matches


def _once(paths: Iterable[str]) -> list[str]:
    """Each file once, by the folder it is really in and its name there; under its shortest path, sorted."""
    folders: dict[str, tuple[int, int]] = {}
    found: dict[tuple[tuple[int, int], str], str] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            status = os.stat(folder or ".")
            folders[folder] = status.st_dev, status.st_ino
        key = folders[folder], name
        if key not in found or path.count(os.sep) < found[key].count(os.sep):
            found[key] = path
    return sorted(found.values())


def _walk(folder: str) -> Iterator[str]:
    """Files before folders, each sorted; a folder that links lead to again is left out."""
    seen = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            status = os.stat(here)
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError:
            yield here  # a folder that cannot be read: reading it as a file says why
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        below = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                below.append(entry.path)
            elif entry.name.lower().endswith(SUFFIXES):
                yield entry.path
        waiting += reversed(below)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


@functools.cache
def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _upright(image: Any) -> Any:
    from PIL import ImageOps

    try:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
    except Exception:  # damaged EXIF beside whole pixels
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _trimmed(image: Any) -> Any:
    width, height = image.size
    left = max(0, width - _MAX_ASPECT * height) // 2
    top = max(0, height - _MAX_ASPECT * width) // 2
    return image.crop((left, top, width - left, height - top)) if left or top else image


def _eight_bits(image: Any) -> Any:
    """Gray of 16 or 32 bits to "L": 65535 is white; floats up to 1 count as 0..1, larger ones by their largest."""
    import numpy as np
    from PIL import Image

    pixels = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0.0, neginf=0.0)
    largest = float(pixels.max(initial=0.0))
    if image.mode == "F":
        white = 1.0 if largest <= 1 else max(largest, 255.0)
    else:
        white = 255.0 if image.mode == "I" and largest <= 255 else max(largest if image.mode == "I" else 0.0, 65535.0)
    return Image.fromarray(np.clip(np.rint(pixels * (255 / white)), 0, 255).astype(np.uint8))
