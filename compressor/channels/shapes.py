"""Shapes of values that ONNX could not infer: operators of other domains, and what comes behind them.

Inference over a graph stops at an operator that ONNX does not know. A rule does know its axes, so that the nodes behind
it can be inferred one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from compressor.channels.axes import Axis, length
from compressor.graph import attribute, constant, is_constant

_LARGEST = 64
"""Elements of a constant that may decide a shape."""

_LIKE = {"FusedConv": ("Conv", 3), "QLinearAveragePool": ("AveragePool", 1)}
"""Operator of another domain -> the one whose shape it has, and how many inputs that reads."""
_NOT_INFERRED = ("GroupNormalization", "SimplifiedLayerNormalization")
"""Of the default domain: the one is deprecated in one operator set, the other is onnxruntime's."""
_TYPED_BY = {
    **{"EmbedLayerNormalization": 5, "MatMulIntegerToFloat": 2, "QLinearConcat": 1},
    **{"QuantizeLinear": 2, "DequantizeLinear": 1},
}
"""Operator -> the input whose type its output has, where that is not the first."""
_REFUSALS = (
    onnx.defs.SchemaError,
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    RuntimeError,
    ValueError,
)


def describe(node: ir.Node, axes: tuple[Axis, ...]) -> None:
    """Give the first output of an operator that ONNX cannot infer its type, and the lengths that a rule found."""
    value, slot = node.outputs[0], _TYPED_BY.get(node.op_type, 0)
    known = node.domain in ("", "ai.onnx") and node.op_type not in _NOT_INFERRED
    source = node.inputs[slot] if slot < len(node.inputs) else None
    if known or source is None:
        return
    value.type = value.type or source.type
    if value.shape is None and value.type is not None:
        value.shape = ir.Shape([length(axis) for axis in axes])


def makes_unknown(node: ir.Node) -> bool:
    """True when an output has a length that neither the file nor an input of the node says."""
    known = {size for value in node.inputs if value is not None for size in value.shape or ()}
    return any(
        value.shape is None or any(not isinstance(size, int) and size not in known for size in value.shape)
        for value in node.outputs
    )


def refine(value: ir.Value, axes: tuple[Axis, ...]) -> None:
    """Write down the lengths that a rule found, where inference did not; outputs of the model keep theirs."""
    if value.type is not None and not value.is_graph_output():
        _learn(value, [length(axis) for axis in axes])


def _learn(value: ir.Value, sizes: Sequence[int | str | None]) -> None:
    """Fill in what is not known of the shape."""
    if value.shape is None:
        value.shape = ir.Shape(sizes)
    elif len(value.shape) == len(sizes) and not value.shape.is_static():
        pairs = zip(value.shape, sizes, strict=True)
        value.shape = ir.Shape([new if isinstance(new, int) else old for old, new in pairs])


def infer(node: ir.Node, opset: int) -> None:
    """Give the outputs of one node their types and shapes, where those of its inputs allow it."""
    operator, count = _LIKE.get(node.op_type, (node.op_type, None))
    if (node.domain not in ("", "ai.onnx") and count is None) or attribute(node, "channels_last", 0):
        return
    read = [value for value in node.inputs[:count] if value is not None]
    bodies = [found for found in node.attributes.values() if found.type == ir.AttributeType.GRAPH]
    if bodies or any(value.dtype is None or value.shape is None for value in read):
        return
    try:
        schema = onnx.defs.get_schema(operator, opset, "")
        found = onnx.shape_inference.infer_node_outputs(
            schema,
            _standing_for(node, schema, count),
            {str(value.name): _type(value, count is None) for value in read},
            _small_constants(node),
            opset_imports=[onnx.helper.make_opsetid("", opset)],
        )
    except _REFUSALS:
        return
    for value in node.outputs:
        made = found.get(str(value.name))
        if made is not None and made.tensor_type.HasField("shape"):
            value.type = (
                ir.TensorType(ir.DataType(made.tensor_type.elem_type)) if count is None else read[0].type
            )
            _learn(value, [_dimension(size) for size in made.tensor_type.shape.dim])


def _standing_for(node: ir.Node, schema: onnx.defs.OpSchema, count: int | None) -> onnx.NodeProto:
    """The node as an operator that ONNX knows, with the first `count` of its inputs."""
    proto: onnx.NodeProto = ir.to_proto(node)
    if count is None:
        return proto
    kept = [given for given in proto.attribute if given.name in schema.attributes]
    return onnx.NodeProto(
        op_type=schema.name, input=proto.input[:count], output=proto.output[:1], attribute=kept
    )


def _type(value: ir.Value, own: bool) -> onnx.TypeProto:
    """The type of a value, or float for an operator that only stands for that of integers."""
    sizes = [size if isinstance(size, int) else size.value for size in value.shape or ()]
    kind = value.dtype if own and value.dtype else ir.DataType.FLOAT
    return onnx.helper.make_tensor_type_proto(int(kind), sizes)


def _small_constants(node: ir.Node) -> dict[str, onnx.TensorProto]:
    found = {}
    for value in node.inputs:
        array = constant(value) if is_constant(value) else None
        if value is not None and array is not None and array.size <= _LARGEST:
            found[str(value.name)] = onnx.numpy_helper.from_array(array)
    return found


def _dimension(size: onnx.TensorShapeProto.Dimension) -> int | str | None:
    return int(size.dim_value) if size.HasField("dim_value") else size.dim_param or None
