"""Softmax and its like along one axis; before opset 13 along all axes from there on, taken as one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compressor.torch_graph.values import Kernel

_ONE_AXIS = 13
"""The operator version from which `axis` is the only axis."""


def softmax(input: Tensor, *, axis: int, version: int) -> Tensor:
    """e^x / sum(e^x)."""
    return _along(torch.softmax, input, axis, version)


def log_softmax(input: Tensor, *, axis: int, version: int) -> Tensor:
    """x - log(sum(e^x))."""
    return _along(torch.log_softmax, input, axis, version)


def hardmax(input: Tensor, *, axis: int, version: int) -> Tensor:
    """1 at the first of the greatest values, 0 elsewhere; no gradient."""
    return _along(_first_greatest, input, axis, version)


def _first_greatest(x: Tensor, dim: int) -> Tensor:
    return torch.zeros_like(x).scatter(dim, x.argmax(dim, keepdim=True), 1)


def _along(function: Callable[[Tensor, int], Tensor], x: Tensor, axis: int, version: int) -> Tensor:
    if version >= _ONE_AXIS or axis in (-1, x.ndim - 1):
        return function(x, axis)
    return function(x.flatten(axis), -1).reshape(x.shape)


KERNELS: dict[str, Kernel] = {"Hardmax": hardmax, "LogSoftmax": log_softmax, "Softmax": softmax}
