"""Coding a layer so that its output on given inputs changes least, each weight making up for the errors of others.

GPTQ (Frantar et al. 2023, arXiv:2210.17323) codes one column after the other and moves those that are left. For few
bits the scale that is nearest to the weights is not the best one for that. So the scale is then solved for on the
outputs and the columns are coded again, in turns, from several first scales; last, codes are revisited one by one while
the others stay (coordinate descent: Behdin et al. 2023, arXiv:2309.01885; Zhang et al. 2024, arXiv:2403.07134).
Columns of large inputs go first: those that are left can make up for them.

Where layers before were changed, the output to keep is that of the original model, as in `pruning.optimal_brain`.
"""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

import numpy as np

from compressor.low_bit.codes import Codes, Method
from compressor.low_bit.feedback import Nearest, forward, mutual, rounded
from compressor.low_bit.levels import SMALLEST, coded
from compressor.low_bit.methods import codebook, encode, even
from compressor.pruning.layer_inputs import Gram
from compressor.pruning.optimal_brain import damped

_STARTS = (1.0, 1.2, 1.4, 1.6)
"""First scales, in parts of those of `encode`."""
_ROUNDS, _VISITS = 2, 4
"""Passes over weights that are not coded yet, from each start; passes over codes after that."""
_LEAST = 2.0**-60
"""The smallest scale, in parts of the largest weight of its output."""


class Compensated(NamedTuple):
    """A layer in codes.

    Args:
        codes: of its rows.
        error: what coding changes of the layer's output, as a share of its norm.
        plain: the same for the codes of `encode`.
    """

    codes: Codes
    error: float
    plain: float


class _Found(NamedTuple):
    """Codes [groups, outputs, K], their scales [groups, outputs, blocks], and the errors [groups, outputs]."""

    codes: np.ndarray
    scale: np.ndarray
    errors: np.ndarray

    def or_better(self, other: _Found) -> _Found:
        """Of each output the one with the smaller error."""
        wins = (other.errors < self.errors)[:, :, None]
        codes, scale = (np.where(wins, new, old) for new, old in zip(other[:2], self[:2], strict=True))
        return _Found(codes, scale, np.minimum(other.errors, self.errors))


def gptq(rows: np.ndarray, sums: Gram, method: Method) -> Compensated:
    """The codes of a layer's weights whose output on the inputs of `sums` is near to the original one.

    Not worse than `encode` there. The levels of `ttq` and `residual` are those of `encode`, their scale is not.

    Args:
        rows: float32 [outputs * blocks, n], finite: the inputs of an output in the order of `sums`, in blocks with a
            scale each, the last filled up with anything. Equal parts of the outputs are the groups of a convolution.
        sums: over what the layer reads.
        method: how the weights are to be coded.
    """
    plain = encode(rows, method)
    layer = _Layer(rows, sums, plain, method)
    found = _search(layer, plain)
    size = layer.energy(layer.target * layer.unit) or 1.0
    scale = np.maximum(found.scale * layer.unit, SMALLEST).reshape(-1)
    made = coded(found.codes.reshape(rows.shape), scale)
    error, before = (
        sqrt(layer.energy(codes.decoded().reshape(layer.target.shape) - layer.target * layer.unit) / size)
        for codes in (made, plain)
    )
    return Compensated(made, error, before) if error < before else Compensated(plain, before, before)


def _search(layer: _Layer, plain: Codes) -> _Found:
    codes = plain.codes.reshape(layer.target.shape).astype(np.float32)
    first = plain.scale.reshape(*codes.shape[:2], -1) / layer.unit
    used = codes.reshape(*first.shape, -1).any(axis=3)
    first = np.where(used, np.maximum(first, _LEAST), 1.0)
    best = layer.solved(codes, first)
    feedback = forward(layer.ordered_hessian).astype(np.float32)
    for start in _STARTS:
        scale = first * start
        for _ in range(_ROUNDS):
            found = layer.solved(layer.coded(feedback, scale), scale)
            best, scale = best.or_better(found), found.scale
    feedback = mutual(layer.ordered_hessian).astype(np.float32)
    for _ in range(_VISITS):
        codes = layer.coded(feedback, best.scale, best.codes)
        if np.array_equal(codes, best.codes):
            break
        best = best.or_better(layer.solved(codes, best.scale))
    return best


