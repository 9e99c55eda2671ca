"""95 % intervals of a share, of a mean, of any statistic by resampling, and of the paired difference of each.

Everything here is arithmetic on arrays of one row per sample; what is scored is the business of `metrics`.
A resampling statistic is vectorised: it gets counts float64 [resamples, samples], how often each sample was
drawn in each resample, and returns one number per resample, NaN where it is undefined.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
Bounds = tuple[float, float]

Z = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""

_BLOCK = 2**18
"""Numbers in one block of resampling counts: 2 MiB of float64, which stays in the cache."""


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % confidence interval; an end is infinite where the samples allow no statement."""

    value: float
    low: float
    high: float


def proportion(hits: int, samples: int) -> Interval:
    """The share hits / samples with Wilson's score interval.

    Never of width zero. Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 22 (1927).

    >>> found = proportion(10, 10)
    >>> round(found.low, 3), found.high
    (0.722, 1.0)
    """
    share = hits / samples
    centre = (hits + Z * Z / 2) / (samples + Z * Z)
    half = Z / (samples + Z * Z) * math.sqrt(samples * share * (1 - share) + Z * Z / 4)
    return _holding(share, centre - half, centre + half, (0.0, 1.0))


def paired_proportions(lost: int, won: int, samples: int) -> Interval:
    """The difference (lost - won) / samples of two shares over the same samples, with Tango's score interval.

    It is McNemar's test turned into an interval: zero lies inside exactly when (lost - won)^2 / (lost + won)
    is at most 3.84. It holds its level for few samples and is never of width zero: without a discordant pair
    it is +-3.84 / (samples + 3.84). Tango, "Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design", Statistics in Medicine 17 (1998); recommended by Fagerland,
    Lydersen and Laake, Statistics in Medicine 33 (2014).

    Args:
        lost: samples right before and wrong after.
        won: samples wrong before and right after.
        samples: all samples, at least 1.

    >>> paired_proportions(9, 1, 100).value
    0.08
    """
    value = (lost - won) / samples
    ends = []
    for outside in (-1.0, 1.0):
        inside = value
        for _ in range(60):
            middle = (inside + outside) / 2
            if _tango(lost, won, samples, middle) <= Z * Z:
                inside = middle
            else:
                outside = middle
        ends.append(outside)
    return _holding(value, ends[0], ends[1], (-1.0, 1.0))


def _tango(lost: int, won: int, samples: int, difference: float) -> float:
    """The squared score statistic of Tango (1998) for a difference in (-1, 1)."""
    b = (2 * samples - lost + won) * difference - lost - won
    c = -won * difference * (1 - difference)
    root = math.sqrt(max(b * b - 8 * samples * c, 0.0))
    wins = -2 * c / (b + root) if b > 0 else (root - b) / (4 * samples)
    variance = samples * (2 * wins + difference * (1 - difference))
    distance = lost - won - samples * difference
    return distance * distance / variance if variance > 0 else math.inf if distance else 0.0


