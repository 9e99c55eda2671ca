"""The integer codes of weights as operators read them, whoever wrote the file."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compressor.graph import attribute, constant, is_constant, sole_consumer
from compressor.packing import unpack

_OPERANDS: dict[str, tuple[int, int, int]] = {
    "DequantizeLinear": (0, 2, 1),
    "QLinearConv": (3, 5, 0),
    "QLinearMatMul": (3, 5, -1),
    "ConvInteger": (1, 3, 0),
    "MatMulInteger": (1, 3, -1),
}
"""Operator -> its inputs for codes and zero points, and the axis of several zero points (a DequantizeLinear's own)."""


def codes_of(value: ir.Value) -> np.ndarray | None:
    """The codes of a constant, less their zero point; None where no operator reads it through scale and zero point."""
    return next((found for use in value.uses() if (found := codes_read(use.node, use.idx)) is not None), None)


def codes_read(node: ir.Node, index: int) -> np.ndarray | None:
    """The codes that a node reads as an input, 0 where the weight is 0; None where it reads no codes there.

    They have the shape of the input, and room for codes less their zero point. For MatMulNBits they are [N, K]; blocks
    of a row that were filled up for a DequantizeLinear are cut as the nodes behind it cut them, [rows, n].
    """
    if node.op_type == "MatMulNBits":
        return _of_kernel(node) if index == 1 else None
    place, zero, axis = _OPERANDS.get(node.op_type, (None, 0, 0))
    stored = node.inputs[index] if place == index else None
    array = constant(stored) if is_constant(stored) else None
    if array is None:
        return None
    wide = np.int16 if array.dtype.itemsize == 1 else np.int64
    codes = array.astype(wide)
    points = constant(node.inputs[zero]) if len(node.inputs) > zero else None
    if points is not None:
        axis = attribute(node, "axis", 1) if node.op_type == "DequantizeLinear" else axis
        codes = codes - _spread(points.astype(wide), codes.shape, axis, attribute(node, "block_size", 0))
    return _without_fill(node, codes) if node.op_type == "DequantizeLinear" else codes


def _spread(points: np.ndarray, shape: tuple[int, ...], axis: int, block: int) -> np.ndarray:
    """Zero points so that they broadcast against codes: one, one per entry of an axis, or one per block of it."""
    if points.size == 1:
        return points.reshape(())
    if points.ndim == 1 and not block:
        return points.reshape([-1 if at == axis % len(shape) else 1 for at in range(len(shape))])
    wide = np.repeat(points, max(block, 1), axis)
    return np.take(wide, np.arange(shape[axis]), axis)


def _without_fill(node: ir.Node, codes: np.ndarray) -> np.ndarray:
    """The codes that are left where Reshape and Slice behind the node cut its rows, as `coded_weights.write` does."""
    view = sole_consumer(node.outputs[0])
    cut = sole_consumer(view.outputs[0]) if view is not None and view.op_type == "Reshape" else None
    if view is None or cut is None or cut.op_type != "Slice" or len(cut.inputs) < 4:
        return codes
    rows, ends, axes = (constant(value) for value in (view.inputs[1], cut.inputs[2], cut.inputs[3]))
    if rows is None or ends is None or axes is None or rows.size != 2 or axes.tolist() != [1]:
        return codes
    return codes.reshape(rows)[:, : int(ends[0])]


def _of_kernel(node: ir.Node) -> np.ndarray | None:
    """The codes of a MatMulNBits; its zero points are packed like codes, or floats, or 2^(bits - 1) where left out."""
    packed = constant(node.inputs[1])
    bits, inputs, outputs = attribute(node, "bits", 4), attribute(node, "K", 0), attribute(node, "N", 0)
    if packed is None or 8 % bits:
        return None
    codes = unpack(packed.reshape(outputs, -1), 2**bits, packed.size // outputs * 8 // bits).astype(np.int16)
    count = packed.size // outputs * 8 // bits // attribute(node, "block_size", 32)
    points = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    if points is None:
        return codes[:, :inputs] - np.int16(2 ** (bits - 1))
    if points.dtype == np.uint8:
        points = unpack(points.reshape(outputs, -1), 2**bits, count)
    spread = np.repeat(np.rint(points.reshape(outputs, count)), codes.shape[1] // count, axis=1)
    return np.asarray((codes - spread.astype(np.int16))[:, :inputs])
