"""Questions about a model, and the few edits that every pass needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)
SMALL_INTEGERS = (
    *(ir.DataType.INT8, ir.DataType.UINT8),
    *(ir.DataType.INT4, ir.DataType.UINT4),
    *(ir.DataType.INT2, ir.DataType.UINT2),
)
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Attention", "Gather")


def opset(model: ir.Model) -> int:
    """The version of the default operator set."""
    imports = model.graph.opset_imports
    return imports.get("", imports.get("ai.onnx", 1))


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """All nodes, those of If, Loop and Scan bodies included."""
    for graph in model.graphs():
        yield from graph


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer or of a Constant node's output; None when it is not constant."""
    tensor = _tensor(value)
    return None if tensor is None else tensor.numpy()


def is_constant(value: ir.Value | None) -> bool:
    """True for a value whose data is in the file, and which no caller can override."""
    return value is not None and not value.is_graph_input() and _tensor(value) is not None


def _tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    return None if value is None else ir.convenience.get_const_tensor(value)


def attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute, or the default that the operator's schema gives."""
    found = node.attributes.get(name)
    return default if found is None else found.as_int()


def integers(node: ir.Node, name: str) -> tuple[int, ...] | None:
    """An integer-list attribute, or None when it is not set."""
    found = node.attributes.get(name)
    return None if found is None else tuple(found.as_ints())


def rank(value: ir.Value | None) -> int | None:
    """The number of dimensions; None when unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The node that alone reads the value, once, when it is not an output of the graph either."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def new_initializer(
    graph: ir.Graph, name: str, array: np.ndarray, dtype: ir.DataType | None = None
) -> ir.Value:
    """Add a constant under `name`, made unique in this graph and its subgraphs."""
    tensor = ir.tensor(np.asarray(array, order="C"), dtype=dtype, name=unique_name(graph, name))
    value = ir.Value(
        name=tensor.name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(np.shape(array)),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def unique_name(graph: ir.Graph, name: str) -> str:
    """`name`, or `name_1`, `name_2`, ... when another value of this graph or of its subgraphs has it."""
    taken = _value_names(graph, name)
    if name not in taken:
        return name
    return next(f"{name}_{n}" for n in range(1, len(taken) + 2) if f"{name}_{n}" not in taken)


def _value_names(graph: ir.Graph, start: str) -> set[str]:
    """The names beginning with `start` of the values in a graph and its subgraphs."""
    values = [*graph.inputs, *graph.initializers.values()]
    for inner in graph.subgraphs():
        values += [*inner.inputs, *inner.initializers.values()]
    for node in graph.all_nodes():
        values += node.outputs
    return {value.name for value in values if value.name and value.name.startswith(start)}


def matches(names: tuple[str | None, ...], globs: tuple[str, ...]) -> bool:
    """True when any of the names fits any of the shell-style patterns.

    >>> matches(("conv1", "conv1.weight"), ("*.weight",))
    True
    """
    return any(fnmatchcase(name, glob) for name in names if name for glob in globs)


def remove_dead(model: ir.Model) -> None:
    """Drop nodes and initializers that nothing reads."""
    import onnx_ir.passes.common as common

    common.RemoveUnusedNodesPass()(model)


@dataclass(frozen=True)
class Summary:
    """Counts over a model. MACs are multiply-accumulates for one sample; None when shapes are unknown."""

    operators: dict[str, int]
    parameters: int
    nonzero: int
    macs: int | None
    quantized: str


def summarize(model: ir.Model) -> Summary:
    """Operators, elements of float or small integer constants, the non-zero ones, MACs, kind of quantization."""
    operators = Counter(node.op_type for node in nodes(model))
    parameters = nonzero = 0
    for weight in weight_values(model):
        array = constant(weight)
        if array is not None:
            parameters += array.size
            nonzero += int(np.count_nonzero(array))
    return Summary(
        dict(operators.most_common()), parameters, nonzero, macs(model), quantization_of(operators)
    )


def weight_values(model: ir.Model) -> list[ir.Value]:
    """Constants of a float or small integer type with two elements or more that are read; a shared one once.

    Scales and zero points of quantized values do not count.
    """
    found: list[ir.Value] = []
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and _is_weight(tensor) and not _only_scales(value):
                found.append(value)
        for node in graph:
            held = _tensor(node.outputs[0]) if node.op_type == "Constant" else None
            if held is not None and _is_weight(held):
                found.append(node.outputs[0])
    return found


def _only_scales(value: ir.Value) -> bool:
    """True for a constant that is read by no node, or only as a scale or zero point."""
    linear = ("QuantizeLinear", "DequantizeLinear")
    return all(use.idx > 0 and use.node.op_type in linear for use in value.uses())


def _is_weight(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype in (*FLOATS, *SMALL_INTEGERS) and tensor.size >= 2


def quantization_of(operators: Counter[str]) -> str:
    """'none', 'static', 'dynamic' or 'weights', judged from the operators present."""
    if operators["QuantizeLinear"] or any(op.startswith("QLinear") for op in operators):
        return "static"
    if operators["DynamicQuantizeLinear"] or operators["DynamicQuantizeLSTM"] or operators["QAttention"]:
        return "dynamic"
    return "weights" if operators["DequantizeLinear"] or operators["MatMulNBits"] else "none"


def macs(model: ir.Model) -> int | None:
    """Multiply-accumulates of Conv, ConvTranspose, Gemm and MatMul for one sample; dynamic axes other than
    the batch count as 1. None when a shape that is needed is unknown."""
    total = 0
    for node in model.graph:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or node.domain not in (
            "",
            "ai.onnx",
        ):
            continue
        count = _node_macs(node)
        if count is None:
            return None
        total += count
    return total


def _node_macs(node: ir.Node) -> int | None:
    left, right, out = node.inputs[0], node.inputs[1], node.outputs[0]
    if left is None or right is None or left.shape is None or right.shape is None or out.shape is None:
        return None
    weight = [d if isinstance(d, int) else 1 for d in right.shape]
    made = [d if isinstance(d, int) else 1 for d in out.shape]
    if node.op_type == "Conv":
        return int(np.prod(made[1:], dtype=np.int64) * np.prod(weight[1:], dtype=np.int64))
    if node.op_type == "ConvTranspose":
        given = [d if isinstance(d, int) else 1 for d in left.shape]
        return int(np.prod(given[1:], dtype=np.int64) * np.prod(weight[1:], dtype=np.int64))
    inner = weight[-1] if attribute(node, "transB", 0) else weight[-2] if len(weight) > 1 else weight[0]
    batch = made[1:] if len(made) > 1 else made
    return int(np.prod(batch, dtype=np.int64) * inner)
