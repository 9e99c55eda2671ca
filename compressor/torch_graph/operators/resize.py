"""Resize and Upsample: torch's interpolation where it is the same function, else one axis after the other."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.torch_graph.operators.interpolation import Axis, Filter, coordinates, matrix, nearest
from compressor.torch_graph.values import Kernel

_EXACT_FACTORS = (1, 2, 3, 4, 8, 16)
"""Integer factors whose float32 reciprocal never rounds torch's index i / factor below the whole number."""

_REPEATING = (
    ("asymmetric", "floor"),
    ("asymmetric", "simple"),
    ("half_pixel", "round_prefer_ceil"),
    ("half_pixel", "round_prefer_floor"),
    ("half_pixel_symmetric", "round_prefer_floor"),
    ("pytorch_half_pixel", "round_prefer_floor"),
    ("tf_half_pixel_for_nn", "floor"),
)
"""Coordinates and roundings that repeat every element when the factor is an integer."""


def resize(
    x: Tensor,
    roi: list[float] | None = None,
    scales: list[float] | None = None,
    sizes: list[int] | None = None,
    *,
    antialias: int = 0,
    axes: list[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
    version: int = 19,
) -> Tensor:
    """x resampled by factors (`scales`) or to lengths (`sizes`) along all axes, or those named.

    Before opset 11 coordinates are asymmetric and the second input is `scales`.
    """
    if version < 11:
        roi, scales = None, roi if scales is None else scales
        coordinate_transformation_mode, nearest_mode = "asymmetric", "simple"
    resampled = _axes(x, axes, scales, sizes, keep_aspect_ratio_policy)
    if coordinate_transformation_mode == "tf_crop_and_resize" and roi:
        half = len(roi) // 2
        order = [axis % x.dim() for axis in axes] if axes else list(range(x.dim()))
        ends = {index: (roi[i], roi[half + i]) for i, index in enumerate(order)}
        resampled = [Axis(*axis[:4], *ends[axis.position]) for axis in resampled]
    resampled = [axis for axis in resampled if axis != Axis(axis.position, axis.size, axis.size, 1.0)]
    weighing = Filter(mode == "cubic", cubic_coeff_a, bool(antialias), bool(exclude_outside))
    native = _native_mode(x, resampled, mode, (coordinate_transformation_mode, nearest_mode), weighing)
    if native is not None:
        lengths = {axis.position: axis.resized for axis in resampled}
        size = [lengths.get(index, x.shape[index]) for index in range(2, x.dim())]
        corners = None if mode == "nearest" else coordinate_transformation_mode == "align_corners"
        return F.interpolate(x, size, mode=native, align_corners=corners)
    rule = (coordinate_transformation_mode, nearest_mode)
    if mode == "nearest":
        return _resampled(x, resampled, rule, None, extrapolation_value)
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    return _cast(
        _resampled(y, resampled, rule, weighing, extrapolation_value), x.dtype, rounded=bool(antialias)
    )


def _resampled(
    x: Tensor, axes: list[Axis], rule: tuple[str, str], weighing: Filter | None, beyond: float
) -> Tensor:
    """x resampled one axis after the other; to the nearest elements without a filter."""
    for axis in axes:
        places = coordinates(axis, rule[0], x)
        if weighing is None:
            x = x.index_select(axis.position, nearest(axis, places, rule[1]))
        else:
            weights = matrix(axis, places, weighing).to(x.dtype)
            x = (x.movedim(axis.position, -1) @ weights.mT).movedim(-1, axis.position)
        if rule[0] == "tf_crop_and_resize":
            outside = (places < 0) | (places > axis.size - 1)
            x = x.masked_fill(outside.view(-1, *[1] * (x.dim() - 1 - axis.position)), beyond)
    return x


def _cast(y: Tensor, dtype: torch.dtype, rounded: bool) -> Tensor:
    """y in the type of the input: as integers cut, or with antialias rounded, as onnxruntime does it."""
    if dtype.is_floating_point:
        return y.to(dtype)
    limits = torch.iinfo(dtype)
    return (y.round() if rounded else y).clamp(limits.min, limits.max).to(dtype)


def _axes(
    x: Tensor, axes: list[int] | None, scales: list[float] | None, sizes: list[int] | None, policy: str
) -> list[Axis]:
    indices = [axis % x.dim() for axis in axes] if axes else list(range(x.dim()))
    before = [x.shape[index] for index in indices]
    if sizes:
        factors = [size / had for size, had in zip(sizes, before, strict=True)]
        if policy != "stretch":
            factors = [min(factors) if policy == "not_larger" else max(factors)] * len(factors)
            sizes = [int(factor * had + 0.5) for factor, had in zip(factors, before, strict=True)]
    else:
        factors = list(scales or [])
        sizes = [_scaled(had, factor) for factor, had in zip(factors, before, strict=True)]
    return [Axis(*fields) for fields in zip(indices, before, sizes, factors, strict=True)]


def _scaled(size: int, factor: float) -> int:
    """The length after scaling; the product is rounded to float32 first, as onnxruntime has it."""
    return size * int(factor) if factor == int(factor) else int(np.float32(size) * np.float32(factor))


def _native_mode(
    x: Tensor, axes: list[Axis], mode: str, rule: tuple[str, str], weighing: Filter
) -> str | None:
    """The mode of torch's interpolation that is the same function, None when there is none."""
    spatial = 3 <= x.dim() <= 5 and all(axis.position > 1 for axis in axes)
    whole = all(abs(axis.scale * axis.size - axis.resized) < 1e-6 * axis.resized for axis in axes)
    if not axes or not spatial or not whole:
        return None
    if mode == "nearest":
        repeats = all(axis.resized in [f * axis.size for f in _EXACT_FACTORS] for axis in axes)
        return "nearest" if rule in _REPEATING and repeats else None
    shrunk = any(axis.resized == 1 for axis in axes)
    same = rule[0] in ("half_pixel", "half_pixel_symmetric", "align_corners")
    if (
        not x.is_floating_point()
        or weighing.antialias
        or not (same or (rule[0] == "pytorch_half_pixel" and not shrunk))
    ):
        return None
    if mode == "linear":
        return ("linear", "bilinear", "trilinear")[x.dim() - 3]
    keys = weighing.coefficient == -0.75 and not weighing.exclude_outside
    return "bicubic" if keys and x.dim() == 4 else None


def upsample(x: Tensor, scales: list[float], *, mode: str = "nearest") -> Tensor:
    """Resize by factors with asymmetric coordinates, as it was before opset 10."""
    return resize(x, None, scales, mode=mode, version=10)


KERNELS: dict[str, Kernel] = {"Resize": resize, "Upsample": upsample}
