"""What a file computes at run time though its shapes and types decide it: sizes of weights, types to cast to.

Exporters that do not optimize write a convolution without bias as one with zeros, in the number of the weight's rows
and of the type of the input. Known beforehand, such values cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from compressor.graph import FLOATS, attribute, constant, rank


def specialize(model: ir.Model) -> None:
    """Write Shape of what has known sizes as their value, and CastLike to a float type as Cast, in place."""
    for graph in model.graphs():
        for node in list(graph):
            if node.domain not in ("", "ai.onnx"):
                continue
            if node.op_type == "Shape":
                _shape(graph, node)
            elif node.op_type == "CastLike":
                _cast_like(graph, node)


def _shape(graph: ir.Graph, node: ir.Node) -> None:
    sizes = _sizes(node.inputs[0])
    if sizes is None:
        return
    chosen = sizes[attribute(node, "start", 0) : attribute(node, "end", len(sizes))]
    if None in chosen:
        return
    _replace(graph, node, ir.node("Constant", [], {"value": ir.tensor(np.array(chosen, np.int64))}))


def _sizes(value: ir.Value | None) -> Sequence[int | None] | None:
    """The sizes of a constant, or of a number expanded to a shape, None where the run decides; None of other values.

    What the file says of other values is not believed: torch's exporter notes sizes of the traced batch.
    """
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return tensor.shape.numpy()
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Expand" or node.domain or rank(node.inputs[0]) != 0:
        return None
    return _elements(node.inputs[1])


def _elements(shape: ir.Value | None) -> Sequence[int | None] | None:
    """The numbers of a shape, None for each that is computed; None when not even their count is known."""
    known = constant(shape)
    if known is not None:
        return list(map(int, known))
    node = None if shape is None else shape.producer()
    if node is not None and node.op_type == "Concat" and not node.domain:
        parts = [_elements(part) for part in node.inputs]
        return None if None in parts else [size for part in parts for size in part or ()]
    count = None if shape is None or shape.shape is None else shape.shape[0]
    return [None] * count if isinstance(count, int) else None


def _cast_like(graph: ir.Graph, node: ir.Node) -> None:
    data, like = node.inputs
    if like is not None and like.dtype in FLOATS:
        _replace(graph, node, ir.node("Cast", [data], {"to": int(like.dtype)}))


def _replace(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    before, after = old.outputs[0], new.outputs[0]
    after.type, after.shape = before.type, before.shape
    new.name, name = old.name, before.name
    graph.insert_before(old, new)
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    graph.remove(old, safe=True)
    after.name = name
