"""The integer operators of onnxruntime (domain com.microsoft)."""

from __future__ import annotations

import onnx_ir as ir

from compressor.channels.axes import ONE, Axis, Sum, atom, resolved
from compressor.channels.rules.elementwise import unary
from compressor.channels.rules.operands import elementwise, left, operand, right
from compressor.channels.rules.quantized import multiply, pin_nonzero
from compressor.channels.tracing import Rule, Trace, label
from compressor.graph import attribute


def to_float(trace: Trace, node: ir.Node) -> None:
    """MatMulIntegerToFloat: a, b, their scales, their zero points, a bias."""
    a, b = left(trace, node.inputs[0]), right(trace, node.inputs[1])
    scales = (node.inputs[2], operand(node, 4)), (node.inputs[3], operand(node, 5))
    multiply(trace, node, a, b, scales, operand(node, 6))


def dynamic_matmul(trace: Trace, node: ir.Node) -> None:
    """DynamicQuantizeMatMul: a is quantized here by its own range, then as MatMulIntegerToFloat."""
    pin_nonzero(trace, node, node.inputs[0])
    a, b = left(trace, node.inputs[0]), right(trace, node.inputs[1])
    multiply(trace, node, a, b, ((), (node.inputs[2], operand(node, 3))), operand(node, 4))


def gemm(trace: Trace, node: ir.Node) -> None:
    """QGemm: a and b with scale and zero point, either transposed, and an int32 bias."""
    a = left(trace, node.inputs[0], bool(attribute(node, "transA", 0)))
    b = right(trace, node.inputs[3], bool(attribute(node, "transB", 0)))
    multiply(trace, node, a, b, (node.inputs[1:3], node.inputs[4:6]), operand(node, 6))


def binary(meets_all: bool) -> Rule:
    """QLinearAdd and QLinearMul: a and b, each with scale and zero point, broadcast."""

    def rule(trace: Trace, node: ir.Node) -> None:
        values = node.inputs[0], node.inputs[3]
        trace.give(node.outputs[0], *elementwise(trace, node, values, all if meets_all else any))

    return rule


def pool(trace: Trace, node: ir.Node) -> None:
    """QLinearAveragePool and QLinearGlobalAveragePool: channels pass, space does not."""
    axes, zero = trace.axes(node.inputs[0]), trace.zero(node.inputs[0])
    channel = len(axes) - 1 if attribute(node, "channels_last", 0) else 1
    reason = f"{label(node)} pools over it"
    made, flags = list(axes), list(zero)
    for number, axis in enumerate(axes):
        if number in (0, channel):
            continue
        trace.pin(axis, reason)
        whole = node.op_type == "QLinearGlobalAveragePool"
        made[number] = ONE if whole else trace.fresh(node.outputs[0], number, reason)
        flags[number] = False
    trace.give(node.outputs[0], made, flags)


def concat(trace: Trace, node: ir.Node) -> None:
    """QLinearConcat: scale and zero point of y, then value, scale and zero point of each part."""
    values = node.inputs[2::3]
    first = trace.axes(values[0])
    number = attribute(node, "axis", 0) % len(first)
    made: list[Axis] = list(first)
    for value in values[1:]:
        for place, (mine, other) in enumerate(zip(first, trace.axes(value), strict=True)):
            if place != number:
                trace.join(mine, other, node)
    made[number] = resolved(Sum(tuple(trace.axes(value)[number] for value in values)))
    zero = [all(flags) for flags in zip(*(trace.zero(value) for value in values), strict=True)]
    trace.give(node.outputs[0], made, zero)


def softmax(trace: Trace, node: ir.Node) -> None:
    """QLinearSoftmax: e^0 counts, so the axis stays; before operator set 13 so do those behind it."""
    axes = trace.axes(node.inputs[0])
    number = attribute(node, "axis", -1) % len(axes)
    behind = attribute(node, "opset", 13) < 13
    trace.pin(axes[number:] if behind else axes[number], f"{label(node)} runs over it")
    trace.give(node.outputs[0], axes, False)


def packed(trace: Trace, node: ir.Node) -> None:
    """MatMulNBits and its kin: columns share bytes and scales, so that nothing is cut on either side."""
    reason = f"{label(node)}: packed weights"
    axes = trace.axes(node.inputs[0])
    trace.pin(axes[-1], reason)
    for value in node.inputs[1:]:
        trace.pin(trace.axes(value), reason)
    trace.give(node.outputs[0], (*axes[:-1], atom(attribute(node, "N", 0) or None, reason)), False)


RULES: dict[str, Rule] = {
    "com.microsoft.MatMulIntegerToFloat": to_float,
    "com.microsoft.DynamicQuantizeMatMul": dynamic_matmul,
    "com.microsoft.QGemm": gemm,
    "com.microsoft.QLinearAdd": binary(meets_all=True),
    "com.microsoft.QLinearMul": binary(meets_all=False),
    "com.microsoft.QLinearLeakyRelu": unary(keeps_zero=True),
    "com.microsoft.QLinearSigmoid": unary(keeps_zero=False),
    "com.microsoft.QLinearAveragePool": pool,
    "com.microsoft.QLinearGlobalAveragePool": pool,
    "com.microsoft.QLinearConcat": concat,
    "com.microsoft.QLinearSoftmax": softmax,
    "com.microsoft.MatMulNBits": packed,
    "com.microsoft.MatMulBnb4": packed,
}
