"""Operators that work on each element by itself, with numpy's broadcasting."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from compressor.channels.rules.operands import elementwise, operand
from compressor.channels.tracing import Rule, Trace
from compressor.graph import constant, is_constant

_KEEP_ZERO = (
    *(
        "Abs",
        "Neg",
        "Relu",
        "LeakyRelu",
        "Elu",
        "Selu",
        "Celu",
        "ThresholdedRelu",
        "Softsign",
        "Identity",
        "Cast",
    ),
    *(
        "CastLike",
        "Tanh",
        "Sin",
        "Tan",
        "Asin",
        "Atan",
        "Sinh",
        "Asinh",
        "Atanh",
        "Erf",
        "Floor",
        "Ceil",
        "Round",
    ),
    *(
        "Sign",
        "Sqrt",
        "Gelu",
        "Mish",
        "HardSwish",
        "Shrink",
        "Swish",
        "com.microsoft.Gelu",
        "com.microsoft.QuickGelu",
    ),
)
_LOSE_ZERO = (
    *("Sigmoid", "HardSigmoid", "Exp", "Log", "Cos", "Acos", "Cosh", "Acosh", "Softplus", "Reciprocal"),
    *("Not", "IsNaN", "IsInf", "BitwiseNot"),
)
_COMPARE = (
    *("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mod", "And", "Or"),
    *("Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift"),
)


def unary(keeps_zero: bool) -> Rule:
    """f(x) element by element; the axes stay."""

    def rule(trace: Trace, node: ir.Node) -> None:
        axes, zero = trace.axes(node.inputs[0]), trace.zero(node.inputs[0])
        trace.give(node.outputs[0], axes, zero if keeps_zero else False)

    return rule


def broadcast(meets: Callable[[Sequence[bool]], bool]) -> Rule:
    """f(a, b, ...) with broadcasting; `meets` tells from the operands' zeros whether the result is zero."""

    def rule(trace: Trace, node: ir.Node) -> None:
        trace.give(node.outputs[0], *elementwise(trace, node, node.inputs, meets))

    return rule


def dropout(trace: Trace, node: ir.Node) -> None:
    """The values, and which of them were kept."""
    axes, zero = trace.axes(node.inputs[0]), trace.zero(node.inputs[0])
    for number, value in enumerate(node.outputs):
        trace.give(value, axes, zero if number == 0 else False)


def clip(trace: Trace, node: ir.Node) -> None:
    """Zero stays zero when it is within the bounds."""
    axes, zero = trace.axes(node.inputs[0]), trace.zero(node.inputs[0])
    least, greatest = _bound(node, 1, "min"), _bound(node, 2, "max")
    keeps = least is not None and greatest is not None and least <= 0 <= greatest
    trace.give(node.outputs[0], axes, zero if keeps else False)


def _bound(node: ir.Node, slot: int, name: str) -> float | None:
    """The bound, 0 when there is none; None when it is computed."""
    if name in node.attributes:
        return node.attributes[name].as_float()
    value = operand(node, slot)
    array = constant(value) if is_constant(value) else None
    if array is None:
        return 0 if value is None else None
    return float(array.reshape(-1)[0])


def power(trace: Trace, node: ir.Node) -> None:
    """Zero to a positive power is zero."""
    array = constant(node.inputs[1]) if is_constant(node.inputs[1]) else None
    positive = array is not None and bool((array > 0).all())
    meets = _first if positive else _never
    trace.give(node.outputs[0], *elementwise(trace, node, node.inputs, meets))


def _first(zeros: Sequence[bool]) -> bool:
    return zeros[0]


def _chosen(zeros: Sequence[bool]) -> bool:
    """Where(condition, a, b) is zero where both are."""
    return all(zeros[1:])


def _never(zeros: Sequence[bool]) -> bool:
    return False


RULES: dict[str, Rule] = {
    **{op: unary(True) for op in _KEEP_ZERO},
    **{op: unary(False) for op in _LOSE_ZERO},
    **{op: broadcast(all) for op in ("Add", "Sub", "Sum", "Min", "Max", "Mean")},
    **{op: broadcast(_never) for op in _COMPARE},
    **{op: broadcast(_first) for op in ("Div", "PRelu")},
    "Mul": broadcast(any),
    "Pow": power,
    "Where": broadcast(_chosen),
    "Dropout": dropout,
    "Clip": clip,
}
