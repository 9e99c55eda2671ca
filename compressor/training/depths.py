"""Which layer of the graph an initializer belongs to, counted from the output.

Layer-wise rates, freezing and gradual unfreezing need an order of the layers (ULMFiT, 1801.06146, section 3.2;
BEiT, 2106.08254, appendix). A layer here is a node that multiplies by a stored weight: a convolution, a dense layer,
a recurrent layer, an embedding. The depth of a node is the number of layers after it on the longest way to an
output. On the longest way, because a residual block has a way around it: by the shortest all blocks of a transformer
would be equally deep. So what feeds a layer is always deeper than it, while the query, key and value of an attention
block are equally deep.

Papers count a transformer block as one layer; here it is its projections, four in a usual block. A factor `f` per
block is lr_decay = f ** (1 / 4).

A bias, or the normalization behind a layer, has the depth of that layer, as nothing with weights lies between them.
A weight that is used twice has the depth of the use that is farther from the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import onnx_ir as ir

from compressor.graph import FLOATS, SMALL_INTEGERS, nodes

LAYERS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "DeformConv", "FusedConv", "Attention", "MatMulNBits"), (1,)),
    **dict.fromkeys(("Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Einsum"), (0, 1)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2)),
    "QLinearConv": (3,),
    "QLinearMatMul": (0, 3),
    "Gather": (0,),
    "EmbedLayerNormalization": (2, 3, 4),
}
"""Operator -> the inputs that it multiplies by, or looks up in, when they are stored."""

VIEWS = (
    *("Identity", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Split", "Slice"),
    *("QuantizeLinear", "DequantizeLinear"),
)
"""Operators that pass a stored weight on to the layer that uses it."""


class Use(NamedTuple):
    """A layer and one of its weights: input `slot` of `node` is `weight`, perhaps behind views."""

    weight: ir.Value
    node: ir.Node
    slot: int


def layer_depths(model: ir.Model) -> dict[str, int]:
    """The name of each initializer -> the layers after it on the longest way to an output; 0 is nearest.

    Constant nodes count as initializers under the name of their output. In a body of If, Loop or Scan the layers
    that follow its node are counted too.
    """
    behind: dict[ir.Node, int] = {}
    _measure(model.graph, 0, behind, {})
    stored = (value for graph in model.graphs() for value in graph.initializers.values())
    constants = (node.outputs[0] for node in nodes(model) if node.op_type == "Constant")
    return {str(v.name): _depth(v, behind) for v in (*stored, *constants) if v.uses()}


def layer_uses(model: ir.Model) -> Iterator[Use]:
    """Every pair of a layer and a stored weight of two or more axes, in the order of the graph."""
    for node in nodes(model):
        yield from _weights(node)


def layer_weights(model: ir.Model) -> frozenset[str]:
    """The names of the weights that layers multiply by: no bias, no normalization, whatever their shape."""
    return frozenset(str(use.weight.name) for use in layer_uses(model))


def _weights(node: ir.Node) -> Iterator[Use]:
    for index in LAYERS.get(node.op_type, ()):
        weight = _stored(node.inputs[index]) if index < len(node.inputs) else None
        if weight is not None:
            yield Use(weight, node, index)


def _stored(value: ir.Value | None) -> ir.Value | None:
    """The matrix in the file that `value` is a view of, else None."""
    found = _origin(value)
    tensor = None if found is None else ir.convenience.get_const_tensor(found)
    if tensor is None or tensor.dtype not in (*FLOATS, *SMALL_INTEGERS) or len(tensor.shape) < 2:
        return None
    return found


def _origin(value: ir.Value | None) -> ir.Value | None:
    """The constant that `value` is a view of, else None."""
    while value is not None and (node := value.producer()) is not None and node.op_type in VIEWS:
        value = node.inputs[0]
    return None if value is None or ir.convenience.get_const_tensor(value) is None else value


def _measure(graph: ir.Graph, after: int, behind: dict[ir.Node, int], reach: dict[ir.Node, int]) -> None:
    """Fill in the layers after each node, and those with the node itself; `after` follow the graph's outputs."""
    for node in reversed(graph):
        users = (use.node for output in node.outputs for use in output.uses())
        behind[node] = max((after, *(reach[user] for user in users)))
        inside = [0]
        for attribute in node.attributes.values():
            for body in _bodies(attribute):
                _measure(body, behind[node], behind, reach)
                inside += [reach[inner] for inner in body]
        reach[node] = max(behind[node] + (next(_weights(node), None) is not None), *inside)


def _bodies(attribute: ir.Attr) -> tuple[ir.Graph, ...]:
    if attribute.type is ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return tuple(attribute.as_graphs()) if attribute.type is ir.AttributeType.GRAPHS else ()


def _depth(value: ir.Value, behind: dict[ir.Node, int]) -> int:
    """The depth of the farthest use; a view of a constant is no use, its scale or shape belongs to the layer too."""
    found = [0]
    for node in {use.node for use in value.uses()}:
        passed_on = node.op_type in VIEWS and _origin(node.inputs[0]) is not None
        found += [_depth(output, behind) for output in node.outputs] if passed_on else [behind[node]]
    return max(found)
