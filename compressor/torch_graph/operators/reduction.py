"""Reductions of some axes to one value each, and where the greatest and the least value is."""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.torch_graph.operators.unsigned import UNSIGNED, through_int64
from compressor.torch_graph.values import Kernel

Axes = list[int] | None
"""The axes that are reduced, negative ones from the end; none or an empty list is all of them, or with
`noop_with_empty_axes` no axis at all: then only what is done to each element is done."""


def _dims(x: Tensor, axes: Axes, noop_with_empty_axes: int) -> list[int]:
    if axes:
        return axes
    return [] if noop_with_empty_axes else list(range(x.ndim))


def _sum(x: Tensor, dims: list[int], keepdims: int) -> Tensor:
    # to torch an empty list is every axis
    return torch.sum(x, dims, bool(keepdims), dtype=x.dtype) if dims else x


@through_int64
def reduce_sum(
    data: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """The sum; 0 of nothing."""
    return _sum(data, _dims(data, axes, noop_with_empty_axes), keepdims)


def reduce_mean(
    data: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """The mean, of integers truncated toward zero; NaN of nothing."""
    dims = _dims(data, axes, noop_with_empty_axes)
    if not dims:
        return data
    if data.is_floating_point():
        return torch.mean(data, dims, bool(keepdims))
    return torch.mean(data.double(), dims, bool(keepdims)).to(data.dtype)


@through_int64
def reduce_l1(data: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """The sum of |x|."""
    return _sum(torch.abs(data), _dims(data, axes, noop_with_empty_axes), keepdims)


def reduce_l2(data: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
    """The root of the sum of x^2, of integers truncated; the gradient at 0 is 0."""
    dims = _dims(data, axes, noop_with_empty_axes)
    if not dims:
        return torch.abs(data)
    x = data if data.is_floating_point() else data.double()
    norm: Tensor = torch.linalg.vector_norm(x, 2, dims, bool(keepdims))
    return norm.to(data.dtype)


@through_int64
def reduce_sum_square(
    data: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """The sum of x^2."""
    return _sum(torch.square(data), _dims(data, axes, noop_with_empty_axes), keepdims)


def reduce_log_sum(
    data: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """The logarithm of the sum; minus infinity of nothing."""
    return torch.log(_sum(data, _dims(data, axes, noop_with_empty_axes), keepdims)).to(data.dtype)


def reduce_log_sum_exp(
    data: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """log(sum(e^x)), without overflow; minus infinity of nothing."""
    dims = _dims(data, axes, noop_with_empty_axes)
    return torch.logsumexp(data, dims, bool(keepdims)).to(data.dtype) if dims else data


@through_int64
def reduce_prod(
    data: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """The product; 1 of nothing."""
    result = data
    # from the last axis on, so that dropping one leaves the others in their places
    for axis in sorted((axis % data.ndim for axis in _dims(data, axes, noop_with_empty_axes)), reverse=True):
        result = torch.prod(result, axis, bool(keepdims), dtype=data.dtype)
    return result


@through_int64
def reduce_max(
    data: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """The greatest value, its gradient shared by equal ones; of nothing the least value of the dtype."""
    dims = _dims(data, axes, noop_with_empty_axes)
    if not data.numel():
        return _sum(data, dims, keepdims).fill_(_end(data.dtype, greatest=False))
    return torch.amax(data, dims, bool(keepdims)) if dims else data


@through_int64
def reduce_min(
    data: Tensor, axes: Axes = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Tensor:
    """The least value, its gradient shared by equal ones; of nothing the greatest value of the dtype."""
    dims = _dims(data, axes, noop_with_empty_axes)
    if not data.numel():
        return _sum(data, dims, keepdims).fill_(_end(data.dtype, greatest=True))
    return torch.amin(data, dims, bool(keepdims)) if dims else data


def _end(kind: torch.dtype, greatest: bool) -> float:
    if kind.is_floating_point:
        return float("inf") if greatest else -float("inf")
    if kind == torch.bool:
        return greatest
    return torch.iinfo(kind).max if greatest else torch.iinfo(kind).min


def arg_max(data: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """The int64 index of the greatest value along one axis, the first or the last of equal ones."""
    x = data.long() if data.dtype in UNSIGNED else data
    if not select_last_index:
        return torch.argmax(x, axis, bool(keepdims))
    return x.shape[axis] - 1 - torch.argmax(x.flip(axis), axis, bool(keepdims))


def arg_min(data: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """The int64 index of the least value along one axis, the first or the last of equal ones."""
    x = data.long() if data.dtype in UNSIGNED else data
    if not select_last_index:
        return torch.argmin(x, axis, bool(keepdims))
    return x.shape[axis] - 1 - torch.argmin(x.flip(axis), axis, bool(keepdims))


KERNELS: dict[str, Kernel] = {
    "ArgMax": arg_max,
    "ArgMin": arg_min,
    "ReduceL1": reduce_l1,
    "ReduceL2": reduce_l2,
    "ReduceLogSum": reduce_log_sum,
    "ReduceLogSumExp": reduce_log_sum_exp,
    "ReduceMax": reduce_max,
    "ReduceMean": reduce_mean,
    "ReduceMin": reduce_min,
    "ReduceProd": reduce_prod,
    "ReduceSum": reduce_sum,
    "ReduceSumSquare": reduce_sum_square,
}