class _Layer:
    """The weights of a layer in parts of the largest of each output, and what is asked of them.

    Args:
        rows: as for `gptq`.
        sums: the same.
        plain: the codes of `encode`, whose levels are kept.
        method: theirs.
    """

    def __init__(self, rows: np.ndarray, sums: Gram, plain: Codes, method: Method) -> None:
        groups, inputs, _ = sums.products.shape
        self.block = rows.shape[1]
        fill = -inputs % self.block
        self.products, crossed = (_filled(array, fill) for array in (sums.products, sums.crossed))
        wide = rows.reshape(groups, -1, inputs + fill).astype(np.float64)
        largest = np.abs(wide).max(axis=2, keepdims=True)
        self.unit = np.where(largest > SMALLEST, largest, 1.0)
        hessian = np.stack([damped(products) for products in self.products])
        self.target = _moved(wide / self.unit, crossed - self.products, hessian, sums.rows)
        self.pulled = self.target @ hessian
        self.norms = np.einsum("grk,grk->gr", self.pulled, self.target)
        self.order = np.argsort(-np.einsum("gkk->k", self.products), kind="stable")
        self.hessian, self.ordered_hessian = hessian.astype(np.float32), self.ordered(hessian, 1, 2)
        self.nearest = self._nearest(plain, method)

    def _nearest(self, plain: Codes, method: Method) -> Nearest:
        if (top := even(method)) is not None:
            return lambda parts, _: np.clip(np.rint(parts), -top, top)
        levels = codebook(plain, method).astype(np.float32)
        levels = levels.reshape(*self.target.shape[:2], -1, method.levels)
        middles = (levels[..., 1:] + levels[..., :-1]) / 2

        def nearest(parts: np.ndarray, column: int) -> np.ndarray:
            block = self.order[column] // self.block
            place = np.sum(parts[:, :, None] >= middles[:, :, block], axis=2, keepdims=True)
            return np.take_along_axis(levels[:, :, block], place, axis=2)[:, :, 0]

        return nearest

    def ordered(self, array: np.ndarray, *axes: int) -> np.ndarray:
        """With the columns of large inputs first."""
        for axis in axes:
            array = array.take(self.order, axis=axis)
        return array

    def coded(self, feedback: np.ndarray, scale: np.ndarray, codes: np.ndarray | None = None) -> np.ndarray:
        """The codes after a pass, from those given or from the target."""
        steps = np.repeat(scale, self.block, axis=2)
        target, steps = (self.ordered(array.astype(np.float32), 2) for array in (self.target, steps))
        start = None if codes is None else self.ordered(codes, 2) * steps
        made = np.empty_like(target)
        made[:, :, self.order] = rounded(target, start, feedback, steps, self.nearest)
        return made

    def solved(self, codes: np.ndarray, scale: np.ndarray) -> _Found:
        """With the scales of the least error; one that would not be above zero stays as it was."""
        pieces = codes.reshape(*scale.shape, self.block)
        products = np.empty((*scale.shape, scale.shape[2]))
        for place in range(scale.shape[2]):
            columns = slice(place * self.block, (place + 1) * self.block)
            across = (pieces[:, :, place] @ self.hessian[:, columns]).reshape(pieces.shape)
            products[:, :, place] = np.einsum("grbn,grbn->grb", across, pieces, dtype=np.float64)
        wanted = np.einsum("grbn,grbn->grb", pieces, self.pulled.reshape(pieces.shape))
        unused = np.einsum("grbb->grb", products) == 0
        whole = products + unused[..., None] * np.eye(scale.shape[2])
        new = np.linalg.solve(whole, wanted[..., None])[..., 0]
        new = np.where(new > _LEAST, new, scale)
        across = np.einsum("grb,grbc,grc->gr", new, products, new, optimize=True)
        return _Found(codes, new, across - 2 * np.einsum("grb,grb->gr", new, wanted) + self.norms)

    def energy(self, weights: np.ndarray) -> float:
        """The squared norm of the output: tr(w X^T X w^T), which rounding must not bring below 0."""
        return max(float(np.einsum("grk,grk->", weights @ self.products, weights)), 0.0)


def _filled(array: np.ndarray, fill: int) -> np.ndarray:
    """Sums with zeros for columns that are not there."""
    return np.pad(array, ((0, 0), (0, fill), (0, fill))) if fill else array


def _moved(weights: np.ndarray, apart: np.ndarray, hessian: np.ndarray, rows: int) -> np.ndarray:
    """The weights whose output on changed inputs is nearest to the original one, trusted as in `optimal_brain`."""
    if not apart.any():
        return weights
    trust = rows / (rows + weights.shape[2])
    change = np.linalg.solve(hessian, (weights @ apart).swapaxes(1, 2)).swapaxes(1, 2)
    return np.asarray(weights + trust * change)
