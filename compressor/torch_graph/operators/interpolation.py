"""Resampling one axis: where each result comes from, and the matrix that computes it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from compressor.errors import ModelError


class Axis(NamedTuple):
    """How one axis is resampled.

    Args:
        position: which axis.
        size: its length before.
        resized: its length after.
        scale: the factor that coordinates are divided by; about resized / size.
        start, end: the crop of `tf_crop_and_resize`, as shares of the axis.
    """

    position: int
    size: int
    resized: int
    scale: float
    start: float = 0.0
    end: float = 1.0


class Filter(NamedTuple):
    """What weighs the neighbours: `linear`, or `cubic` with Keys' coefficient (1981), stretched to avoid aliases."""

    cubic: bool
    coefficient: float = -0.75
    antialias: bool = False
    exclude_outside: bool = False


def coordinates(axis: Axis, mode: str, like: Tensor) -> Tensor:
    """For each result its place on the axis before, in onnxruntime's order of operations: (resized,).

    Raises:
        ModelError: no coordinate transformation of that name.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    at = torch.arange(axis.resized, dtype=dtype, device=like.device)
    scale = torch.full_like(
        at, axis.scale
    )  # a tensor: a division by a number may become a product, off by a bit
    last, crop = axis.size - 1, axis.end - axis.start
    match mode:
        case "asymmetric":
            return at / scale
        case "half_pixel":
            return (at + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (at + 0.5) / scale - 0.5 if axis.resized > 1 else at
        case "tf_half_pixel_for_nn":
            return (at + 0.5) / scale
        case "align_corners":
            return at * last / torch.full_like(at, max(axis.resized - 1, 1))
        case "half_pixel_symmetric":
            shift = axis.size / 2 * (1 - axis.resized / (axis.scale * axis.size))
            return (shift + (at.double() + 0.5) / scale.double() - 0.5).to(
                dtype
            )  # double, as onnxruntime here
        case "tf_crop_and_resize" if axis.resized > 1:
            return axis.start * last + at * (crop * last) / torch.full_like(at, axis.resized - 1)
        case "tf_crop_and_resize":
            return at + 0.5 * (axis.start + axis.end) * last
    raise ModelError(f"Resize has the coordinate_transformation_mode {mode!r}, which ONNX does not define.")


def nearest(axis: Axis, places: Tensor, mode: str) -> Tensor:
    """The indices nearest to the places; `simple` is what came before opset 11.

    Raises:
        ModelError: no rounding of that name.
    """
    match mode:
        case "round_prefer_floor":
            found = (places - 0.5).ceil()
        case "round_prefer_ceil":
            found = (places + 0.5).floor()
        case "floor":
            found = places.floor()
        case "ceil":
            found = places.ceil()
        case "simple":
            found = places.ceil() if axis.scale < 1 else places.floor()
        case _:
            raise ModelError(f"Resize has the nearest_mode {mode!r}, which ONNX does not define.")
    return found.clamp(0, axis.size - 1).to(torch.int64)


def matrix(axis: Axis, places: Tensor, weighing: Filter) -> Tensor:
    """The weights (resized, size) of each cell; cells beyond the ends repeat the end, or are excluded."""
    squeeze = min(axis.scale, 1.0) if weighing.antialias else 1.0
    beyond = int((2 if weighing.cubic else 1) / squeeze) + 2
    cells = torch.arange(-beyond, axis.size + beyond, dtype=places.dtype, device=places.device)
    distance = (places[:, None] - cells).abs() * squeeze
    weights = _cubic(distance, weighing.coefficient) if weighing.cubic else (1 - distance).clamp(min=0)
    if weighing.antialias or weighing.exclude_outside:
        inside = weights[:, beyond : beyond + axis.size] if weighing.exclude_outside else weights
        weights = weights / inside.sum(1, keepdim=True)
    before, within, behind = torch.split(weights, [beyond, axis.size, beyond], dim=1)
    if weighing.exclude_outside:
        return within
    ends = torch.zeros_like(within)
    ends[:, 0] = before.sum(1)
    ends[:, -1] += behind.sum(1)
    return torch.add(within, ends)


def _cubic(t: Tensor, a: float) -> Tensor:
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((t - 5) * t + 8) * t * a - 4 * a
    return torch.where(t <= 1, near, torch.where(t < 2, far, torch.zeros_like(t)))
