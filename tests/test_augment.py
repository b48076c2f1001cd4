"""Augmentation held against Pillow and torchvision, one image at a time (SPEC section 4)."""

import itertools
import re
from functools import lru_cache

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_digits, load_sample_images
from torchvision.transforms import RandomResizedCrop, autoaugment
from torchvision.transforms import functional as F

from tcl_zoo.augment import Augment, MultiCrop, ops, view_groups
from tcl_zoo.augment.policies import THESIS

NAMES = ("autoaugment_thesis", "autoaugment", "simaugment", "crop_flip", "crop", "none")
# Self-supervised views, from solo-learn's settings: scale, jitter, its p, gray, blur, solarize of each view.
WEAK, BYOL, STRONG = (0.4, 0.4, 0.4, 0.1), (0.4, 0.4, 0.2, 0.1), (0.8, 0.8, 0.8, 0.2)
VIEWS = {
    "simaugment_blur": [(0.2, WEAK, 0.8, 0.2, 0.5, 0)],
    "simaugment_mild": [(0.5, WEAK, 0.8, 0.2, 0, 0)],
    "symmetric": [(0.08, STRONG, 0.8, 0.2, 0.5, 0)],
    "symmetric_weak": [(0.08, WEAK, 0.8, 0.2, 0.5, 0)],
    "asymmetric": [(0.08, BYOL, 0.8, 0.2, 0, 0), (0.08, BYOL, 0.8, 0.2, 0, 0.2)],
    "asymmetric_blur": [(0.08, BYOL, 0.8, 0.2, 1, 0), (0.08, BYOL, 0.8, 0.2, 0.1, 0.2)],
    "ressl": [(0.08, BYOL, 0.8, 0.2, 0.5, 0), (0.08, WEAK, 0, 0, 0, 0)],
    "vicreg": [(0.2, BYOL, 0.8, 0.2, 0, 0.1)],
    "vicreg_blur": [(0.2, BYOL, 0.8, 0.2, 0.5, 0.1)],
    "wmse": [(0.2, STRONG, 0.8, 0.2, 0, 0)],
    "wmse_blur": [(0.2, STRONG, 0.8, 0.2, 0.2, 0)],
}
SHAPES = [(3, 32, 32), (1, 28, 28), (3, 33, 33), (1, 33, 33), (3, 7, 7), (3, 20, 33), (1, 8, 8)]

