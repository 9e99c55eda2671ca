"""The attributes of a node as the keywords of its kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir
import torch

from compressor.errors import ModelError
from compressor.torch_graph import table
from compressor.torch_graph.values import TORCH_TYPES, Kernel, to_value

if TYPE_CHECKING:
    from compressor.torch_graph.lowering import Lowering

_GIVEN = ("version", "outputs", "training", "result_type")
"""Keywords that say how a node is run; an attribute of such a name is not passed."""

_WITHOUT_EFFECT = ("seed", "consumed_inputs", "training_mode")
"""Attributes that a kernel need not take: they say nothing about what an inference graph computes."""


def schema(node: ir.Node, opsets: Mapping[str, int]) -> onnx.defs.OpSchema | None:
    """What ONNX says of the node's operator; None of an operator that ONNX does not know."""
    version = opsets.get(node.domain, 1)
    if not onnx.defs.has(node.op_type, version, node.domain):
        return None
    return onnx.defs.get_schema(node.op_type, version, node.domain)


def schema_defaults(schema: onnx.defs.OpSchema) -> dict[str, Any]:
    """Attribute name -> the default that the operator's schema gives, those without a default left out."""
    found = {}
    for name, attribute in schema.attributes.items():
        if attribute.default_value.name:
            value = onnx.helper.get_attribute_value(attribute.default_value)
            items = value if isinstance(value, list) else [value]
            texts = [item.decode() if isinstance(item, bytes) else item for item in items]
            found[name] = texts if isinstance(value, list) else texts[0]
    return found


def attribute_value(attribute: ir.Attr) -> Any:
    """An ONNX attribute as a Python value: numbers, text, lists of them, or a tensor of the graph's kind."""
    if attribute.type == ir.AttributeType.TENSOR:
        return to_value(attribute.as_tensor().numpy())
    if attribute.type == ir.AttributeType.TENSORS:
        return [to_value(tensor.numpy()) for tensor in attribute.as_tensors()]
    if attribute.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
        return list(attribute.value)
    return attribute.value


def keywords(lowering: Lowering, node: ir.Node, kernel: Kernel) -> dict[str, Any]:
    """What the kernel takes by keyword: attributes over the defaults of the schema, and how the node is run.

    Raises:
        ModelError: the node has an attribute that the kernel does not take, at another value than its default.
    """
    wanted = table.signature(kernel).names
    known = schema(node, lowering.opsets)
    found = {} if known is None else schema_defaults(known)
    for name, attribute in node.attributes.items():
        value = attribute_value(attribute)
        passed = name in wanted or name in _WITHOUT_EFFECT or attribute.type == ir.AttributeType.GRAPH
        if not passed and found.get(name) != value:
            raise ModelError(
                f"Node {node.name!r} ({node.op_type}): attribute {name}={value!r} is not supported."
            )
        found[name] = value
    found = {name: value for name, value in found.items() if name in wanted and name not in _GIVEN}
    if "version" in wanted:
        found["version"] = lowering.opsets.get(node.domain, 1) if known is None else known.since_version
    if "outputs" in wanted:
        found["outputs"] = len(node.outputs)
    if "result_type" in wanted:
        found["result_type"] = TORCH_TYPES[lowering.type_of(node.inputs[0])]
    return found


def as_arguments(lowering: Lowering, given: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords for a call in the graph: a tensor among them becomes a constant of the module."""
    return {
        name: lowering.graph.constant(value) if isinstance(value, torch.Tensor) else value
        for name, value in given.items()
    }


def as_numbers(given: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords for shape arithmetic: a tensor among them becomes Python numbers."""
    return {
        name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in given.items()
    }
