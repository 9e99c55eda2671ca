"""Lengths that a graph holds as data: found, and rewritten after a cut.

A Reshape target, the sizes of a Split and the bounds of a Slice are integer tensors: constants, or put together from
constants and from the lengths that Shape reads at run time. `element` follows one element of such a tensor back to
where it comes from.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from compressor.channels.additions import Additions
from compressor.channels.axes import length, same
from compressor.channels.tracing import Extent, Place, Trace
from compressor.graph import attribute, constant, integers, is_constant, rank

_VIEWS = ("Identity", "Unsqueeze", "Squeeze", "Reshape", "Cast", "Flatten")


class Stored(NamedTuple):
    """An element of a constant.

    Args:
        path: the values that lead to it, the operand first and the constant last.
        element: its number in the constant.
        slots: for each value of the path but the last, which input of its node the next one is.
    """

    path: tuple[ir.Value, ...]
    element: int
    slots: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """What is stored there."""
        return int(np.ravel(constant(self.path[-1]))[self.element])  # type: ignore[arg-type]


class Measured(NamedTuple):
    """The length of an axis of a value, read at run time."""

    value: ir.Value
    axis: int


def element(value: ir.Value | None, index: int) -> Stored | Measured | None:
    """Where one element of a flat integer tensor comes from; None when it is computed otherwise."""
    if value is None:
        return None
    if is_constant(value):
        integral = value.dtype is not None and value.dtype.is_integer()
        return Stored((value,), index) if integral else None
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "Shape" and node.inputs[0] is not None:
        start = attribute(node, "start", 0)
        return Measured(node.inputs[0], start + index + ((rank(node.inputs[0]) or 0) if start < 0 else 0))
    if node.op_type in _VIEWS:
        return _through(value, element(node.inputs[0], index))
    if node.op_type == "Concat":
        for slot, operand in enumerate(node.inputs):
            number = count(operand)
            if number is None:
                return None
            if index < number:
                return _through(value, element(operand, index), slot)
            index -= number
    if node.op_type == "Where" and is_constant(node.inputs[0]):
        chosen = np.ravel(constant(node.inputs[0]))  # type: ignore[arg-type]
        if any(count(operand) != chosen.size for operand in node.inputs):
            return None
        slot = 1 if chosen[index] else 2
        return _through(value, element(node.inputs[slot], index), slot)
    if node.op_type == "Gather" and is_constant(node.inputs[1]):
        taken = np.ravel(constant(node.inputs[1]))  # type: ignore[arg-type]
        place = _place(node.inputs[0], int(taken[index])) if index < taken.size else None
    elif node.op_type == "Slice" and all(is_constant(v) for v in node.inputs[1:]) and len(node.inputs) < 5:
        begin = _place(node.inputs[0], int(np.ravel(constant(node.inputs[1]))[0]))  # type: ignore[arg-type]
        place = None if begin is None else begin + index
    else:
        return None
    return None if place is None else _through(value, element(node.inputs[0], place))


def _place(value: ir.Value | None, index: int) -> int | None:
    """The index from the first element; None when it counts from the last one of an unknown number."""
    number = count(value) if index < 0 else 0
    return None if number is None else max(index + number, 0)  # exporters begin a Slice at the least int64


def _through(value: ir.Value, found: Stored | Measured | None, slot: int = 0) -> Stored | Measured | None:
    if not isinstance(found, Stored):
        return found
    return Stored((value, *found.path), found.element, (slot, *found.slots))


def held(node: ir.Node, slot: str | int) -> list[int | Measured | None] | None:
    """The lengths in an attribute or an input: stored, read at run time, or (None) computed.

    None when the slot is empty, or when the number of its elements is not known.
    """
    if isinstance(slot, str):
        listed = integers(node, slot)
        return None if listed is None else list(listed)
    value = node.inputs[slot] if slot < len(node.inputs) else None
    number = count(value)
    if number is None:
        return None
    found = [element(value, index) for index in range(number)]
    return [item.size if isinstance(item, Stored) else item for item in found]


def count(value: ir.Value | None) -> int | None:
    """How many elements an integer tensor has; None when unknown."""
    if value is None:
        return None
    if is_constant(value):
        return int(np.size(constant(value)))  # type: ignore[arg-type]
    if value.shape is not None and all(isinstance(size, int) for size in value.shape):
        return int(np.prod([int(size) for size in value.shape]))  # type: ignore[arg-type]
    node = value.producer()
    if node is None or node.op_type != "Shape":
        return None
    dimensions = rank(node.inputs[0])
    if dimensions is None:
        return None
    return len(range(dimensions)[attribute(node, "start", 0) : attribute(node, "end", dimensions)])


def rewritable(extent: Extent, trace: Trace) -> bool:
    """True when the length can be rewritten after a cut, or follows it by itself."""
    node, slot, index = extent.place
    if isinstance(slot, str):
        return slot in node.attributes
    found = element(node.inputs[slot], index)
    if isinstance(found, Measured):
        read = trace.axes(found.value)[found.axis]
        return len(extent.axes) == 1 and same(read, extent.axes[0])
    if found is None:
        return False
    return found.size == -1 or all(length(axis) is not None for axis in extent.axes)


def rewrite(place: Place, size: int, additions: Additions) -> None:
    """Put a length where the graph holds it; what leads there is copied, since others may read it too.

    A -1 stays: a Reshape infers that length, and to a Slice it is the last position, which is an axis of its own.
    """
    node, slot, index = place
    if isinstance(slot, str):
        listed = integers(node, slot) if node.attributes[slot].type == ir.AttributeType.INTS else None
        if listed is None:
            node.attributes[slot] = ir.AttrInt64(slot, size)
        elif listed[index] != -1:
            node.attributes[slot] = ir.AttrInt64s(slot, [*listed[:index], size, *listed[index + 1 :]])
        return
    found = element(node.inputs[slot], index)
    if not isinstance(found, Stored):
        return
    array = np.array(constant(found.path[-1]))
    if array.reshape(-1)[found.element] in (-1, size):
        return
    array.reshape(-1)[found.element] = size
    fresh = additions.add(str(found.path[-1].name), array)
    for value, read in zip(reversed(found.path[:-1]), reversed(found.slots), strict=True):
        fresh = _copied(value, read, fresh)
    node.replace_input_with(slot, fresh)


def _copied(value: ir.Value, slot: int, new: ir.Value) -> ir.Value:
    """A copy of the node that makes the value, with `new` as its input number `slot`."""
    made = value.producer()
    if made is None or made.graph is None:
        raise ValueError(f"{value.name!r} is not computed")
    inputs = [*made.inputs[:slot], new, *made.inputs[slot + 1 :]]
    twin = ir.node(made.op_type, inputs, dict(made.attributes), domain=made.domain)
    twin.outputs[0].type, twin.outputs[0].shape = value.type, value.shape
    made.graph.insert_before(made, twin)
    return twin.outputs[0]
