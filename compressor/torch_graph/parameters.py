"""Which initializers of a model are trained.

An initializer is a parameter when it is a floating-point tensor in the place where operators have weights, directly
or behind a chain of Transpose, Reshape, Cast and the like. Everything else (statistics, quantizer scales, masks,
normalization constants of the input) is a buffer. Binary activations train their thresholds and scales.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from compressor.graph import FLOATS, nodes
from compressor.low_bit.signs import signs

_ANY = (0, 1)
WEIGHTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "DeformConv": (1, 3),
    "FusedConv": (1, 2),
    "Gemm": (*_ANY, 2),
    "FusedGemm": (*_ANY, 2),
    "MatMul": _ANY,
    "FusedMatMul": _ANY,
    "Einsum": _ANY,
    "Add": _ANY,
    "Mul": _ANY,
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3, 4),
    "SkipSimplifiedLayerNormalization": (2, 3),
    "EmbedLayerNormalization": (2, 3, 4, 5, 6),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "GroupNorm": (1, 2),
    "RMSNormalization": (1,),
    "PRelu": (1,),
    "Gather": (0,),
    "Expand": (0,),
    "Concat": tuple(range(16)),
    "LSTM": (1, 2, 3),
    "GRU": (1, 2, 3),
    "RNN": (1, 2, 3),
    "Attention": (1, 2),
    "MultiHeadAttention": (3,),
    "BiasGelu": (1,),
    "FastGelu": (1,),
}
"""Operator -> the inputs that hold weights."""

VIEWS = (
    "Transpose",
    "Reshape",
    "Cast",
    "CastLike",
    "Unsqueeze",
    "Squeeze",
    "Identity",
    "Flatten",
    "Split",
    "Slice",
)
CODED = ("QuantizeLinear", "DequantizeLinear")
_ELEMENTWISE = ("Add", "Mul")
_FILLING = ("Expand", "Concat")
"""Operators that take zeros as often as weights: initial states, padding."""


def constants(model: ir.Model) -> Iterator[ir.Value]:
    """Every value whose data is in the file: initializers, and outputs of Constant nodes, bodies included."""
    for graph in model.graphs():
        yield from (value for value in graph.initializers.values() if value.const_value is not None)
    for node in nodes(model):
        if node.op_type == "Constant" and ir.convenience.get_const_tensor(node.outputs[0]) is not None:
            yield node.outputs[0]


def keyed(model: ir.Model) -> dict[str, ir.Value]:
    """Name -> constant; the second of two bodies that use a name has it as `name@1`, and so on."""
    found: dict[str, ir.Value] = {}
    for value in constants(model):
        name, number = str(value.name), 0
        while name in found:
            number += 1
            name = f"{value.name}@{number}"
        found[name] = value
    return found


def scales(model: ir.Model) -> list[ir.Value]:
    """The constant scales of QuantizeLinear nodes, each once."""
    found = {
        node.inputs[1]: None
        for node in nodes(model)
        if node.op_type == "QuantizeLinear" and node.inputs[1] is not None
    }
    return [value for value in found if value.const_value is not None and value.is_initializer()]


def trainable(model: ir.Model) -> list[ir.Value]:
    """The values that training changes, in the order of the file."""
    levels = {value for sign in signs(model) for value in (sign.threshold, sign.step)}
    return [
        value
        for value in constants(model)
        if value in levels or (_is_float(value) and _is_weight(value) and not _is_progression(value))
    ]


def array_of(value: ir.Value) -> np.ndarray:
    """The data of a constant value."""
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise ValueError(f"{value.name!r} is not a constant")
    return tensor.numpy()


def is_filled(array: np.ndarray) -> bool:
    """True when all elements are equal."""
    return bool((array == array.flat[0]).all())


def _is_float(value: ir.Value) -> bool:
    tensor = ir.convenience.get_const_tensor(value)
    return tensor is not None and tensor.dtype in FLOATS and tensor.size > 0


def _is_weight(value: ir.Value) -> bool:
    return any(_holds_weight(array_of(value), use.node, use.idx) for use in value.uses())


def _holds_weight(array: np.ndarray, node: ir.Node, index: int) -> bool:
    """True when input `index` of the node, which holds the array in some form, is a weight, or passed on as one."""
    if node.op_type in (*VIEWS, *CODED):
        return index == 0 and any(
            _holds_weight(array, use.node, use.idx) for output in node.outputs for use in output.uses()
        )
    if index not in WEIGHTS.get(node.op_type, ()):
        return False
    if node.op_type in _FILLING:
        return not is_filled(array)
    if node.op_type not in _ELEMENTWISE:
        return True
    other = node.inputs[1 - index]
    if other is None or other.is_graph_input():
        return False
    return array.size > 1 or (node.op_type == "Add" and _is_layer(other.producer()))


def _is_layer(node: ir.Node | None) -> bool:
    """True for what a bias is added to, even one of a single number."""
    return node is not None and node.op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum")


def _is_progression(value: ir.Value) -> bool:
    """True for 0, 1, 2, ... and the like, which detection heads and position tables hold as constants."""
    array = array_of(value).ravel()
    if not 3 <= array.size <= 4096:
        return False
    steps = np.diff(array.astype(np.float64))
    return bool(steps[0] != 0 and (steps == steps[0]).all())
