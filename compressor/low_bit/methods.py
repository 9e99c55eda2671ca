"""The methods of coding by name, and the levels that codes already found allow."""

from __future__ import annotations

import numpy as np

from compressor.low_bit.binary import residual, xnor
from compressor.low_bit.codes import Codes, Method
from compressor.low_bit.levels import nearest
from compressor.low_bit.ternary import optimal, ttq, twn
from compressor.low_bit.uniform import highest, rounded, uniform


def encode(rows: np.ndarray, method: Method) -> Codes:
    """The codes of the rows, each with a scale of its own.

    Args:
        rows: float32 [rows, n], finite.
        method: how.
    """
    if method.name == "uniform":
        return uniform(rows, method.count)
    if method.name == "residual":
        return residual(rows, method.count)
    return {"twn": twn, "optimal": optimal, "ttq": ttq, "xnor": xnor}[method.name](rows)


def recode(rows: np.ndarray, codes: Codes, method: Method) -> Codes:
    """The nearest codes among the levels that each row has, its scale unchanged.

    Args:
        rows: float32 [rows, n], finite.
        codes: found before, of the same rows or as they were.
        method: by which.
    """
    if (top := even(method)) is not None:
        return Codes(rounded(rows, codes.scale, top).codes, codes.scale)
    levels = codebook(codes, method)
    chosen = nearest(rows / codes.scale[:, None].astype(np.float64), levels)
    return Codes(np.take_along_axis(levels, chosen, axis=1), codes.scale)


def even(method: Method) -> int | None:
    """The largest code if the levels are all whole numbers up to it and their negatives; None if they are not.

    >>> even(Method("optimal")), even(Method("uniform", 4)), even(Method("xnor"))
    (1, 7, None)
    """
    if method.name == "uniform":
        return highest(method.count)
    return 1 if method.name in ("twn", "optimal") else None


def codebook(codes: Codes, method: Method) -> np.ndarray:
    """The levels that a row may have, int8 [rows, method.levels], rising.

    Codes do not tell what the levels of `ttq` and `residual` are that no weight of the row has. A side of `ttq` that
    is not there gets the size of the other. Of `residual` those are given that are there, with their negatives; the
    outermost repeat.
    """
    if method.name == "ttq":
        return _two_sided(codes.codes)
    if method.name == "residual" and method.count > 1:
        return _occurring(codes.codes, method.levels)
    top = even(method)
    levels = np.array([-1, 1]) if top is None else np.arange(-top, top + 1)
    return np.tile(levels.astype(np.int8), (len(codes.codes), 1))


def _two_sided(codes: np.ndarray) -> np.ndarray:
    """-a, 0, b of each row."""
    low, high = -codes.min(axis=1, initial=0), codes.max(axis=1, initial=0)
    either = np.maximum(low, high)
    low, high = np.where(low > 0, low, either), np.where(high > 0, high, either)
    return np.stack([-low, np.zeros_like(low), high], axis=1).astype(np.int8)


def _occurring(codes: np.ndarray, count: int) -> np.ndarray:
    """The codes of each row and their negatives, `count` of them."""
    present = np.zeros((len(codes), 128), bool)
    np.put_along_axis(present, np.abs(codes.astype(np.intp)), True, axis=1)
    sizes = np.argsort(~present, axis=1, kind="stable")[:, : count // 2]
    largest = np.take_along_axis(sizes, present.sum(axis=1, keepdims=True).clip(1, count // 2) - 1, axis=1)
    upper = np.minimum(np.where(np.take_along_axis(present, sizes, axis=1), sizes, largest), largest)
    return np.concatenate([-upper[:, ::-1], upper], axis=1).astype(np.int8)
