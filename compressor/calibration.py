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
from compressor.graph import remove_dead
from compressor.observers import Observer, extremes_of
from compressor.pipeline import Context
from compressor.runtime import Session, Setup

if TYPE_CHECKING:
    from compressor.data import Samples

_BATCH_BYTES = 8_000_000
"""Watched values of one run: what a processor cache holds, since each is read again right after the run."""


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
    session = Session(_probe(model, probed), Setup(threads=context.threads, spin=False)) if probed else None
    seen = 0
    with ThreadPoolExecutor(1) as beside:  # one batch is looked at while the next one runs
        looking: Future[None] | None = None
        for batch in samples.batches(_batch_size(session, samples)):
            values = dict(batch.feeds)
            if session is not None:
                values |= dict(zip(session.outputs, session.run(batch.feeds), strict=True))
            if looking is not None:
                looking.result()
            rows = samples.rows(batch.feeds)
            shown = {name: _real(values[name], rows, batch.count) for name in wanted}
            looking = beside.submit(_look, shown, observers, floored, seen)
            seen += batch.count
            context.progress("calibrating", seen, len(samples))
        if looking is not None:
            looking.result()
    return {name: observers[name].range() for name in wanted}


def _real(array: np.ndarray, rows: int, count: int) -> np.ndarray:
    """The part of a value that belongs to real samples, where its first axis is the batch."""
    return array[:count] if array.ndim and array.shape[0] == rows else array


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
    size = sum(o.nbytes for o in session.run(first.feeds)) / max(1, samples.rows(first.feeds))
    return int(np.clip(_BATCH_BYTES / max(size, 1.0), 1, 32))
