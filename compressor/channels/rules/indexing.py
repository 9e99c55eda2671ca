"""Operators that look positions up by number: Gather and Scatter in all forms, OneHot, NonZero."""

from __future__ import annotations

import onnx_ir as ir

from compressor.channels.axes import length
from compressor.channels.tracing import Rule, Trace, label
from compressor.graph import attribute, is_constant


def gather(trace: Trace, node: ir.Node) -> None:
    """The axis is replaced by those of the indices; rows of a constant are what an embedding makes."""
    data, indices = node.inputs[0], node.inputs[1]
    axes, zero = trace.axes(data), trace.zero(data)
    place = attribute(node, "axis", 0) % max(len(axes), 1)
    if data is not None and is_constant(data) and len(axes) > 1:
        trace.looked_up(data)
        trace.contracted(data, place)
    trace.pin(axes[place], f"{label(node)} looks it up by number")
    found = trace.axes(indices)
    flags = (*zero[:place], *(False for _ in found), *zero[place + 1 :])
    trace.give(node.outputs[0], (*axes[:place], *found, *axes[place + 1 :]), flags)


def gather_nd(trace: Trace, node: ir.Node) -> None:
    """The last axis of the indices holds a position along the first axes behind the batch axes."""
    axes, zero = trace.axes(node.inputs[0]), trace.zero(node.inputs[0])
    picks, batch = trace.axes(node.inputs[1]), attribute(node, "batch_dims", 0)
    depth = length(picks[-1])
    if depth is None:
        trace.barrier(node, f"{label(node)}: how many axes it indexes is not known")
        return
    for a, b in zip(axes[:batch], picks[:batch], strict=True):
        trace.join(a, b, node)
    for axis in axes[batch : batch + depth]:
        trace.pin(axis, f"{label(node)} looks it up by number")
    kept = axes[batch + depth :]
    flags = (False,) * (len(picks) - 1) + zero[batch + depth :]
    trace.give(node.outputs[0], (*picks[:-1], *kept), flags)


def scatter_nd(trace: Trace, node: ir.Node) -> None:
    """Slices of the data are replaced; what is in a slice is shared with the updates."""
    data, indices, updates = node.inputs[:3]
    axes, zero, picks, new = trace.axes(data), trace.zero(data), trace.axes(indices), trace.axes(updates)
    depth = length(picks[-1])
    if depth is None:
        trace.barrier(node, f"{label(node)}: how many axes it indexes is not known")
        return
    reason = f"{label(node)} puts values at numbered positions"
    for axis in (*axes[:depth], *picks[:-1], *new[: len(picks) - 1]):
        trace.pin(axis, reason)
    flags = [False] * depth
    for place, axis in enumerate(axes[depth:]):
        trace.join(axis, new[len(picks) - 1 + place], node)
        flags.append(zero[depth + place] and trace.zero(updates)[len(picks) - 1 + place])
    trace.give(node.outputs[0], axes, flags)


def element_by_element(trace: Trace, node: ir.Node) -> None:
    """Indices shaped like the result: axes they run over entirely pass, the one looked up does not."""
    data, indices = node.inputs[0], node.inputs[1]
    axes, picks = trace.axes(data), trace.axes(indices)
    reason = f"{label(node)} looks it up by number"
    for value in node.inputs:
        for axis in trace.axes(value):
            trace.pin(axis, reason)
    trace.give(node.outputs[0], picks if node.op_type == "GatherElements" else axes, False)


def one_hot(trace: Trace, node: ir.Node) -> None:
    """A new axis with one position per class."""
    axes, out = trace.axes(node.inputs[0]), node.outputs[0]
    place = attribute(node, "axis", -1) % (len(axes) + 1)
    made = trace.fresh(out, place, f"{label(node)} makes a position per class")
    trace.give(out, (*axes[:place], made, *axes[place:]), False)


def listed(trace: Trace, node: ir.Node) -> None:
    """NonZero, Unique, NonMaxSuppression: positions or values that the run picks."""
    reason = f"{label(node)} picks from it"
    for value in node.inputs:
        for axis in trace.axes(value):
            trace.pin(axis, reason)
    for value in node.outputs:
        axes = [trace.fresh(value, place, reason) for place in range(len(value.shape or ()))]
        trace.give(value, axes, False)


RULES: dict[str, Rule] = {
    "Gather": gather,
    "GatherND": gather_nd,
    "ScatterND": scatter_nd,
    **dict.fromkeys(("GatherElements", "ScatterElements", "Scatter"), element_by_element),
    "OneHot": one_hot,
    **dict.fromkeys(("NonZero", "Unique", "NonMaxSuppression"), listed),
}
