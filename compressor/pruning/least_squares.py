"""Solving the weights of a layer so that it gives wanted outputs, from sums over rows.

    W', b' = argmin sum |W' x + b' - y|^2 + lambda |W' - W|^2

lambda is a hundredth of the mean of x^2, more where rows are few, so that the solution stays near W where the rows say
little. Without the second term this is the reconstruction of He et al. 2017 (arXiv:1707.06168, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_RIDGE = 0.01
"""With thousands of rows, 0.0001 to 0.01 give ResNet-20 the same score after a cut."""


class Solution(NamedTuple):
    """What was solved.

    Args:
        weights: float64 [groups, K, O].
        bias: float64 [groups, O]; None when it was to stay.
        before: sum |W x + b - y|^2 as a share of that of the mean of y, b being the best for W.
        after: the same with W'.
    """

    weights: np.ndarray
    bias: np.ndarray | None
    before: float
    after: float


@dataclass
class Sums:
    """Sums over rows, float64, for each group of a convolution.

    Args:
        xx: x x^T, [groups, K, K].
        xy: x y^T, [groups, K, O].
        x: [groups, K].
        y: [groups, O].
        yy: |y|^2 over all groups.
        rows: how many were summed.
    """

    xx: np.ndarray
    xy: np.ndarray
    x: np.ndarray
    y: np.ndarray
    yy: float = 0.0
    rows: int = 0

    @classmethod
    def empty(cls, groups: int, columns: int, outputs: int) -> Sums:
        """Before the first row."""
        square, across = np.zeros((groups, columns, columns)), np.zeros((groups, columns, outputs))
        return cls(square, across, np.zeros((groups, columns)), np.zeros((groups, outputs)))

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Count rows in: float32 [groups, rows, K] and [groups, rows, O]."""
        turned = x.transpose(0, 2, 1)
        self.xx += turned @ x
        self.xy += turned @ y
        self.x += x.sum(axis=1, dtype=np.float64)
        self.y += y.sum(axis=1, dtype=np.float64)
        self.yy += float(np.square(y, dtype=np.float64).sum())
        self.rows += x.shape[1]


def solve(sums: Sums, weights: np.ndarray, shifts: bool) -> Solution:
    """The solution.

    Args:
        sums: over the rows.
        weights: W, [groups, K, O].
        shifts: whether the bias is solved too; it is not drawn to the old one.
    """
    xx, xy, yy = _centred(sums) if shifts else (sums.xx, sums.xy, sums.yy)
    columns = weights.shape[1]
    scale = np.einsum("gkk->gk", xx).mean(axis=1)
    ridge = _RIDGE * (1 + columns / sums.rows) * np.where(scale > 0, scale, 1.0)
    found = weights + np.linalg.solve(xx + ridge[:, None, None] * np.eye(columns), xy - xx @ weights)
    bias = (sums.y - np.einsum("gk,gko->go", sums.x, found)) / sums.rows if shifts else None
    return Solution(found, bias, _error(weights, xx, xy, yy), _error(found, xx, xy, yy))


def _centred(sums: Sums) -> tuple[np.ndarray, np.ndarray, float]:
    """The sums of products of deviations from the mean."""
    xx = sums.xx - sums.x[:, :, None] * sums.x[:, None, :] / sums.rows
    xy = sums.xy - sums.x[:, :, None] * sums.y[:, None, :] / sums.rows
    return xx, xy, sums.yy - float(np.square(sums.y).sum()) / sums.rows


def _error(weights: np.ndarray, xx: np.ndarray, xy: np.ndarray, yy: float) -> float:
    missed = float(np.sum(weights * (xx @ weights)) - 2 * np.sum(weights * xy)) + yy
    return max(missed, 0.0) / max(yy, np.finfo(np.float64).tiny)
