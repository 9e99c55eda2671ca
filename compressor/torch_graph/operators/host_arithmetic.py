"""Shape arithmetic on Python numbers, element by element."""

from __future__ import annotations

import math
import operator
from functools import partial, reduce
from typing import Any

import onnx_ir as ir
import torch

from compressor.torch_graph.operators.host_values import Host, broadcast, integer, real
from compressor.torch_graph.values import Kernel


def add(a: Host, b: Host) -> Host:
    """a + b."""
    return broadcast(operator.add, a, b)


def subtract(a: Host, b: Host) -> Host:
    """a - b."""
    return broadcast(operator.sub, a, b)


def multiply(a: Host, b: Host) -> Host:
    """a b."""
    return broadcast(operator.mul, a, b)


def divide(a: Host, b: Host) -> Host:
    """a / b; the quotient of integers is cut towards zero."""
    return broadcast(_divide, a, b)


def _divide(a: Any, b: Any) -> Any:
    if isinstance(a, float | torch.SymFloat):
        return a / b
    if a < 0:
        return -_divide(-a, b)
    return a // b if b > 0 else -(a // -b)


def modulo(a: Host, b: Host, *, fmod: int = 0) -> Host:
    """What division leaves, with the sign of b, or of a with `fmod`."""
    return broadcast(_fmod if fmod else operator.mod, a, b)


def _fmod(a: Any, b: Any) -> Any:
    if isinstance(a, float | torch.SymFloat):
        return math.fmod(a, b)
    return a - b * _divide(a, b)


def power(x: Host, y: Host) -> Host:
    """x to the y; an integer x gives an integer, cut towards zero."""
    return broadcast(_power, x, y)


def _power(a: Any, b: Any) -> Any:
    result = a**b
    return result if isinstance(a, float | torch.SymFloat) else integer(result)


def minimum(*data: Host) -> Host:
    """The least of the inputs, element by element."""
    return reduce(partial(broadcast, torch.sym_min), data)


def maximum(*data: Host) -> Host:
    """The greatest of the inputs, element by element."""
    return reduce(partial(broadcast, torch.sym_max), data)


def negate(x: Host) -> Host:
    """-x."""
    return broadcast(operator.neg, x)


def absolute(x: Host) -> Host:
    """|x|."""
    return broadcast(abs, x)


def floor(x: Host) -> Host:
    """The next integer below, as a float."""
    return broadcast(lambda number: real(math.floor(number)), x)


def ceil(x: Host) -> Host:
    """The next integer above, as a float."""
    return broadcast(lambda number: real(math.ceil(number)), x)


def round_(x: Host) -> Host:
    """The nearest integer, of two the even one, as a float."""
    return broadcast(lambda number: real(round(number)), x)


def square_root(x: Host) -> Host:
    """The square root of numbers that are not negative."""
    return broadcast(torch.sym_sqrt, x)


def equal(a: Host, b: Host) -> Host:
    """a = b."""
    return broadcast(operator.eq, a, b)


def greater(a: Host, b: Host) -> Host:
    """a > b."""
    return broadcast(operator.gt, a, b)


def less(a: Host, b: Host) -> Host:
    """a < b."""
    return broadcast(operator.lt, a, b)


def greater_or_equal(a: Host, b: Host) -> Host:
    """a >= b."""
    return broadcast(operator.ge, a, b)


def less_or_equal(a: Host, b: Host) -> Host:
    """a <= b."""
    return broadcast(operator.le, a, b)


def logical_not(x: Host) -> Host:
    """Not x."""
    return broadcast(torch.sym_not, x)


def logical_and(a: Host, b: Host) -> Host:
    """Both."""
    return broadcast(operator.and_, a, b)


def logical_or(a: Host, b: Host) -> Host:
    """Either or both."""
    return broadcast(operator.or_, a, b)


def where(condition: Host, x: Host, y: Host) -> Host:
    """x where the condition holds, y elsewhere."""
    return broadcast(_choose, condition, x, y)


def _choose(condition: Any, x: Any, y: Any) -> Any:
    return x if condition else y


def identity(input: Host) -> Host:
    """The input."""
    return input


def cast(input: Host, *, to: int) -> Host:
    """The numbers as integers (cut towards zero), floats or truth values, as ONNX's element type `to` says."""
    kind = ir.DataType(to)
    if kind == ir.DataType.BOOL:
        return broadcast(lambda number: number != 0, input)
    return broadcast(real if kind.is_floating_point() else integer, input)


HOST_KERNELS: dict[str, Kernel] = {
    "Abs": absolute,
    "Add": add,
    "And": logical_and,
    "Cast": cast,
    "Ceil": ceil,
    "Div": divide,
    "Equal": equal,
    "Floor": floor,
    "Greater": greater,
    "GreaterOrEqual": greater_or_equal,
    "Identity": identity,
    "Less": less,
    "LessOrEqual": less_or_equal,
    "Max": maximum,
    "Min": minimum,
    "Mod": modulo,
    "Mul": multiply,
    "Neg": negate,
    "Not": logical_not,
    "Or": logical_or,
    "Pow": power,
    "Round": round_,
    "Sqrt": square_root,
    "Sub": subtract,
    "Where": where,
}