def mean(values: Array, bounds: Bounds = (-math.inf, math.inf)) -> Interval:
    """The mean of values [samples] with Student's t interval, cut to `bounds`.

    One sample says nothing about the spread: its interval is `bounds`. Give the differences of the same
    samples for a paired interval.
    """
    from scipy.special import stdtrit

    value = float(np.mean(values))
    n = len(values)
    if n < 2:
        return Interval(value, *bounds)
    half = float(stdtrit(n - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return _holding(value, value - half, value + half, bounds)


def bootstrap(statistics: Sequence[Statistic], samples: int, seed: int, resamples: int) -> Floats:
    """Each statistic on the same resamples with replacement: float64 [resamples, statistics].

    Sharing the resamples is what makes a difference of two columns paired. Equal seeds give equal draws.
    """
    rng = np.random.default_rng(seed)
    draws = np.empty((resamples, len(statistics)))
    step = max(1, _BLOCK // samples)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        picks = rng.integers(0, samples, (rows, samples)) + samples * np.arange(rows)[:, None]
        counts = (
            np.bincount(picks.ravel(), minlength=rows * samples).reshape(rows, samples).astype(np.float64)
        )
        for column, statistic in enumerate(statistics):
            draws[start : start + rows, column] = statistic(counts)
    return draws


def percentile(value: float, draws: Floats, units: int, bounds: Bounds = (-math.inf, math.inf)) -> Interval:
    """The expanded, bias-corrected percentile interval of bootstrap draws [resamples]; NaN is left out.

    The plain percentile interval is too narrow for few samples; this one moves the percentiles out so that
    for a mean it matches the t interval: the tail is Phi(-sqrt(n / (n - 1)) t(0.975, n - 1)). Hesterberg,
    "What Teachers Should Know About the Bootstrap", The American Statistician 69 (2015). A resample is to the
    samples as they are to the truth, so a biased statistic is off twice: the ends are moved back by twice the
    distance from the value to the median draw (Efron's bias correction, as a shift). A macro F1 of fewer than
    about ten samples per class stays somewhat too confident.

    Below two units the interval is `bounds`. Draws that are all equal mean that nothing was seen in n
    samples, not that nothing can happen: between finite bounds, a share 3.84 / (n + 3.84) of unseen samples
    is allowed to move the value towards each bound, as in Wilson's interval without an event.

    Args:
        value: the statistic on the samples as they are.
        draws: the statistic on each resample.
        units: n above: the samples, or those of the rarer class where that decides.
        bounds: the lowest and the highest possible value.
    """
    from scipy.special import ndtr, stdtrit

    kept = np.sort(draws[~np.isnan(draws)])
    if units < 2 or not kept.size:
        return Interval(value, *bounds)
    tail = float(ndtr(-math.sqrt(units / (units - 1)) * stdtrit(units - 1, 0.975)))
    middle = float(kept[kept.size // 2])
    twice = 2 * (middle - value) if math.isfinite(middle) and math.isfinite(value) else 0.0
    low = float(kept[math.floor(tail * (kept.size - 1))]) - twice
    high = float(kept[math.ceil((1 - tail) * (kept.size - 1))]) - twice
    if kept[0] == kept[-1] and math.isfinite(bounds[0]) and math.isfinite(bounds[1]):
        unseen = Z * Z / (units + Z * Z)
        low, high = value - unseen * (value - bounds[0]), value + unseen * (bounds[1] - value)
    return _holding(value, low, high, bounds)


def minus(a: Array, b: Array) -> Floats:
    """a - b element by element, where equal values, infinite ones too, differ by zero."""
    with np.errstate(invalid="ignore"):
        return np.where(a == b, 0.0, np.subtract(a, b, dtype=np.float64))


@dataclass(frozen=True)
class Resampled:
    """A score that is not a mean over samples.

    Args:
        value: the score on the samples as they are.
        statistic: the score on resamples.
        samples: how many there are.
        units: as in `percentile`.
        resamples: how often to draw.
    """

    value: float
    statistic: Statistic
    samples: int
    units: int
    resamples: int = 1000


Measured = npt.NDArray[np.bool_] | Floats | Resampled
"""Right or wrong per sample, or a value per sample, or neither."""


def interval(measured: Measured, bounds: Bounds, seed: int) -> Interval:
    """The score with its interval: Wilson for right or wrong, t for values, else the bootstrap."""
    if isinstance(measured, Resampled):
        draws = bootstrap([measured.statistic], measured.samples, seed, measured.resamples)[:, 0]
        return percentile(measured.value, draws, measured.units, bounds)
    if measured.dtype == np.bool_:
        return proportion(int(measured.sum()), len(measured))
    return mean(measured, bounds)


def paired(a: Measured, b: Measured, bounds: Bounds, seed: int) -> tuple[Interval, Interval, Interval]:
    """The intervals of a, of b, and of a - b; both are measured alike, on the same samples."""
    reach = bounds[1] - bounds[0]
    if isinstance(a, Resampled) and isinstance(b, Resampled):
        both = bootstrap([a.statistic, b.statistic], a.samples, seed, a.resamples)
        value = float(minus(np.array(a.value), np.array(b.value)))
        first = percentile(a.value, both[:, 0], a.units, bounds)
        second = percentile(b.value, both[:, 1], b.units, bounds)
        return first, second, percentile(value, minus(both[:, 0], both[:, 1]), a.units, (-reach, reach))
    if isinstance(a, Resampled) or isinstance(b, Resampled) or a.dtype != b.dtype:
        raise TypeError("paired: both sides must be measured by the same metric.")
    single = interval(a, bounds, seed), interval(b, bounds, seed)
    if a.dtype == np.bool_:
        return *single, paired_proportions(int((a > b).sum()), int((b > a).sum()), len(a))
    return *single, mean(a - b, (-reach, reach))


def _holding(value: float, low: float, high: float, bounds: Bounds) -> Interval:
    """The interval cut to the bounds and, against rounding, widened to hold its value."""
    return Interval(value, min(max(low, bounds[0]), value), max(min(high, bounds[1]), value))
