"""Operators that lay axes one behind the other, or take them apart again: Concat, Split, Slice, Pad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import onnx_ir as ir

from compressor.channels.axes import ONE, Axis, Sum, atom, fixed, length, product, resolved
from compressor.channels.rules.operands import operand
from compressor.channels.sizes import Measured, held
from compressor.channels.tracing import Place, Rule, Trace, label, scalar_zero
from compressor.graph import attribute


def concat(trace: Trace, node: ir.Node) -> None:
    """The sum of the operands' axes; the other axes are shared."""
    values = [value for value in node.inputs if value is not None]
    axes, zero = list(trace.axes(values[0])), list(trace.zero(values[0]))
    along = attribute(node, "axis", 1) % len(axes)
    for value in values[1:]:
        for place, axis in enumerate(trace.axes(value)):
            if place != along:
                trace.join(axes[place], axis, node)
        zero = [a and b for a, b in zip(zero, trace.zero(value), strict=True)]
    parts = [trace.axes(value)[along] for value in values]
    axes[along] = resolved(Sum(tuple(part for part in parts if length(part) != 0) or (parts[0],)))
    trace.give(node.outputs[0], axes, zero)


def split(trace: Trace, node: ir.Node) -> None:
    """Parts of an axis; `find` has written their sizes into the graph where the file did not."""
    axes, zero = list(trace.axes(node.inputs[0])), trace.zero(node.inputs[0])
    along = attribute(node, "axis", 0) % len(axes)
    slot: str | int = "split" if "split" in node.attributes else 1
    sizes = held(node, slot)
    parts = _parts(trace, node, axes[along], sizes, along)
    for place, (value, part) in enumerate(zip(node.outputs, parts, strict=True)):
        if sizes is not None and fixed(part) is None:
            trace.extent(Place(node, slot, place), part)
        trace.give(value, [*axes[:along], part, *axes[along + 1 :]], zero)


def _parts(
    trace: Trace, node: ir.Node, whole: Axis, sizes: Sequence[int | Measured | None] | None, along: int
) -> list[Axis]:
    known = [size for size in sizes or () if isinstance(size, int) and size > 0]
    if fixed(whole) is None and len(known) == len(node.outputs) and sum(known) == length(whole):
        parts = [atom(size) for size in known]
        trace.join(whole, Sum(tuple(parts)), node)
        return parts
    reason = fixed(whole) or f"{label(node)} takes it apart where only the run knows"
    trace.pin(whole, reason)
    return [trace.fresh(value, along, reason) for value in node.outputs]


class Bounds(NamedTuple):
    """What a Slice takes of one axis, and where the node holds it."""

    start: int | Measured | None
    end: int | Measured | None
    step: int
    number: int


def slice_(trace: Trace, node: ir.Node) -> None:
    """Positions start, start + step, ... of some axes."""
    axes, zero = list(trace.axes(node.inputs[0])), list(trace.zero(node.inputs[0]))
    bounds = _bounds(node, len(axes))
    if bounds is None:
        trace.barrier(node, f"{label(node)}: its axes are computed")
        return
    for place, bound in bounds.items():
        axes[place] = _slice_of(trace, node, place, bound)
    trace.give(node.outputs[0], axes, zero)


def _bounds(node: ir.Node, rank: int) -> Mapping[int, Bounds] | None:
    old = "starts" in node.attributes
    starts, ends = held(node, "starts" if old else 1), held(node, "ends" if old else 2)
    axes, steps = held(node, "axes" if old else 3), held(node, 4)
    if starts is None or ends is None or (operand(node, 3) is not None and axes is None):
        return None
    axes = list(range(len(starts))) if axes is None else axes
    found = {}
    for number, axis in enumerate(axes):
        step = 1 if steps is None else steps[number]
        if not isinstance(axis, int) or not isinstance(step, int):
            return None
        found[axis % rank] = Bounds(starts[number], ends[number], step, number)
    return found


