"""Folding a BatchNormalization (or a constant per-channel Mul or Add) into the weights before it.

For y = gamma * (Wx + b - mean) / sqrt(var + eps) + beta, the folded layer has W' = s W and b' = s (b - mean) + beta
with s = gamma / sqrt(var + eps) (Jacob et al. 2018, arXiv:1712.05877, section 3.2). Computed in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from compressor.graph import attribute, constant, is_constant, new_initializer, rank, sole_consumer

_FOLDABLE = ("Conv", "ConvTranspose", "Gemm")
_AFFINE = ("BatchNormalization", "Mul", "Add", "Sub", "Div")


class Affine(NamedTuple):
    """y = scale * x + shift per channel; each of shape [channels], or [] for a scalar."""

    scale: np.ndarray
    shift: np.ndarray


def fold(model: ir.Model) -> tuple[tuple[str, ...], dict[str, str]]:
    """Fold what can be folded, in place: (names of the folded nodes, name -> why another was left)."""
    folded: list[str] = []
    declined: dict[str, str] = {}
    for graph in list(model.graphs()):
        for layer in list(graph):
            if layer.op_type not in _FOLDABLE or layer.domain not in ("", "ai.onnx"):
                continue
            while (after := _follower(layer)) is not None:
                name = name_of(after)
                affine = _affine(after, layer)
                reason = affine if isinstance(affine, str) else _refusal(layer) or _misfit(layer, affine)
                if reason or isinstance(affine, str):
                    if after.op_type == "BatchNormalization":
                        declined[name] = str(reason)
                    break
                _scale(layer, affine)
                _bypass(after, layer.outputs[0])
                folded.append(name)
    for graph in model.graphs():
        for node in graph:
            if node.op_type == "BatchNormalization":
                declined.setdefault(name_of(node), "no layer with weights stands alone before it")
    return tuple(folded), declined


def name_of(node: ir.Node) -> str:
    """The node's name, or that of what it makes."""
    return node.name or str(node.outputs[0].name)


def _follower(layer: ir.Node) -> ir.Node | None:
    """The node that alone reads the layer's output, in the same graph, when it may be an affine one."""
    after = sole_consumer(layer.outputs[0])
    if after is None or after.graph is not layer.graph or after.domain not in ("", "ai.onnx"):
        return None
    return after if after.op_type in _AFFINE else None


def _affine(node: ir.Node, layer: ir.Node) -> Affine | str:
    """What `node` does to each channel of the layer's output, or why it is not that simple."""
    if node.op_type == "BatchNormalization":
        if attribute(node, "training_mode", 0):
            return "training mode: its statistics are those of the batch"
        if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
            return "its statistics are outputs"
        if not attribute(node, "spatial", 1):
            return "spatial=0: its parameters differ per position"
        values = [constant(v) if is_constant(v) else None for v in node.inputs[1:5]]
        gamma, beta, mean, var = (None if v is None else v.astype(np.float64) for v in values)
        if gamma is None or beta is None or mean is None or var is None:
            return "its parameters are not constant"
        epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-5
        if not np.all(var + epsilon > 0):
            return "its variance is not positive"
        scale = gamma / np.sqrt(var + epsilon)
        return Affine(scale, beta - scale * mean)
    side = 1 if node.inputs[0] is layer.outputs[0] else 0
    other = node.inputs[side]
    if not is_constant(other) or (side == 0 and node.op_type in ("Sub", "Div")):
        return "not a constant on its right"
    array = _per_channel(constant(other), rank(layer.outputs[0]))
    if array is None:
        return "not one number per channel"
    one, zero = np.ones_like(array), np.zeros_like(array)
    match node.op_type:
        case "Mul":
            return Affine(array, zero)
        case "Div":
            return Affine(1 / array, zero) if array.all() else "a division by zero"
        case "Add":
            return Affine(one, array)
        case _:
            return Affine(one, -array)


def _per_channel(array: np.ndarray | None, dims: int | None) -> np.ndarray | None:
    """A broadcast operand as [channels] for channel axis 1 of `dims` axes, or None."""
    if array is None or array.dtype.kind != "f" or dims is None or array.ndim > dims:
        return None
    shape = (1,) * (dims - array.ndim) + array.shape
    if any(extent != 1 for axis, extent in enumerate(shape) if axis != 1):
        return None
    return array.reshape(-1).astype(np.float64)


