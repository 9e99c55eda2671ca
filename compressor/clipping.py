"""Choosing a narrower range from a histogram: where clipping the far values costs less than coarser steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_NARROWEST = 0.01
_COARSE, _FINE = 15, 12


class Range(NamedTuple):
    """The values of a tensor that are to be representable."""

    low: float
    high: float


def percentile_range(counts: np.ndarray, centres: np.ndarray, width: float, percentile: float) -> Range:
    """The range that leaves (100 - percentile) % of the counts beyond each end."""
    share = np.cumsum(counts) / counts.sum()
    cut, last = percentile / 100, len(centres) - 1
    low = centres[np.searchsorted(share, 1 - cut, side="right").clip(0, last)] - width / 2
    high = centres[np.searchsorted(share, cut).clip(0, last)] + width / 2
    return Range(float(low), float(high))


def best_clip(ends: Range, error: Callable[[Range], float]) -> Range:
    """The range cut at +-t with the least error; t is searched on a geometric grid, then finely around the best.

    Cutting at one threshold leaves a short side whole, as of a Swish, while it cuts the outliers of the long one.
    """
    widest = max(-ends.low, ends.high)

    def best(thresholds: np.ndarray) -> int:
        return int(np.argmin([error(_clipped(ends, float(t))) for t in thresholds]))

    coarse = widest * np.geomspace(1.0, _NARROWEST, _COARSE)
    at = best(coarse)
    fine = np.append(coarse[at], np.linspace(coarse[max(at - 1, 0)], coarse[min(at + 1, _COARSE - 1)], _FINE))
    return _clipped(ends, float(fine[best(fine)]))


def _clipped(ends: Range, threshold: float) -> Range:
    return Range(max(ends.low, -threshold), min(ends.high, threshold))


def rounding_error(counts: np.ndarray, centres: np.ndarray, ends: Range) -> float:
    """The sum over the histogram of (x - x')^2, with x' on the 256 levels of the range."""
    step = (ends.high - ends.low) / 255
    error = centres - np.rint(np.clip(centres, ends.low, ends.high) / step) * step
    return float(counts @ (error * error))


def divergence(counts: np.ndarray, centres: np.ndarray, ends: Range) -> float:
    """KL(P || Q): P the histogram with its tails in the end bins, Q the same on 256 levels, spread back over the
    bins that P fills. Q lacks the tails, so P and Q sum to different masses and the sum gets the term Q - P.

    The caller leaves out the bins at zero: a ReLU makes half of all values exactly zero, every grid represents
    zero exactly, and spreading that spike over a level would reward the narrowest range.
    """
    first = int(np.searchsorted(centres, ends.low).clip(0, len(centres) - 1))
    last = int(np.searchsorted(centres, ends.high).clip(first + 1, len(centres)))
    inside = counts[first:last].astype(np.float64)
    total = float(counts.sum())
    if not total:
        return 0.0
    p = inside.copy()
    p[0] += counts[:first].sum()
    p[-1] += counts[last:].sum()
    level = (
        np.rint((centres[first:last] - ends.low) * (255 / (ends.high - ends.low)))
        .clip(0, 255)
        .astype(np.intp)
    )
    filled = p > 0
    share = np.bincount(level, inside, 256) / np.maximum(np.bincount(level, filled, 256), 1)
    q = share[level][filled] / total
    p = p[filled] / total
    return float(np.sum(p * np.log(p / np.maximum(q, 1e-12))) + q.sum() - 1)
