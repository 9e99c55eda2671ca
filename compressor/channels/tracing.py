"""Walking a graph once, so that every axis of every value is written in atoms (`axes`).

A rule per operator (`rules`) says how the axes of its outputs follow from those of its inputs, joins what must be cut
alike, and records where the graph holds a length: a Reshape target, Conv's `group`, `num_heads`. An operator without a
rule is a barrier: everything that touches it is pinned, by name.

For each axis of a value the trace also knows whether cut channels would be exact zeros there when every weight of their
group is zero: what Relu keeps and Sigmoid does not. Reading such channels without weights (a sum over them, a product
of two activations) is the same as not having them only where they are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import onnx_ir as ir

from compressor.channels.axes import Axis, atom, length, normalize, pin
from compressor.channels.joining import join
from compressor.channels.shapes import describe, infer, makes_unknown, refine
from compressor.graph import constant, is_constant

Axes = tuple[Axis, ...]


class Known(NamedTuple):
    """What the trace knows of a value: its axes, and per axis whether cut channels are zeros."""

    axes: Axes
    zero: tuple[bool, ...]


class Place(NamedTuple):
    """Where a node holds a length: an attribute, or an input that is an integer tensor; and the element of it."""

    node: ir.Node
    slot: str | int
    element: int = 0


class Extent(NamedTuple):
    """A length that the graph holds: the sum of the lengths of `axes`, to be rewritten after a cut."""

    place: Place
    axes: Axes


class Trace:
    """What is known of a graph so far. Rules read and extend it.

    Attributes:
        extents: the lengths that the graph holds.
        inputs: weight axes that are contracted: (constant, its axis) pairs that consume channels.
        tables: weights whose rows are looked up.
        barriers: node name -> why nothing passes through it.
        symbols: the axis that each symbolic dimension stands for.
        opset: the version of the default operator set; meanings and defaults change with it.
        freeze: makes the lengths that a node computes explicit, before its rule is applied.
        unranked: values behind a barrier whose number of axes is unknown.
        stored: values that are computed from constants only.
    """

    def __init__(self, rules: Mapping[str, Rule], opset: int, freeze: Callable[[ir.Node], None]) -> None:
        self.rules = rules
        self.opset = opset
        self.freeze = freeze
        self.known: dict[ir.Value, Known] = {}
        self.extents: list[Extent] = []
        self.inputs: set[tuple[ir.Value, int]] = set()
        self.tables: set[ir.Value] = set()
        self.barriers: dict[str, str] = {}
        self.symbols: dict[str, Axis] = {}
        self.unranked: set[ir.Value] = set()
        self.stored: set[ir.Value] = set()

    # What rules read.

    def axes(self, value: ir.Value | None) -> Axes:
        """The axes of a value; a constant's are new atoms when it is first met, an unknown value has none."""
        return self._look(value).axes

    def zero(self, value: ir.Value | None) -> tuple[bool, ...]:
        """For each axis of the value, whether cut channels are zeros."""
        return self._look(value).zero

    def ranked(self, *values: ir.Value | None) -> bool:
        """True when the number of axes of all values is known."""
        return all(
            value is None or (value not in self.unranked and (value in self.known or value.shape is not None))
            for value in values
        )

    def _look(self, value: ir.Value | None) -> Known:
        if value is None:
            return Known((), ())
        if value not in self.known:
            owned = is_constant(value)
            axes = self._new(value, None if owned else f"{value.name!r} comes from outside the graph")
            self.known[value] = Known(axes, (owned,) * len(axes))
        return self.known[value]

    def _new(self, value: ir.Value, reason: str | None) -> Axes:
        """An axis per dimension of the inferred shape; equal symbols are one axis, which cannot be cut."""
        if value.const_value is not None:
            return tuple(atom(int(size), reason) for size in value.const_value.shape.numpy())
        found = []
        for size in value.shape or ():
            symbol = None if isinstance(size, int) else size.value
            if symbol is None:
                found.append(atom(size if isinstance(size, int) and size >= 0 else None, reason))
            else:
                found.append(
                    self.symbols.setdefault(symbol, atom(None, f"{symbol!r} is decided at run time"))
                )
        return tuple(found)

    # What rules say.

    def give(self, value: ir.Value, axes: Sequence[Axis], zero: Sequence[bool] | bool) -> None:
        """Set the axes of an output; `zero` for each axis, or for all."""
        flags = (zero,) * len(axes) if isinstance(zero, bool) else tuple(zero)
        self.known[value] = Known(tuple(axes), flags)

    def join(self, a: Axis, b: Axis, node: ir.Node) -> None:
        """Make two axes one; both are pinned where their structures do not allow it."""
        if not join(a, b):
            reason = f"{label(node)} lays axes of different structure side by side"
            pin(a, reason)
            pin(b, reason)

    def pin(self, axes: Axis | Iterable[Axis], reason: str) -> None:
        """Forbid every cut in the axes."""
        for axis in (axes,) if isinstance(axes, Axis) else axes:
            pin(axis, reason)

    def normalized(self, axis: Axis, node: ir.Node) -> None:
        """Statistics are taken over the axis by this node."""
        normalize(axis, f"{label(node)} takes statistics over it")

    def extent(self, place: Place, *axes: Axis) -> None:
        """The graph holds the sum of these lengths there; the trace pins them when it cannot be rewritten."""
        if any(length(axis) != 1 for axis in axes):
            self.extents.append(Extent(place, axes))

    def contracted(self, value: ir.Value, axis: int) -> None:
        """The node sums over this axis: if it is a weight's, its slices consume channels rather than make them."""
        if is_constant(value) or value in self.stored:
            self.inputs.add((value, axis))

    def looked_up(self, value: ir.Value) -> None:
        """The node takes rows of this weight: what is in a row are channels that it makes."""
        self.tables.add(value)

    def barrier(self, node: ir.Node, reason: str) -> None:
        """Nothing passes: all axes at the node are pinned, what its bodies read included; those it makes are new."""
        self.barriers[str(node.name)] = reason
        for value in (*node.inputs, *_captured(node)):
            self.pin(self.axes(value), reason)
        for value in node.outputs:
            self.give(value, self._new(value, reason), False)
            if value.shape is None:
                self.unranked.add(value)

    def fresh(self, value: ir.Value, index: int, reason: str | None = None) -> Axis:
        """A new axis as long as axis `index` of the value, by its inferred shape."""
        axes = self._new(value, reason)
        return axes[index] if index < len(axes) else atom(None, reason)

    # Walking.

    def walk(self, graph: ir.Graph) -> None:
        """Apply the rule of every node, in order; called for bodies by the rules of If, Loop and Scan."""
        for node in list(graph):
            self.freeze(node)
            if not any(value.uses() or value.is_graph_output() for value in node.outputs):
                continue  # what the freezing has replaced
            if makes_unknown(node):
                infer(node, self.opset)
            rule = self.rules.get(_key(node))
            if not self.ranked(*node.inputs):
                self.barrier(node, f"{label(node)}: shapes are unknown around it")
            elif rule is None:
                self.barrier(node, f"{label(node)}: no rule for this operator")
            else:
                rule(self, node)
            for value in node.outputs:
                if value not in self.known:
                    raise ValueError(f"the rule of {node.op_type} says nothing of {value.name!r}")
                if self.ranked(value):
                    refine(value, self.axes(value))
            if self.ranked(node.outputs[0]):
                describe(node, self.axes(node.outputs[0]))
            if self._is_stored(node):
                self.stored.update(node.outputs)

    def _is_stored(self, node: ir.Node) -> bool:
        """True when the node computes from constants only."""
        read = [value for value in (*node.inputs, *_captured(node)) if value is not None]
        return bool(read) and all(is_constant(value) or value in self.stored for value in read)


Rule = Callable[[Trace, ir.Node], None]
"""Gives every output its axes."""


def scalar_zero(value: ir.Value | None) -> bool:
    """True for a constant that holds zeros only."""
    array = constant(value) if is_constant(value) else None
    return array is not None and not array.any()


def _key(node: ir.Node) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    """Values from outside that the bodies of the node read."""
    for attribute in node.attributes.values():
        if attribute.type != ir.AttributeType.GRAPH:
            continue
        body = attribute.as_graph()
        inside: set[ir.Value] = set()
        read: list[ir.Value | None] = [*body.outputs]
        for graph in (body, *body.subgraphs()):
            inside.update((*graph.inputs, *graph.initializers.values()))
        for inner in body.all_nodes():
            inside.update(inner.outputs)
            read += inner.inputs
        yield from (value for value in read if value is not None and value not in inside)


def label(node: ir.Node) -> str:
    """What a reason calls the node."""
    return f"{node.op_type} {node.name!r}" if node.name else node.op_type
