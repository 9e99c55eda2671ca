"""A metric of the user's own: a function of (list of outputs, labels), named `file.py:function`."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real

import numpy as np

from compressor.errors import OptionError
from compressor.metrics.outputs import Outputs
from compressor.statistics import Array, Floats, Measured, Resampled
from compressor.user_code import FOREIGN, load_object


def load(name: str) -> Callable[..., object]:
    """The function that `file.py:function` or `package.module:function` names."""
    found: Callable[..., object] = load_object(name, f"Metric {name!r}")
    return found


def measured_by(
    name: str, function: Callable[..., object]
) -> Callable[[Outputs, Array | None, Outputs], Measured]:
    """How a metric of the user's measures: on all samples, and again on every one of 200 resamples.

    It raises OptionError where the function returns no number, or NaN on all samples.
    """

    def measure(outputs: Outputs, labels: Array | None, original: Outputs) -> Measured:
        samples = len(outputs[0])

        def statistic(counts: Floats) -> Floats:
            drawn = (np.repeat(np.arange(samples), row.astype(np.int64)) for row in counts)
            return np.array([value(rows) for rows in drawn])

        def value(rows: Array) -> float:
            drawn = [o[rows] for o in outputs]
            try:
                made = function(drawn, None if labels is None else labels[rows])
            except FOREIGN as error:
                raise OptionError(
                    f"Metric {name!r} raised {type(error).__name__}: {error}. "
                    "It is called as f(outputs: list of arrays, labels) and returns a float."
                ) from error
            return _number(name, made)

        whole = value(np.arange(samples))
        if math.isnan(whole):
            raise OptionError(
                f"Metric {name!r} gives NaN on all {samples} samples. It must return a number there."
            )
        return Resampled(whole, statistic, samples, samples, 200)

    return measure


def _number(name: str, result: object) -> float:
    if isinstance(result, np.ndarray) and result.ndim == 0:
        result = result.item()
    if isinstance(result, Real) and not isinstance(result, bool):
        return float(result)
    raise OptionError(f"Metric {name!r} must return a float, got {type(result).__name__} {result!r:.60}.")
