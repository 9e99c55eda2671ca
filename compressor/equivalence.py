"""Does a rewritten model still compute the same? Judged by running both on onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from compressor.errors import CompressorError
from compressor.runtime import Session, Setup

if TYPE_CHECKING:
    from compressor.data import Samples

RELATIVE = 1e-4
"""Allowed difference in units of the largest output: about 1,000 float32 roundings, so that a reordered sum
passes and a changed operator does not."""
_HALF = 1e-2
"""The same for 16-bit floats: ten of their roundings."""


def difference(before: ir.Model, after: ir.Model, samples: Samples | None, seed: int = 0) -> str | None:
    """None when both models give the same outputs, else what differs.

    Args:
        before: the reference.
        after: the rewritten model, same inputs and outputs.
        samples: real samples; made-up ones are used when there are none.
        seed: for the made-up samples.
    """
    from compressor.data import synthetic

    source = samples.take(8) if samples is not None else synthetic(before, 2, seed)
    setup = Setup(threads=1)
    try:
        old = Session(before, setup)
        batch = next(iter(source.batches()))
        expected = old.run(batch.feeds)
    except CompressorError as error:
        given = "made-up inputs" if samples is None else "the samples"
        return f"the original does not run on {given}, so nothing could be compared: {error}"
    try:
        new = Session(after, setup)
        got = new.run(batch.feeds)
    except CompressorError as error:
        return str(error)
    if len(expected) != len(got):
        return f"{len(expected)} outputs became {len(got)}"
    if old.outputs != new.outputs:
        return f"outputs {list(old.outputs)} became {list(new.outputs)}"
    relative = _HALF if _is_half(before) else RELATIVE
    for name, a, b in zip(old.outputs, expected, got, strict=True):
        if reason := _value_difference(a, b, relative):
            return f"output {name!r}: {reason}"
    return None


def _is_half(model: ir.Model) -> bool:
    """True when the model computes, at least in part, in 16-bit floats."""
    values = [*model.graph.initializers.values(), *model.graph.inputs, *model.graph.outputs]
    return any(v.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) for v in values)


def _value_difference(a: object, b: object, relative: float) -> str | None:
    """Tensors are compared as arrays, sequences and maps item by item, anything else (None, text) as it is."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return _array_difference(a, b, relative)
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return _value_difference(list(a.values()), [b[key] for key in a], relative)
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return next((r for x, y in zip(a, b, strict=True) if (r := _value_difference(x, y, relative))), None)
    if isinstance(a, float) and isinstance(b, float):
        return _array_difference(np.asarray(a), np.asarray(b), relative)
    return None if type(a) is type(b) and a == b else "it holds something else"


def _array_difference(a: np.ndarray, b: np.ndarray, relative: float) -> str | None:
    if np.shape(a) != np.shape(b) or a.dtype != b.dtype:
        return f"{a.dtype}{list(np.shape(a))} became {b.dtype}{list(np.shape(b))}"
    if a.dtype.kind != "f":
        changed = float(np.mean(a != b)) if a.size else 0.0
        return f"{changed:.2%} of the values changed" if changed else None
    if not a.size:
        return None
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return "other values became infinite or NaN"
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return "other values became infinite or NaN"
    largest = float(np.max(np.abs(a[finite]), initial=0.0))
    worst = float(np.max(np.abs(a[finite] - b[finite]), initial=0.0))
    return (
        f"differs by {worst:.3g} at values up to {largest:.3g}" if worst > relative * largest + 1e-7 else None
    )
