"""Exact rewrites that give the runtime a form it has a fast integer kernel for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compressor.graph import constant, is_constant, new_initializer, rank, sole_consumer
from compressor.placement import stored_weight


def matmul_add_to_gemm(graph: ir.Graph, node: ir.Node) -> ir.Node | None:
    """Write MatMul(x, W) + b as Gemm(x, W, b), with Reshapes around it when x has more than two axes.

    A float bias behind an integer MatMul is not fused by onnxruntime (three times slower than float); a Gemm with an
    int32 bias is. Returns the Gemm, or None when the pattern is not there.
    """
    source, weight = node.inputs[0], node.inputs[1]
    add = sole_consumer(node.outputs[0])
    array = stored_weight(weight)
    if (
        source is None
        or array is None
        or array.ndim != 2
        or add is None
        or add.op_type != "Add"
        or add.graph is not graph
    ):
        return None
    if array.dtype.kind != "f" or not array.size or (source.shape is not None and 0 in tuple(source.shape)):
        return None
    dims = rank(source)
    bias = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
    flat = constant(bias) if is_constant(bias) else None
    if (
        dims is None
        or dims < 2
        or bias is None
        or flat is None
        or flat.size != array.shape[1]
        or flat.ndim > dims
        or flat.shape[-1:] not in ((), (flat.size,))
    ):
        return None
    if flat.ndim != 1:
        bias = new_initializer(graph, str(bias.name), flat.reshape(-1))
    if dims == 2:
        return _replace(graph, node, add, [source, weight, bias])
    return _replace_wrapped(graph, node, add, [source, weight, bias])


def _replace(graph: ir.Graph, node: ir.Node, add: ir.Node, inputs: list[ir.Value | None]) -> ir.Node:
    gemm = ir.node("Gemm", inputs, name=node.name)
    _take_output(graph, add, gemm)
    graph.insert_before(add, gemm)
    _remove(graph, add, node)
    return gemm


def _replace_wrapped(graph: ir.Graph, node: ir.Node, add: ir.Node, inputs: list[ir.Value | None]) -> ir.Node:
    source = inputs[0]
    if source is None or source.shape is None:
        raise ValueError(f"{node.name}: no shape")
    name = str(node.name)
    made: list[ir.Node] = []
    columns = stored_weight(inputs[1])
    width, depth = (0, 0) if columns is None else (columns.shape[1], columns.shape[0])
    flat_shape = new_initializer(graph, f"{name}_rows", np.array([-1, depth], np.int64))
    flat = ir.node("Reshape", [source, flat_shape], name=f"{name}_flatten")
    flat.outputs[0].type, flat.outputs[0].shape = source.type, ir.Shape([None, depth])
    gemm = ir.node("Gemm", [flat.outputs[0], *inputs[1:]], name=name)
    gemm.outputs[0].type, gemm.outputs[0].shape = source.type, ir.Shape([None, width])
    made += [flat, gemm]
    known = [d if isinstance(d, int) else -1 for d in tuple(source.shape)[:-1]]
    if known.count(-1) <= 1:
        target = new_initializer(graph, f"{name}_shape", np.array([*known, width], np.int64))
    else:
        target = _computed_shape(graph, source, width, name, made)
    back = ir.node("Reshape", [gemm.outputs[0], target], name=f"{name}_unflatten")
    made.append(back)
    _take_output(graph, add, back)
    graph.insert_before(add, made)
    _remove(graph, add, node)
    return gemm


def _computed_shape(
    graph: ir.Graph, source: ir.Value, width: int, name: str, made: list[ir.Node]
) -> ir.Value:
    """The source's leading dimensions followed by `width`, computed at run time."""
    lead = (rank(source) or 1) - 1
    shape = ir.node("Shape", [source], name=f"{name}_source_shape")
    start = new_initializer(graph, f"{name}_start", np.array([0], np.int64))
    end = new_initializer(graph, f"{name}_end", np.array([lead], np.int64))
    cut = ir.node("Slice", [shape.outputs[0], start, end], name=f"{name}_leading")
    last = new_initializer(graph, f"{name}_width", np.array([width], np.int64))
    joined = ir.node("Concat", [cut.outputs[0], last], {"axis": 0}, name=f"{name}_full_shape")
    made += [shape, cut, joined]
    return joined.outputs[0]


def _take_output(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    before, after = old.outputs[0], new.outputs[0]
    after.type, after.shape = before.type, before.shape
    name = before.name
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    before.name = f"{name}_replaced"
    after.name = name


def _remove(graph: ir.Graph, *nodes: ir.Node) -> None:
    for node in nodes:
        graph.remove(node, safe=True)
