"""Running calibration samples through a model and watching the activations that will be quantized."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from compressor.clipping import Range
from compressor.errors import ModelError
from compressor.observers import Observer, extremes_of
from compressor.pipeline import Context
from compressor.watching import watch

if TYPE_CHECKING:
    from compressor.data import Samples


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
    seen = 0
    with ThreadPoolExecutor(1) as beside:  # one batch is looked at while the next one runs
        looking: Future[None] | None = None
        for batch in watch(model, wanted, samples, context.threads):
            if looking is not None:
                looking.result()
            looking = beside.submit(_look, batch.arrays, observers, floored, seen)
            seen += batch.samples
            context.progress("calibrating", seen, len(samples))
        if looking is not None:
            looking.result()
    return {name: observers[name].range() for name in wanted}


def _look(
    shown: Mapping[str, np.ndarray], observers: Mapping[str, Observer], floored: set[str | None], seen: int
) -> None:
    """Show one batch of every value to its observer; `seen` samples went before."""
    for name, array in shown.items():
        if array.size:
            observers[name].observe(array, _extremes(name, array, seen, name in floored))


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
