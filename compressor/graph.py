"""Questions about a model, and the few edits that every pass needs."""

from __future__ import annotations

from collections.abc import Iterator
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
    """Add a constant under `name`, made unique in this graph; scans all names, so not for many at once."""
    return add_initializer(graph, unique_name(graph, name), array, dtype)


def add_initializer(
    graph: ir.Graph, name: str, array: np.ndarray, dtype: ir.DataType | None = None
) -> ir.Value:
    """Add a constant under `name`, which must be free: see `new_initializer`."""
    tensor = ir.tensor(np.asarray(array, order="C"), dtype=dtype, name=name)
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
