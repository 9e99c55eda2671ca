"""Random changes of a batch of images: each a function of float32 images [n, channels, height, width] and a draw.

Nothing is assumed about the range of the values, as images may be standardized. What comes in from outside an image
is 0. All numbers but the noise are drawn by numpy on the CPU, so a draw gives the same change on every device.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from compressor.errors import OptionError

Draw = np.random.Generator
Change = Callable[[Tensor, float, Draw], Tensor]


def flip(x: Tensor, probability: float, draw: Draw) -> Tensor:
    """Each image mirrored left to right with this probability."""
    return _some(x, x.flip(3), probability, draw)


def flip_vertical(x: Tensor, probability: float, draw: Draw) -> Tensor:
    """Each image mirrored top to bottom with this probability."""
    return _some(x, x.flip(2), probability, draw)


def rotate(x: Tensor, degrees: float, draw: Draw) -> Tensor:
    """Each image turned about its centre by an angle drawn evenly from [-degrees, degrees]; bilinear."""
    return _warped(x, draw.uniform(-degrees, degrees, len(x)), np.ones(len(x)))


def scale(x: Tensor, fraction: float, draw: Draw) -> Tensor:
    """Each image made larger or smaller about its centre by a factor from [1 - fraction, 1 + fraction]; bilinear.

    The size of the array stays.
    """
    return _warped(x, np.zeros(len(x)), draw.uniform(1 - fraction, 1 + fraction, len(x)))


def crop(x: Tensor, pixels: float, draw: Draw) -> Tensor:
    """Each image moved by up to `pixels` up or down and left or right: padded by 0, then cropped at random."""
    pad = int(pixels)
    height, width = x.shape[2:]
    wide = functional.pad(x, (pad, pad, pad, pad))
    top, left = (_to(draw.integers(2 * pad + 1, size=len(x)), x).long() for _ in range(2))
    down = (top[:, None] + torch.arange(height, device=x.device))[:, None, :, None]
    across = (left[:, None] + torch.arange(width, device=x.device))[:, None, None, :]
    image = torch.arange(len(x), device=x.device)[:, None, None, None]
    channel = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
    return wide[image, channel, down, across]


def colour(x: Tensor, strength: float, draw: Draw) -> Tensor:
    """Each image's brightness, contrast and, of 3 channels, saturation times a factor in [1 - strength, 1 + strength].

    Brightness goes from the smallest value of the batch, contrast from the mean of the image, saturation from its
    grey values. Values are clamped to the range of the batch, so none is outside of what the data has.
    """
    from kornia import enhance

    low, high = x.amin(), x.amax()
    span = (high - low).clamp(min=torch.finfo(x.dtype).tiny)
    unit = (x - low) / span
    steps = [enhance.adjust_brightness_accumulative, enhance.adjust_contrast_with_mean_subtraction]
    if x.shape[1] == 3:
        steps.append(enhance.adjust_saturation_with_gray_subtraction)
    for step in steps:
        unit = step(unit, _to(draw.uniform(1 - strength, 1 + strength, len(x)), x))
    return unit * span + low


def noise(x: Tensor, std: float, draw: Draw) -> Tensor:
    """Normal noise of this standard deviation, in the units of the prepared input, added to every value."""
    source = torch.Generator(x.device).manual_seed(int(draw.integers(2**63)))
    return x + std * torch.randn(x.shape, generator=source, device=x.device, dtype=x.dtype)


def cutout(x: Tensor, pixels: float, draw: Draw) -> Tensor:
    """One square of this side, anywhere inside each image, set to 0 (DeVries and Taylor, arXiv:1708.04552).

    Here the square is always whole; in the paper it may reach over the edge. OptionError when it is larger than the
    image.
    """
    side = int(pixels)
    height, width = x.shape[2:]
    if side > min(height, width):
        raise OptionError(f"augment: cutout={side} is larger than the images of {height} x {width} pixels.")
    top = _to(draw.integers(height - side + 1, size=len(x)), x)
    left = _to(draw.integers(width - side + 1, size=len(x)), x)
    inside = (
        _between(top, top + side, height)[:, None, :, None]
        & _between(left, left + side, width)[:, None, None]
    )
    return x.masked_fill(inside, 0)


def mixup(x: Tensor, alpha: float, draw: Draw) -> tuple[Tensor, Tensor, float]:
    """(share * x + (1 - share) * partner, partners [n], share), share ~ Beta(alpha, alpha) for the batch.

    The partners are the samples of the batch in another order (Zhang et al., arXiv:1710.09412, section 2).
    """
    share = float(draw.beta(alpha, alpha))
    partners = _to(draw.permutation(len(x)), x).long()
    return torch.lerp(x[partners], x, share), partners, share


def cutmix(x: Tensor, alpha: float, draw: Draw) -> tuple[Tensor, Tensor, float]:
    """(x with a rectangle of the partner, partners [n], share of x in the area), as Yun et al., arXiv:1905.04899.

    The rectangle has the image's proportions and the area 1 - share, share ~ Beta(alpha, alpha), around a point drawn
    evenly; what lies outside the image is cut off, and the share is that of the pixels left (section 3.1).
    """
    share = float(draw.beta(alpha, alpha))
    partners = _to(draw.permutation(len(x)), x).long()
    mixed = x.clone()
    spans = []
    for size in x.shape[2:]:
        side = int(size * np.sqrt(1 - share))
        start = int(draw.integers(size)) - side // 2
        spans.append(slice(max(start, 0), min(start + side, size)))
    down, across = spans
    mixed[:, :, down, across] = x[partners][:, :, down, across]
    pasted = (down.stop - down.start) * (across.stop - across.start)
    return mixed, partners, 1 - pasted / (x.shape[2] * x.shape[3])


CHANGES: dict[str, Change] = {
    "flip": flip,
    "flip_vertical": flip_vertical,
    "rotate": rotate,
    "scale": scale,
    "crop": crop,
    "colour": colour,
    "noise": noise,
    "cutout": cutout,
}
"""The changes that leave the labels as they are."""


def _some(x: Tensor, changed: Tensor, probability: float, draw: Draw) -> Tensor:
    chosen = torch.from_numpy(draw.random(len(x)) < probability).to(x.device)
    return torch.where(chosen[:, None, None, None], changed, x)


def _warped(x: Tensor, degrees: np.ndarray, factors: np.ndarray) -> Tensor:
    """The images turned and scaled about their centres, seen through the same frame."""
    from kornia.geometry import transform

    height, width = x.shape[2:]
    centre = torch.tensor([[(width - 1) / 2, (height - 1) / 2]], dtype=x.dtype, device=x.device).expand(
        len(x), 2
    )
    scales = _to(factors, x)[:, None].expand(len(x), 2)
    matrix = transform.get_rotation_matrix2d(centre, _to(degrees, x), scales)
    return transform.warp_affine(x, matrix, (height, width))


def _between(start: Tensor, stop: Tensor, size: int) -> Tensor:
    """[n, size]: whether start <= place < stop."""
    places = torch.arange(size, device=start.device)
    return (places >= start[:, None]) & (places < stop[:, None])


def _to(numbers: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(numbers)).to(like.device, like.dtype)
