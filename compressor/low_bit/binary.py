"""Binary codes: a weight is -1 or 1 times a scale, or a sum of few such products."""

from __future__ import annotations

from itertools import product

import numpy as np

from compressor.low_bit.codes import Codes
from compressor.low_bit.levels import SMALLEST, coded, fitted, nearest

_ROUNDS = 10
_WIDEST = 127
"""The largest code of `residual`."""


def xnor(rows: np.ndarray) -> Codes:
    """The sign, 1 for 0, with mean|w| as the scale: least squares (Rastegari et al. 2016, arXiv:1603.05279, 3.1).

    Args:
        rows: float32 [rows, n], finite.
    """
    return _finished(rows, np.where(rows < 0, -1, 1))


def residual(rows: np.ndarray, bases: int) -> Codes:
    """The sum of `bases` binary codes, each with a scale of its own; `xnor` for one.

    w = a1 b1 + a2 b2 +..., b in {-1, 1}, as in Lin et al. 2017 (ABC-Net, arXiv:1711.11294). Each b is first the sign
    of what those before left over; then, in turns, all a are solved by least squares and each weight is given the
    nearest sum (Xu et al. 2018, arXiv:1802.00150, section 3). The codes are the sums of +-r1 +-r2..., where the r are
    the a in whole parts of 127 of their sum.

    Args:
        rows: float32 [rows, n], finite.
        bases: 1, 2 or 3.
    """
    if bases == 1:
        return xnor(rows)
    signs = np.array(list(product((1, -1), repeat=bases))).T
    unit = np.abs(rows).max(axis=1, keepdims=True, initial=0).astype(np.float64)
    wide = rows / np.where(unit > 0, unit, 1)
    scales = _greedy(wide, bases)
    for _ in range(_ROUNDS):
        scales = _solved(wide, signs[:, nearest(wide, scales @ signs)])
    scales = -np.sort(-np.abs(scales), axis=1)
    sums = scales.sum(axis=1, keepdims=True)
    levels = _in_parts(scales / np.where(sums > 0, sums, 1)) @ signs
    chosen = nearest(wide, levels * (sums / _WIDEST))
    return _finished(rows, np.take_along_axis(levels, chosen, axis=1))


def _finished(rows: np.ndarray, codes: np.ndarray) -> Codes:
    return coded(codes, np.maximum(fitted(rows, codes), SMALLEST))


def _greedy(wide: np.ndarray, bases: int) -> np.ndarray:
    """The scale of each base if it codes what those before left over, [rows, bases]."""
    left, scales = wide, []
    for _ in range(bases):
        scales.append(np.abs(left).mean(axis=1))
        left = left - np.where(left < 0, -1, 1) * scales[-1][:, None]
    return np.stack(scales, axis=1)


def _solved(wide: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """The scales of least squares, [rows, k], for bases [k, rows, n]; the shortest solution if bases are equal."""
    floats = bases.astype(np.float64)
    products = np.einsum("irn,jrn->rij", floats, floats, optimize=True)
    with_rows = np.einsum("irn,rn->ri", floats, wide, optimize=True)
    return np.asarray((np.linalg.pinv(products, hermitian=True) @ with_rows[:, :, None])[:, :, 0])


def _in_parts(shares: np.ndarray) -> np.ndarray:
    """Whole numbers with the sum 127 near 127 times the shares, of which the first is the largest.

    >>> _in_parts(np.array([[0.7, 0.3]])).tolist()
    [[89, 38]]
    """
    parts = np.rint(shares * _WIDEST).astype(np.int64)
    parts[:, 0] += _WIDEST - parts.sum(axis=1)
    return np.asarray(parts)
