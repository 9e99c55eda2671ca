"""Normalizations: with stored statistics, per channel, over channels, and over groups of channels.

A cut under statistics that are taken over channels changes them for the channels that stay. Such channels are marked
`normalized`; all others are cut exactly.
"""

from __future__ import annotations

import onnx_ir as ir

from compressor.channels.axes import ONE, Axis, atom, length, product
from compressor.channels.rules.operands import along, elementwise, every, operand
from compressor.channels.tracing import Known, Place, Rule, Trace, label
from compressor.graph import attribute, integers


def batch(trace: Trace, node: ir.Node) -> None:
    """x [N, C, ...] with scale, bias, mean and variance [C]; in training the statistics are outputs as well."""
    if not attribute(node, "spatial", 1):
        trace.barrier(node, f"{label(node)} with parameters per position")
        return
    axes = trace.axes(node.inputs[0])
    channel = axes[1] if len(axes) > 1 else ONE
    scale, bias = (along(trace, node, (channel,), value)[0] for value in node.inputs[1:3])
    for value in node.inputs[3:5]:
        along(trace, node, (channel,), value)
    if attribute(node, "training_mode", 0) or len(node.outputs) > 1:
        for axis in (*axes[:1], *axes[2:]):
            trace.normalized(axis, node)
    zero = [False] * len(axes)
    zero[1:2] = [scale and bias]
    trace.give(node.outputs[0], axes, zero)
    for statistic in node.outputs[1:]:
        trace.give(statistic, (channel,), False)


def layer(trace: Trace, node: ir.Node) -> None:
    """LayerNormalization and RMSNormalization: statistics over `axis` and all axes behind it."""
    axes, zero = trace.axes(node.inputs[0]), trace.zero(node.inputs[0])
    first = attribute(node, "axis", -1) % len(axes)
    known = over_last(trace, node, Known(axes, zero), first, (node.inputs[1], operand(node, 2)))
    trace.give(node.outputs[0], *known)
    for statistic in node.outputs[1:]:
        trace.give(statistic, (*axes[:first], *(ONE for _ in axes[first:])), False)


def over_last(
    trace: Trace, node: ir.Node, x: Known, first: int, parameters: tuple[ir.Value | None, ir.Value | None]
) -> Known:
    """x normalized over the axes from `first` on, then scaled and shifted by parameters stretched to it."""
    for axis in x.axes[first:]:
        trace.normalized(axis, node)
    scale, bias = (along(trace, node, x.axes, value) for value in parameters)
    unscaled = (*x.zero[:first], *(False for _ in x.axes[first:]))
    scaled = tuple(a or b for a, b in zip(unscaled, scale, strict=True))
    return Known(x.axes, every(scaled, bias))


def group(trace: Trace, node: ir.Node) -> None:
    """x [N, groups * width, ...]; scale and bias per channel, or per group before operator set 21.

    A group is cut with its statistics, so exactly; inside a group a cut changes them.
    """
    axes = trace.axes(node.inputs[0])
    count, channels = attribute(node, "num_groups", 1), length(axes[1])
    if channels is None or channels % count:
        trace.barrier(node, f"{label(node)} of an unknown number of channels")
        return
    groups, width = atom(count), atom(channels // count)
    trace.join(axes[1], product(groups, width), node)
    for axis in (width, *axes[2:]):
        trace.normalized(axis, node)
    trace.extent(Place(node, "num_groups"), groups)
    each = length(trace.axes(node.inputs[1])[0]) == channels
    parameter = product(groups, width) if each else groups
    zero = all([along(trace, node, (parameter,), value)[0] for value in node.inputs[1:3]]) and each
    trace.give(node.outputs[0], axes, (False, zero, *(False for _ in axes[2:])))


def instance(trace: Trace, node: ir.Node) -> None:
    """x [N, C, ...]: statistics over all axes behind the channels, which an exported GroupNorm puts channels in."""
    axes = trace.axes(node.inputs[0])
    zero = all([along(trace, node, axes[1:2], value)[0] for value in node.inputs[1:3]])
    for axis in axes[2:]:
        trace.normalized(axis, node)
    trace.give(node.outputs[0], axes, (False, zero, *(False for _ in axes[2:])))


def mean_variance(trace: Trace, node: ir.Node) -> None:
    """Zero mean and variance one over `axes`, by default all but the channels."""
    axes, zero = trace.axes(node.inputs[0]), list(trace.zero(node.inputs[0]))
    for number in integers(node, "axes") or (0, 2, 3):
        trace.normalized(axes[number], node)
        zero[number] = False
    trace.give(node.outputs[0], axes, zero)


def lp(trace: Trace, node: ir.Node) -> None:
    """x over its norm along `axis`: zeros add nothing to the norm."""
    axes, zero = trace.axes(node.inputs[0]), trace.zero(node.inputs[0])
    number = attribute(node, "axis", -1) % len(axes)
    if not zero[number]:
        trace.pin(axes[number], f"{label(node)} reads channels that are not zero when masked")
    trace.give(node.outputs[0], axes, zero)


def local_response(trace: Trace, node: ir.Node) -> None:
    """Each channel over what its neighbours hold, so that none can go without moving the others."""
    axes, zero = trace.axes(node.inputs[0]), trace.zero(node.inputs[0])
    trace.pin(axes[1], f"{label(node)} reads the neighbours of a channel")
    trace.give(node.outputs[0], axes, zero)


def skip_layer(bias: int) -> Rule:
    """LayerNormalization of input + skip + bias, as onnxruntime fuses it; without beta when `bias` is 3.

    Args:
        bias: which input it is.
    """

    def rule(trace: Trace, node: ir.Node) -> None:
        beta = operand(node, 3) if bias > 3 else None
        added = elementwise(trace, node, (*node.inputs[:2], operand(node, bias)), all)
        last = len(added.axes) - 1
        known = over_last(trace, node, added, last, (node.inputs[2], beta))
        statistics = Known((*added.axes[:last], ONE), (False,) * len(added.axes))
        for value, found in zip(node.outputs, (known, statistics, statistics, added), strict=False):
            trace.give(value, *found)

    return rule


def embed_layer(trace: Trace, node: ir.Node) -> None:
    """LayerNormalization of a sum of embeddings: ids [B, S] to [B, S, H]."""
    ids, tables = node.inputs[0], node.inputs[2:5]
    width: Axis | None = None
    for table in tables:
        if table is None:
            continue
        rows, columns = trace.axes(table)
        trace.pin(rows, f"{label(node)} looks rows up")
        trace.looked_up(table)
        if width is not None:
            trace.join(width, columns, node)
        width = width or columns
    zero = all(trace.zero(table)[1] for table in tables if table is not None)
    lead = trace.axes(ids)
    added = Known((*lead, width or ONE), (*(False for _ in lead), zero))
    known = over_last(trace, node, added, len(lead), (node.inputs[5], node.inputs[6]))
    mask = Known(lead[:1], (False,))
    for value, found in zip(node.outputs, (known, mask, added), strict=False):
        trace.give(value, *found)


RULES: dict[str, Rule] = {
    "BatchNormalization": batch,
    "LayerNormalization": layer,
    "RMSNormalization": layer,
    "SimplifiedLayerNormalization": layer,
    "GroupNormalization": group,
    "InstanceNormalization": instance,
    "MeanVarianceNormalization": mean_variance,
    "LpNormalization": lp,
    "LRN": local_response,
    "com.microsoft.SkipLayerNormalization": skip_layer(bias=4),
    "com.microsoft.SkipSimplifiedLayerNormalization": skip_layer(bias=3),
    "com.microsoft.EmbedLayerNormalization": embed_layer,
}
