"""Watching activations on calibration samples, to choose the range that each one is quantized over.

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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import gcd, isfinite
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import numpy as np
import onnx_ir as ir

from compressor.errors import ModelError
from compressor.graph import remove_dead
from compressor.pipeline import Context
from compressor.runtime import Session, Setup

if TYPE_CHECKING:
    from compressor.data import Samples

Method = Literal["minmax", "moving-average", "percentile", "entropy", "mse"]
BUDGET = 2048
"""Elements of one sample that go into a histogram."""
BINS = 4096
"""Histogram bins on each side of zero."""
_BATCH_BYTES = 8_000_000
"""Watched values of one run: what a processor cache holds, since each is read again right after the run."""
_NARROWEST = 0.01
_COARSE, _FINE = 15, 12


class Range(NamedTuple):
    """The values of a tensor that are to be representable."""

    low: float
    high: float


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
        seen = rows[:, :: _stride(rows.shape[1])]
        self._widen(_exponent(self.extremes))
        index = (seen * np.float32(BINS / 2.0 ** (self.exponent or 0))).astype(np.float32)
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
            return _percentile_range(counts, centres, width, self.percentile)
        ends = _around_zero(self.extremes)
        if self.method == "mse":
            return _best_clip(ends, lambda r: _rounding_error(counts, centres, r))
        apart = np.where(np.abs(centres) < width, 0, counts)
        return _best_clip(ends, lambda r: _divergence(apart, centres, r))

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


def calibrate(
    model: ir.Model,
    tensors: Iterable[str],
    samples: Samples,
    observers: Mapping[str, Observer],
    context: Context,
) -> dict[str, Range]:
    """Run the samples through `model` and return the range of each named tensor.

    Args:
        model: the float model; stays as it was.
        tensors: names of float values in the main graph; inputs may be among them.
        samples: calibration samples; every one is used.
        observers: tensor -> the observer that watches it; they keep what they saw and can be merged.
        context: threads and progress.

    Raises:
        ModelError: a tensor becomes NaN or infinite; names it and the samples.
    """
    wanted = list(dict.fromkeys(tensors))
    floored = _never_negative(model)
    inputs = {v.name for v in model.graph.inputs}
    probed = [name for name in wanted if name not in inputs]
    session = Session(_probe(model, probed), Setup(threads=context.threads)) if probed else None
    seen = 0
    for batch in samples.batches(_batch_size(session, samples)):
        values = dict(batch.feeds)
        if session is not None:
            values |= dict(zip(session.outputs, session.run(batch.feeds), strict=True))
        for name in wanted:
            array = values[name]
            whole = array.ndim and array.shape[0] == next(iter(batch.feeds.values())).shape[0]
            array = array[: batch.count] if whole else array
            if array.size:
                observers[name].observe(array, _extremes(name, array, seen, name in floored))
        seen += batch.count
        context.progress("calibrating", seen, len(samples))
    return {name: observers[name].range() for name in wanted}


def extremes_of(batch: np.ndarray) -> Range:
    """The smallest and the largest value of a batch that is not empty; NaN when there is a NaN."""
    return Range(float(batch.min()), float(batch.max()))


def _never_negative(model: ir.Model) -> set[str | None]:
    """Values behind Relu, Sigmoid or Softmax: zero is in every grid, so their smallest value need not be looked for."""
    return {n.outputs[0].name for n in model.graph if n.op_type in ("Relu", "Sigmoid", "Softmax")}


def _extremes(name: str, array: np.ndarray, seen: int, floored: bool) -> Range:
    """The extremes of a batch; ModelError when it holds NaN or infinity."""
    found = Range(0.0, float(array.max())) if floored else extremes_of(array)
    if isfinite(found.low) and isfinite(found.high):
        return found
    rows = np.atleast_1d(array)
    bad = np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))[:5] + seen
    raise ModelError(
        f"Value {name!r} becomes NaN or infinite on calibration samples {bad.tolist()}; "
        "quantize without it or mend the samples."
    )


def _probe(model: ir.Model, tensors: list[str]) -> ir.Model:
    """A copy whose outputs are the named values, so that only what leads to them is computed."""
    probe = model.clone()
    values = {v.name: v for node in probe.graph for v in node.outputs}
    probe.graph.outputs.clear()
    for name in tensors:
        if values[name].dtype is None:
            values[name].dtype = ir.DataType.FLOAT
        probe.graph.outputs.append(values[name])
    remove_dead(probe)
    return probe


def _batch_size(session: Session | None, samples: Samples) -> int | None:
    """As many samples at once as keep the watched tensors in a processor cache, at most 32."""
    if session is None:
        return None
    first = next(iter(samples.take(1).batches()))
    size = sum(o.nbytes for o in session.run(first.feeds)) / max(1, len(next(iter(first.feeds.values()))))
    return int(np.clip(_BATCH_BYTES / max(size, 1.0), 1, 32))


def _exponent(extremes: MinMax) -> int:
    """The least exponent with |x| < 2^exponent for all values seen."""
    widest = max(abs(extremes.low), abs(extremes.high))
    return int(np.clip(np.frexp(np.float32(widest))[1], -60, 128)) if widest else -60


def _widened(counts: np.ndarray, steps: int) -> np.ndarray:
    """The counts in bins 2^steps times as wide."""
    for _ in range(min(steps, 2 * BINS.bit_length())):
        merged = counts.reshape(-1, 2).sum(axis=1)
        counts = np.concatenate([np.zeros(BINS // 2, np.int64), merged, np.zeros(BINS // 2, np.int64)])
    return counts


def _stride(elements: int) -> int:
    """The step that leaves about `BUDGET` elements; it shares no factor with the size, so every channel is seen."""
    step = -(-elements // BUDGET)
    while gcd(step, elements) > 1:
        step += 1
    return step


def _percentile_range(counts: np.ndarray, centres: np.ndarray, width: float, percentile: float) -> Range:
    share = np.cumsum(counts) / counts.sum()
    cut, last = percentile / 100, len(centres) - 1
    low = centres[np.searchsorted(share, 1 - cut, side="right").clip(0, last)] - width / 2
    high = centres[np.searchsorted(share, cut).clip(0, last)] + width / 2
    return Range(float(low), float(high))


def _best_clip(ends: Range, error: Callable[[Range], float]) -> Range:
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


def _rounding_error(counts: np.ndarray, centres: np.ndarray, ends: Range) -> float:
    """The sum over the histogram of (x - x')^2, with x' on the 256 levels of the range."""
    step = (ends.high - ends.low) / 255
    error = centres - np.rint(np.clip(centres, ends.low, ends.high) / step) * step
    return float(counts @ (error * error))


def _divergence(counts: np.ndarray, centres: np.ndarray, ends: Range) -> float:
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


def _around_zero(extremes: MinMax) -> Range:
    low, high = min(extremes.low, 0.0), max(extremes.high, 0.0)
    return Range(low, high) if high > low else Range(-1.0, 1.0)
