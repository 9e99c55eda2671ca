"""Low-bit codes of a float weight, by rounding with a scale from its largest element.

    w' = values[code] * scale        |w - w'| <= step / 2

Sources: Jacob et al. 2018 (arXiv:1712.05877), section 2.1; Dettmers and Zettlemoyer 2023 (arXiv:2212.09720),
section 2.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

_HIGHEST = np.float32(2.0**127 * 1.9999)
"""Just below the largest float32, so that code * scale stays finite."""
_TINY = 2.0**-100
"""Scales below this are written as 1; the codes are then zero."""


class Use(NamedTuple):
    """One place where a weight is read: the node and the number of its input."""

    node: ir.Node
    idx: int


class Coded(NamedTuple):
    """A weight as values[codes] * scale: codes uint8, scale float32 that broadcasts."""

    codes: np.ndarray
    values: tuple[int, ...]
    scale: np.ndarray

    def decoded(self) -> np.ndarray:
        """The float32 weight that the codes stand for."""
        table = np.asarray(self.values, np.float32)
        return np.asarray(table[self.codes] * self.scale, np.float32)


def encode(array: np.ndarray, axes: tuple[int, ...], bits: int, with_zero: bool = False) -> Coded:
    """Symmetric codes with one scale over all of `axes`.

    Args:
        array: float32, finite.
        axes: those that share a scale.
        bits: 8, 4 or 2.
        with_zero: for 2 bits: only the levels -1, 0, 1.

    >>> coded = encode(np.array([[1.0, -0.6, 0.1]], np.float32), (1,), 2); coded.decoded().tolist()
    [[0.75, -0.75, 0.25]]
    """
    widest = np.max(np.abs(array), axis=axes, keepdims=True).astype(np.float64)
    if bits == 2:
        three = _on_levels(array, widest, 1, (-1, 0, 1))
        return three if with_zero else min(three, _half_steps(array, widest), key=lambda c: _loss(array, c))
    top = 2 ** (bits - 1) - 1
    return _on_levels(array, widest, top, tuple(range(-top, top + 1)))


def _loss(array: np.ndarray, coded: Coded) -> float:
    return float(np.square(array.astype(np.float64) - coded.decoded()).sum())


def _on_levels(array: np.ndarray, widest: np.ndarray, top: int, values: tuple[int, ...]) -> Coded:
    scale = np.where(widest / top < _TINY, 1.0, widest / top).astype(np.float32)
    scale = np.minimum(scale, _HIGHEST / np.float32(top))
    codes = np.clip(np.rint(array / scale), -top, top) + top
    return Coded(codes.astype(np.uint8), values, scale)


def _half_steps(array: np.ndarray, widest: np.ndarray) -> Coded:
    """Four levels at odd multiples of half a step, step = max|w| / 2; scale is half a step, 0 for zeros."""
    scale = np.where(widest / 4 < _TINY, 0.0, widest / 4).astype(np.float32)
    codes = np.clip(np.floor(array / np.where(scale == 0, 1, 2 * scale)), -2, 1) + 2
    return Coded(codes.astype(np.uint8), (-3, -1, 1, 3), scale)


def in_blocks(matrix: np.ndarray, block: int) -> np.ndarray:
    """[A, inputs, B] as [A, blocks, size, B], zeros at the end; of even size, `block` at most.

    >>> in_blocks(np.ones((1, 40, 1), np.float32), 32).shape
    (1, 2, 20, 1)
    """
    inputs = matrix.shape[1]
    count = -(-inputs // block)
    size = -(-inputs // count)
    full = np.pad(matrix, ((0, 0), (0, count * size - inputs), (0, 0)))
    return full.reshape(matrix.shape[0], count, size, matrix.shape[2])
