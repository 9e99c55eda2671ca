"""Functions: those of the file, and operators that ONNX itself defines by others; their body takes their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from compressor.torch_graph.attributes import schema

if TYPE_CHECKING:
    from compressor.torch_graph.lowering import Lowering


def inline_functions(model: ir.Model) -> None:
    """Replace calls of the file's functions by their nodes, in place; names are the same each time."""
    if model.functions:
        common.InlinePass()(model)


def lower(lowering: Lowering, node: ir.Node) -> bool:
    """Lower the function body of the node's operator in its place; False when it has none."""
    known = schema(node, lowering.opsets)
    function = None if known is None else _function(node, known)
    if known is None or function is None:
        return False
    body = _graph(function, node, known)
    outer = lowering.opsets
    lowering.opsets = {**outer, **{entry.domain: entry.version for entry in function.opset_import}}
    given = dict(zip(body.inputs, node.inputs, strict=False))
    for value, source in given.items():
        if source is not None:
            lowering.forms[value] = lowering.read(source)
            value.type, value.shape = source.type, source.shape
    missing = [value for value in body.inputs if given.get(value) is None]
    for inner in body:
        for index, used in enumerate(inner.inputs):
            if used in missing:
                inner.replace_input_with(index, None)
        lowering.lower(inner)
    lowering.opsets = outer
    for output, value in zip(node.outputs, body.outputs, strict=False):
        if output.name:
            lowering.forms[output] = lowering.read(value)
    return True


def _function(node: ir.Node, schema: onnx.defs.OpSchema) -> onnx.FunctionProto | None:
    """The body that the operator's schema gives, for the types of this node."""
    if schema.has_function:  # type: ignore[attr-defined]
        return schema.function_body
    if not schema.has_context_dependent_function:  # type: ignore[attr-defined]
        return None
    types = [b"" if value is None else _type(value).SerializeToString() for value in node.inputs]
    build = schema.get_context_dependent_function  # type: ignore[attr-defined]
    made = onnx.FunctionProto()
    made.ParseFromString(build(ir.to_proto(node).SerializeToString(), types))
    return made


def _type(value: ir.Value) -> onnx.TypeProto:
    return ir.to_proto(value).type


def _graph(function: onnx.FunctionProto, node: ir.Node, schema: onnx.defs.OpSchema) -> ir.Graph:
    """The body as a graph, with the node's attributes, or the function's defaults, where it refers to them."""
    given = {attribute.name: attribute for attribute in function.attribute_proto}
    given |= {name: a.default_value for name, a in schema.attributes.items() if a.default_value.name}
    given |= {attribute.name: attribute for attribute in ir.to_proto(node).attribute}
    inner = [onnx.NodeProto.FromString(n.SerializeToString()) for n in function.node]
    for n in _all(inner):
        _fill(n, given)
    inputs, outputs = (
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in names]
        for names in (function.input, function.output)
    )
    return ir.serde.deserialize_graph(onnx.helper.make_graph(inner, function.name, inputs, outputs))


def _all(nodes: list[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes and those of their bodies."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _all(list(attribute.g.node))


def _fill(node: onnx.NodeProto, given: Mapping[str, onnx.AttributeProto]) -> None:
    """Replace the references among a node's attributes by what they refer to, or drop them."""
    kept = []
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            kept.append(attribute)
        elif attribute.ref_attr_name in given:
            found = onnx.AttributeProto.FromString(given[attribute.ref_attr_name].SerializeToString())
            found.name = attribute.name
            kept.append(found)
    del node.attribute[:]
    node.attribute.extend(kept)
