"""The arithmetic of uniform quantization, in numpy: scales, zero points, codes.

    q = clip(round(x / scale) + zero_point, low, high)        x' = (q - zero_point) * scale

with round half to even, as ONNX QuantizeLinear does. Source: Jacob et al. 2018 (arXiv:1712.05877), section 2.1.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

Kind = Literal["uint8", "int8"]
_TINY = np.float32(2.0**-100)
"""A scale below this would turn into zero or a denormal in products with another scale."""


class Grid(NamedTuple):
    """Scale and zero point of one tensor. Scale is float32, [] or [channels]; zero point has the integer type."""

    scale: np.ndarray
    zero_point: np.ndarray


class Weight(NamedTuple):
    """Integer codes of a weight and their grid."""

    codes: np.ndarray
    grid: Grid


def activation_grid(low: float, high: float, kind: Kind = "uint8", symmetric: bool = False) -> Grid:
    """The grid of an activation observed in [low, high]; zero is always representable exactly.

    A range of zero width gets scale 1. Symmetric: int8 uses [-127, 127] with zero point 0, uint8 zero point 128
    (0 when nothing is negative).

    >>> grid = activation_grid(0.0, 2.55)
    >>> round(float(grid.scale), 4), int(grid.zero_point)
    (0.01, 0)
    """
    low, high = min(low, 0.0), max(high, 0.0)
    info = np.iinfo(kind)
    if symmetric:
        widest = max(-low, high)
        if kind == "uint8" and low == 0.0:
            return _grid(widest / 255, 0, kind)
        return _grid(widest / 127, 0 if kind == "int8" else 128, kind)
    scale = np.float32((high - low) / 255)
    if high == low:
        return _grid(1.0, info.min, kind)
    scale = max(scale, _TINY)
    zero = int(np.clip(np.rint(info.min - low / scale), info.min, info.max))
    return _grid(float(scale), zero, kind)


def weight_grid(array: np.ndarray, axis: int | None, bits: int = 8) -> Grid:
    """The symmetric grid of a weight: scale = max|w| / (2^(bits-1) - 1), per index of `axis`, or one when None.

    A channel of zeros gets scale 1.

    >>> weight_grid(np.array([[0.0, 127.0], [0.0, 0.0]], np.float32), 0).scale
    array([1., 1.], dtype=float32)
    """
    top = 2 ** (bits - 1) - 1
    others = None if axis is None else tuple(a for a in range(array.ndim) if a != axis % array.ndim)
    widest = np.max(np.abs(array), axis=others, initial=0.0).astype(np.float64)
    scale = np.where(widest / top < _TINY, 1.0, widest / top).astype(np.float32)
    return Grid(scale, np.zeros(scale.shape, np.int8))


def quantize(array: np.ndarray, grid: Grid, axis: int | None = None) -> np.ndarray:
    """The integer codes of `array`, in the zero point's type; axis says which one the grid runs along."""
    scale, zero = along(grid.scale, array.ndim, axis), along(grid.zero_point, array.ndim, axis)
    info = np.iinfo(grid.zero_point.dtype)
    with np.errstate(over="ignore"):  # beyond the float32 range is beyond the grid, and clipped
        codes = np.rint(array.astype(np.float32) / scale) + zero
    clipped: np.ndarray = np.clip(codes, info.min, info.max).astype(grid.zero_point.dtype)
    return clipped


def dequantize(codes: np.ndarray, grid: Grid, axis: int | None = None) -> np.ndarray:
    """The float32 values that codes stand for."""
    scale, zero = along(grid.scale, codes.ndim, axis), along(grid.zero_point, codes.ndim, axis)
    values: np.ndarray = ((codes.astype(np.float32) - zero) * scale).astype(np.float32)
    return values


def quantize_weight(array: np.ndarray, axis: int | None, kind: Kind = "int8", bits: int = 8) -> Weight:
    """Symmetric codes of a weight; `uint8` shifts them by 128. |w - w'| <= scale / 2 everywhere."""
    grid = weight_grid(array, axis, bits)
    return codes_on(array, grid, axis, kind, bits)


def codes_on(array: np.ndarray, grid: Grid, axis: int | None, kind: Kind = "int8", bits: int = 8) -> Weight:
    """Codes on a given symmetric grid, clipped to +-(2^(bits-1) - 1)."""
    top = 2 ** (bits - 1) - 1
    signed = np.clip(np.rint(array / along(grid.scale, array.ndim, axis)), -top, top)
    shift = 128 if kind == "uint8" else 0
    return Weight((signed + shift).astype(kind), Grid(grid.scale, np.full(grid.scale.shape, shift, kind)))


def widen_for_bias(grid: Grid, bias: np.ndarray, input_scale: float) -> Grid:
    """The weight grid, its scale raised per channel where the int32 bias b / (s_x s_w) would overflow.

    Also keeps s_x s_w a normal float32, since the runtime multiplies the scales in float32.
    """
    limit = 2.0**31 - 2**8
    least = np.abs(bias.astype(np.float64)) / (limit * float(input_scale))
    least = np.maximum(least, 2.0**-120 / float(input_scale))
    needed = np.max(least) if grid.scale.ndim == 0 else np.broadcast_to(least, grid.scale.shape)
    raised = np.where(needed > grid.scale, needed * (1 + 2**-20), grid.scale)
    return Grid(raised.astype(np.float32), grid.zero_point)


def quantize_bias(bias: np.ndarray, input_scale: np.ndarray, weight_scale: np.ndarray) -> Weight:
    """int32 codes on the scale s_x * s_w, multiplied in float32 exactly as the runtime does."""
    scale = (np.float32(input_scale) * weight_scale.astype(np.float32)).astype(np.float32)
    info = np.iinfo(np.int32)
    codes = np.clip(np.rint(bias.astype(np.float64) / scale.astype(np.float64)), info.min, info.max)
    return Weight(codes.astype(np.int32), Grid(scale, np.zeros(scale.shape, np.int32)))


def along(values: np.ndarray, dims: int, axis: int | None) -> np.ndarray:
    """`values` of shape [channels] reshaped to broadcast along `axis` of an array with `dims` axes."""
    if axis is None or values.ndim == 0:
        return values
    shape = [1] * dims
    shape[axis] = -1
    return values.reshape(shape)


def _grid(scale: float, zero: int, kind: Kind) -> Grid:
    step = np.float32(scale)
    return Grid(np.asarray(step if step >= _TINY else np.float32(1.0)), np.asarray(zero, kind))
