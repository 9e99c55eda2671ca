"""Shape arithmetic on Python lists: reading and writing some of their elements."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from compressor.torch_graph.operators.host_shaping import transpose
from compressor.torch_graph.operators.host_values import Host, along, broadcast, rank, sizes
from compressor.torch_graph.values import Kernel

_COMBINED: dict[str, Callable[[Any, Any], Any]] = {
    "none": lambda old, new: new,
    "add": operator.add,
    "mul": operator.mul,
    "min": torch.sym_min,
    "max": torch.sym_max,
}


def gather(data: Host, indices: Host, *, axis: int = 0) -> Host:
    """The elements (or rows) at the indices."""
    return along(data, axis % rank(data), lambda row: _mapped(row, indices))


def _mapped(row: list[Any], indices: Host) -> Host:
    if isinstance(indices, list):
        return [_mapped(row, index) for index in indices]
    return row[indices]


def slice_(
    data: Host,
    starts: list[int],
    ends: list[int],
    axes: list[int] | None = None,
    steps: list[int] | None = None,
) -> Host:
    """Every step-th element from a start to before an end; bounds outside the list mean its ends."""
    depth = rank(data)
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        data = along(data, axis % depth, partial(_cut, start, end, step))
    return data


def _cut(start: int, end: int, step: int, row: list[Any]) -> list[Any]:
    """A slice as ONNX clamps it: a negative step starts inside the list, where Python would find nothing."""
    return row[start:end:step] if step > 0 else row[max(start, -len(row)) : end : step]


def split(
    input: Host,
    split: list[int] | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    outputs: int = 1,
) -> Host:
    """The parts of the given sizes, or equal parts, of which the last may be smaller: a list of host values, the
    part itself when one output is wanted.
    """
    axis %= rank(input)
    if split is None:
        count, length = num_outputs or outputs, sizes(input)[axis]
        part = (length + count - 1) // count
        split = [part] * (count - 1) + [length - part * (count - 1)]
    ends = [sum(split[: at + 1]) for at in range(len(split))]
    parts = [
        along(input, axis, partial(_cut, end - length, end, 1))
        for length, end in zip(split, ends, strict=True)
    ]
    return parts if outputs > 1 else parts[0]


def scatter_elements(
    data: Host, indices: Host, updates: Host, *, axis: int = 0, reduction: str = "none"
) -> Host:
    """The value with each update at its own position, but at its index along `axis`."""
    depth = rank(data)
    if depth == 2 and axis % depth == 0:
        columns = [transpose(value) for value in (data, indices, updates)]
        return transpose(scatter_elements(*columns, axis=1, reduction=reduction))
    if depth == 2:
        rows = zip(data, indices, updates, strict=False)
        changed = [scatter_elements(*row, reduction=reduction) for row in rows]
        return changed + data[len(changed) :]
    result = list(data)
    for index, update in zip(indices, updates, strict=True):
        result[index] = _COMBINED[reduction](result[index], update)
    return result


def scatter_nd(data: Host, indices: Host, updates: Host, *, reduction: str = "none") -> Host:
    """The value with elements (or rows) replaced at index tuples, the last axis of `indices`."""
    if indices and rank(indices) == 1:
        return _replaced(data, indices, updates, _COMBINED[reduction])
    for index, update in zip(indices, updates, strict=True):
        data = scatter_nd(data, index, update, reduction=reduction)
    return data


def _replaced(data: Host, index: list[int], update: Host, combine: Callable[[Any, Any], Any]) -> Host:
    if not index:
        return broadcast(combine, data, update)
    at = index[0] % len(data)
    return [*data[:at], _replaced(data[at], index[1:], update, combine), *data[at + 1 :]]


HOST_KERNELS: dict[str, Kernel] = {
    "Gather": gather,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "Slice": slice_,
    "Split": split,
}
