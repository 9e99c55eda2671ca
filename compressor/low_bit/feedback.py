"""Rounding the weights of a layer one column after the other, each making up for the errors of others.

What the layer gives is to stay near what the target gives, (w - t) H (w - t)^T with H = X^T X. If the other columns are
off by e = t - w, the best value of column j is t_j + sum_i e_i F_ij, where

- F = H / diag(H), off its diagonal, if the others stay as they are: `mutual`;
- F = U of H = (I + U) D (I + U)^T, strictly upper triangular, if those after j will make up as well as they can for
  what those up to j leave: `forward`. This is GPTQ (Frantar et al. 2023, arXiv:2210.17323, algorithm 1) written without
  the inverse of H (Chee et al. 2023, arXiv:2307.13304, theorem 6).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Nearest = Callable[[np.ndarray, int], np.ndarray]
"""(values of a column in parts of their steps [groups, rows], the number of the column) -> its codes."""
_COLUMNS = 128
"""Columns whose errors are fed back one by one; those of the others together (Frantar et al., section 3.3, step 2)."""


def forward(hessian: np.ndarray) -> np.ndarray:
    """F for one pass over weights that are not rounded yet, float64 as H, [groups, K, K]; H is positive definite."""
    lower = np.linalg.cholesky(hessian[:, ::-1, ::-1])
    upper = lower[:, ::-1, ::-1]
    return np.triu(upper / np.einsum("gkk->gk", upper)[:, None, :], 1)


def mutual(hessian: np.ndarray) -> np.ndarray:
    """F for a pass over weights that are rounded already, [groups, K, K].

    >>> mutual(np.array([[[2.0, 1.0], [1.0, 4.0]]])).tolist()
    [[[0.0, 0.25], [0.5, 0.0]]]
    """
    scaled = hessian / np.einsum("gkk->gk", hessian)[:, None, :]
    np.einsum("gkk->gk", scaled)[:] = 0
    return np.asarray(scaled)


def rounded(
    target: np.ndarray, start: np.ndarray | None, feedback: np.ndarray, steps: np.ndarray, nearest: Nearest
) -> np.ndarray:
    """The codes after one pass from the first column to the last, [groups, rows, K].

    Args:
        target: t.
        start: the weights before, for `mutual`; None if none is rounded yet, for `forward`.
        feedback: F, [groups, K, K].
        steps: w is code * step.
        nearest: the codes of a column.
    """
    codes, errors = np.empty_like(target), np.zeros_like(target) if start is None else target - start
    for begin in range(0, target.shape[2], _COLUMNS):
        block, wrong = slice(begin, begin + _COLUMNS), slice(begin if start is None else None)
        best = target[:, :, block] + errors[:, :, wrong] @ feedback[:, wrong, block]
        among, change = feedback[:, block, block], np.zeros_like(best)
        for place in range(best.shape[2]):
            column = begin + place
            wanted = best[:, :, place] + (change[:, :, :place] @ among[:, :place, place, None])[:, :, 0]
            codes[:, :, column] = nearest(wanted / steps[:, :, column], column)
            error = target[:, :, column] - codes[:, :, column] * steps[:, :, column]
            change[:, :, place] = error - errors[:, :, column]
        errors[:, :, block] += change
    return codes
