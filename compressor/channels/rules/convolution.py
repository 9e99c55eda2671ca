"""Conv and ConvTranspose, dense, grouped and depthwise."""

from __future__ import annotations

import onnx_ir as ir

from compressor.channels.axes import atom, length, product
from compressor.channels.rules.operands import operand
from compressor.channels.tracing import Axes, Place, Rule, Trace, label
from compressor.graph import attribute


def conv(trace: Trace, node: ir.Node) -> None:
    """x, weight and, where the layer has one, bias."""
    convolve(trace, node, node.inputs[0], node.inputs[1], operand(node, 2))


def convolve(
    trace: Trace, node: ir.Node, source: ir.Value | None, weight: ir.Value | None, bias: ir.Value | None
) -> None:
    """x [N, g * I, ...], weight [g * O, I, ...]: channels are cut in the same places of every group, or by groups."""
    groups = attribute(node, "group", 1)
    x, w = trace.axes(source), trace.axes(weight)
    if source is None or weight is None or len(w) < 2 or len(x) != len(w):
        trace.barrier(node, f"Conv {node.name!r} without a weight of known rank")
        return
    group, made = atom(groups), atom((length(w[0]) or 0) // groups)
    trace.join(x[1], product(group, w[1]), node)
    trace.join(w[0], product(group, made), node)
    _kernel(trace, weight, 1)
    if bias is not None:
        trace.join(trace.axes(bias)[0], w[0], node)
    if groups > 1:
        trace.extent(Place(node, "group"), group)
    spatial = _spatial(trace, node, (*w[2:], *x[2:]))
    zero = trace.zero(weight)[0] and (bias is None or trace.zero(bias)[0])
    trace.give(node.outputs[0], (x[0], w[0], *spatial), (False, zero, *(False for _ in spatial)))


def conv_transpose(trace: Trace, node: ir.Node) -> None:
    """x [N, g * I, ...], weight [g * I, O, ...] to [N, g * O, ...]."""
    source, weight, bias = node.inputs[0], node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    x, w = trace.axes(source), trace.axes(weight)
    if source is None or weight is None or len(w) < 2 or len(x) != len(w):
        trace.barrier(node, f"ConvTranspose {node.name!r} without a weight of known rank")
        return
    groups = attribute(node, "group", 1)
    group, read = atom(groups), atom((length(w[0]) or 0) // groups)
    trace.join(w[0], product(group, read), node)
    trace.join(x[1], w[0], node)
    _kernel(trace, weight, 0)
    made = product(group, w[1])
    if bias is not None:
        trace.join(trace.axes(bias)[0], made, node)
    if groups > 1:
        trace.extent(Place(node, "group"), group)
    spatial = _spatial(trace, node, (*w[2:], *x[2:]))
    trace.give(node.outputs[0], (x[0], made, *spatial), (False, True, *(False for _ in spatial)))


def _kernel(trace: Trace, weight: ir.Value, read: int) -> None:
    """The node sums over the channels that it reads, and over the kernel."""
    for axis in (read, *range(2, len(trace.axes(weight)))):
        trace.contracted(weight, axis)


def _spatial(trace: Trace, node: ir.Node, axes: Axes) -> Axes:
    """The spatial axes of the result; those of the operand and of the kernel are pinned."""
    reason = f"{label(node)} slides along it"
    trace.pin(axes, reason)
    out = node.outputs[0]
    return tuple(trace.fresh(out, axis, reason) for axis in range(2, len(trace.axes(node.inputs[0]))))


RULES: dict[str, Rule] = {"Conv": conv, "ConvTranspose": conv_transpose}