# Typed out from the SPEC, not imported: a slip in the code's table must not pass unseen.
SPEC_POLICIES = """Invert .1 7 → Contrast .2 6; Rotate .7 2 → TranslateX .3 9;
Sharpness .8 1 → Sharpness .9 3; ShearY .5 8 → TranslateY .7 9; AutoContrast .5 8 → Equalize .9 2;
ShearY .2 7 → Posterize .3 7; Color .4 3 → Brightness .6 7; Sharpness .3 9 → Brightness .7 9;
Equalize .6 5 → Equalize .5 1; Contrast .6 7 → Sharpness .6 5; Color .7 7 → TranslateX .5 8;
Equalize .3 7 → AutoContrast .4 8; TranslateY .4 3 → Sharpness .2 6; Brightness .9 6 → Color .2 8;
Solarize .5 2 → Invert 0 –; Equalize .2 0 → AutoContrast .6 0; Equalize .2 8 → Equalize .6 4;
Color .9 9 → Equalize .6 6; AutoContrast .8 4 → Solarize .2 8; Brightness .1 3 → Color .7 0;
Solarize .4 5 → AutoContrast .9 3; TranslateY .9 9 → TranslateY .7 9; AutoContrast .9 2 →
Solarize .8 3; Equalize .8 8 → Invert .1 3; TranslateY .7 9 → AutoContrast .9 1"""
POLICIES = [[op.split() for op in pair.split("→")] for pair in SPEC_POLICIES.split(";")]
SLOTS = [(i, j, *POLICIES[i][j]) for i in range(25) for j in range(2)]
ENHANCE = ("Contrast", "Color", "Brightness", "Sharpness")
# Range of the policy, and magnitudes past it or on a tie (half pixels, half grey levels).
SHEAR = (-0.3, 0.3), [0, 0.3, -0.3, 0.1, -0.25, 0.5, -1]
SHIFT = (-150 / 331, 150 / 331), [0, 0.5, -0.5, 1, -1, 2.25, -3.75, 14.5, 40]
RANGES = {
    **{"ShearX": SHEAR, "ShearY": SHEAR, "TranslateX": SHIFT, "TranslateY": SHIFT},
    "Rotate": ((-30, 30), [0, 30, -30, 6, -11.5, 45, 90, 180, -123.4]),
    "Solarize": ((0, 256), [0, 0.5, 1, 25.6, 127.5, 128, 204.8, 255, 255.5, 256]),
    "Posterize": ((4, 8), [1, 2, 3, 4, 5, 6, 7, 8]),
    **dict.fromkeys(ENHANCE, ((0.1, 1.9), [0, 0.1, 0.46, 0.5, 0.82, 1, 1.18, 1.5, 1.72, 1.9, 2])),
}
PILLOW = {
    "ShearX": lambda im, m: im.transform(im.size, Image.AFFINE, (1, m, 0, 0, 1, 0)),
    "ShearY": lambda im, m: im.transform(im.size, Image.AFFINE, (1, 0, 0, m, 1, 0)),
    "TranslateX": lambda im, m: im.transform(im.size, Image.AFFINE, (1, 0, m, 0, 1, 0)),
    "TranslateY": lambda im, m: im.transform(im.size, Image.AFFINE, (1, 0, 0, 0, 1, m)),
    "Rotate": lambda im, m: im.rotate(m),
    "Solarize": ImageOps.solarize,
    "Posterize": lambda im, m: ImageOps.posterize(im, int(m)),
    "AutoContrast": lambda im, m: ImageOps.autocontrast(im),
    "Equalize": lambda im, m: ImageOps.equalize(im),
    "Invert": lambda im, m: ImageOps.invert(im),
    "Grayscale": lambda im, m: im.convert("L").convert(im.mode),
    **{op: lambda im, m, op=op: getattr(ImageEnhance, op)(im).enhance(m) for op in ENHANCE},
}


def to_pil(image):
    return Image.fromarray(image.permute(1, 2, 0).squeeze(2).contiguous().numpy())


def to_tensor(image):
    return torch.from_numpy(np.atleast_3d(np.array(image)).copy()).permute(2, 0, 1)


