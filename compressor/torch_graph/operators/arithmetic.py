"""Arithmetic, element by element with multidirectional broadcast, in the dtype of the inputs."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from compressor.torch_graph.operators.unsigned import UNSIGNED, through_int64
from compressor.torch_graph.values import Kernel


@through_int64
def add(a: Tensor, b: Tensor) -> Tensor:
    """a + b."""
    return torch.add(a, b)


@through_int64
def subtract(a: Tensor, b: Tensor) -> Tensor:
    """a - b."""
    return torch.sub(a, b)


@through_int64
def multiply(a: Tensor, b: Tensor) -> Tensor:
    """a * b."""
    return torch.mul(a, b)


@through_int64
def divide(a: Tensor, b: Tensor) -> Tensor:
    """a / b, the quotient of integers truncated toward zero."""
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


@through_int64
def modulo(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """The remainder of a / b, with the sign of b, or with that of a when `fmod` is 1.

    A float remainder of an infinity, or by zero, is NaN.
    """
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@through_int64
def power(x: Tensor, y: Tensor | float) -> Tensor:
    """x ** y in the dtype of x; the exponent may be of another dtype, and is fast as a number."""
    if isinstance(y, Tensor) and y.dtype in UNSIGNED:
        y = y.long()
    return torch.pow(x, y).to(x.dtype)


@through_int64
def absolute(x: Tensor) -> Tensor:
    """|x|, with gradient 0 at 0."""
    return torch.abs(x)


def negative(x: Tensor) -> Tensor:
    """-x."""
    return torch.neg(x)


def reciprocal(x: Tensor) -> Tensor:
    """1 / x."""
    return torch.reciprocal(x)


@through_int64
def maximum(*data: Tensor) -> Tensor:
    """The greatest of one or more tensors; NaN wherever one of them is. The greatest two share a gradient."""
    return reduce(torch.maximum, data)


@through_int64
def minimum(*data: Tensor) -> Tensor:
    """The least of one or more tensors; NaN wherever one of them is. The least two share a gradient."""
    return reduce(torch.minimum, data)


def total(*data: Tensor) -> Tensor:
    """The sum of one or more tensors."""
    return reduce(torch.add, data)


def average(*data: Tensor) -> Tensor:
    """The mean of one or more tensors."""
    return total(*data) / len(data)


KERNELS: dict[str, Kernel] = {
    "Abs": absolute,
    "Add": add,
    "Div": divide,
    "Max": maximum,
    "Mean": average,
    "Min": minimum,
    "Mod": modulo,
    "Mul": multiply,
    "Neg": negative,
    "Pow": power,
    "Reciprocal": reciprocal,
    "Sub": subtract,
    "Sum": total,
}
