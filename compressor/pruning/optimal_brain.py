"""Taking weights out of a layer so that its output on given inputs changes least, the others making up for them.

For a layer y = w x with H = X X^T over inputs, leaving out weight j costs w_j^2 / [H^-1]_jj and is made up for by
dw = -w_j / [H^-1]_jj H^-1[:, j] (Hassibi and Stork 1992, "Optimal Brain Surgeon"). Columns are passed once from the
first to the last, and only later ones make up for earlier ones, so that all rows share one factor of H^-1 (Frantar and
Alistarh 2023, arXiv:2301.00774, sections 3.2 and 3.3). Which weights stay is then fixed, and they are solved for.

Where layers before were changed, x differs from the x0 of the original model, and what is kept is not w x but w x0
(Nagel et al. 2020, arXiv:2004.10568; Li et al. 2025, arXiv:2504.02692): w is first moved to
w + a w (X0 X^T - H) H^-1, which for a = 1 is the best substitute that uses all weights. a = rows / (rows + K) trusts
it as far as there are more rows than columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from typing import NamedTuple

import numpy as np

from compressor.pruning.layer_inputs import Gram
from compressor.pruning.masks import Pattern, keeps

_DAMPING = 0.01
"""Of the mean square of an input, added to each (Frantar and Alistarh 2023, section 3.4)."""
_COLUMNS = 128
"""Columns whose weights are chosen at once (the same, section 3.3)."""
_ITERATIONS, _SETTLED = 30, 1e-3
"""Conjugate gradients end after so many steps, or when the residual has shrunk to this share."""
_TINY = np.finfo(np.float64).tiny


class Solved(NamedTuple):
    """A layer with weights taken out.

    Args:
        weights: [rows, positions, run], exactly zero where taken out.
        error: what taking them out changes of the layer's output, as a share of its norm.
        plain: the same if the weights that stay had kept their values.
    """

    weights: np.ndarray
    error: float
    plain: float


def solved(weights: np.ndarray, sums: Gram, sparsity: float, pattern: Pattern) -> Solved:
    """Take the share `sparsity` of the weights out; those that are zero already stay so.

    Args:
        weights: [rows, positions, run]; for a grouped convolution, equal parts of the rows are its groups.
        sums: over what the layer reads; K = run * positions.
        sparsity: in [0, 1).
        pattern: which go together.
    """
    _, positions, run = weights.shape
    order = np.arange(run * positions).reshape(run, positions).T.reshape(-1)
    old = weights.reshape(len(sums.products), -1, run * positions).astype(np.float64)
    parts = [_Part(rows, sums, group, order) for group, rows in enumerate(old)]
    costs = np.stack([part.costs(part.target, np.diag(part.inverse)) for part in parts])
    prior = np.split(~keeps(costs.reshape(weights.shape), sparsity, pattern), len(parts))
    kept = [~_chosen(part, budget, pattern) for part, budget in zip(parts, prior, strict=True)]
    new = [_fitted(part, stay) for part, stay in zip(parts, kept, strict=True)]
    size = sum(part.energy(part.target) for part in parts) or 1.0
    error = sum(part.energy(w - part.target) for part, w in zip(parts, new, strict=True))
    plain = sum(part.energy(part.old * stay - part.target) for part, stay in zip(parts, kept, strict=True))
    return Solved(np.stack(new).reshape(weights.shape), sqrt(error / size), sqrt(plain / size))


class _Part:
    """One group of a layer.

    Args:
        old: its weights, [rows, K], columns in the order of the view.
        sums: of the layer.
        group: which one.
        order: the place in `sums` of each column.
    """

    def __init__(self, old: np.ndarray, sums: Gram, group: int, order: np.ndarray) -> None:
        self.old = old
        self.products = sums.products[group][np.ix_(order, order)]
        self.hessian = damped(self.products)
        self.inverse = np.linalg.inv(self.hessian)
        apart = sums.crossed[group][np.ix_(order, order)] - self.products
        self.target: np.ndarray = old + sums.rows / (sums.rows + len(order)) * (old @ apart @ self.inverse)

    def costs(self, weights: np.ndarray, inverse: np.ndarray, first: int = 0) -> np.ndarray:
        """w^2 / [H^-1]_jj of the columns from `first` on; -1 for what was zero before, which goes first."""
        old = self.old[:, first : first + weights.shape[1]]
        return np.asarray(np.where(old == 0, -1.0, np.square(weights) / inverse))

    def energy(self, weights: np.ndarray) -> float:
        """The squared norm of the output: tr(w X^T X w^T)."""
        return float(np.einsum("rk,rk->", weights @ self.products, weights))


def damped(products: np.ndarray) -> np.ndarray:
    """X^T X with 1 % of its mean diagonal added to the diagonal, so that it can be inverted.

    >>> damped(np.diag([1.0, 0.0])).diagonal().tolist()
    [1.005, 0.005]
    """
    mean = float(np.mean(np.diag(products)))
    return products + np.eye(len(products)) * (_DAMPING * mean if mean > 0 else 1.0)


def _chosen(part: _Part, prior: np.ndarray, pattern: Pattern) -> np.ndarray:
    """Which weights go, [rows, K], each block of columns chosen when the ones before have been made up for.

    `prior` [rows, positions, run] is the choice without that; how many go from each block is taken from it.
    """
    weights, gone = part.target.copy(), np.asarray(part.old == 0)
    factor = np.linalg.cholesky(part.inverse).T
    budget = prior.reshape(weights.shape)
    for begin, end in _blocks(prior.shape[1], prior.shape[2], pattern):
        share = float(budget[:, begin:end].mean())
        costs = part.costs(weights[:, begin:end], np.square(np.diag(factor)[begin:end]), begin)
        chosen = ~keeps(costs[:, None], share, pattern)[:, 0] if share < 1 else np.ones(costs.shape, bool)
        chosen |= gone[:, begin:end]
        gone[:, begin:end] = chosen
        errors = np.zeros(costs.shape)
        for column in range(begin, end):
            lost = np.where(chosen[:, column - begin], weights[:, column], 0.0) / factor[column, column]
            weights[:, column:end] -= lost[:, None] * factor[column, column:end]
            errors[:, column - begin] = lost
        weights[:, end:] -= errors @ factor[begin:end, end:]
    return gone


def _blocks(positions: int, run: int, pattern: Pattern) -> Iterator[tuple[int, int]]:
    """Ranges of about 128 columns that cut no group of the pattern."""
    unit = pattern.of or pattern.columns
    width = unit * max(1, _COLUMNS // unit)
    whole = run if run % unit else positions * run  # a group ends with its run
    for first in range(0, positions * run, whole):
        for begin in range(first, first + whole, width):
            yield begin, min(begin + width, first + whole)


def _fitted(part: _Part, kept: np.ndarray) -> np.ndarray:
    """The weights w, zero where not kept, with the least (w - target) H (w - target)^T in each row.

    By conjugate gradients with the diagonal as preconditioner, all rows at once.
    """
    target, hessian = part.target, part.hessian
    scale = 1 / np.diag(hessian)
    weights = np.where(kept, target, 0.0)
    residual = np.where(kept, (target - weights) @ hessian, 0.0)
    first = size = np.einsum("rk,rk,k->r", residual, residual, scale)
    direction = residual * scale
    for _ in range(_ITERATIONS):
        if np.all(size <= _SETTLED**2 * first):
            break
        along = np.where(kept, direction @ hessian, 0.0)
        length = size / np.maximum(np.einsum("rk,rk->r", direction, along), _TINY)
        weights += length[:, None] * direction
        residual -= length[:, None] * along
        new = np.einsum("rk,rk,k->r", residual, residual, scale)
        direction = residual * scale + (new / np.maximum(size, _TINY))[:, None] * direction
        size = new
    return weights