@lru_cache
def patches(channels, height, width):
    """[28, C, H, W]: patches of photographs (8x8: digits), and what breaks histogram code."""
    rng = np.random.default_rng(0)
    chosen = []
    for photo in map(np.asarray, load_sample_images().images * 10):
        y, x = rng.integers(photo.shape[0] - height), rng.integers(photo.shape[1] - width)
        patch = Image.fromarray(photo[y : y + height, x : x + width])
        chosen.append(to_tensor(patch.convert("L") if channels == 1 else patch))
    if (channels, height, width) == (1, 8, 8):
        digits = np.minimum(load_digits().images[:20] * 16, 255)
        chosen = list(torch.from_numpy(digits).byte()[:, None])
    board = torch.arange(height)[:, None].add(torch.arange(width)).remainder(2).bool()
    for off, on in [(0, 0), (255, 255), (77, 77), (10, 200), (100, 101), (0, 255)]:
        chosen.append(torch.where(board, on, off).byte().repeat(channels, 1, 1))
    chosen.append(torch.zeros(channels, height, width).byte())
    chosen[-1][:, height // 2, width // 2] = 255
    noise = rng.integers(0, 256, (channels, height, width), dtype=np.uint8)
    return torch.stack([*chosen, torch.from_numpy(noise)])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def assert_near(actual, expected, largest=0, share=1.0):
    """No pixel further off than `largest`; at most `share` of them off at all."""
    expected = torch.stack(expected) if isinstance(expected, list) else expected
    assert actual.dtype == torch.uint8 and actual.shape == expected.shape
    gap = (actual.int() - expected.int()).abs()
    off, furthest = gap.ne(0).double().mean().item(), gap.max().item()
    assert furthest <= largest and off <= share, f"{off:.3%} of pixels off, by up to {furthest}"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", PILLOW)
def test_operation_equals_pillow(op, shape):
    limits, grid = RANGES.get(op, (None, [0]))
    if limits and op != "Posterize":
        drawn = np.random.default_rng(1).uniform(*limits, 6)
        grid = [*grid, *(drawn * 32 if op.startswith("Translate") else drawn)]
    images = patches(*shape).repeat_interleave(len(grid), 0)
    magnitudes = torch.tensor(grid, dtype=torch.float32).repeat(len(patches(*shape)))
    # tolist() widens the float32 exactly: both sides start from the same number.
    pairs = zip(images, magnitudes.tolist(), strict=True)
    expected = [to_tensor(PILLOW[op](to_pil(image), m)) for image, m in pairs]
    function = getattr(ops, re.sub("(?=[XY]$)", "_", op).lower())
    extra = [magnitudes] if op in RANGES else []
    before = images.clone()
    result = function(images, *extra)
    # Pillow blends in float32 and truncates: a fused multiply-add may tip a value over an integer.
    assert_near(result, expected, *((1, 0.001) if op in ENHANCE else (0,)))
    assert torch.equal(images, before), "the input was changed"
    strided = images.transpose(2, 3).contiguous().transpose(2, 3)
    for same in (strided, images.to(memory_format=torch.channels_last)):
        assert torch.equal(function(same, *extra), result)
    for rows in (slice(None, None, 3), slice(1), slice(0)):
        assert torch.equal(function(images[rows], *(m[rows] for m in extra)), result[rows])


@pytest.mark.parametrize("channels", [1, 3])
def test_hue_and_blur_equal_torchvision(channels):
    images = patches(channels, 33, 33)
    shift, sigma = torch.linspace(-0.5, 0.5, 28), torch.linspace(0.1, 2.0, 28)
    expected = [F.adjust_hue(i, h) for i, h in zip(images, shift.tolist(), strict=True)]
    assert_near(ops.hue(images, shift), expected, 2)
    for kernel in (3, 9):
        pairs = zip(images, sigma.tolist(), strict=True)
        expected = [F.gaussian_blur(i, kernel, s) for i, s in pairs]
        assert_near(ops.gaussian_blur(images, sigma, kernel), expected, 1)


@pytest.mark.parametrize("side, size", [(40, 32), (32, 32), (28, 28), (33, 20), (64, 16)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resized_crop_equals_torchvision_and_pillow(channels, side, size):
    images, rng = patches(channels, side, side), np.random.default_rng(2)
    height, width = rng.integers(side // 2, side + 1, (2, len(images)))
    top, left = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
    boxes = torch.tensor(np.stack([top, left, height, width]))
    pairs = zip(images, boxes.T.tolist(), strict=True)
    expected = [F.resized_crop(i, *box, [size, size], antialias=True) for i, box in pairs]
    assert_near(ops.resized_crop(images, *boxes, size), expected, 1)
    assert_near(ops.resized_crop(images, *boxes.float(), size), expected, 1)
    # Boxes between pixels: Pillow reads past the box where torchvision has cut, so leave the rim.
    boxes = boxes + torch.tensor([0.25, 0.4, -0.6, -0.7])[:, None]
    inside, expected = (..., slice(2, -2), slice(2, -2)), []
    for image, (y, x, h, w) in zip(images, boxes.T.tolist(), strict=True):
        resized = to_pil(image).resize((size, size), 2, (x, y, x + w, y + h))
        expected.append(to_tensor(resized)[inside])
    assert_near(ops.resized_crop(images, *boxes, size)[inside], expected, 2)


def pillow_pipeline(image, row, size, padding):
    """What becomes of an image when Pillow carries out its row of the sampled parameters."""
    image = to_pil(image)
    if "top" in row:
        box = (row["left"], row["top"], row["left"] + size, row["top"] + size)
        image = ImageOps.expand(image, padding, 0).crop(box)
    image = ImageOps.mirror(image) if row.get("flip") else image
    for slot in range(2 if "policy" in row else 0):
        op = POLICIES[row["policy"]][slot][0]
        if row["apply"][slot]:
            scale = size if op.startswith("Translate") else 1
            image = PILLOW[op](image, row["magnitude"][slot] * scale)
    return to_tensor(image)


@pytest.mark.parametrize("name", ["autoaugment_thesis", "crop_flip", "crop", "none"])
@pytest.mark.parametrize("channels, size, padding", [(3, 32, 4), (1, 28, 4), (3, 33, 2), (1, 8, 0)])
def test_pipeline_equals_pillow(name, channels, size, padding):
    images = patches(channels, size, size).repeat(50, 1, 1, 1)
    augment = Augment(name, size=size, padding=padding)
    params = augment.sample(len(images), seeded())
    if "apply" in params:
        params["apply"][::2] = True  # operations of a small p are run as well
    rows = [{key: value[i].tolist() for key, value in params.items()} for i in range(len(images))]
    pairs = zip(images, rows, strict=True)
    expected = torch.stack([pillow_pipeline(image, row, size, padding) for image, row in pairs])
    # One pixel in a thousand, as for a single operation. A value tipped before Equalize or
    # Solarize may jump further: there the bound is on how many (one in 4000), not on how far.
    actual = augment.apply(images, params)
    allowed = 0.001 if name == "autoaugment_thesis" else 0.0
    assert_near(actual, expected, 255, allowed)
    far = (actual.int() - expected.int()).abs().gt(1)
    assert far.double().mean() <= allowed / 4


def test_thesis_table_is_the_specs():
    assert len(THESIS) == len(POLICIES) == 25
    for index, slot, op, p, level in SLOTS:
        entry = THESIS[index][slot]
        assert (entry[0], entry[1]) == (op, pytest.approx(float(p))), (index, slot)
        assert level == "–" or entry[2] == int(level), (index, slot)


def torchvision_magnitudes(size):
    """Yields policy, slot, op and torchvision's magnitudes, of both signs where it draws one."""
    policy = autoaugment.AutoAugment(autoaugment.AutoAugmentPolicy.CIFAR10)
    space = policy._augmentation_space(10, (size, size))
    for i, j in itertools.product(range(25), range(2)):
        op, _, level = policy.policies[i][j]
        value, signed = 0.0 if level is None else space[op][0][level].item(), space[op][1]
        yield i, j, op, [value, -value] if signed and value else [value]


@pytest.mark.parametrize("channels, size", [(3, 32), (1, 28)])
def test_autoaugment_operations_equal_torchvision(channels, size):
    images, nearest = patches(channels, size, size), F.InterpolationMode.NEAREST
    augment = Augment("autoaugment", size=size)
    params = augment.sample(5000, seeded())
    params |= {"top": torch.full((5000,), 4), "left": torch.full((5000,), 4)}
    params["flip"][:] = False
    # torchvision keeps a fractional mean and truncates luma: a grey level or two of difference.
    # Its nearest neighbour walks a float32 grid: pixels on a tie may fall either way.
    bounds = dict.fromkeys((*ENHANCE, "AutoContrast"), (1, 1)) | {"Contrast": (2, 1)}
    bounds |= dict.fromkeys(("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"), (255, 0.02))
    for index, slot, op, magnitudes in torchvision_magnitudes(size):
        rows = (params["policy"] == index).nonzero()[: len(images), 0]
        part = {key: value[rows] for key, value in params.items()}
        part["apply"] = (torch.arange(2) == slot).repeat(len(images), 1)
        actual = augment.apply(images, part)
        # The sign is a coin: each image must be torchvision's for one side of it, and both occur.
        sides = [autoaugment._apply_op(images, op, m, nearest, None) for m in magnitudes]
        gaps = (torch.stack(sides).int() - actual.int()).abs().flatten(2)
        largest, share = bounds.get(op, (0, 0))
        fits = (gaps.amax(2) <= largest) & (gaps.ne(0).double().mean(2) <= share)
        assert fits.any(0).all(), (op, gaps.amax(2), gaps.ne(0).double().mean(2))
        if len(sides) == 2 and not torch.equal(*sides):
            assert (fits & ~fits.flip(0)).any(1).all(), (op, "always the same sign")


@pytest.fixture(scope="module")
def draws():
    # Crop boxes are in whole pixels: at 10,000 the rounding is too fine to matter.
    sizes = {name: 10_000 if name == "simaugment" else 32 for name in NAMES}
    return {name: Augment(name, size).sample(200_000, seeded(7)) for name, size in sizes.items()}


def assert_rate(flags, p):
    rate, sigma = flags.double().mean().item(), (p * (1 - p) / len(flags)) ** 0.5
    assert abs(rate - p) <= 5 * sigma + 1e-12, f"{rate}, not {p}"


def assert_uniform(values, low, high):
    assert low - 1e-6 <= values.min() and values.max() <= high + 1e-6
    assert stats.kstest(values.double().numpy(), "uniform", (low, high - low)).pvalue > 1e-5


def assert_even(values, bins):
    counts = torch.bincount(values, minlength=bins)
    assert len(counts) == bins and stats.chisquare(counts.numpy()).pvalue > 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_offsets_flips_and_policies_have_their_rates(draws, name):
    params = draws[name]
    assert all(len(value) == 200_000 for value in params.values())
    if name not in ("simaugment", "none"):
        assert params["top"].dtype == params["left"].dtype == torch.int64
        assert_even(params["top"] * 9 + params["left"], 81)
    if name not in ("crop", "none"):
        assert params["flip"].dtype == torch.bool
        assert_rate(params["flip"], 0.5)
    if name.startswith("autoaugment"):
        assert_even(params["policy"], 25)
        for index, pair in enumerate(POLICIES):
            flags, rates = params["apply"][params["policy"] == index], [float(op[1]) for op in pair]
            assert_rate(flags[:, 0], rates[0])
            assert_rate(flags[:, 1], rates[1])
            assert_rate(flags.all(1), rates[0] * rates[1])  # the two are drawn independently


def test_thesis_magnitudes_are_uniform_between_levels(draws):
    params = draws["autoaugment_thesis"]
    for index, slot, op, _, level in SLOTS:
        # Only where the operation runs: a draw shared with the coin would show here.
        rows = (params["policy"] == index) & params["apply"][:, slot]
        values = params["magnitude"][rows, slot]
        if op == "Posterize":
            assert set(values.tolist()) == {7.0}, "level 7 lies in 6.8..7.2 bits"
        elif op in RANGES:
            assert_uniform(values, *np.linspace(*RANGES[op][0], 11)[int(level) :][:2])


def test_autoaugment_magnitudes_are_torchvisions(draws):
    params, signs = draws["autoaugment"], []
    for index, slot, op, magnitudes in torchvision_magnitudes(32):
        if op in RANGES:
            rows = (params["policy"] == index) & params["apply"][:, slot]
            values = params["magnitude"][rows, slot]
            assert set(values.tolist()) == set(magnitudes), op
            signs += [values == magnitudes[0]] if len(magnitudes) == 2 else []
            assert_rate(values == magnitudes[0], 1 / len(magnitudes))
    assert_rate(torch.cat(signs), 0.5)


def test_simaugment_statistics(draws):
    params = draws["simaugment"]
    top, left, height, width = (params[key].double() for key in ("top", "left", "height", "width"))
    area, aspect = height * width / 1e8, width / height
    assert area.min() >= 0.2 - 1e-3 and area.max() <= 1
    assert aspect.min() >= 3 / 4 - 1e-3 and aspect.max() <= 4 / 3 + 1e-3
    for start, extent in ((top, height), (left, width)):
        assert start.min() >= 0 and (start + extent).max() <= 10_000
        roomy = extent < 9000
        assert_uniform(((start + 0.5) / (10_001 - extent))[roomy], 0, 1)
    small = Augment("simaugment", size=32).sample(50_000, seeded())
    assert_even(small["top"][small["height"] == 24].long(), 9)  # the last place is one of them
    assert_even(small["left"][small["width"] == 24].long(), 9)
    # Areas and shapes as torchvision draws them.
    canvas = torch.empty(1, 1, 1).expand(3, 10_000, 10_000)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draw = RandomResizedCrop.get_params
        boxes = [draw(canvas, [0.2, 1.0], [3 / 4, 4 / 3])[2:] for _ in range(4000)]
    h, w = torch.tensor(boxes, dtype=torch.float64).T / 10_000
    assert stats.ks_2samp(area.numpy(), (h * w).numpy()).pvalue > 1e-4
    assert stats.ks_2samp(aspect.numpy(), (w / h).numpy()).pvalue > 1e-4
    assert_rate(params["jitter"], 0.8)
    assert_rate(params["gray"], 0.2)
    assert_even(params["order"], 24)
    for key in ("brightness", "contrast", "saturation"):
        assert_uniform(params[key], 0.6, 1.4)
    assert_uniform(params["hue"], -0.1, 0.1)
    assert "sigma" not in params and "blur" not in params


def simaugment(images, **fixed):
    """simaugment_blur that does nothing but cut the middle 32 of 64 pixels, save what is `fixed`."""
    augment = Augment("simaugment_blur", size=32)
    params = augment.sample(len(images), seeded())
    neutral = {"top": 16, "left": 16, "height": 32, "width": 32, "sigma": 0.4}
    neutral |= dict.fromkeys(("flip", "jitter", "gray", "blur"), False)
    for key, value in (neutral | fixed).items():
        params[key][:] = torch.as_tensor(value)
    return augment.apply(images, params)


@pytest.mark.parametrize("channels", [1, 3])
def test_simaugment_steps_equal_torchvision(channels):
    images = patches(channels, 64, 64)
    middle = images[..., 16:48, 16:48]
    assert_near(simaugment(images), middle, 1)
    assert_near(simaugment(images, flip=True), middle.flip(3), 1)
    gray = [to_tensor(PILLOW["Grayscale"](to_pil(image), 0)) for image in middle]
    assert_near(simaugment(images, gray=True), gray, 1)
    # At sigma 0.4 a kernel of 3 holds nearly all the weight, whatever the size the code takes.
    assert_near(simaugment(images, blur=True), F.gaussian_blur(middle, 3, 0.4), 2)
    # A stretched crop: rows and columns must not be mixed up.
    stretched = F.resized_crop(images, 8, 32, 48, 16, [32, 32], antialias=True)
    actual = simaugment(images, top=8, left=32, height=48, width=16)
    assert_near(actual, stretched, 1)


@pytest.mark.parametrize("name, view", [(name, view) for name in VIEWS for view in range(len(VIEWS[name]))])
def test_self_supervised_views_have_their_rates(name, view):
    low, jitter, jitter_p, gray, blur, solarize = VIEWS[name][view]
    params = Augment(name, 10_000, view=view).sample(50_000, seeded(1))
    area = params["height"] * params["width"] / 1e8
    assert low - 1e-3 <= area.min() < low + 0.01 and area.max() <= 1
    assert_rate(params["jitter"], jitter_p)
    assert_rate(params["gray"], gray)
    assert_rate(params["flip"], 0.5)
    for key, strength in zip(("brightness", "contrast", "saturation", "hue"), jitter, strict=True):
        middle = 0 if key == "hue" else 1
        assert_uniform(params[key], middle - strength, middle + strength)
    for key, p in (("blur", blur), ("solarize", solarize)):
        assert (key in params) == (p > 0)
        if p:
            assert_rate(params[key], p)
    if blur:
        assert_uniform(params["sigma"], 0.1, 2)


def test_blur_and_solarize_equal_pillow_and_torchvision():
    """The last two steps of a view, in their order: Pillow solarises what torchvision has blurred."""
    images = patches(3, 32, 32)
    augment = Augment("vicreg_blur", size=32)
    params = augment.sample(len(images), seeded())
    neutral = {"top": 0, "left": 0, "height": 32, "width": 32, "sigma": 0.4}
    neutral |= dict.fromkeys(("flip", "jitter", "gray"), False) | {"blur": True, "solarize": True}
    for key, value in neutral.items():
        params[key][:] = value
    blurred = F.gaussian_blur(images, 3, 0.4)
    expected = torch.stack([to_tensor(ImageOps.solarize(to_pil(image), 128)) for image in blurred])
    actual = augment.apply(images, params)
    far = (actual.int() - expected.int()).abs() > 1
    near_threshold = (blurred.int() - 128).abs() <= 1  # a grey level decides there on which side it falls
    assert not (far & ~near_threshold).any()
    params["blur"][:] = False
    exact = torch.stack([to_tensor(ImageOps.solarize(to_pil(image), 128)) for image in images])
    assert_near(augment.apply(images, params), exact)


def test_view_groups():
    def shape(*args):
        return [(a.name, a.size, a.scale, count) for a, count in view_groups(*args)]

    assert shape("simaugment", 32, 3, MultiCrop()) == [("simaugment", 32, (0.2, 1.0), 3)]
    assert shape("asymmetric", 32, 2, MultiCrop()) == [("asymmetric", 32, (0.08, 1.0), 1)] * 2
    assert [count for *_, count in shape("ressl", 32, 4, MultiCrop())] == [1, 3]
    made = shape("symmetric", 32, 2, MultiCrop(6, 16, 0.14))
    assert made == [("symmetric", 32, (0.14, 1.0), 2), ("symmetric", 16, (0.05, 0.14), 6)]


def test_jitter_orders_are_the_24_permutations():
    images = patches(3, 64, 64)[:12]
    factors = {"brightness": 1.4, "contrast": 0.6, "saturation": 1.4, "hue": 0.1}
    expected = []
    for order in itertools.permutations(factors):
        expected.append(images[..., 16:48, 16:48])
        for key in order:
            expected[-1] = getattr(F, f"adjust_{key}")(expected[-1], factors[key])
    order = torch.arange(24).repeat_interleave(12)
    actual = simaugment(images.repeat(24, 1, 1, 1), jitter=True, order=order, **factors)
    # Which index stands for which order is the code's affair; that each occurs once is not.
    gaps = actual.float().view(24, 1, *images.shape[:2], 32, 32) - torch.stack(expected)
    cost = gaps.abs().mean((2, 3, 4, 5))
    assert cost[linear_sum_assignment(cost)].max() < 1.0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_batch_contract(name, channels):
    augment = Augment(name, size=32)
    side = 40 if name == "simaugment" else 32  # a resized crop changes the size
    images = patches(channels, side, side)
    before, state = images.clone(), torch.get_rng_state()
    whole = augment(images, seeded(3))
    assert whole.dtype == torch.uint8 and whole.shape == (28, channels, 32, 32)
    assert torch.equal(images, before), "the input was changed"
    assert torch.equal(augment(images, generator=seeded(3)), whole)
    params = augment.sample(len(images), seeded(3), side)
    assert torch.equal(torch.get_rng_state(), state), "a given generator is the only source"
    kept = {key: value.clone() for key, value in params.items()}
    assert torch.equal(augment.apply(images, params), whole), "a call is sample, then apply"
    assert all(torch.equal(kept[key], value) for key, value in params.items())
    strided = images.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(augment.apply(strided, params), whole)
    # A process that holds a slice gets the slice: so any number of processes sees the same.
    for part in (slice(0, 1), slice(3, 11), slice(11, None), slice(5, 5)):
        sliced = {key: value[part] for key, value in params.items()}
        assert torch.equal(augment.apply(images[part], sliced), whole[part])
        assert augment(images[part], seeded()).shape == whole[part].shape
    with torch.random.fork_rng():
        torch.manual_seed(5)
        copies = images[:1].expand(64, -1, -1, -1)
        first, second = augment(copies), augment(copies)
        torch.manual_seed(5)
        assert torch.equal(augment(copies), first)
    assert torch.equal(first, second) == (name == "none")
    assert len(first.unique(dim=0)) > (0 if name == "none" else 20), "one draw per image"


@pytest.mark.parametrize("name", NAMES)
def test_wrong_input_is_refused(name):
    images = patches(3, 32, 32)
    for wrong in (images.float() / 255, images.int(), images[0], images[None]):
        with pytest.raises(ValueError):
            Augment(name, size=32)(wrong)
    with pytest.raises(ValueError, match=name + "x"):
        Augment(name + "x")
