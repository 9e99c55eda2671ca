"""Computing ahead: Constant nodes, and nodes that depend on constants alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from compressor.torch_graph import fallback, table
from compressor.torch_graph.attributes import attribute_value, keywords
from compressor.torch_graph.conversions import to_host
from compressor.torch_graph.forms import Known
from compressor.torch_graph.values import to_value

if TYPE_CHECKING:
    from compressor.torch_graph.lowering import Lowering

_RANDOM = (
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
)
_FLOATS = ("value_float", "value_floats")
_FAILS = (
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    NotImplementedError,
    OverflowError,
    ZeroDivisionError,
)
"""What kernels raise on inputs that they do not take; such a node fails when it is run, if it ever is."""


def lower_constant(lowering: Lowering, node: ir.Node) -> bool:
    """Take the value of a Constant node; False when the node is none."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return False
    value = node.outputs[0]
    if value not in lowering.weights:
        lowering.forms[value] = Known(_constant(node), value.name)
    return True


def _constant(node: ir.Node) -> Any:
    tensor = ir.convenience.get_const_tensor(node.outputs[0])
    if tensor is not None:
        return to_value(tensor.numpy())
    attribute = next(iter(node.attributes.values()))
    value = attribute_value(attribute)
    return torch.tensor(value, dtype=torch.float32) if attribute.name in _FLOATS else to_value(value)


def lower(lowering: Lowering, node: ir.Node) -> bool:
    """Compute now what depends on constants alone; False when it does not, or cannot be computed ahead."""
    forms = lowering.inputs_of(node)
    if node.op_type in _RANDOM or not all(form is None or isinstance(form, Known) for form in forms):
        return False
    results = evaluated(lowering, node, [form.value if isinstance(form, Known) else None for form in forms])
    if results is None:
        return False
    for output, result in zip(node.outputs, results, strict=False):
        lowering.forms[output] = Known(result)
    return True


def evaluated(lowering: Lowering, node: ir.Node, values: Sequence[Any]) -> Sequence[Any] | None:
    """The outputs of a node for these inputs; None when they cannot be computed ahead."""
    kernel = table.kernel_of(node)
    try:
        if kernel is None:
            if not fallback.exists(node, lowering.opsets):
                return None
            result = fallback.Reference(node, lowering.opsets)(*values)
        else:
            wants = table.signature(kernel)
            if "training" in wants.names:
                return None
            given = [_as_wanted(wants.kind(position), value) for position, value in enumerate(values)]
            with torch.no_grad():
                result = kernel(*given, **keywords(lowering, node, kernel))
    except _FAILS:
        return None
    return result if isinstance(result, tuple) else (result,)


def _as_wanted(kind: str, value: Any) -> Any:
    return value if value is None or kind in ("tensor", "either") else to_host(value, kind)
