"""Storing a quantized model's inputs and outputs as integers, for callers that have or want bytes.

The scale and zero point of each go into the metadata, so that `compressor.Session` and the report still speak float.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import onnx_ir as ir

from compressor.graph import constant
from compressor.runtime import QUANTIZED_IO


class _Grid(NamedTuple):
    scale: float
    zero: int
    kind: ir.DataType


def store(model: ir.Model) -> tuple[str, ...]:
    """Drop the QuantizeLinear at inputs that nothing else reads and the DequantizeLinear at outputs, in place.

    Returns the names of the inputs and outputs that became integers. The others stay float: those with a scale
    per channel or one that is computed, inputs with a default, outputs that a node reads too.
    """
    codes: dict[str, tuple[float, int]] = {}
    for value in model.graph.inputs:
        if grid := _store_input(value, model.graph):
            codes[str(value.name)] = grid.scale, grid.zero
    for index, value in enumerate(list(model.graph.outputs)):
        if grid := _store_output(value, index, model.graph):
            codes[str(model.graph.outputs[index].name)] = grid.scale, grid.zero
    if codes:
        model.metadata_props[QUANTIZED_IO] = json.dumps(codes, sort_keys=True)
    return tuple(codes)


def _store_input(value: ir.Value, graph: ir.Graph) -> _Grid | None:
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or value.name in graph.initializers:
        return None
    quantize = uses[0].node
    if quantize.op_type != "QuantizeLinear" or quantize.graph is not graph:
        return None
    integer = quantize.outputs[0]
    grid = _grid(quantize, integer)
    if grid is None or integer.is_graph_output():
        return None
    value.type = ir.TensorType(grid.kind)
    integer.replace_all_uses_with(value)
    graph.remove(quantize, safe=True)
    return grid


def _store_output(value: ir.Value, index: int, graph: ir.Graph) -> _Grid | None:
    dequantize = value.producer()
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or value.uses():
        return None
    integer = dequantize.inputs[0]
    if integer is None or integer.producer() is None or integer.is_graph_output():
        return None
    grid = _grid(dequantize, integer)
    if grid is None or graph.outputs.count(value) != 1:
        return None
    name = str(value.name)
    integer.type, integer.shape = ir.TensorType(grid.kind), value.shape
    graph.outputs[index] = integer
    graph.remove(dequantize, safe=True)
    value.name, integer.name = f"{name}_float", name
    return grid


def _grid(node: ir.Node, integer: ir.Value) -> _Grid | None:
    """The scale, zero point and element type of a (de)quantizing node, when they are single known numbers."""
    scale = constant(node.inputs[1])
    named = node.inputs[2] if len(node.inputs) > 2 else None
    zero = constant(named)
    if scale is None or scale.size != 1 or (named is not None and (zero is None or zero.size != 1)):
        return None
    known = named.dtype if named is not None else integer.dtype
    kind = known or (ir.DataType.UINT8 if zero is None else ir.DataType.from_numpy(zero.dtype))
    if kind not in (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16):
        return None
    return _Grid(float(scale.reshape(())), 0 if zero is None else int(zero.reshape(())), kind)