def _refusal(layer: ir.Node) -> str | None:
    weight = layer.inputs[1]
    if weight is None or not is_constant(weight):
        return "the weights before it are computed in the graph"
    if len(layer.inputs) > 2 and layer.inputs[2] is not None and not is_constant(layer.inputs[2]):
        return "the bias before it is computed in the graph"
    if layer.op_type == "Gemm":
        plain = all(layer.attributes[k].as_float() == 1 for k in ("alpha", "beta") if k in layer.attributes)
        bias = constant(layer.inputs[2]) if len(layer.inputs) > 2 and layer.inputs[2] is not None else None
        if not plain or (bias is not None and bias.ndim == 2 and bias.shape[0] != 1):
            return "a Gemm with alpha, beta or a bias per row"
    return None


def _misfit(layer: ir.Node, affine: Affine) -> str | None:
    weight = constant(layer.inputs[1])
    if weight is None or affine.scale.size not in (1, _channels(layer, weight)):
        return "it has another number of channels than the weights before it"
    widest = float(np.max(np.abs(weight.astype(np.float64)), initial=0.0))
    if widest * float(np.max(np.abs(affine.scale), initial=0.0)) > _largest(weight.dtype):
        return f"the weights would not fit in {weight.dtype}"
    return None


def _largest(dtype: np.dtype) -> float:
    """The largest number of a float type; bfloat16, which numpy does not know, reaches as far as float32."""
    return float(np.finfo(dtype if dtype.kind == "f" else np.float32).max)


def _scale(layer: ir.Node, affine: Affine) -> None:
    """Write new weights and bias; the old ones may be shared, so they are left alone."""
    graph, weight = layer.graph, layer.inputs[1]
    array = constant(weight)
    if graph is None or weight is None or array is None:
        raise ValueError(f"{layer.name}: no constant weight")
    channels = _channels(layer, array)
    scale = np.broadcast_to(affine.scale, (channels,))
    shift = np.broadcast_to(affine.shift, (channels,))
    new = array.astype(np.float64) * _along(layer, array, scale)
    had = constant(layer.inputs[2]) if len(layer.inputs) > 2 and layer.inputs[2] is not None else None
    bias = (
        np.zeros(channels) if had is None else np.broadcast_to(had.reshape(-1), (channels,))
    ) * scale + shift
    layer.replace_input_with(1, new_initializer(graph, str(weight.name), new.astype(array.dtype)))
    named = layer.inputs[2].name if had is not None and layer.inputs[2] is not None else f"{weight.name}_bias"
    value = new_initializer(graph, str(named), bias.astype(array.dtype))
    if len(layer.inputs) < 3:
        layer.resize_inputs(3)
    layer.replace_input_with(2, value)


def _channels(layer: ir.Node, weight: np.ndarray) -> int:
    if layer.op_type == "Conv":
        return int(weight.shape[0])
    if layer.op_type == "ConvTranspose":
        return int(weight.shape[1]) * attribute(layer, "group", 1)
    return int(weight.shape[0 if attribute(layer, "transB", 0) else 1])


def _along(layer: ir.Node, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The scale in a shape that multiplies the weight's output channels."""
    ones = (1,) * (weight.ndim - 2)
    if layer.op_type == "Conv":
        return scale.reshape(-1, 1, *ones)
    if layer.op_type == "ConvTranspose":
        group = attribute(layer, "group", 1)
        per_group = scale.reshape(group, 1, weight.shape[1])
        return np.repeat(per_group, weight.shape[0] // group, axis=1).reshape(*weight.shape[:2], *ones)
    return scale.reshape(-1, 1) if attribute(layer, "transB", 0) else scale.reshape(1, -1)


def _bypass(node: ir.Node, value: ir.Value) -> None:
    """Remove `node`, its first output being replaced by `value`; a graph output keeps its name."""
    out, graph = node.outputs[0], node.graph
    if graph is None:
        raise ValueError(f"{node.name}: not in a graph")
    if value.shape is None:
        value.shape = out.shape
    ir.convenience.replace_all_uses_with(out, value, replace_graph_outputs=True)
    if out.is_graph_output() is False and out.name and value.is_graph_output():
        name, out.name = out.name, f"{out.name}_folded"
        value.name = name
    graph.remove(node, safe=True)
