"""QuantizeLinear and DequantizeLinear as a fake quantizer: the int8 file's arithmetic, with a gradient.

A QuantizeLinear whose codes only reach DequantizeLinear nodes never makes integers here: the codes stay floating-point
numbers, rounded with the straight-through gradient, so that training sees what onnxruntime will compute. Everywhere
else the two operators give and take real integers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from compressor.torch_graph.attributes import attribute_value
from compressor.torch_graph.forms import Form, Known
from compressor.torch_graph.operators import straight_through

if TYPE_CHECKING:
    from compressor.torch_graph.lowering import Lowering

LIMITS = "compressor.limits"
"""Key in the `meta` of a QuantizeLinear: the (lowest, highest) code that it gives, where its type has more."""

_RANGES = {
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT16: (0, 65535),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT2: (0, 3),
    ir.DataType.INT2: (-2, 1),
}
_CARRIERS = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity")
_DOMAINS = ("", "ai.onnx", "com.microsoft")


def lower(lowering: Lowering, node: ir.Node) -> bool:
    """Lower a quantizer, or the end of one, to its differentiable form; False when it is neither."""
    if node.domain not in _DOMAINS:
        return False
    if node.op_type == "QuantizeLinear":
        return _lower_quantize(lowering, node)
    return node.op_type == "DequantizeLinear" and _lower_dequantize(lowering, node)


def code_limits(node: ir.Node) -> tuple[int, int] | None:
    """The lowest and the highest code of a QuantizeLinear; None for a type whose codes are no integers."""
    found: tuple[int, int] | None = node.meta.get(LIMITS)
    return _RANGES.get(_code_type(node)) if found is None else found


def _lower_quantize(lowering: Lowering, node: ir.Node) -> bool:
    limits = code_limits(node)
    if limits is None or not _only_decoded(node.outputs[0]) or _is_known(lowering, node):
        return False
    low, high = limits
    operands = _operands(lowering, node)
    call = lowering.graph.call(straight_through.quantize_codes, *operands, low=low, high=high, **_axis(node))
    lowering.bind(node, call)
    return True


def _lower_dequantize(lowering: Lowering, node: ir.Node) -> bool:
    codes = node.inputs[0]
    source = _quantizer(codes)
    if source is None or not _only_decoded(source.outputs[0]) or _is_known(lowering, source):
        return False
    if source.outputs[0] is not codes or not _same_grid(lowering, source, node):
        operands = _operands(lowering, node)
        call = lowering.graph.call(straight_through.dequantize_codes, *operands, **_axis(node))
        lowering.bind(node, call)
        return True
    low, high = code_limits(source) or _RANGES[ir.DataType.UINT8]
    scale = source.inputs[1]
    learned = scale in lowering.weights
    kernel = straight_through.learned_fake_quantize if learned else straight_through.fake_quantize
    operands = _operands(lowering, source)
    lowering.bind(node, lowering.graph.call(kernel, *operands, low=low, high=high, **_axis(source)))
    return True


def _operands(lowering: Lowering, node: ir.Node) -> tuple[Any, ...]:
    """Input, scale and zero point as traced tensors; None for a zero point that is omitted."""
    given = [*node.inputs, None][:3]
    return tuple(
        None if value is None else lowering.tensor(_widened(lowering.read(value))) for value in given
    )


def _widened(form: Form) -> Form:
    """A zero point of a type that torch lacks (4 and 2 bits) as one that it has."""
    if isinstance(form, Known) and isinstance(form.value, np.ndarray):
        return Known(torch.from_numpy(form.value.astype(np.int16)), form.name)
    return form


def _axis(node: ir.Node) -> dict[str, Any]:
    found = {"axis": 1, "block_size": 0}
    return found | {name: attribute_value(node.attributes[name]) for name in found if name in node.attributes}


def _code_type(node: ir.Node) -> ir.DataType:
    """The integer type that a QuantizeLinear gives."""
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    if zero_point is not None and zero_point.dtype is not None:
        return zero_point.dtype
    wanted = node.attributes.get("output_dtype")
    return ir.DataType(wanted.as_int()) if wanted is not None and wanted.as_int() else ir.DataType.UINT8


def _only_decoded(codes: ir.Value) -> bool:
    """True when the codes reach nothing but DequantizeLinear, directly or reshaped."""
    if codes.is_graph_output() or not codes.uses():
        return False
    for use in codes.uses():
        if use.idx != 0 or use.node.graph is not codes.producer().graph:  # type: ignore[union-attr]
            return False
        if use.node.op_type != "DequantizeLinear" and not (
            use.node.op_type in _CARRIERS and _only_decoded(use.node.outputs[0])
        ):
            return False
    return True


def _quantizer(codes: ir.Value | None) -> ir.Node | None:
    """The QuantizeLinear that codes come from, directly or reshaped."""
    node = None if codes is None else codes.producer()
    while node is not None and node.op_type in _CARRIERS:
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    return node if node is not None and node.op_type == "QuantizeLinear" else None


def _same_grid(lowering: Lowering, first: ir.Node, second: ir.Node) -> bool:
    """True when both nodes use the same scale, zero point and axis."""
    pairs = zip([*first.inputs[1:], None][:2], [*second.inputs[1:], None][:2], strict=True)
    return _axis(first) == _axis(second) and all(_equal(lowering, a, b) for a, b in pairs)


def _equal(lowering: Lowering, a: ir.Value | None, b: ir.Value | None) -> bool:
    if a is b or a is None or b is None:
        return a is b
    left, right = lowering.read(a), lowering.read(b)
    if not isinstance(left, Known) or not isinstance(right, Known):
        return False
    return left.value.shape == right.value.shape and bool((left.value == right.value).all())


def _is_known(lowering: Lowering, node: ir.Node) -> bool:
    """True when what is quantized is a constant that is not trained."""
    return isinstance(lowering.inputs_of(node)[0], Known)
