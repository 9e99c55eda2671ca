"""The arithmetic of preparing samples: axis order, resizing, non-finite values. Arrays in, arrays out.

Resizing is bilinear with antialiasing (a triangle filter as wide as the shrinking asks, as Pillow's BILINEAR
does), done in numpy for images and arrays alike, so that both get the same pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from compressor.data.inputs import is_float

Array = npt.NDArray[Any]


def relayout(x: Array, layout: str) -> Array:
    """A view of `x` with its axes in the order that `layout` asks; a missing channel axis is added.

    >>> relayout(np.zeros((2, 5, 6, 3)), "nhwc->nchw").shape, relayout(np.zeros((2, 5, 6)), "nhw->nhwc").shape
    ((2, 3, 5, 6), (2, 5, 6, 1))
    """
    source, target = layout.split("->")
    if "c" not in source:
        x, source = x[..., None], source + "c"
    moved: Array = x.transpose([source.index(axis) for axis in target])
    return moved


def target_size(height: int, width: int, resize: int | tuple[int, int] | None) -> tuple[int, int]:
    """The (height, width) after `resize`; with one number the shorter side gets it and the ratio is kept.

    >>> target_size(200, 100, 50), target_size(200, 100, (7, 8)), target_size(200, 100, None)
    ((100, 50), (7, 8), (200, 100))
    """
    if resize is None:
        return height, width
    if isinstance(resize, tuple):
        return resize
    short = min(height, width)
    return int(resize * height / short), int(resize * width / short)


def bilinear(x: Array, size: int, axis: int) -> Array:
    """`x` resized to `size` along `axis`; floats stay floats, integers are rounded and keep their type.

    Each output is the mean of the inputs under a triangle of half-width max(1, old/new) around its centre.
    """
    old = x.shape[axis]
    if old == size:
        return x
    ratio = old / size
    width = max(1.0, ratio)
    centre = (np.arange(size)[:, None] + 0.5) * ratio
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(old) + 0.5 - centre) / width)
    weights /= weights.sum(1, keepdims=True)
    work = np.float64 if x.dtype == np.float64 else np.float32
    moved = np.moveaxis(x, axis, -1).astype(work) @ weights.T.astype(work)
    out: Array = np.moveaxis(moved, -1, axis)
    return out if is_float(x.dtype) else np.rint(out).astype(x.dtype)


def clip_rows(x: Array) -> Array:
    """`x` [n, ...] with 0 for NaN and the row's largest or smallest finite value for an infinity (0 if none).

    >>> clip_rows(np.array([[-1.0, np.nan, np.inf, -np.inf, -2.0]]))
    array([[-1.,  0., -1., -2., -2.]])
    """
    finite = np.isfinite(x)
    if finite.all():
        return x
    axes = tuple(range(1, x.ndim))
    top = np.where(finite, x, -np.inf).max(axes, keepdims=True)
    low = np.where(finite, x, np.inf).min(axes, keepdims=True)
    some = finite.any(axes, keepdims=True)
    out = np.where(np.isnan(x), 0, np.clip(x, np.where(some, low, 0), np.where(some, top, 0)))
    return out.astype(x.dtype)


def finite_rows(x: Array) -> npt.NDArray[np.bool_]:
    """For each row of `x` [n, ...] whether all its values are finite; True for what is not a float."""
    if not is_float(x.dtype):
        return np.ones(len(x), bool)
    return np.asarray(np.isfinite(x).all(axis=tuple(range(1, x.ndim))))
