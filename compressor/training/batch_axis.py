"""A batch axis that the export fixed, freed: training wants its own batch size, and the samples come in any number.

The current PyTorch exporter writes the batch size of its example into Reshape targets, Expand and initial states.
`batch_rules` rewrites them; here the result is compared with the original on onnxruntime.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from compressor.data import synthetic
from compressor.data.inputs import fixed_batch, model_inputs
from compressor.errors import CompressorError
from compressor.runtime import Session, Setup
from compressor.training.batch_edits import Edits
from compressor.training.batch_rules import rewrite

_RELATIVE = 1e-4
"""Allowed difference in units of the largest output: about 1,000 float32 roundings, as in `equivalence`."""
_NAME = "batch"


def free_batch(model: ir.Model) -> ir.Model:
    """A copy that takes any number of samples, where all inputs have one fixed first size; else the model itself.

    It is the model itself too when the copy would compute something else: two batches of the original and one of twice
    the size must give the same rows on onnxruntime, with made-up inputs. Initializers keep their names and values;
    constants that had the batch size in them are replaced by new ones.
    """
    inputs = model_inputs(model)
    batch = fixed_batch(inputs)
    if batch is None or any(given.axis != 0 for given in inputs):
        return model
    tried = (_freed(model, batch, time_first) for time_first in (False, True))
    return next((freed for freed in tried if freed is not None), model)


def _freed(model: ir.Model, batch: int, time_first: bool) -> ir.Model | None:
    freed = model.clone()
    if freed.functions:
        common.InlinePass()(freed)
    edits = Edits(freed, batch, time_first)
    if not rewrite(edits):
        return None
    axes = [0 if edits.sizes(v) is None else edits.axis(v) for v in freed.graph.outputs]
    _declare(freed, edits)
    return freed if _agree(model, freed, batch, axes) else None


def _declare(model: ir.Model, edits: Edits) -> None:
    """Write the new shapes: the batch axis by name, what is not known left open."""
    taken = {d.value for v in model.graph.inputs for d in v.shape or () if isinstance(d, ir.SymbolicDim)}
    name = next(n for n in (_NAME, *(f"{_NAME}_{i}" for i in range(len(taken) + 1))) if n not in taken)
    values = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    values += [output for node in model.graph for output in node.outputs]
    for value in values:
        value.shape = _shape(value, edits, name)
        dtype = edits.before.dtype(value)
        if value.dtype is None and dtype is not None:
            value.dtype = dtype
    for inner in model.graph.subgraphs():
        for value in (output for node in inner for output in node.outputs):
            value.shape = None


def _shape(value: ir.Value, edits: Edits, name: str) -> ir.Shape | None:
    sizes = edits.sizes(value)
    if sizes is None:
        return None
    before, after = sizes
    known: list[int | str | None] = [None] * len(before)
    if value.shape is not None and len(value.shape) == len(before):
        known = [d if isinstance(d, int) else d.value for d in value.shape]
    elif edits.static:
        known = list(before)
    for axis, (old, new) in enumerate(zip(before, after, strict=True)):
        if old != new:
            known[axis] = name if old == edits.batch else None
    return ir.Shape(known)


def _agree(original: ir.Model, freed: ir.Model, batch: int, axes: list[int | None]) -> bool:
    """Whether two batches apart and both together give the same rows.

    Args:
        axes: of each output the axis of the samples; None for an output that does not depend on them.
    """
    setup = Setup(threads=1)
    try:
        feeds = [b.feeds for b in synthetic(original, 2 * batch, 0).batches()]
        apart = [Session(original, setup).run(f) for f in feeds]
        together = Session(freed, setup).run({k: np.concatenate([f[k] for f in feeds]) for k in feeds[0]})
    except CompressorError:
        return False
    pairs = zip(*apart, together, axes, strict=True)
    return all(_rows_agree(a, b, both, axis) for a, b, both, axis in pairs)


def _rows_agree(first: np.ndarray, second: np.ndarray, both: np.ndarray, axis: int | None) -> bool:
    if axis is None:
        return _equal(first, both) and _equal(second, both)
    return bool(np.ndim(first)) and _equal(np.concatenate([first, second], axis), both)


def _equal(expected: np.ndarray, got: np.ndarray) -> bool:
    if not isinstance(expected, np.ndarray) or np.shape(expected) != np.shape(got):
        return False
    if expected.dtype.kind != "f":
        return bool(np.array_equal(expected, got))
    largest = float(np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected)))
    return bool(np.allclose(got, expected, 0.0, _RELATIVE * largest, equal_nan=True))
