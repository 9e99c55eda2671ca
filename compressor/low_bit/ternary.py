"""Ternary codes: a weight is -1, 0 or 1 times the scale of its row."""

from __future__ import annotations

import numpy as np

from compressor.low_bit.codes import Codes
from compressor.low_bit.levels import coded, fitted

_THRESHOLD = 0.7
_WIDEST = 127
"""The larger of the two codes of `ttq`."""


def twn(rows: np.ndarray) -> Codes:
    """Codes +-1 where |w| > 0.7 mean|w|, and the mean of those |w| as the scale.

    The rule is close to the least squares of `optimal` if weights are normal or uniform (Li and Liu 2016,
    arXiv:1605.04711, equations 5 and 6).

    Args:
        rows: float32 [rows, n], finite.
    """
    sizes = np.abs(rows.astype(np.float64))
    codes = np.sign(rows) * (sizes > _THRESHOLD * sizes.mean(axis=1, keepdims=True))
    return coded(codes, fitted(rows, codes))


def optimal(rows: np.ndarray) -> Codes:
    """The codes and the scale of each row with the least |w - scale * codes|^2.

    If k weights are not zero they are the k largest, with their mean as the scale, and (sum of the k largest)^2 / k
    is to be largest. All k are tried, by sorting.

    Args:
        rows: float32 [rows, n], finite.
    """
    codes = np.sign(rows) * _worth(np.abs(rows))
    return coded(codes, fitted(rows, codes))


def ttq(rows: np.ndarray) -> Codes:
    """Codes -a, 0 and b: a scale for the negative and one for the positive weights of each row.

    Zhu et al. 2017 (arXiv:1612.01064) train both scales. Here they and the zeros are those of least squares, each
    side by itself as in `optimal`; then the ratio of the two is rounded so that the larger of a and b is 127.

    Args:
        rows: float32 [rows, n], finite.
    """
    wide = rows.astype(np.float64)
    sides = [np.maximum(wide, 0), np.maximum(-wide, 0)]
    chosen = [_worth(side) for side in sides]
    scales = [fitted(side, mask) for side, mask in zip(sides, chosen, strict=True)]
    largest = np.maximum(*scales)
    steps = [np.rint(scale / np.where(largest > 0, largest, 1) * _WIDEST)[:, None] for scale in scales]
    codes = steps[0] * chosen[0] - steps[1] * chosen[1]
    return coded(codes, fitted(rows, codes))


def _worth(sizes: np.ndarray) -> np.ndarray:
    """Which of the sizes, none below 0, are better one number than zero: bool [rows, n]; never a zero."""
    order = np.sort(sizes, axis=1)[:, ::-1]
    sums = np.cumsum(order, axis=1, dtype=np.float64)
    last = np.argmax(np.square(sums) / np.arange(1, order.shape[1] + 1), axis=1)
    return np.asarray((sizes >= np.take_along_axis(order, last[:, None], axis=1)) & (sizes > 0))
