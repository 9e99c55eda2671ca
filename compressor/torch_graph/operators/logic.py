"""Comparison, logic, bits and choice, element by element with multidirectional broadcast."""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.torch_graph.operators.unsigned import UNSIGNED, through_int64
from compressor.torch_graph.values import Kernel


def equal(a: Tensor, b: Tensor) -> Tensor:
    """Whether a = b; NaN equals nothing."""
    return torch.eq(a, b)


@through_int64
def greater(a: Tensor, b: Tensor) -> Tensor:
    """Whether a > b."""
    return torch.gt(a, b)


@through_int64
def greater_or_equal(a: Tensor, b: Tensor) -> Tensor:
    """Whether a >= b."""
    return torch.ge(a, b)


@through_int64
def less(a: Tensor, b: Tensor) -> Tensor:
    """Whether a < b."""
    return torch.lt(a, b)


@through_int64
def less_or_equal(a: Tensor, b: Tensor) -> Tensor:
    """Whether a <= b."""
    return torch.le(a, b)


def logical_and(a: Tensor, b: Tensor) -> Tensor:
    """Whether both are true."""
    return torch.logical_and(a, b)


def logical_or(a: Tensor, b: Tensor) -> Tensor:
    """Whether one or both are true."""
    return torch.logical_or(a, b)


def logical_xor(a: Tensor, b: Tensor) -> Tensor:
    """Whether exactly one is true."""
    return torch.logical_xor(a, b)


def logical_not(x: Tensor) -> Tensor:
    """Whether x is false."""
    return torch.logical_not(x)


def bitwise_and(a: Tensor, b: Tensor) -> Tensor:
    """The bits that are set in both."""
    return torch.bitwise_and(a, b)


def bitwise_or(a: Tensor, b: Tensor) -> Tensor:
    """The bits that are set in one or both."""
    return torch.bitwise_or(a, b)


def bitwise_xor(a: Tensor, b: Tensor) -> Tensor:
    """The bits that are set in exactly one."""
    return torch.bitwise_xor(a, b)


@through_int64
def bitwise_not(x: Tensor) -> Tensor:
    """Every bit flipped."""
    return torch.bitwise_not(x)


def bit_shift(x: Tensor, y: Tensor, *, direction: str) -> Tensor:
    """The bits of x moved by y places to the LEFT or RIGHT; the sign of a signed x is extended to the right.

    A shift by a negative number or by all bits leaves what an endless one would: 0, or -1 of a negative x to the
    right.
    """
    if x.dtype not in UNSIGNED:
        shift = torch.bitwise_left_shift if direction == "LEFT" else torch.bitwise_right_shift
        return shift(x, y)
    kind, places, x, y = x.dtype, 8 * x.itemsize, x.long(), y.long()
    if direction == "LEFT":
        moved = torch.bitwise_left_shift(x, y)
    else:
        # int64 extends the sign of a great uint64: one place by a mask, the others after it
        moved = torch.where(y == 0, x, ((x >> 1) & torch.iinfo(torch.int64).max) >> (y - 1))
    return torch.where((y >= 0) & (y < places), moved, 0).to(kind)


def where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """x where the condition holds, else y."""
    return torch.where(condition, x, y)


def is_infinite(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Whether x is an infinity of a sign that is asked for."""
    x = _computable(x)
    if detect_negative and detect_positive:
        return torch.isinf(x)
    if detect_negative or detect_positive:
        return torch.isneginf(x) if detect_negative else torch.isposinf(x)
    return torch.zeros_like(x, dtype=torch.bool)


def is_nan(x: Tensor) -> Tensor:
    """Whether x is not a number."""
    return torch.isnan(_computable(x))


def _computable(x: Tensor) -> Tensor:
    """8-bit floats as float32: torch stores them, and computes nothing with them."""
    return x.float() if x.itemsize == 1 else x


KERNELS: dict[str, Kernel] = {
    "And": logical_and,
    "BitShift": bit_shift,
    "BitwiseAnd": bitwise_and,
    "BitwiseNot": bitwise_not,
    "BitwiseOr": bitwise_or,
    "BitwiseXor": bitwise_xor,
    "Equal": equal,
    "Greater": greater,
    "GreaterOrEqual": greater_or_equal,
    "IsInf": is_infinite,
    "IsNaN": is_nan,
    "Less": less,
    "LessOrEqual": less_or_equal,
    "Not": logical_not,
    "Or": logical_or,
    "Where": where,
    "Xor": logical_xor,
}
