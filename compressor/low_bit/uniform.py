"""Uniform codes: a weight is a whole number of steps, the step being the scale of its row."""

from __future__ import annotations

import numpy as np

from compressor.low_bit.codes import Codes
from compressor.low_bit.levels import coded, fitted
from compressor.low_bit.ternary import optimal

_AT_ONCE = 2**20
"""Steps of codes that are sorted at once, which bounds the memory."""


def highest(bits: int) -> int:
    """The largest code; the smallest is its negative.

    >>> [highest(bits) for bits in (2, 3, 4, 8)]
    [1, 3, 7, 127]
    """
    return int(2 ** (bits - 1) - 1)


def uniform(rows: np.ndarray, bits: int) -> Codes:
    """Codes from -(2^(bits-1) - 1) to 2^(bits-1) - 1, codes and scale being those of least squares.

    With 8 bits the scale is max|w| / 127 instead, as in `quantize-int8`; with 2 bits this is `ternary.optimal`.

    Args:
        rows: float32 [rows, n], finite.
        bits: 2, 3, 4 or 8.
    """
    if bits == 2:
        return optimal(rows)
    top = highest(bits)
    sizes = np.abs(rows).astype(np.float64)
    if bits == 8:
        return rounded(rows, sizes.max(axis=1, initial=0) / top, top)
    count = max(1, _AT_ONCE // (rows.shape[1] * top))
    scale = [_best_scale(sizes[first : first + count], top) for first in range(0, len(rows), count)]
    codes = rounded(rows, np.concatenate(scale), top).codes
    return coded(codes, fitted(rows, codes))


def rounded(rows: np.ndarray, scale: np.ndarray, top: int) -> Codes:
    """The nearest codes of given scales [rows]; those of a scale of 0 are 0.

    >>> rounded(np.array([[0.9, -7.0, 0.2]]), np.array([0.5]), 7).codes.tolist()
    [[2, -7, 0]]
    """
    steps = np.where(scale > 0, scale, np.inf)[:, None]
    return coded(np.clip(np.rint(rows / steps), -top, top), scale)


def _best_scale(sizes: np.ndarray, top: int) -> np.ndarray:
    """The scale with the least |sizes - scale * codes|^2 over all codes from 0 to `top`, [rows].

    As the scale falls the codes rise one by one, a size w to m at the scale w / (m - 1/2). On the way
    sum(w c)^2 / sum(c^2) is to be largest; a step to m adds w to one sum and m^2 - (m - 1)^2 to the other.
    """
    to = np.arange(1, top + 1)
    steps = (sizes[:, :, None] / (to - 0.5)).reshape(len(sizes), -1)
    order = np.argsort(-steps, axis=1)
    products = np.cumsum(np.take_along_axis(np.repeat(sizes, top, axis=1), order, axis=1), axis=1)
    squares = np.cumsum((2 * to - 1)[order % top], axis=1)
    best = np.argmax(np.square(products) / squares, axis=1)[:, None]
    return np.asarray((np.take_along_axis(products, best, 1) / np.take_along_axis(squares, best, 1))[:, 0])
