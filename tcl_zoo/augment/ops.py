"""Image operations on a whole batch of uint8 [N, C, H, W], each sample with its own magnitude.

Each is Pillow's operation of the same name, to the bit where Pillow works in integers (geometry, LUTs, blends); hue and
blur are torchvision's on tensors. Gray images have C = 1. Magnitudes are tensors [N] on the images' device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_FIX = 65536.0  # Pillow walks nearest-neighbour affine maps in 16.16 fixed point


def sent(values: Tensor, device: torch.device) -> Tensor:
    """``values`` on ``device``; a GPU takes them while the CPU goes on, which only page-locked memory allows."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def _fix(value: Tensor) -> Tensor:
    return torch.floor(value.double() * _FIX + 0.5).to(torch.int32)


def _bytes(values: Tensor) -> Tensor:
    """float 0..255 cut to uint8. Through int16: torch converts float to uint8 one by one on a CPU."""
    return values.to(torch.int16).to(torch.uint8)


def gather_pixels(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Pixel (y, x) of each sample; black outside.

    Args:
        images: uint8 [N, C, H, W].
        y, x: source coordinates, integer, broadcastable to [N, h, w].

    Returns:
        uint8 [N, C, h, w].
    """
    n, c, height, width = images.shape
    inside = ((x >= 0) & (x < width)) & ((y >= 0) & (y < height))
    index = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    h, w = index.shape[1:]
    index = index.expand(n, h, w).long().view(n, 1, h * w)
    flat = images.reshape(n, c, height * width).gather(2, index.expand(n, c, h * w))
    return flat.view(n, c, h, w).mul_(inside.view(-1, 1, h, w))


def _grid(images: Tensor) -> tuple[Tensor, Tensor]:
    """Row numbers [1, H, 1] and column numbers [1, 1, W]."""
    y = torch.arange(images.shape[2], device=images.device, dtype=torch.int32)[None, :, None]
    x = torch.arange(images.shape[3], device=images.device, dtype=torch.int32)[None, None, :]
    return y, x


def shift_rows(images: Tensor, y: Tensor, x: Tensor, reach: int) -> Tensor:
    """Whole rows of each sample, shifted; black outside.

    A row that starts x pixels further right in memory is a row shifted by x: rows are laid out with ``reach`` black
    pixels before each, and every row of the result is one copy of neighbouring bytes.

    Args:
        images: uint8 [N, C, H, W].
        y: int [N or 1, h], the source row of each row.
        x: int [N, h or 1], where the row starts in its source row, -reach to reach pixels.
        reach: the largest shift there is.

    Returns:
        uint8 [N, C, h, W].
    """
    n, c, height, width = images.shape
    h, rows, stride = y.shape[1], n * c * height, width + reach
    # Behind the last row stand black ones: where rows outside come from, and where the last row's end may reach.
    black = F.pad(images.reshape(1, 1, rows, width), (reach, 0, 0, 3)).flatten()
    windows = black.as_strided((len(black) - width, width), (1, 1))
    first = torch.arange(0, rows, height, device=images.device).view(n, c, 1)
    inside = ((y >= 0) & (y < height))[:, None]
    start = torch.where(inside, first + y[:, None], rows + 1) * stride + (x[:, None] + reach)
    return windows.index_select(0, start.flatten()).view(n, c, h, width)


def crop(images: Tensor, top: Tensor, left: Tensor, padding: int) -> Tensor:
    """Zero-pads by ``padding`` and cuts the original size at (top, left), [N] integers from 0 to 2 ``padding``."""
    y = (top - padding)[:, None] + torch.arange(images.shape[2], device=images.device)
    return shift_rows(images, y, (left - padding)[:, None], padding)


def shear_x(images: Tensor, factor: Tensor) -> Tensor:
    """Source x = x + factor * y (pixel centres), nearest, black fill."""
    y = torch.arange(images.shape[2], device=images.device, dtype=torch.int32)[None]
    shift = (_fix(0.5 + 0.5 * factor.double())[:, None] + _fix(factor)[:, None] * y) >> 16
    width = images.shape[3]
    return shift_rows(images, y, shift.clamp(-width, width), width)


def shear_y(images: Tensor, factor: Tensor) -> Tensor:
    """Source y = y + factor * x (pixel centres), nearest, black fill."""
    y, x = _grid(images)
    source = (_fix(0.5 + 0.5 * factor.double())[:, None, None] + _fix(factor)[:, None, None] * x + (y << 16)) >> 16
    return gather_pixels(images, source, x)


def translate_x(images: Tensor, pixels: Tensor) -> Tensor:
    """Source x = x + pixels: the content moves left for pixels > 0. Nearest, black fill."""
    y = torch.arange(images.shape[2], device=images.device)[None]
    shift, width = torch.floor(0.5 + pixels.double()).long(), images.shape[3]
    return shift_rows(images, y, shift.clamp(-width, width)[:, None], width)


def translate_y(images: Tensor, pixels: Tensor) -> Tensor:
    """Source y = y + pixels: the content moves up for pixels > 0. Nearest, black fill."""
    y = torch.arange(images.shape[2], device=images.device)
    return shift_rows(images, y + torch.floor(0.5 + pixels.double()).long()[:, None], torch.zeros_like(y[:1, None]), 0)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotates counter-clockwise about the centre; nearest, black fill."""
    y, x = _grid(images)
    centre_x, centre_y = images.shape[3] / 2.0, images.shape[2] / 2.0
    angle = -torch.deg2rad(degrees.double())
    # Pillow rounds the matrix to 15 decimals.
    cos, sin = (torch.round(f(angle), decimals=15) for f in (torch.cos, torch.sin))
    offset_x = centre_x - cos * centre_x - sin * centre_y
    offset_y = centre_y + sin * centre_x - cos * centre_y
    start_x = _fix(offset_x + 0.5 * cos + 0.5 * sin)[:, None, None]
    start_y = _fix(offset_y - 0.5 * sin + 0.5 * cos)[:, None, None]
    fixed_cos, fixed_sin = _fix(cos)[:, None, None], _fix(sin)[:, None, None]
    fixed_minus_sin = _fix(-sin)[:, None, None]
    source_x = (start_x + fixed_cos * x + fixed_sin * y) >> 16
    source_y = (start_y + fixed_minus_sin * x + fixed_cos * y) >> 16
    return gather_pixels(images, source_y, source_x)


def invert(images: Tensor) -> Tensor:
    """255 - v."""
    return 255 - images


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverts the values at or above the threshold (0 to 256)."""
    # images ^ 255 is 255 - images; no value is above 255, so that a threshold of 256 leaves all. Comparing and masking
    # bytes of one shape, and bytes with bytes, is what torch does fast on a CPU.
    limit = torch.ceil(threshold).clamp(max=255).to(torch.uint8)[:, None, None, None]
    flip = (threshold <= 255).to(torch.uint8)[:, None, None, None] * 255
    return images ^ ((torch.maximum(images, limit) == images).to(torch.uint8) * flip)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keeps the highest ``bits`` bits (0 to 8) of each value."""
    mask = (256 - torch.pow(2, 8 - bits.to(torch.int64))).to(torch.uint8)
    return images & mask[:, None, None, None]


def grayscale(images: Tensor) -> Tensor:
    """ITU-R 601-2 luma in every channel, Pillow's rounding."""
    if images.shape[1] == 1:
        return images.clone()
    return _bytes(_luma(images)).expand(-1, images.shape[1], -1, -1).contiguous()


def _luma(images: Tensor) -> Tensor:
    """Whole numbers as float32 [N, 1, H, W]: (19595 r + 38470 g + 7471 b + 2^15) >> 16, exact below 2^24."""
    if images.shape[1] == 1:
        return images.float()
    r, g, b = images.split(1, dim=1)
    total = (r.float() * 19595).add_(g.float(), alpha=38470).add_(b.float(), alpha=7471)
    return total.add_(0x8000).mul_(2**-16).floor_()


def _blend(degenerate: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """degenerate + factor * (images - degenerate), clipped to 0..255 and cut to an integer; degenerate is float."""
    mixed = images.float().sub_(degenerate)
    return _bytes(mixed.mul_(factor.float()[:, None, None, None]).add_(degenerate).clamp_(0, 255))


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Factor 0 is black, 1 the image."""
    return _bytes(images.float().mul_(factor.float()[:, None, None, None]).clamp_(0, 255))


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Saturation: factor 0 is gray, 1 the image."""
    return _blend(_luma(images), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Factor 0 is the mean gray of the image, 1 the image."""
    pixels = images.shape[2] * images.shape[3]
    # Sums of whole numbers below 2^24 are exact in float32.
    exact = torch.float32 if 255 * pixels < 1 << 24 else torch.float64
    total = _luma(images).sum((1, 2, 3), keepdim=True, dtype=exact).double()
    return _blend(torch.floor(total / pixels + 0.5).float(), images, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Factor 0 is smoothed by (1 1 1; 1 5 1; 1 1 1) / 13 inside a border of one pixel, 1 the image, 2 sharpened."""
    smooth = images.float()
    if min(images.shape[2:]) > 2:
        rows = smooth[:, :, :-2] + smooth[:, :, 1:-1]
        rows += smooth[:, :, 2:]
        total = rows[..., :-2] + rows[..., 1:-1]
        total += rows[..., 2:]
        # (total + 6.5) / 13 is never whole, so that float32 cannot round it over an edge
        total.add_(smooth[:, :, 1:-1, 1:-1], alpha=4).add_(6.5).mul_(1 / 13)
        torch.floor(total, out=smooth[:, :, 1:-1, 1:-1])
    return _blend(smooth, images, factor)


def _apply_lut(images: Tensor, lut: Tensor) -> Tensor:
    """Each channel of each sample through its own table: lut [N, C, 256]."""
    flat = images.flatten(2)
    return lut.to(torch.uint8).gather(2, flat.long()).view(images.shape)


def autocontrast(images: Tensor) -> Tensor:
    """Stretches each channel to 0..255; a constant channel stays."""
    flat = images.flatten(2)
    low, high = flat.amin(2, keepdim=True).double(), flat.amax(2, keepdim=True).double()
    # a tensor over a tensor: torch computes number / tensor as a product with the reciprocal, one bit off
    scale = torch.full_like(high, 255.0) / (high - low).clamp(min=1)
    values = torch.arange(256, device=images.device, dtype=torch.float64)
    stretched = (values * scale - low * scale).clamp_(0, 255).floor_()
    return _apply_lut(images, torch.where(high > low, stretched, values))


def equalize(images: Tensor) -> Tensor:
    """Equalises each channel's histogram; a channel with fewer than two values stays."""
    n, c = images.shape[:2]
    flat = images.flatten(2).flatten(0, 1)
    index = flat.long()
    # Counts as float32: exact to 2^24 pixels, and so are the quotients' whole parts.
    histogram = torch.zeros(n * c, 256, device=images.device)
    histogram.scatter_add_(1, index, torch.ones_like(flat, dtype=torch.float32))
    last = histogram.gather(1, flat.amax(1, keepdim=True).long())
    step = torch.floor((flat.shape[1] - last) / 255)
    below = histogram.cumsum(1).sub_(histogram)
    lut = below.add_(torch.floor(step / 2)).div_(step.clamp(min=1)).floor_().clamp_(max=255)
    lut = torch.where(step > 0, lut, torch.arange(256.0, device=images.device))
    return _bytes(lut).gather(1, index).view(images.shape)


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue by ``shift`` (-0.5 to 0.5 of the circle) in HSV; gray images stay."""
    if images.shape[1] == 1:
        return images.clone()
    r, g, b = (channel.float() for channel in images.unbind(1))
    value, low = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    chroma = value - low
    per = 1 / chroma.clamp(min=1)  # gray pixels have no hue: chroma 0 makes it irrelevant
    turn = torch.where(value == r, (g - b) * per, torch.where(value == g, (b - r) * per + 2, (r - g) * per + 4))
    turn += 6 * shift.float()[:, None, None]
    turn.sub_((turn * (1 / 6)).floor_(), alpha=6)  # 0 to 6
    # HSV -> RGB: low + chroma * clamp(|h - 3| - 1), clamp(2 - |h - 2|), clamp(2 - |h - 4|)
    out = torch.empty_like(images)
    for channel, (centre, offset, sign) in enumerate(((3.0, -1.0, 1.0), (2.0, 2.0, -1.0), (4.0, 2.0, -1.0))):
        share = (turn - centre).abs_().mul_(sign).add_(offset).clamp_(0, 1)
        out[:, channel] = torch.addcmul(low, chroma, share).round_().to(torch.int16)
    return out


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Separable Gaussian of odd ``kernel_size`` pixels and ``sigma`` [N] pixels, mirrored at the border."""
    half = kernel_size // 2
    offsets = torch.arange(-half, half + 1, device=images.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets[None] / sigma.float()[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    out = F.pad(images.float(), (half, half, half, half), mode="reflect")
    for dim in (2, 3):
        length = out.shape[dim] - 2 * half
        out = sum(kernel[:, k, None, None, None] * out.narrow(dim, k, length) for k in range(kernel_size))  # type: ignore[assignment]
    return _bytes(out.round_().clamp_(0, 255))


def _resize_weights(start: Tensor, length: Tensor, source: int, size: int) -> Tensor:
    """[N, size, source] triangle filter of an antialiased bilinear resize of source[start : start + length]."""
    start, length = start.float()[:, None, None], length.float()[:, None, None]
    scale = length / size
    centre = (torch.arange(size, device=start.device) + 0.5)[None, :, None] * scale
    position = (torch.arange(source, device=start.device) + 0.5)[None, None, :] - start
    weights = (1 - (position - centre).abs() / scale.clamp(min=1)).clamp_(min=0)
    weights = weights * ((position > 0) & (position < length))
    return weights / weights.sum(2, keepdim=True)


def resized_crop(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, size: int) -> Tensor:
    """Cuts a box of [N] whole pixels and resizes it to ``size`` x ``size``, bilinear with antialiasing."""
    n, c, h, w = images.shape
    views = images.new_empty(n, c, size, size)
    step = 256 if images.device.type == "cpu" else max(n, 1)  # a part stays in a CPU's cache
    for first in range(0, n, step):
        i = slice(first, first + step)
        rows = _resize_weights(top[i], height[i], h, size)
        columns = _resize_weights(left[i], width[i], w, size)
        # [H, C W] and [S C, W]: two plain batched products, one per axis
        tall = rows @ images[i].transpose(1, 2).reshape(-1, h, c * w).float()
        out = tall.view(-1, size * c, w) @ columns.transpose(1, 2)
        views[i] = _bytes(out.round_().clamp_(0, 255)).view(-1, size, c, size).transpose(1, 2)
    return views
