"""Quantized tensors: QuantizeLinear and its kin, and the layers that compute on integers.

Zero means the real number zero here: an integer at its zero point.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from compressor.channels.rules.convolution import convolve
from compressor.channels.rules.operands import (
    Matrix,
    along,
    every,
    left,
    multiplied,
    operand,
    per_channel,
    right,
)
from compressor.channels.tracing import Rule, Trace, label
from compressor.graph import attribute


def rescale(trace: Trace, node: ir.Node) -> None:
    """QuantizeLinear and DequantizeLinear: one scale per tensor, per channel, or per block of an axis."""
    axes, zero = trace.axes(node.inputs[0]), trace.zero(node.inputs[0])
    scale = trace.axes(node.inputs[1])
    axis = attribute(node, "axis", 1)
    number = axis % len(axes) if axis < len(axes) and axes else 0
    if len(scale) > 1:
        _blocks(trace, node, number)
    elif axes:
        per_channel(trace, node, axes[number], *node.inputs[1:])
    trace.give(node.outputs[0], axes, zero)


def _blocks(trace: Trace, node: ir.Node, number: int) -> None:
    """Neighbours along `number` share a scale: that axis stays, the others are cut with their scales."""
    x = trace.axes(node.inputs[0])
    reason = f"{label(node)} holds one scale for a block of it"
    for value in node.inputs[1:]:
        for place, axis in enumerate(trace.axes(value)):
            if place == number:
                trace.pin((axis, x[place]), reason)
            else:
                trace.join(axis, x[place], node)


def dynamic(trace: Trace, node: ir.Node) -> None:
    """The range is taken over the whole tensor and always holds zero, so that zeros do not move it."""
    pin_nonzero(trace, node, node.inputs[0])
    trace.give(node.outputs[0], trace.axes(node.inputs[0]), trace.zero(node.inputs[0]))
    for value in node.outputs[1:]:
        trace.give(value, (), False)


def pin_nonzero(trace: Trace, node: ir.Node, value: ir.Value | None) -> None:
    """Forbid cuts where the range of the tensor would move."""
    for axis, zero in zip(trace.axes(value), trace.zero(value), strict=True):
        if not zero:
            trace.pin(axis, f"{label(node)} takes its range over channels that are not zero")


def integer_matmul(trace: Trace, node: ir.Node) -> None:
    """MatMulInteger: a, b, and the zero points of a's rows and b's columns."""
    a, b = left(trace, node.inputs[0]), right(trace, node.inputs[1])
    multiply(trace, node, a, b, ((operand(node, 2),), (operand(node, 3),)))


def matmul(trace: Trace, node: ir.Node) -> None:
    """QLinearMatMul: a, b and y, each with its scale and zero point."""
    a, b = left(trace, node.inputs[0]), right(trace, node.inputs[3])
    multiply(trace, node, a, b, (node.inputs[1:3], node.inputs[4:6]))


def multiply(
    trace: Trace,
    node: ir.Node,
    a: Matrix,
    b: Matrix,
    scales: tuple[Sequence[ir.Value | None], Sequence[ir.Value | None]],
    bias: ir.Value | None = None,
) -> None:
    """A matrix product of integers; the scales and zero points of each side run along its free axis."""
    known = multiplied(trace, node, a, b)
    for side, parameters in zip((a, b), scales, strict=True):
        for value in parameters:
            if side.free is not None:
                per_channel(trace, node, trace.axes(side.value)[side.free], value)
    zero = every(known.zero, along(trace, node, known.axes, bias))
    trace.give(node.outputs[0], known.axes, zero)


def conv(trace: Trace, node: ir.Node) -> None:
    """QLinearConv: x and w with scale and zero point, those of y, an int32 bias."""
    made = trace.axes(node.inputs[3])
    if made:
        per_channel(trace, node, made[0], *node.inputs[4:6])
    convolve(trace, node, node.inputs[0], node.inputs[3], operand(node, 8))


def integer_conv(trace: Trace, node: ir.Node) -> None:
    """ConvInteger: x, w and their zero points."""
    made = trace.axes(node.inputs[1])
    if made:
        per_channel(trace, node, made[0], operand(node, 3))
    convolve(trace, node, node.inputs[0], node.inputs[1], None)


RULES: dict[str, Rule] = {
    "QuantizeLinear": rescale,
    "DequantizeLinear": rescale,
    "com.microsoft.QuantizeLinear": rescale,
    "com.microsoft.DequantizeLinear": rescale,
    "DynamicQuantizeLinear": dynamic,
    "MatMulInteger": integer_matmul,
    "QLinearMatMul": matmul,
    "QLinearConv": conv,
    "ConvInteger": integer_conv,
}
