"""Groups of channels that must be cut together, read off a trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from compressor.channels.axes import Atom, Axis, atoms, fixed, layout, pin, squares
from compressor.channels.freezing import Freezer
from compressor.channels.rules import RULES
from compressor.channels.sizes import rewritable
from compressor.channels.tracing import Extent, Trace
from compressor.graph import integers, is_constant, opset, remove_dead

_VIEWS = ("Transpose", "DequantizeLinear", "QuantizeLinear", "Cast", "Identity")
Role = Literal["output", "input", "along"]
"""What a channel is to a constant: one of its outputs, one of its inputs, or an element along it (bias, scale)."""


@dataclass(frozen=True, eq=False)
class Member:
    """One axis of one constant that carries the channels of a group.

    Args:
        value: the initializer.
        axis: which of its axes.
        index: int32 [length of the axis]: the channel at each position, -1 where the axis carries something else.
        role: whether its slices make the channels or consume them.
    """

    value: ir.Value
    axis: int
    index: np.ndarray
    role: Role


@dataclass(frozen=True, eq=False)
class Group:
    """Channels 0..size-1 and every slice of every constant that must go when a channel goes.

    Args:
        name: of the constant that makes them, with a number where it makes several groups (heads and their width).
        size: how many channels.
        members: where they are, in the order of the graph.
        normalized: why a cut changes more than the channel (it is under a normalization), or None.
        atom: what the extents of the graph are written in.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    normalized: str | None
    atom: Atom = field(repr=False)

    def weights(self, role: Role) -> list[Member]:
        """The members with that role."""
        return [member for member in self.members if member.role == role]


@dataclass(frozen=True)
class Found:
    """What can be cut in a model, and what cannot.

    Args:
        groups: channels that can be cut, in the order of the graph.
        declined: constant that makes channels -> why they cannot be cut.
        barriers: node name -> why nothing passes through it.
        extents: the lengths that the graph holds.
    """

    groups: tuple[Group, ...]
    declined: Mapping[str, str]
    barriers: Mapping[str, str]
    extents: tuple[Extent, ...] = field(repr=False)


def find(model: ir.Model) -> Found:
    """The groups of a model whose shapes are inferred.

    Lengths that the graph asks for by Shape although the file says them become constants, in place: what is computed
    stays the same, and a cut does not change a scale that was computed from a length.
    """
    trace = Trace(RULES, opset(model), Freezer(model).freeze)
    trace.walk(model.graph)
    remove_dead(model)
    for value in model.graph.outputs:
        trace.pin(trace.axes(value), f"{value.name!r} is an output of the model")
    for extent in trace.extents:
        if not rewritable(extent, trace):
            reason = f"{extent.place.node.op_type} {extent.place.node.name!r} computes its length"
            trace.pin(extent.axes, reason)
    constants = {v: trace.axes(v) for v in trace.known if is_constant(v) and v.is_initializer()}
    for axes in constants.values():
        for axis in axes:
            for found in squares(axis):
                pin(found, "it meets itself on one axis")
    return _grouped(trace, constants)


def _grouped(trace: Trace, constants: Mapping[ir.Value, tuple[Axis, ...]]) -> Found:
    roles = _Roles(trace)
    members: dict[Atom, list[Member]] = {}
    for value, axes in constants.items():
        for place, axis in enumerate(axes):
            laid = {} if fixed(axis) else layout(axis)
            for found in dict.fromkeys(atoms(axis)):
                index = laid[found] if found.reason is None else np.empty(0, np.int32)
                members.setdefault(found, []).append(
                    Member(value, place, index, roles.of(value, place, found))
                )
    groups: list[Group] = []
    counts: dict[str, int] = {}
    for found, held in members.items():
        makers = [member for member in held if member.role == "output"]
        if not makers or found.reason is not None:
            continue
        name = str(makers[0].value.name)
        counts[name] = counts.get(name, 0) + 1
        label = name if counts[name] == 1 else f"{name}#{counts[name]}"
        groups.append(Group(label, found.size or 0, tuple(held), found.normalized, found))
    able = {member.value for group in groups for member in group.weights("output")}
    declined = _kept(members, able) | _made_weights(trace)
    return Found(tuple(groups), declined, trace.barriers, tuple(trace.extents))


def _kept(members: Mapping[Atom, list[Member]], able: set[ir.Value]) -> dict[str, str]:
    """The first weight that makes channels in no group -> why.

    A weight counts by its longest axis, not by that of a kernel.
    """
    longest: dict[ir.Value, Atom] = {}
    for found, held in members.items():
        for member in held:
            if member.role == "output" and member.value not in able:
                other = longest.setdefault(member.value, found)
                longest[member.value] = found if (found.size or 0) > (other.size or 0) else other
    first = {found: str(value.name) for value, found in reversed(longest.items())}
    return {name: str(found.reason) for found, name in reversed(first.items())}


def _made_weights(trace: Trace) -> dict[str, str]:
    """Weights that no constant holds: the graph makes them, from a shape or at random."""
    read = {value for value, _ in trace.inputs if value in trace.stored and not sources(value)}
    makers = {value: value.producer() for value in trace.known if value in read}
    return {
        str(v.name): f"{node.op_type} {node.name!r} computes it; only stored weights are cut"
        for v, node in makers.items()
        if node
    }


class _Roles:
    """Which constants are weights, and which of their axes are contracted."""

    def __init__(self, trace: Trace) -> None:
        self.weights = {constant for value in trace.tables for constant in sources(value)}
        self.contracted: set[tuple[ir.Value, int]] = set()
        self.consumed: set[tuple[ir.Value, Atom]] = set()
        for value, axis in trace.inputs:
            found = sources(value)
            self.weights |= found
            behind = _behind(value, axis)
            if behind is not None:
                self.contracted.add(behind)
            else:  # behind a Transpose or the like: by the channels themselves
                self.consumed |= {(v, a) for v in found for a in atoms(trace.axes(value)[axis])}

    def of(self, value: ir.Value, axis: int, found: Atom) -> Role:
        if (value, axis) in self.contracted or (value, found) in self.consumed:
            return "input"
        return "output" if value in self.weights else "along"


def _behind(value: ir.Value, axis: int) -> tuple[ir.Value, int] | None:
    """The constant and its axis that a value is a view of, through a change of order or of type."""
    while not is_constant(value):
        node = value.producer()
        if node is None or node.op_type not in _VIEWS or node.inputs[0] is None:
            return None
        if node.op_type == "Transpose":
            rank = len(value.shape or ())
            order = integers(node, "perm") or tuple(reversed(range(rank)))
            if axis >= len(order):
                return None
            axis = order[axis]
        value = node.inputs[0]
    return value, axis


def sources(value: ir.Value) -> set[ir.Value]:
    """The constants of two axes or more that a value is computed from, when it is computed from constants only."""
    if is_constant(value):
        return {value} if len(value.shape or ()) > 1 else set()
    node = value.producer()
    if node is None or value.is_graph_input():
        return set()
    found: set[ir.Value] = set()
    for operand in node.inputs:
        if operand is None or is_constant(operand):
            found |= sources(operand) if operand is not None else set()
            continue
        behind = sources(operand)
        if not behind:
            return set()
        found |= behind
    return found
