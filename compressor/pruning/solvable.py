"""Layers whose weights can be solved again after a cut: which they are, and where their weights and biases lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from compressor.channels import Kept
from compressor.graph import add_initializer, attribute, is_constant, sole_consumer, unique_name
from compressor.pruning import layer_inputs
from compressor.pruning.channel_importance import real
from compressor.pruning.least_squares import Solution

_SOLVED = ("Conv", "Gemm", "MatMul")
_WIDEST = 8192
"""Inputs of a layer up to which the sum of products, of their square, is kept in memory."""


_PRUNED = 0.25
"""The share of exact zeros from which a weight counts as pruned."""


@dataclass(frozen=True)
class Layer:
    """A layer whose input a cut changes.

    Args:
        node: name of the Conv, Gemm or MatMul.
        made: name of the value that is to be kept: the node's output, or that of the Add of its bias.
        outputs: bool, which of the outputs that the layer had are left.
    """

    node: str
    made: str
    outputs: np.ndarray


def layers(model: ir.Model, kept: Kept) -> tuple[list[Layer], dict[str, str]]:
    """The layers whose input a cut will change, in order; and node -> why another that loses inputs is left as it is.

    Layers further behind are among them: they make up for what those before them could not.
    """
    stays = _stays(kept)
    losing = {member.value for group in kept for member in group.weights("input")}
    changed: set[ir.Value | None] = {value for value, _ in stays}
    found: list[Layer] = []
    declined: dict[str, str] = {}
    for node in model.graph.all_nodes():
        touched = changed.intersection(node.inputs)
        changed.update(node.outputs if touched else ())
        place = next((at for at, value in enumerate(node.inputs) if value in losing), None)
        if place is None and (node.op_type not in _SOLVED or node.inputs[0] not in touched):
            continue
        reason = refusal(model, node, 1 if place is None else place)
        if reason is None:
            found.append(_layer(node, stays))
        elif place is not None:
            declined[str(node.name)] = f"not solved again: {reason}"
    return found, declined


def _layer(node: ir.Node, stays: Mapping[tuple[ir.Value, int], np.ndarray]) -> Layer:
    weight, axis = input_of(node, 1), 0 if _outputs_first(node) else 1
    everything = np.ones(weight.shape.numpy()[axis] if weight.shape else 0, bool)
    made = added(node) or node
    return Layer(str(node.name), str(made.outputs[0].name), stays.get((weight, axis), everything))


def refusal(model: ir.Model, node: ir.Node, place: int) -> str | None:
    """Why input number `place` of a layer cannot be solved again, or None."""
    if node.op_type == "DequantizeLinear":
        return "the weights are stored as codes; prune before quantizing"
    if node.op_type not in _SOLVED or place != 1:
        return f"{node.op_type} is not a Conv, Gemm or MatMul that reads rows of one value"
    weight = node.inputs[1]
    if (
        weight is None
        or not is_constant(weight)
        or weight.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
    ):
        return "its weight is not a constant of float32"
    if len(list(weight.uses())) > 1 or weight.is_graph_output():
        return "its weight is read elsewhere too"
    if np.mean(real(weight) == 0) > _PRUNED:
        return "its weight was pruned before, and solving it would fill the zeros"
    plain = all(node.attributes[k].as_float() == 1 for k in ("alpha", "beta") if k in node.attributes)
    if node.op_type == "Gemm" and (attribute(node, "transA", 0) or not plain):
        return "it is a Gemm with alpha, beta or transA"
    shape = tuple(weight.shape.numpy()) if weight.shape else (0,)
    columns = prod(shape[1:]) if _outputs_first(node) else shape[0]
    if columns > _WIDEST:
        return f"it reads {columns} values at once, more than {_WIDEST}"
    return layer_inputs.refusal(model, node, place)


def matrices(node: ir.Node, groups: int) -> np.ndarray:
    """The weights of a layer as float64 [groups, inputs, outputs]."""
    array = real(input_of(node, 1))
    rows = array if _outputs_first(node) else array.T
    return rows.astype(np.float64).reshape(groups, len(rows) // groups, -1).transpose(0, 2, 1)


def can_shift(node: ir.Node) -> bool:
    """Whether the layer has a bias, or can be given one."""
    return node.op_type != "MatMul" or bias_of(node) is not None


def write(model: ir.Model, node: ir.Node, solution: Solution) -> None:
    """Put solved weights, and the bias, into the layer."""
    weight = input_of(node, 1)
    array = real(weight)
    rows = solution.weights.transpose(0, 2, 1).reshape(
        len(array) if _outputs_first(node) else array.shape[1], -1
    )
    fitting = rows.reshape(array.shape) if _outputs_first(node) else rows.T
    _replace(weight, fitting.astype(array.dtype))
    if solution.bias is not None:
        write_bias(model, node, solution.bias.reshape(-1).astype(array.dtype))


def input_of(node: ir.Node, place: int) -> ir.Value:
    """An input that is there.

    Raises:
        ValueError: it is left out.
    """
    value = node.inputs[place]
    if value is None:
        raise ValueError(f"{node.name!r} has no input {place}")
    return value


def _outputs_first(node: ir.Node) -> bool:
    """Whether the first axis of the weight is that of the outputs."""
    return node.op_type == "Conv" or (node.op_type == "Gemm" and bool(attribute(node, "transB", 0)))


def added(node: ir.Node) -> ir.Node | None:
    """The Add of a constant vector that alone reads a MatMul: its bias."""
    after = sole_consumer(node.outputs[0]) if node.op_type == "MatMul" else None
    if after is None or after.op_type != "Add" or after.graph is not node.graph:
        return None
    other = after.inputs[1 if after.inputs[0] is node.outputs[0] else 0]
    return after if other is not None and is_constant(other) and len(other.shape or ()) == 1 else None


def bias_of(node: ir.Node) -> tuple[ir.Node, int] | None:
    """Where the bias of a layer is: a node and the number of its input; None where there is none yet."""
    addition = added(node)
    if addition is not None:
        return addition, 1 if addition.inputs[0] is node.outputs[0] else 0
    return (node, 2) if len(node.inputs) > 2 and node.inputs[2] is not None else None


def _stays(kept: Kept) -> Mapping[tuple[ir.Value, int], np.ndarray]:
    """(constant, axis) -> bool: which positions are left."""
    found: dict[tuple[ir.Value, int], np.ndarray] = {}
    for group, mask in kept.items():
        for member in group.members:
            here = (member.index < 0) | mask[member.index]
            place = member.value, member.axis
            found[place] = found[place] & here if place in found else here
    return found


def write_bias(model: ir.Model, node: ir.Node, array: np.ndarray) -> None:
    """In the place of the old one, or as a new initializer where there is none or another layer reads it."""
    reader, place = bias_of(node) or (node, 2)
    if len(reader.inputs) <= place:
        reader.resize_inputs(place + 1)
    old = reader.inputs[place]
    if old is not None and old.is_initializer() and len(list(old.uses())) == 1 and not old.is_graph_output():
        _replace(old, array)
        return
    name = str(old.name) if old is not None else f"{input_of(node, 1).name}_bias"
    fresh = add_initializer(model.graph, unique_name(model.graph, name), array)
    reader.replace_input_with(place, fresh)


def _replace(value: ir.Value, array: np.ndarray) -> None:
    value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
    value.shape = ir.Shape(array.shape)
