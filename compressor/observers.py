"""Observers: what watches an activation, to choose the range that it is quantized over.

Every observer is streaming (its memory does not grow with the samples) and mergeable: two halves observed apart and
merged give what the whole gives, so calibration can be spread over machines. Extremes are taken over every element.
Histograms see an evenly strided subset of each sample, at most `BUDGET` elements, because their cost per element is
twenty times higher.

    minmax          the smallest and largest value
    moving-average  exponential average of each batch's extremes (Jacob et al. 2018, arXiv:1712.05877, section 3.1)
    percentile      both ends cut at a percentile
    entropy         least Kullback-Leibler divergence (Migacz, "8-bit inference with TensorRT", GTC 2017)
    mse             least squared rounding and clipping error (Sung et al. 2015, arXiv:1511.06488)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from math import frexp, gcd
from typing import Literal, Self

import numpy as np

from compressor.clipping import Range, best_clip, divergence, percentile_range, rounding_error

Method = Literal["minmax", "moving-average", "percentile", "entropy", "mse"]
BUDGET = 2048
"""Elements of one sample that go into a histogram."""
BINS = 4096
"""Histogram bins on each side of zero."""


class Observer(ABC):
    """Sees a tensor batch by batch."""

    @abstractmethod
    def observe(self, batch: np.ndarray, extremes: Range | None = None) -> None:
        """Take in one batch, shape [samples, ...]; `extremes` are its smallest and largest value, when known."""

    @abstractmethod
    def merge(self, later: Self) -> None:
        """Add what another observer saw after this one."""

    @abstractmethod
    def range(self) -> Range:
        """The chosen range."""


@dataclass
class MinMax(Observer):
    """The extremes.

    >>> seen = MinMax(); seen.observe(np.array([[-1.0, 3.0]])); seen.range()
    Range(low=-1.0, high=3.0)
    """

    low: float = np.inf
    high: float = -np.inf

    def observe(self, batch: np.ndarray, extremes: Range | None = None) -> None:  # noqa: D102
        if not batch.size:
            return
        low, high = extremes or extremes_of(batch)
        self.low, self.high = min(self.low, low), max(self.high, high)

    def merge(self, later: MinMax) -> None:  # noqa: D102
        self.low, self.high = min(self.low, later.low), max(self.high, later.high)

    def range(self) -> Range:  # noqa: D102
        return Range(self.low, self.high)


@dataclass
class MovingAverage(Observer):
    """r <- decay r + (1 - decay) extremes of the batch, starting at the first batch's.

    A run of n batches maps r to decay^n r + sum, so runs compose and halves merge to the whole.
    """

    decay: float = 0.9
    first: np.ndarray | None = None
    total: np.ndarray = field(default_factory=lambda: np.zeros(2))
    count: int = 0

    def observe(self, batch: np.ndarray, extremes: Range | None = None) -> None:  # noqa: D102
        if not batch.size:
            return
        ends = np.array(extremes or extremes_of(batch), np.float64)
        self.first = ends if self.first is None else self.first
        self.total = self.decay * self.total + (1 - self.decay) * ends
        self.count += 1

    def merge(self, later: MovingAverage) -> None:  # noqa: D102
        self.first = later.first if self.first is None else self.first
        self.total = self.decay**later.count * self.total + later.total
        self.count += later.count

    def range(self) -> Range:  # noqa: D102
        if self.first is None:
            return Range(np.inf, -np.inf)
        low, high = self.decay**self.count * self.first + self.total
        return Range(float(low), float(high))


@dataclass
class Histogram(Observer):
    """Extremes, and counts in bins of width 2^exponent / BINS around zero.

    The exponent is the least one whose span [-2^exponent, 2^exponent) holds all that was seen. Bins of one exponent
    nest in those of the next, so widening merges neighbours exactly and the order of batches does not matter.
    """

    method: Method = "entropy"
    percentile: float = 99.99
    extremes: MinMax = field(default_factory=MinMax)
    exponent: int | None = None
    counts: np.ndarray = field(default_factory=lambda: np.zeros(2 * BINS, np.int64))

    def observe(self, batch: np.ndarray, extremes: Range | None = None) -> None:  # noqa: D102
        if not batch.size:
            return
        self.extremes.observe(batch, extremes)
        rows = batch.reshape(batch.shape[0] if batch.ndim > 1 else 1, -1)
        seen = rows[:, :: stride(rows.shape[1], BUDGET)]
        self._widen(_exponent(self.extremes))
        index = np.multiply(seen, np.float32(BINS / 2.0 ** (self.exponent or 0)), dtype=np.float32)
        places = np.floor(index, out=index).astype(np.intp).ravel()
        places += BINS
        self.counts += np.bincount(places, minlength=2 * BINS)

    def merge(self, later: Histogram) -> None:  # noqa: D102
        if later.exponent is None:
            return
        self.extremes.merge(later.extremes)
        self._widen(max(later.exponent, self.exponent if self.exponent is not None else later.exponent))
        self.counts += _widened(later.counts, (self.exponent or 0) - later.exponent)

    def range(self) -> Range:  # noqa: D102
        if self.exponent is None:
            return self.extremes.range()
        used = np.flatnonzero(self.counts)
        first, last = int(used[0]), int(used[-1]) + 1
        width = 2.0**self.exponent / BINS
        centres = (np.arange(first, last) - BINS + 0.5) * width
        low, high = self.extremes.range()
        chosen = self._choose(self.counts[first:last], centres, width)
        return Range(min(max(low, chosen.low), high), max(min(high, chosen.high), low))

    def _choose(self, counts: np.ndarray, centres: np.ndarray, width: float) -> Range:
        if self.method == "percentile":
            return percentile_range(counts, centres, width, self.percentile)
        ends = _around_zero(self.extremes)
        if self.method == "mse":
            return best_clip(ends, lambda r: rounding_error(counts, centres, r))
        apart = np.where(np.abs(centres) < width, 0, counts)
        return best_clip(ends, lambda r: divergence(apart, centres, r))

    def _widen(self, exponent: int) -> None:
        if self.exponent is not None and exponent > self.exponent:
            self.counts = _widened(self.counts, exponent - self.exponent)
        self.exponent = exponent if self.exponent is None else max(self.exponent, exponent)


def observer(method: Method, percentile: float = 99.99) -> Observer:
    """A new observer of the named method."""
    if method == "minmax":
        return MinMax()
    if method == "moving-average":
        return MovingAverage()
    return Histogram(method, percentile)


def extremes_of(batch: np.ndarray) -> Range:
    """The smallest and the largest value of a batch that is not empty; NaN when there is a NaN."""
    return Range(float(batch.min()), float(batch.max()))


def _exponent(extremes: MinMax) -> int:
    """The least exponent with |x| < 2^exponent for all values seen."""
    widest = max(abs(extremes.low), abs(extremes.high))
    return min(max(frexp(widest)[1], -60), 128) if widest else -60


def _widened(counts: np.ndarray, steps: int) -> np.ndarray:
    """The counts in bins 2^steps times as wide."""
    for _ in range(min(steps, 2 * BINS.bit_length())):
        merged = counts.reshape(-1, 2).sum(axis=1)
        counts = np.concatenate([np.zeros(BINS // 2, np.int64), merged, np.zeros(BINS // 2, np.int64)])
    return counts


def stride(elements: int, budget: int) -> int:
    """The step that leaves about `budget` elements; it shares no factor with their number, so no row, column or
    channel is passed over."""
    step = -(-elements // budget)
    while gcd(step, elements) > 1:
        step += 1
    return step


def _around_zero(extremes: MinMax) -> Range:
    low, high = min(extremes.low, 0.0), max(extremes.high, 0.0)
    return Range(low, high) if high > low else Range(-1.0, 1.0)
