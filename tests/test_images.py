"""Files to pixels: every kind of image that people have, against numpy's arithmetic; folders of every kind."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tcl_zoo.errors import DataError
from tcl_zoo.images import convert, find, read, reason, shown

WIDTH, HEIGHT = 24, 16
RAMP = np.linspace(0, 255, WIDTH * HEIGHT).round().astype(np.uint8).reshape(HEIGHT, WIDTH)
COLOUR = np.stack([RAMP, RAMP[::-1], np.full_like(RAMP, 90)], -1)


def pixels(path: Path, mode: str = "RGB") -> np.ndarray:
    image = read(path, mode)
    assert image.mode == mode
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp", "gif"])
def test_lossless_formats(tmp_path, suffix):
    image = Image.fromarray(COLOUR)
    image = image.quantize(256) if suffix == "gif" else image
    image.save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(pixels(tmp_path / f"a.{suffix}"), np.asarray(image.convert("RGB")))


def test_content_decides_not_the_suffix(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(pixels(tmp_path / "a.jpg"), COLOUR)


@pytest.mark.parametrize("quality", [95])
def test_jpeg_and_cmyk_jpeg(tmp_path, quality):
    smooth = np.stack([RAMP] * 3, -1)
    for mode in ("RGB", "CMYK"):
        Image.fromarray(smooth).convert(mode).save(tmp_path / "a.jpg", quality=quality)
        assert Image.open(tmp_path / "a.jpg").mode == mode
        assert np.abs(pixels(tmp_path / "a.jpg") - smooth).max() <= 12


def test_gray_palette_and_bilevel(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(pixels(tmp_path / "gray.png"), np.stack([RAMP] * 3, -1))
    np.testing.assert_array_equal(pixels(tmp_path / "gray.png", "L"), RAMP)
    palette = Image.fromarray(RAMP // 128)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.save(tmp_path / "palette.png")
    expected = np.array([[10, 20, 30], [200, 100, 50]])[RAMP // 128]
    np.testing.assert_array_equal(pixels(tmp_path / "palette.png"), expected)
    Image.fromarray(RAMP > 127).save(tmp_path / "bilevel.png")
    np.testing.assert_array_equal(pixels(tmp_path / "bilevel.png", "L"), 255 * (RAMP > 127))


def test_transparency_lies_over_white(tmp_path):
    alpha = RAMP.T.reshape(HEIGHT, WIDTH)
    share = alpha[..., None] / 255
    expected = COLOUR * share + 255 * (1 - share)
    Image.fromarray(np.dstack([COLOUR, alpha])).save(tmp_path / "rgba.png")
    assert np.abs(pixels(tmp_path / "rgba.png") - expected).max() <= 1
    Image.fromarray(np.dstack([RAMP, alpha]), "LA").save(tmp_path / "la.png")
    expected = RAMP * share[..., 0] + 255 * (1 - share[..., 0])
    assert np.abs(pixels(tmp_path / "la.png", "L") - expected).max() <= 1
    palette = Image.fromarray(RAMP // 128)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.save(tmp_path / "p.png", transparency=1)
    expected = np.array([[10, 20, 30], [255, 255, 255]])[RAMP // 128]
    np.testing.assert_array_equal(pixels(tmp_path / "p.png"), expected)


def test_sixteen_bits_and_floats_are_scaled(tmp_path):
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode.startswith("I")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png", "L"), RAMP)
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif", "L"), RAMP)
    for top in (1, 255, 4000):
        values = RAMP.astype(np.float32) / 255 * top
        Image.fromarray(values).save(tmp_path / "f.tif")
        assert np.abs(pixels(tmp_path / "f.tif", "L") - RAMP).max() <= 1, top
    values[0, 0], values[0, 1] = np.nan, np.inf
    Image.fromarray(values).save(tmp_path / "f.tif")
    assert np.abs(pixels(tmp_path / "f.tif", "L") - RAMP).max() <= 1
    Image.fromarray(RAMP.astype(np.int32)).save(tmp_path / "i.tif")
    np.testing.assert_array_equal(pixels(tmp_path / "i.tif", "L"), RAMP)


def test_sixteen_bit_colour(tmp_path):
    """Pillow writes none: a PNG by hand."""
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).astype(">u2").tobytes() for row in COLOUR)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(b"".join(parts))
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), COLOUR)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_turns(tmp_path, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name, options in (("a.png", {}), ("a.webp", {"lossless": True})):
        Image.fromarray(COLOUR).save(tmp_path / name, exif=exif, **options)
        np.testing.assert_array_equal(pixels(tmp_path / name), turn(COLOUR))
    twice = convert(read(tmp_path / "a.png"), "RGB")  # as files pass through a transform
    np.testing.assert_array_equal(np.asarray(twice), turn(COLOUR))


def test_damaged_exif_costs_no_image(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.jpg", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\xff" * 9)
    assert pixels(tmp_path / "a.jpg").shape == COLOUR.shape


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_animations_and_pages_give_the_first(tmp_path, suffix):
    first, second = Image.new("RGB", (9, 7), (0, 0, 255)), Image.new("RGB", (9, 7), (255, 0, 0))
    options = {"lossless": True} if suffix == "webp" else {}
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second], **options)
    assert (pixels(tmp_path / f"a.{suffix}") == [0, 0, 255]).all()


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000), (20_000, 700), (20_000, 4)])
def test_odd_sizes_fit_a_model_in_little_memory(tmp_path, size):
    from timm.data import create_transform

    Image.new("RGB", size, "green").save(tmp_path / "a.png")
    image = read(tmp_path / "a.png")
    assert max(image.size) <= 32 * min(image.size) and min(image.size) == min(size)
    assert create_transform((3, 224, 224))(image).shape == (3, 224, 224)


def test_the_middle_of_a_strip_is_what_the_centre_crop_sees():
    """Cut or whole, the model input is the same where the scale is whole."""
    from timm.data import create_transform

    rows = np.random.default_rng(0).integers(0, 256, (4, 800, 3), np.uint8)
    see = create_transform((3, 32, 32), crop_pct=1.0, interpolation="bilinear")
    np.testing.assert_array_equal(see(convert(Image.fromarray(rows), "RGB")), see(Image.fromarray(rows)))


def test_what_is_no_image(tmp_path):
    def why(name: str, content: bytes | None = None) -> str:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(Exception) as caught:
            read(tmp_path / name)
        assert "\n" not in reason(caught.value) and str(tmp_path) not in reason(caught.value)
        return reason(caught.value)

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    assert "truncated" in why("cut.jpg", whole[: len(whole) // 2])
    for content in (b"", b"hello", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"):
        assert why("a.png", content)
    assert why("a.png", whole[:300])
    assert why("missing.png") == "No such file or directory"
    (tmp_path / "self.png").symlink_to("self.png")
    assert why("self.png") == "Too many levels of symbolic links"
    assert why(".") == "not a regular file"
    os.mkfifo(tmp_path / "pipe.png")
    assert why("pipe.png") == "not a regular file"


def test_decompression_bombs_cost_nothing(tmp_path):
    """225 million pixels in 27 kB; refused by the header alone."""
    Image.new("1", (15_000, 15_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 50_000
    with pytest.raises(Image.DecompressionBombError):
        read(tmp_path / "bomb.png")


def test_large_but_bearable_sizes_do_not_warn(tmp_path, recwarn):
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    assert read(tmp_path / "large.png", "L").size == (10_000, 10_000)
    assert not recwarn


def test_no_program_is_started_for_a_postscript_file(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was asked"))
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(DataError, match="unknown format"):
        read(tmp_path / "a.png")


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    names = "b.png a.JPG z/c.webp z/y/d.gif ä ö/日本.png .hidden.png .cache/e.png notes.txt [1].png"
    for name in (*names.split(" "), "a b/f g.png", "dir.png/h.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    return tmp_path


def test_folders_in_order(tree):
    expected = ["[1].png", "a.JPG", "b.png", "a b/f g.png", "dir.png/h.png", "z/c.webp", "z/y/d.gif", "ö/日本.png"]
    assert list(find(["."])) == [f"./{name}" for name in expected]
    assert list(find(".")) == list(find([Path()])) == list(find(["."]))


def test_files_folders_and_patterns_in_the_order_given(tree):
    given = ["z", "notes.txt", "*.png", "b.png", Path("a b"), "[1].png"]
    expected = ["z/c.webp", "z/y/d.gif", "notes.txt", "[1].png", "b.png", "dir.png/h.png", "b.png", "a b/f g.png"]
    assert list(find(given)) == [*expected, "[1].png"]
    assert list(find(["z/**"])) == ["z/c.webp", "z/y/d.gif"]
    assert list(find(["**/*.png"])) == ["[1].png", "a b/f g.png", "b.png", "dir.png/h.png", "ö/日本.png"]


def test_linked_folders_once_and_loops_end(tree):
    Path("z/up").symlink_to(tree)
    Path("z/y/again").symlink_to(tree / "z")
    Path("z/round").symlink_to("round")
    Path("other").mkdir()
    Path("other/elsewhere").symlink_to(tree / "a b")
    Path("other/dangling.png").symlink_to("nowhere")
    assert list(find(["other"])) == ["other/dangling.png", "other/elsewhere/f g.png"]
    found = list(find(["."]))
    assert len(found) == 9 and len({os.path.realpath(name) for name in found}) == 9


def test_patterns_give_each_file_once(tree):
    Path("z/y/again").symlink_to(tree / "z")
    assert list(find(["z/**/*.*"])) == ["z/c.webp", "z/y/d.gif"]
    Path("v/one/train").mkdir(parents=True)
    Path("v/one/train/x.png").touch()
    assert list(find(["v/*/train"])) == list(find(["v/**/train"])) == ["v/one/train/x.png"]


def test_bytes_that_are_no_text(tree):
    name = os.fsdecode(b"caf\xe9\n.png")
    Path(name).touch()
    assert name in [os.path.basename(path) for path in find(["."])]
    assert shown(name) == "caf\\udce9\\n.png"
    assert shown("ä 日本.png") == "ä 日本.png"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("empty", "no images in empty"),
        ("nowhere", "nowhere is not there"),
        ("*.xyz", "nothing matches"),
        ("t", "name f"),
    ],
)
def test_nothing_to_find(tree, given, message):
    Path("empty").mkdir()
    Path("t").mkdir()
    Path("t/a.txt").touch()
    with pytest.raises(DataError, match=message):
        list(find(["b.png", given]))


def test_many_files_are_found_one_by_one(tree):
    """The first path is there before the second folder is read."""
    paths = find(["a b", "nowhere"])
    assert next(paths) == "a b/f g.png"
