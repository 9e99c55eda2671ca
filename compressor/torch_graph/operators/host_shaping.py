"""Shape arithmetic on Python lists: their shapes, joins and repetitions."""

from __future__ import annotations

import operator
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch

from compressor.torch_graph.operators.host_values import (
    Host,
    along,
    broadcast,
    flat,
    integer,
    listed,
    nested,
    rank,
    sizes,
)
from compressor.torch_graph.values import Kernel


def shape(data: torch.Tensor | np.ndarray | Host, *, start: int = 0, end: int | None = None) -> list[int]:
    """The sizes of a tensor's or a host value's axes from `start` to before `end`; symbols stay symbols."""
    return sizes(data)[start:end]


def size(data: torch.Tensor | np.ndarray | Host) -> int:
    """The number of elements."""
    return prod(sizes(data))


def concat(*inputs: Host, axis: int) -> Host:
    """The inputs one after another."""
    if axis % max([rank(value) for value in inputs]):
        return [[item for row in rows for item in row] for rows in zip(*inputs, strict=True)]
    return [item for value in inputs for item in value]


def unsqueeze(data: Host, axes: int | list[int]) -> Host:
    """The value with axes of size 1; `axes` counts in the result."""
    axes = listed(axes)
    depth = rank(data) + len(axes)
    for axis in sorted([axis % depth for axis in axes]):
        data = along(data, axis, lambda value: [value])
    return data


def squeeze(data: Host, axes: int | list[int] | None = None) -> Host:
    """The value without the given axes of size 1, without all such axes when none are given.

    Raises:
        ValueError: an axis of another size.
    """
    found = sizes(data)
    if axes is None or axes == []:
        axes = [axis for axis, length in enumerate(found) if length == 1]
    for axis in sorted([axis % len(found) for axis in listed(axes)], reverse=True):
        data = along(data, axis, _only)
    return data


def _only(row: list[Any]) -> Any:
    (item,) = row
    return item


def reshape(data: Host, shape: list[int], *, allowzero: int = 0) -> Host:
    """The elements in another shape; one size may be -1, and 0 copies a size unless `allowzero`."""
    found = sizes(data)
    if not allowzero:
        shape = [found[axis] if length == 0 else length for axis, length in enumerate(shape)]
    if -1 in shape:
        rest = prod(found) // prod([length for length in shape if length != -1])
        shape = [rest if length == -1 else length for length in shape]
    return nested(flat(data), shape)


def transpose(data: Host, *, perm: list[int] | None = None) -> Host:
    """A matrix with its rows as columns, unless `perm` keeps the order; a list is its own transpose."""
    if rank(data) < 2 or perm == [0, 1]:
        return data
    return [list(column) for column in zip(*data, strict=True)]


def expand(input: Host, shape: list[int]) -> Host:
    """The value broadcast with a shape."""
    return broadcast(lambda element, _: element, input, nested([0] * prod(shape), shape))


def tile(input: Host, repeats: list[int]) -> Host:
    """The value repeated as a whole along every axis."""
    for axis, times in enumerate(repeats):
        input = along(input, axis, partial(operator.mul, times))
    return input


def range_(start: Any, limit: Any, delta: Any) -> list[Any]:
    """start, start + delta, ... before `limit`."""
    if isinstance(start, float):
        count = max(-integer((start - limit) // delta), 0)
        return [broadcast(lambda step: start + step * delta, step) for step in range(count)]
    return list(range(start, limit, delta))


def constant_of_shape(input: list[int], *, value: Any = None) -> Host:
    """One value everywhere, float 0 when omitted; `value` is a number or a list of one."""
    fill = value[0] if isinstance(value, list) else value
    return nested([0.0 if fill is None else fill] * prod(input), input)


HOST_KERNELS: dict[str, Kernel] = {
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "Expand": expand,
    "Range": range_,
    "Reshape": reshape,
    "Shape": shape,
    "Size": size,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
