"""Rows of weights as levels times a scale: what every method of coding ends with."""

from __future__ import annotations

import numpy as np

from compressor.low_bit.codes import Codes

SMALLEST = 2.0**-100
"""Rows with a smaller scale become zeros with scale 1."""
_LARGEST = 2.0**127 * 1.9999
"""Just below the largest float32, so that code * scale stays finite."""


def coded(codes: np.ndarray, scale: np.ndarray) -> Codes:
    """Codes [rows, n] of any type with their scales [rows], as int8 and float32.

    A scale that is too small becomes 1, and its codes 0.

    >>> coded(np.array([[1, 0], [1, -1]]), np.array([0.5, 1e-40])).codes.tolist()
    [[1, 0], [0, 0]]
    """
    held = scale >= SMALLEST
    kept = np.where(held[:, None], codes, 0).astype(np.int8)
    most = np.abs(kept.astype(np.int16)).max(axis=1, initial=1)
    return Codes(kept, np.minimum(np.where(held, scale, 1.0), _LARGEST / most).astype(np.float32))


def fitted(rows: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The scale of least squares for given codes, float64 [rows]: (w, c) / (c, c); 0 for codes of zeros.

    >>> fitted(np.array([[3.0, 1.0]]), np.array([[1, 1]]))
    array([2.])
    """
    wide = codes.astype(np.float64)
    return np.asarray(np.einsum("rn,rn->r", rows, wide) / np.maximum(np.einsum("rn,rn->r", wide, wide), 1))


def nearest(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Which of the levels [rows, L] of its row is nearest to each value: intp [rows, n]; the upper of two.

    >>> nearest(np.array([[0.4, -3.0, 0.5]]), np.array([[1, 0, -1]])).tolist()
    [[1, 2, 0]]
    """
    order = np.argsort(levels, axis=1, kind="stable")
    rising = np.take_along_axis(levels, order, axis=1).astype(np.float64)
    place = np.zeros(values.shape, np.intp)
    for low, high in zip(rising.T, rising.T[1:], strict=False):
        place += values >= (low + (high - low) / 2)[:, None]
    return np.take_along_axis(order, place, axis=1)
