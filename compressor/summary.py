"""Counts over a model: operators, weights, multiply-accumulates, and whether it is quantized."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compressor.graph import FLOATS, SMALL_INTEGERS, attribute, constant, nodes
from compressor.low_bit.reading import codes_of

_PRODUCTS = ("Gemm", "MatMul", "MatMulInteger")
_CONVOLUTIONS = ("Conv", "ConvInteger")
_RECURRENT = ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")
_ATTENTION = ("Attention", "QAttention")


@dataclass(frozen=True)
class Summary:
    """Counts over a model.

    Args:
        operators: type -> how often, bodies of If, Loop and Scan included.
        parameters: weights, each once; packed low-bit codes count one by one.
        nonzero: those that are not zero.
        macs: multiply-accumulates for one sample; None when a shape that is needed is unknown.
        quantized: "none", "static", "dynamic" or "weights".
    """

    operators: dict[str, int]
    parameters: int
    nonzero: int
    macs: int | None
    quantized: str


def summarize(model: ir.Model) -> Summary:
    """Count; the model should have shapes (see `prepare.normalized`)."""
    operators = operators_of(model)
    parameters = nonzero = 0
    for weight in weight_values(model):
        elements = _elements(weight)
        parameters += elements.size
        nonzero += int(np.count_nonzero(elements))
    return Summary(operators, parameters, nonzero, macs(model), quantization_of(Counter(operators)))


def operators_of(model: ir.Model) -> dict[str, int]:
    """Type -> how often, the commonest first, bodies of If, Loop and Scan included."""
    return dict(Counter(node.op_type for node in nodes(model)).most_common())


def weight_values(model: ir.Model) -> list[ir.Value]:
    """Constants of a float or small integer type with two elements or more that are read; a shared one once.

    int32 ones only where they are dequantized: they are biases then.

    Scales, zero points and tables that unpack codes do not count.
    """
    found: list[ir.Value] = []
    for graph in model.graphs():
        held = [*graph.initializers.values(), *(n.outputs[0] for n in graph if n.op_type == "Constant")]
        for value in held:
            tensor = ir.convenience.get_const_tensor(value)
            if tensor is None or not (_is_weight(tensor) or _is_bias(value, tensor)):
                continue
            if not _is_helper(value):
                found.append(value)
    return found


def constant_bytes(model: ir.Model) -> int:
    """The bytes of all constants as they stand in the file, those of bodies and functions included."""
    total = 0
    for graph in model.graphs():
        total += sum(v.const_value.nbytes for v in graph.initializers.values() if v.const_value is not None)
    bodies = [model.graph.all_nodes(), *(function.all_nodes() for function in model.functions.values())]
    for node in (node for body in bodies for node in body if node.op_type == "Constant"):
        tensor = ir.convenience.get_const_tensor(node.outputs[0])
        total += 0 if tensor is None else tensor.nbytes
    return total


def quantization_of(operators: Counter[str]) -> str:
    """'none', 'static', 'dynamic' or 'weights', judged from the operators present."""
    if operators["QuantizeLinear"] or any(op.startswith("QLinear") for op in operators):
        return "static"
    if operators["DynamicQuantizeLinear"] or operators["DynamicQuantizeLSTM"] or operators["QAttention"]:
        return "dynamic"
    return "weights" if operators["DequantizeLinear"] or operators["MatMulNBits"] else "none"


def macs(model: ir.Model) -> int | None:
    """Multiply-accumulates of the main graph's convolutions, matrix products and recurrent layers for one sample.

    Dynamic axes other than the batch count as 1. None when a shape that is needed is unknown.
    """
    total = 0
    for node in model.graph:
        count = _node_macs(node)
        if count is None:
            return None
        total += count
    return total


def _node_macs(node: ir.Node) -> int | None:
    """Of one node; 0 for operators that have none to speak of."""
    kind = node.op_type
    if kind == "MatMulNBits":
        rows = _extents(node.inputs[0])
        return (
            None if rows is None else _product(rows[1:-1]) * attribute(node, "K", 1) * attribute(node, "N", 1)
        )
    if kind not in (*_PRODUCTS, *_CONVOLUTIONS, "ConvTranspose", *_RECURRENT, *_ATTENTION):
        return 0
    source, weight, made = (_extents(v) for v in (node.inputs[0], node.inputs[1], node.outputs[0]))
    if source is None or weight is None:
        return None
    if kind in _RECURRENT:
        recurrent = _extents(node.inputs[2])
        return None if recurrent is None else source[0] * (_product(weight) + _product(recurrent))
    if kind in _ATTENTION:
        return _product(source[1:-1]) * _product(weight)
    if kind == "ConvTranspose":
        return _product(source[1:]) * _product(weight[1:])
    if made is None:
        return None
    if kind in _CONVOLUTIONS:
        return _product(made[1:]) * _product(weight[1:])
    if kind == "Gemm":
        made = [made[0], *_merged(node.inputs[0]), *made[1:]]
    inner = weight[-1] if attribute(node, "transB", 0) else weight[-2] if len(weight) > 1 else weight[0]
    return _product(made[1:] if len(made) > 1 else made) * inner


def _merged(value: ir.Value | None) -> list[int]:
    """The axes that a Reshape before a matrix product has merged with the batch: [N, T, K] read as [N * T, K]."""
    while value is not None and (node := value.producer()) is not None:
        before = node.inputs[0]
        extents = _extents(before)
        if node.op_type in ("Reshape", "Flatten") and extents is not None and len(extents) > 2:
            after = _extents(value)
            return extents[1:-1] if after is not None and after[-1] == extents[-1] else []
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            break
        value = before
    return []


def _extents(value: ir.Value | None) -> list[int] | None:
    if value is None or value.shape is None:
        return None
    return [d if isinstance(d, int) else 1 for d in value.shape]


def _product(extents: list[int]) -> int:
    return math.prod(extents)


def _is_weight(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype in (*FLOATS, *SMALL_INTEGERS) and tensor.size >= 2


def _is_bias(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    """True for int32 codes: of the integers of that size only those behind a DequantizeLinear are weights."""
    coded = any(use.node.op_type == "DequantizeLinear" and use.idx == 0 for use in value.uses())
    return coded and tensor.dtype == ir.DataType.INT32 and tensor.size >= 2


def _is_helper(value: ir.Value) -> bool:
    """True for a constant that is read by no node, or only as a scale, zero point or table of codes."""
    return all(_helps(use.node, use.idx) for use in value.uses())


def _helps(node: ir.Node, index: int) -> bool:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return index > 0
    if node.op_type == "MatMulNBits":
        return index > 1
    return node.op_type == "Gather" and index == 0 and _is_table(node)


def _is_table(node: ir.Node) -> bool:
    """True for the Gather that unpacks bytes: a constant [256, codes] indexed by a Cast."""
    table, index = constant(node.inputs[0]), node.inputs[1]
    producer = None if index is None else index.producer()
    cast = producer is not None and producer.op_type == "Cast"
    return table is not None and table.ndim == 2 and table.shape[0] == 256 and cast


def _lookup(value: ir.Value) -> np.ndarray | None:
    """The table that unpacks this value's bytes into codes, or None when it is not packed."""
    for use in value.uses():
        node = use.node
        if node.op_type == "Gather" and use.idx == 1 and _is_table(node):
            return constant(node.inputs[0])
        if node.op_type in ("Cast", "Reshape") or (node.op_type == "Gather" and use.idx == 0):
            found = _lookup(node.outputs[0])
            if found is not None:
                return found
    return None


def _elements(value: ir.Value) -> np.ndarray:
    """The weights that a constant stands for, one by one, 0 where the weight is 0."""
    array, table = constant(value), _lookup(value)
    if array is None:
        raise ValueError(f"{value.name} is no constant")
    if table is not None:
        return table[array.astype(np.int64)]
    codes = codes_of(value)
    return array if codes is None else codes