def _slice_of(trace: Trace, node: ir.Node, place: int, bound: Bounds) -> Axis:
    whole = trace.axes(node.inputs[0])[place]
    start, end, step, number = bound
    size = length(whole)
    if start == 0 and isinstance(end, int) and end >= (2**31 - 1 if size is None else size) and step == 1:
        return whole
    if fixed(whole) is None and size is not None and isinstance(start, int) and isinstance(end, int):
        first, stop, _ = slice(start, end, step).indices(size)
        if step == 1 and first < stop:
            return _run(trace, node, whole, (first, stop), number)
        if step > 1 and size % step == 0 and first < step and stop > size - step + first:
            outer, inner = atom(size // step), atom(step, f"{label(node)} takes every {step}th position")
            trace.join(whole, product(outer, inner), node)
            return outer
    reason = fixed(whole) or f"{label(node)} takes positions that do not follow a cut"
    trace.pin(whole, reason)
    return trace.fresh(node.outputs[0], place, reason)


def _run(trace: Trace, node: ir.Node, whole: Axis, bounds: tuple[int, int], number: int) -> Axis:
    """Positions first..stop, what is before and behind being axes of their own."""
    (first, stop), size = bounds, length(whole) or 0
    before, taken, after = (atom(n) if n else None for n in (first, stop - first, size - stop))
    parts = tuple(part for part in (before, taken, after) if part is not None)
    trace.join(whole, Sum(parts) if len(parts) > 1 else parts[0], node)
    slots: tuple[str | int, str | int] = ("starts", "ends") if "starts" in node.attributes else (1, 2)
    if before is not None:
        trace.extent(Place(node, slots[0], number), before)
    if after is not None:
        trace.extent(Place(node, slots[1], number), *(part for part in parts if part is not after))
    return taken or ONE


def pad(trace: Trace, node: ir.Node) -> None:
    """An axis between two new ones: those of a constant can be cut like any other, since `pads` is rewritten."""
    axes, zero = list(trace.axes(node.inputs[0])), trace.zero(node.inputs[0])
    slot = next((name for name in ("pads", "paddings") if name in node.attributes), 1)
    pads, places = held(node, slot), held(node, 3)
    places = list(range(len(axes))) if operand(node, 3) is None else places
    if pads is None or places is None or not all(isinstance(place, int) for place in places):
        trace.barrier(node, f"{label(node)}: its widths are computed")
        return
    named = [place % len(axes) for place in places if isinstance(place, int)]
    for number, place in enumerate(named):
        widths = pads[number :: len(named)]
        if widths != [0, 0]:
            axes[place] = _padded(trace, node, place, widths, (slot, number, len(named)))
    stays = _mode(node) != "constant" or _pads_zeros(node)
    trace.give(node.outputs[0], axes, zero if stays else False)


def _padded(
    trace: Trace,
    node: ir.Node,
    place: int,
    widths: Sequence[int | Measured | None],
    held_at: tuple[str | int, int, int],
) -> Axis:
    whole = trace.axes(node.inputs[0])[place]
    known = [width for width in widths if isinstance(width, int) and width >= 0]
    if fixed(whole) is not None or len(known) < 2 or _mode(node) != "constant":
        reason = fixed(whole) or f"{label(node)} pads it"
        trace.pin(whole, reason)
        return trace.fresh(node.outputs[0], place, reason)
    before, after = (atom(n) if n else None for n in known)
    slot, number, count = held_at
    for part, element in ((before, number), (after, number + count)):
        if part is not None:
            trace.extent(Place(node, slot, element), part)
    return resolved(Sum(tuple(part for part in (before, whole, after) if part is not None)))


def _mode(node: ir.Node) -> str:
    mode = node.attributes.get("mode")
    return "constant" if mode is None else mode.as_string()


def _pads_zeros(node: ir.Node) -> bool:
    value = operand(node, 2)
    held_value = node.attributes.get("value")
    return (value is None or scalar_zero(value)) and (held_value is None or held_value.as_float() == 0)


RULES: dict[str, Rule] = {"Concat": concat, "Split": split, "Slice": slice_, "Pad": pad}
