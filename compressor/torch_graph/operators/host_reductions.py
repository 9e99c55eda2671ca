"""Reductions of Python lists, for shape arithmetic."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import torch

from compressor.torch_graph.operators.host_values import Host, along, broadcast, listed, rank
from compressor.torch_graph.values import Kernel


def reduce_product(
    data: Host, axes: int | list[int] | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Host:
    """The product over the given axes, over all when omitted (over none with `noop_with_empty_axes`)."""
    chosen = _reduced_axes(data, axes, noop_with_empty_axes)
    return _reduced(data, chosen, keepdims, lambda row: reduce(partial(broadcast, operator.mul), row, 1))


def reduce_sum(
    data: Host, axes: int | list[int] | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Host:
    """The sum over axes, as `reduce_product`."""
    chosen = _reduced_axes(data, axes, noop_with_empty_axes)
    return _reduced(data, chosen, keepdims, lambda row: reduce(partial(broadcast, operator.add), row, 0))


def reduce_min(
    data: Host, axes: int | list[int] | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Host:
    """The least over axes, as `reduce_product`; of an axis that is not empty."""
    chosen = _reduced_axes(data, axes, noop_with_empty_axes)
    return _reduced(data, chosen, keepdims, lambda row: reduce(partial(broadcast, torch.sym_min), row))


def reduce_max(
    data: Host, axes: int | list[int] | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Host:
    """The greatest over axes, as `reduce_product`; of an axis that is not empty."""
    chosen = _reduced_axes(data, axes, noop_with_empty_axes)
    return _reduced(data, chosen, keepdims, lambda row: reduce(partial(broadcast, torch.sym_max), row))


def _reduced_axes(data: Host, axes: int | list[int] | None, noop_with_empty_axes: int) -> list[int]:
    """The axes to reduce, the last first."""
    depth = rank(data)
    if axes is None or axes == []:
        return [] if noop_with_empty_axes else list(range(depth))[::-1]
    return sorted([axis % depth for axis in listed(axes)], reverse=True)


def _reduced(data: Host, axes: list[int], keepdims: int, combine: Callable[[list[Any]], Host]) -> Host:
    for axis in axes:
        data = along(data, axis, lambda row: [combine(row)] if keepdims else combine(row))
    return data


HOST_KERNELS: dict[str, Kernel] = {
    "ReduceMax": reduce_max,
    "ReduceMin": reduce_min,
    "ReduceProd": reduce_product,
    "ReduceSum": reduce_sum,
}
