"""What a file computes at run time though its shapes and types decide it: sizes of weights, types to cast to.

Exporters that do not optimize write a convolution without bias as one with zeros, in the number of the weight's rows
and of the type of the input. Known beforehand, such values cost nothing.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compressor.graph import FLOATS, attribute


def specialize(model: ir.Model) -> None:
    """Write Shape of a constant as its value, and CastLike to a float type as Cast, in place."""
    for graph in model.graphs():
        for node in list(graph):
            if node.domain not in ("", "ai.onnx"):
                continue
            if node.op_type == "Shape":
                _shape(graph, node)
            elif node.op_type == "CastLike":
                _cast_like(graph, node)


def _shape(graph: ir.Graph, node: ir.Node) -> None:
    data = node.inputs[0]
    tensor = None if data is None else ir.convenience.get_const_tensor(data)
    if tensor is None:
        return
    sizes = tensor.shape.numpy()
    chosen = sizes[attribute(node, "start", 0) : attribute(node, "end", len(sizes))]
    _replace(graph, node, ir.node("Constant", [], {"value": ir.tensor(np.array(chosen, np.int64))}))


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
