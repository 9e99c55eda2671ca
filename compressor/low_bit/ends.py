"""The first layers of a graph, which no other layer precedes, and the last ones, which give its outputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx_ir as ir


def first_layers(model: ir.Model, layers: Collection[ir.Node]) -> set[ir.Node]:
    """Those of the layers that depend on no other.

    An embedding is a layer, so that what reads it is not the first one; a node with a body that holds layers is one.

    Args:
        model: of which the main graph is looked at.
        layers: its nodes with stored weights, those of bodies included.
    """
    found = _of_main_graph(model, layers)
    preceded: set[ir.Node] = set()
    for node in model.graph:
        if any(before in found or before in preceded for before in _producers(node)):
            preceded.add(node)
    return {node for node in layers if node in found and node not in preceded}


def last_layers(model: ir.Model, layers: Collection[ir.Node]) -> set[ir.Node]:
    """Those of the layers from which an output of the graph comes without another layer behind; arguments as above."""
    found = _of_main_graph(model, layers)
    last: set[ir.Node] = set()
    for output in model.graph.outputs:
        nearest = [node for node in _before(output.producer(), stop=found) if node in found]
        followed = {node for end in nearest for node in _before(end) if node is not end}
        last |= {node for node in nearest if node not in followed}
    return {node for node in layers if node in last}


def _of_main_graph(model: ir.Model, layers: Collection[ir.Node]) -> set[ir.Node]:
    """The layers of the main graph, and its nodes with a body that holds one."""
    every = set(layers)
    return {node for node in model.graph if node in every or any(inner in every for inner in _bodies(node))}


def _bodies(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes of If, Loop and Scan bodies."""
    for given in node.attributes.values():
        if given.type == ir.AttributeType.GRAPH:
            yield from given.as_graph().all_nodes()


def _producers(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes of the same graph that a node reads from; a body's own reads are not followed."""
    yield from (
        maker for value in node.inputs if value is not None and (maker := value.producer()) is not None
    )


def _before(node: ir.Node | None, stop: Collection[ir.Node] = ()) -> Iterator[ir.Node]:
    """The node and all that it depends on; what is in `stop` is given, and nothing before it."""
    seen: set[ir.Node] = set()
    waiting = [] if node is None else [node]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        yield current
        if current not in stop:
            waiting += _producers(current)
