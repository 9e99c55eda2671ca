"""Operators of onnxruntime (domain com.microsoft) that are a layer and what follows it."""

from __future__ import annotations

import onnx_ir as ir

from compressor.channels.axes import Sum, atom, length
from compressor.channels.rules.convolution import convolve
from compressor.channels.rules.elementwise import broadcast
from compressor.channels.rules.linear import activation_keeps_zero
from compressor.channels.rules.operands import elementwise, operand
from compressor.channels.tracing import Rule, Trace


def conv(trace: Trace, node: ir.Node) -> None:
    """FusedConv: Conv, then a tensor that is added, then an activation."""
    convolve(trace, node, node.inputs[0], node.inputs[1], operand(node, 2))
    out, added = node.outputs[0], operand(node, 3)
    axes, zero = trace.axes(out), trace.zero(out)
    if added is not None:
        for mine, other in zip(axes, trace.axes(added), strict=True):
            trace.join(mine, other, node)
        zero = tuple(a and b for a, b in zip(zero, trace.zero(added), strict=True))
    trace.give(out, axes, zero if activation_keeps_zero(node) else False)


def split_gelu(trace: Trace, node: ir.Node) -> None:
    """BiasSplitGelu: the first half of x + bias times Gelu of the second."""
    axes, zero = elementwise(trace, node, node.inputs, all)
    half = atom((length(axes[-1]) or 0) // 2)
    trace.join(axes[-1], Sum((half, half)), node)
    trace.give(node.outputs[0], (*axes[:-1], half), zero)


RULES: dict[str, Rule] = {
    "com.microsoft.FusedConv": conv,
    "com.microsoft.BiasGelu": broadcast(all),
    "com.microsoft.FastGelu": broadcast(all),
    "com.microsoft.BiasAdd": broadcast(all),
    "com.microsoft.BiasSplitGelu": split_gelu,
}
