"""LayerNormalization and GELU that a file spells out in small operators, as exporters do before opsets 17 and 20.

Spelled out, each takes many passes over memory and keeps many tensors for the backward pass; torch has one kernel for
either. The weights are the same ones, so nothing else changes.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from compressor.graph import FLOATS, attribute, constant, integers, rank, sole_consumer

_ROUNDING = float(np.finfo(np.float32).eps)


def recompose(model: ir.Model) -> None:
    """Write LayerNormalization over the last axis, and the exact GELU, as one node each, in place.

    The node gives what the last one of the pattern gave. The other nodes stay: whoever else reads a value inside still
    finds it, and what nobody reads is dropped when the graph is lowered.
    """
    for graph in model.graphs():
        for node in list(graph):
            if node.op_type == "Erf":
                _gelu(node)
            elif node.op_type == "Sqrt":
                _layer_normalization(node)


def _gelu(erf: ir.Node) -> None:
    """x / 2 (1 + erf(x / sqrt(2))), whatever is multiplied first."""
    x = _scaled(erf.inputs[0], 1 / math.sqrt(2))
    one_more = _next(erf, "Add")
    if x is None or one_more is None or _number(_other(one_more, erf.outputs[0])) != 1:
        return
    first = _next(one_more, "Mul")
    if first is None:
        return
    factor = _other(first, one_more.outputs[0])
    if _scaled(factor, 0.5) is x:
        _replace(first, "Gelu", [x], {})
        return
    second = _next(first, "Mul")
    if second is None:
        return
    last = _other(second, first.outputs[0])
    if (factor is x and _number(last) == 0.5) or (_number(factor) == 0.5 and last is x):
        _replace(second, "Gelu", [x], {})


def _layer_normalization(root: ir.Node) -> None:
    """(x - mean) / sqrt(mean((x - mean)^2) + epsilon) * scale + bias over the last axis."""
    shifted = _producer(root.inputs[0], "Add")
    divided = _next(root, "Div")
    if shifted is None or divided is None or divided.inputs[1] is not root.outputs[0]:
        return
    variance, epsilon = sorted(shifted.inputs, key=lambda value: _number(value) is not None)
    number = _number(epsilon)
    centred = _squared(_mean_of(variance))
    x = _centred(centred)
    if number is None or x is None or _centred(divided.inputs[0]) is not x:
        return
    scaled = _next(divided, "Mul")
    moved = None if scaled is None else _next(scaled, "Add")
    if scaled is None or moved is None:
        return
    weights = [_other(scaled, divided.outputs[0]), _other(moved, scaled.outputs[0])]
    sizes = {tuple(w.shape) if w is not None and w.shape is not None else None for w in weights}
    if len(sizes) > 1 or not _is_vector(sizes.pop()):
        return
    _replace(moved, "LayerNormalization", [x, *weights], {"axis": -1, "epsilon": number})


def _is_vector(shape: tuple[object, ...] | None) -> bool:
    return shape is not None and len(shape) == 1 and isinstance(shape[0], int) and shape[0] > 1


def _scaled(value: ir.Value | None, factor: float) -> ir.Value | None:
    """The x of x * factor, or of x / (1 / factor); None for any other value."""
    if (product := _producer(value, "Mul")) is not None:
        for one, other in (product.inputs, reversed(product.inputs)):
            if _is_near(_number(other), factor):
                return one
    quotient = _producer(value, "Div")
    return (
        quotient.inputs[0]
        if quotient is not None and _is_near(_number(quotient.inputs[1]), 1 / factor)
        else None
    )


def _squared(value: ir.Value | None) -> ir.Value | None:
    power, product = _producer(value, "Pow"), _producer(value, "Mul")
    if power is not None and _number(power.inputs[1]) == 2:
        return power.inputs[0]
    return product.inputs[0] if product is not None and product.inputs[0] is product.inputs[1] else None


def _centred(value: ir.Value | None) -> ir.Value | None:
    """The x of x - mean(x)."""
    difference = _producer(value, "Sub")
    if difference is None or _mean_of(difference.inputs[1]) is not difference.inputs[0]:
        return None
    return difference.inputs[0]


def _mean_of(value: ir.Value | None) -> ir.Value | None:
    """The x whose mean over the last axis, kept with length 1, the value is."""
    mean = _producer(value, "ReduceMean")
    if mean is None or not attribute(mean, "keepdims", 1):
        return None
    given = constant(mean.inputs[1]) if len(mean.inputs) > 1 else integers(mean, "axes")
    last = [-1], [(rank(mean.inputs[0]) or 0) - 1]
    return mean.inputs[0] if given is not None and list(given) in last else None


def _producer(value: ir.Value | None, operator: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == operator and node.domain in ("", "ai.onnx") else None


def _next(node: ir.Node, operator: str) -> ir.Node | None:
    """The node that alone reads the first output, if it is of this operator."""
    consumer = sole_consumer(node.outputs[0])
    return consumer if consumer is not None and consumer.op_type == operator else None


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def _number(value: ir.Value | None) -> float | None:
    """The value of a constant with one element and at most one axis, which broadcasts without adding axes."""
    array = constant(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 and array.ndim < 2 else None


def _is_near(number: float | None, expected: float) -> bool:
    return number is not None and math.isclose(number, expected, rel_tol=_ROUNDING)


def _replace(
    last: ir.Node, operator: str, inputs: list[ir.Value | None], attributes: dict[str, int | float]
) -> None:
    before = last.outputs[0]
    broadcast = rank(before) is not None and rank(before) != rank(inputs[0])
    if before.dtype not in FLOATS or broadcast or last.graph is None:
        return
    node = ir.node(operator, inputs, attributes, name=last.name)
    after = node.outputs[0]
    after.type, after.shape, after.name = before.type, before.shape, before.name
    before.name = f"{before.name}_spelled_out"
    last.graph.insert_before(last, node)
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
