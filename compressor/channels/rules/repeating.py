"""Operators whose output holds a value more than once, as often as a shape says: Expand, Tile, ConstantOfShape."""

from __future__ import annotations

import onnx_ir as ir

from compressor.channels.axes import ONE, Axis, atom, length, product
from compressor.channels.sizes import Measured, held
from compressor.channels.tracing import Place, Rule, Trace, label, scalar_zero


def expand(trace: Trace, node: ir.Node) -> None:
    """Axes of length one stretched to what the shape says, from the last axis on."""
    axes, zero, out = trace.axes(node.inputs[0]), trace.zero(node.inputs[0]), node.outputs[0]
    rank = len(out.shape or ())
    sizes = held(node, 1) or [None] * rank
    made: list[Axis] = []
    flags = []
    for place in range(-rank, 0):
        axis = axes[place] if -place <= len(axes) else ONE
        stretched = length(axis) == 1
        size = sizes[place] if -place <= len(sizes) else 1
        if stretched:
            axis = _stretched(trace, node, size, rank + place)
        if size != 1:
            trace.extent(Place(node, 1, len(sizes) + place), axis)
        made.append(axis)
        flags.append(scalar_zero(node.inputs[0]) if stretched else zero[place])
    trace.give(out, made, flags)


def _stretched(trace: Trace, node: ir.Node, size: int | Measured | None, place: int) -> Axis:
    if isinstance(size, int) and size > 0:
        return atom(size)
    if isinstance(size, Measured):
        return trace.axes(size.value)[size.axis]
    return trace.fresh(node.outputs[0], place, f"{label(node)} computes its length")


def tile(trace: Trace, node: ir.Node) -> None:
    """Each axis `repeats` times in a row: product(repeats, axis)."""
    axes, zero, repeats = list(trace.axes(node.inputs[0])), list(trace.zero(node.inputs[0])), held(node, 1)
    if repeats is None or len(repeats) != len(axes):
        trace.barrier(node, f"{label(node)}: its repeats are computed")
        return
    for place, (axis, count) in enumerate(zip(axes, repeats, strict=True)):
        if count == 1:
            continue
        if not isinstance(count, int):
            reason = f"{label(node)} computes its length"
            trace.pin(axis, reason)
            axes[place] = trace.fresh(node.outputs[0], place, reason)
        elif length(axis) == 1:
            axes[place], zero[place] = atom(count), scalar_zero(node.inputs[0])
            trace.extent(Place(node, 1, place), axes[place])
        else:
            axes[place] = product(atom(count, f"{label(node)} repeats it"), axis)
    trace.give(node.outputs[0], axes, zero)


def constant_of_shape(trace: Trace, node: ir.Node) -> None:
    """One number everywhere, in as many places as the shape says."""
    out = node.outputs[0]
    sizes = held(node, 0) or [None] * len(out.shape or ())
    axes = [_stretched(trace, node, size, place) for place, size in enumerate(sizes)]
    for place, axis in enumerate(axes):
        trace.extent(Place(node, 0, place), axis)
    number = node.attributes.get("value")
    trace.give(out, axes, number is None or not number.as_tensor().numpy().any())


RULES: dict[str, Rule] = {"Expand": expand, "Tile": tile, "ConstantOfShape": constant_of_shape}
