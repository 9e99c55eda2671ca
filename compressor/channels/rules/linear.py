"""MatMul and Gemm, and what onnxruntime fuses them into."""

from __future__ import annotations

import onnx_ir as ir

from compressor.channels.rules.operands import along, every, left, multiplied, operand, right
from compressor.channels.tracing import Rule, Trace, label
from compressor.graph import attribute

KEEP_ZERO = ("Relu", "LeakyRelu", "Tanh", "Elu", "Selu", "Softsign", "ThresholdedRelu", "HardSwish", "Gelu")
"""What a fused operator may name as its activation and f(0) = 0 holds for."""


def matmul(trace: Trace, node: ir.Node) -> None:
    """a [..., M, K] times b [..., K, N]; either may be the weight, or a vector."""
    known = multiplied(trace, node, left(trace, node.inputs[0]), right(trace, node.inputs[1]))
    trace.give(node.outputs[0], *known)


def fused_matmul(trace: Trace, node: ir.Node) -> None:
    """MatMul of operands whose last two axes may be swapped."""
    if attribute(node, "transBatchA", 0) or attribute(node, "transBatchB", 0):
        trace.barrier(node, f"{label(node)} with its batch axes swapped")
        return
    a = left(trace, node.inputs[0], bool(attribute(node, "transA", 0)))
    b = right(trace, node.inputs[1], bool(attribute(node, "transB", 0)))
    trace.give(node.outputs[0], *multiplied(trace, node, a, b))


def gemm(trace: Trace, node: ir.Node) -> None:
    """a [M, K] times b [K, N], either transposed, and a bias stretched to [M, N]."""
    a = left(trace, node.inputs[0], bool(attribute(node, "transA", 0)))
    b = right(trace, node.inputs[1], bool(attribute(node, "transB", 0)))
    axes, zero = multiplied(trace, node, a, b)
    zero = every(zero, along(trace, node, axes, operand(node, 2)))
    trace.give(node.outputs[0], axes, zero if activation_keeps_zero(node) else False)


def activation_keeps_zero(node: ir.Node) -> bool:
    """Whether the activation that is fused into the node, if any, leaves zeros zero."""
    name = node.attributes.get("activation")
    return name is None or name.as_string() in (*KEEP_ZERO, "")


RULES: dict[str, Rule] = {
    "MatMul": matmul,
    "Gemm": gemm,
    "com.microsoft.FusedMatMul": fused_matmul,
    "com.microsoft.TransposeMatMul": fused_matmul,
    "com.microsoft.FusedGemm": gemm,
}
