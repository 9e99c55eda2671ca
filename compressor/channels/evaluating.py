"""What integer operators make of small constants: the widths of a Pad, the mask of a window."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compressor.graph import constant, is_constant

_MOST = 64
"""Elements of a tensor that is computed: a shape has fewer."""
_INTEGRAL = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
EVALUATED = (
    *("Abs", "Add", "And", "Cast", "Concat", "ConstantOfShape", "Equal", "Expand", "Flatten", "Gather"),
    *("Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg"),
    *("Not", "Or", "Range", "ReduceProd", "ReduceSum", "Reshape", "Sign", "Slice", "Squeeze", "Sub", "Tile"),
    *("Transpose", "Unsqueeze", "Where"),
)


def evaluated(node: ir.Node, opset: int) -> np.ndarray | None:
    """The one output of the node, when it holds few integers and its operands are constants."""
    out = node.outputs[0]
    if node.op_type not in EVALUATED or node.domain not in ("", "ai.onnx") or out.dtype not in _INTEGRAL:
        return None
    arrays = {}
    for value in node.inputs:
        array = constant(value) if is_constant(value) else None
        if value is None or array is None or array.size > _MOST:
            return None
        arrays[str(value.name)] = array
    if out.shape is None or not out.shape.is_static() or np.prod(out.shape.numpy(), dtype=int) > _MOST:
        return None
    from onnx.reference import ReferenceEvaluator

    (found,) = ReferenceEvaluator(ir.to_proto(node), opsets={"": opset}).run(None, arrays)
    return np.asarray(found)
