"""The learning-rate range test (Smith, 1506.01186, section 3.3): raise the rate until the loss diverges.

The rate grows by the same factor at every step. The one to train with is where the smoothed loss falls fastest per
factor of the rate, which lies well below the rate at which it diverges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from compressor.errors import DataError

_MEMORY = 0.9
_FEWEST = 5
_SURE = 5.0
"""Standard errors that the loss must fall by: of twenty smoothed losses without a trend, one is two below by chance."""
_HINT = "Give a rate, as in lr=1e-3."


def range_test(
    step: Callable[[float], float], low: float = 1e-7, high: float = 1.0, steps: int = 100
) -> list[tuple[float, float]]:
    """(rate, loss) of each step of the test, rates growing from `low` to `high` in equal factors.

    It stops early at a loss that is not finite, which is left out, and where the smoothed loss is four times its
    best; a negative loss may rise by three times its best. The weights are spoilt then: the caller puts them back.

    Args:
        step: makes one training step with a rate and returns its loss.
        low: the first rate.
        high: the last rate.
        steps: how many rates, both ends included.
    """
    found: list[tuple[float, float]] = []
    mean, best = 0.0, math.inf
    for rate in np.geomspace(low, high, steps).tolist():
        loss = step(rate)
        if not math.isfinite(loss):
            break
        found.append((rate, loss))
        mean = _MEMORY * mean + (1 - _MEMORY) * loss
        smooth = mean / (1 - _MEMORY ** len(found))  # the mean starts at zero: Adam's correction
        best = min(best, smooth)
        if smooth - best > 3 * abs(best):
            break
    return found


def suggested_rate(losses: Sequence[float], rates: Sequence[float]) -> float:
    """The rate at which the smoothed loss falls fastest per factor of the rate.

    Args:
        losses: the loss at each rate.
        rates: growing in equal factors, as `range_test` gives them.

    Raises:
        DataError: fewer than five losses, or none of them below the first by more than the noise explains.
    """
    if len(losses) < _FEWEST:
        raise DataError(
            f"lr='auto': the loss was finite and did not diverge at {len(losses)} rates only, {_FEWEST} are needed. "
            f"{_HINT}"
        )
    raw = np.asarray(losses, dtype=np.float64)
    smooth, half, left = _smoothed(raw)
    lowest = int(np.argmin(smooth))
    fall = smooth[min(half, lowest)] - smooth[lowest]
    if fall <= _SURE * left * _noise(raw):
        raise DataError(
            f"lr='auto': the loss fell at no rate between {rates[0]:.1e} and {rates[-1]:.1e}: {raw[0]:.4g} at the "
            f"first, {raw.min():.4g} at best. {_HINT}"
        )
    steepest = int(np.argmin(np.gradient(smooth)[: lowest + 1]))
    return float(rates[steepest])


def _smoothed(losses: np.ndarray) -> tuple[np.ndarray, int, float]:
    """A centred Hann mean over a tenth of the losses, half its width, and the share of noise that is left in it.

    Centred, because a running mean lags, and a lag would be read as a higher rate.
    """
    half = max(1, len(losses) // 20)
    window = np.hanning(2 * half + 3)[1:-1]
    window /= window.sum()
    smooth = np.convolve(np.pad(losses, half, mode="edge"), window, mode="valid")
    return smooth, half, float(np.linalg.norm(window))


def _noise(losses: np.ndarray) -> float:
    """The standard deviation of independent noise, from second differences, which no slope disturbs.

    Their variance is 1 + 4 + 1 = 6 times that of the noise; the median of |normal| is 0.6745.
    """
    return float(np.median(np.abs(np.diff(losses, 2))) / (0.6745 * math.sqrt(6)))
