"""Did onnxruntime really turn a quantized graph into integer kernels? Read off the graph that it executes."""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from compressor.runtime import Setup, optimized_graph

INTEGER: tuple[str, ...] = (
    "QLinearConv",
    "QGemm",
    "QLinearMatMul",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "ConvInteger",
    "MatMulInteger",
    "QAttention",
    "DynamicQuantizeLSTM",
    "MatMulNBits",
)
FLOAT = ("Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "ConvTranspose")


class Kernels(NamedTuple):
    """How the heavy operators of a model are executed.

    Args:
        integer: how many run as integer kernels.
        floating: names of those that run in float.
        unfused: names of stored weights that a float node reads through DequantizeLinear, at every run.
    """

    integer: int
    floating: tuple[str, ...]
    unfused: tuple[str, ...]


def kernels(model: ir.Model, provider: str = "cpu") -> Kernels:
    """Count integer and float kernels in the graph that onnxruntime executes on `provider`."""
    optimized = optimized_graph(model, Setup(provider=provider))
    integer = 0
    floating: list[str] = []
    unfused: list[str] = []
    for graph in optimized.graphs():
        for node in graph:
            if node.op_type in INTEGER:
                integer += 1
            elif node.op_type in FLOAT:
                floating.append(str(node.name))
                unfused += [name for value in node.inputs[:2] if (name := _stored_weight(value))]
    return Kernels(integer, tuple(floating), tuple(unfused))


def _stored_weight(value: ir.Value | None) -> str | None:
    """The name of the constant that a DequantizeLinear reads, also behind a Transpose or Reshape, else None."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in ("Transpose", "Reshape", "Cast", "ReorderInput"):
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    stored = node.inputs[0]
    return None if stored is None or stored.const_value is None else str(stored.name)
