"""Integer tensors that are decided by lengths: what an exported `expand(-1, ...)` compares and chooses between."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compressor.channels.sizes import Measured, Stored, count, element
from compressor.graph import constant, is_constant

_MOST = 64
"""Elements of a tensor that is followed: a shape has fewer."""
DECIDED = ("ConstantOfShape", "Equal")


def decided(node: ir.Node) -> np.ndarray | None:
    """What ConstantOfShape or Equal makes, when the file decides it; a length is never negative."""
    if node.op_type == "ConstantOfShape":
        return _filled(node)
    sizes = [count(value) for value in node.inputs]
    shape = node.outputs[0].shape
    if shape is None or sizes[0] != sizes[1] or sizes[0] is None or sizes[0] > _MOST:
        return None
    a, b = node.inputs
    found = [_same(element(a, index), element(b, index)) for index in range(sizes[0])]
    known = [size for size in shape if isinstance(size, int)]
    return None if None in found or len(known) < len(shape) else np.array(found, bool).reshape(known)


def _same(a: Stored | Measured | None, b: Stored | Measured | None) -> bool | None:
    if isinstance(a, Measured):
        a, b = b, a
    if not isinstance(a, Stored):
        return None
    if isinstance(b, Stored):
        return a.size == b.size
    return False if a.size < 0 and b is not None else None


def _filled(node: ir.Node) -> np.ndarray | None:
    source, dtype = node.inputs[0], node.outputs[0].dtype
    shape = constant(source) if is_constant(source) else None
    if shape is None or dtype not in (ir.DataType.INT64, ir.DataType.INT32) or np.prod(shape) > _MOST:
        return None
    held = node.attributes.get("value")
    value = 0 if held is None else held.as_tensor().numpy().item()
    return np.full([int(size) for size in shape], value, dtype.numpy())
