"""Made-up inputs for a model, for when there is no data: to run, time and compare it, not to calibrate it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from compressor.data.arithmetic import Array
from compressor.data.inputs import Dim, Input
from compressor.data.rows import ArrayColumn, Column, Rows
from compressor.errors import DataError, OptionError, did_you_mean

_TOP_ID = 99
_THROUGH = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze")


def synthetic_rows(
    model: ir.Model, specs: Sequence[Input], count: int, seed: int, sizes: Mapping[str, int] | None
) -> Rows:
    """`count` samples drawn from `seed`; see `compressor.data.synthetic`."""
    if count < 1:
        raise OptionError(f"synthetic: count must be at least 1, got {count!r}.")
    known = dict(sizes or {})
    _check_sizes(known, specs)
    rng = np.random.default_rng(seed)
    columns: dict[str, Column] = {}
    values = {value.name: value for value in model.graph.inputs}
    for spec in specs:
        row = _row(spec, known)
        top = _top_id(values[spec.name])
        if spec.axis is None:
            x = np.broadcast_to(_draw(spec, (1, *row), top, rng), (count, *row))
        else:
            x = _draw(spec, (count, *row), top, rng)
        columns[spec.name] = ArrayColumn.of(spec.name, x)
    return Rows(count, columns)


def _check_sizes(sizes: Mapping[str, int], specs: Sequence[Input]) -> None:
    names = {dim for spec in specs for dim in spec.dims or () if isinstance(dim, str)}
    for name, size in sizes.items():
        if name not in names:
            hint = did_you_mean(name, names) if names else "It has none with a name."
            raise OptionError(f"synthetic: the model has no dynamic size {name!r}. {hint}")
        if size < 1:
            raise OptionError(f"synthetic: the size of {name!r} must be at least 1, got {size!r}.")


def _row(spec: Input, known: dict[str, int]) -> tuple[int, ...]:
    """The shape of a sample; sizes of one name are the same everywhere (`known` remembers them)."""
    if spec.row is None or spec.dims is None:
        raise DataError(
            f"synthetic: input {spec.name!r} has no shape. Declare it in the model, or give samples."
        )
    positions = [at for at in range(len(spec.dims)) if at != spec.axis]
    return tuple(_size(spec, at, spec.dims[at], known) for at in positions)


def _size(spec: Input, at: int, dim: Dim, known: dict[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    guess = 32
    if spec.image and spec.floating:
        guess = 3 if at == 1 and not spec.channels_last else 64
    return guess if dim is None else known.setdefault(dim, guess)


def _draw(spec: Input, shape: tuple[int, ...], top: int, rng: np.random.Generator) -> Array:
    name = spec.name.lower()
    if spec.floating:
        return rng.standard_normal(shape, dtype=np.float32).astype(spec.dtype)
    if spec.dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(np.bool_)
    if spec.dtype.kind == "O":
        return np.full(shape, "a", dtype="U1")
    if "mask" in name:
        return np.ones(shape, spec.dtype)
    if "type" in name or "segment" in name:
        return np.zeros(shape, spec.dtype)
    if spec.dtype.kind not in "iu":
        top = 1  # the 2-bit and 4-bit integers hold little more
    return rng.integers(0, min(_TOP_ID, top) + 1, shape).astype(spec.dtype)


def _top_id(value: ir.Value) -> int:
    """The largest index that `value` may hold: the last row of the smallest table that it looks up."""
    top = _TOP_ID
    for node, position in value.uses():
        if node.op_type in _THROUGH and position == 0:
            top = min(top, _top_id(node.outputs[0]))
        if node.op_type != "Gather" or position != 1 or node.inputs[0] is None:
            continue
        table = (
            node.inputs[0].shape if node.inputs[0].const_value is None else node.inputs[0].const_value.shape
        )
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        rows = None if table is None else table[axis]
        top = min(top, rows - 1) if isinstance(rows, int) else top
    return max(top, 0)
