"""Shape arithmetic on Python numbers: Shape and Size, and small computations from what they give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from compressor.torch_graph import attributes, table
from compressor.torch_graph.conversions import item
from compressor.torch_graph.forms import Form, Host, Known, Traced
from compressor.torch_graph.values import onnx_type

if TYPE_CHECKING:
    from compressor.torch_graph.lowering import Lowering

_SMALL = 1024
"""Elements up to which a constant may take part."""

_ALWAYS_TENSORS = ("Range",)
_BY_RANK = ("ConstantOfShape", "Expand", "Tile")
"""Operators whose results may be large: on numbers only where they are known to be a number or a list."""

_SOURCES = ("Shape", "Size")
_COMPARING = ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Not", "And", "Or")


def lower(lowering: Lowering, node: ir.Node) -> bool:
    """Lower a node of shape arithmetic to Python numbers; False when it is none."""
    kernel = table.host_kernels().get(table.key(node.domain, node.op_type))
    if kernel is None or node.op_type in _ALWAYS_TENSORS:
        return False
    output = node.outputs[0]
    rank = None if output.shape is None else len(output.shape)
    if (rank or 0) > 2 or (node.op_type in _BY_RANK and rank not in (0, 1)):
        return False
    forms = lowering.inputs_of(node)
    inputs = _inputs(lowering, node, forms)
    if inputs is None:
        return False
    keywords = attributes.as_numbers(attributes.keywords(lowering, node, kernel))
    result = lowering.graph.call(kernel, *inputs, **keywords)
    dtype = _result_type(node, forms)
    if len(node.outputs) == 1:
        lowering.forms[output] = Host(result, dtype, rank)
        return True
    for index, value in enumerate(node.outputs):
        lowering.forms[value] = Host(lowering.graph.call(item, result, index), dtype, rank)
    return True


def _inputs(lowering: Lowering, node: ir.Node, forms: Sequence[Form | None]) -> tuple[Any, ...] | None:
    """The tensor whose shape is asked for, or the inputs as numbers; None when they are not all of that kind."""
    if node.op_type in _SOURCES:
        return (forms[0].node,) if isinstance(forms[0], Traced) else None
    given = [form for form in forms if form is not None]
    if not any(isinstance(form, Host) for form in given) or not all(map(_takes_part, given)):
        return None
    return tuple(None if form is None else lowering.numbers(form) for form in forms)


def _takes_part(form: Form) -> bool:
    """Whether a form can be used in shape arithmetic."""
    if isinstance(form, Host):
        return True
    if not isinstance(form, Known) or not isinstance(form.value, torch.Tensor):
        return False
    return form.value.ndim <= 2 and form.value.numel() <= _SMALL


def _result_type(node: ir.Node, forms: Sequence[Form | None]) -> ir.DataType:
    """The element type that the outputs would have as tensors."""
    if node.op_type in _SOURCES:
        return ir.DataType.INT64
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    if node.op_type in _COMPARING:
        return ir.DataType.BOOL
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get("value")
        return ir.DataType.FLOAT if fill is None else onnx_type(attributes.attribute_value(fill))
    form = forms[1 if node.op_type == "Where" else 0]
    if isinstance(form, Host):
        return form.dtype
    return onnx_type(form.value) if isinstance(form, Known) else ir.DataType.INT64
