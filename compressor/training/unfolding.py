"""Folded BatchNormalization, put back for training and folded again afterwards.

Exports fold normalization into the layer before it, and a deep network without it trains slower (Ioffe and Szegedy
2015, arXiv:1502.03167). `unfold` puts an identity behind each layer that may have had one, `estimate` gives it the
statistics of the data and the scale and bias that undo them, so that the function stays the same, and `fold_again`
writes the trained result into the weights that the file has:

    W' = s W,  b' = s (b - mean) + bias,  s = scale / sqrt(var + epsilon)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx

from compressor.graph import add_initializer, attribute, constant, is_constant, sole_consumer, unique_name
from compressor.placement import output_axis
from compressor.torch_graph.writing import NAMES
from compressor.training.dropouts import output_layers

_EPSILON = 2.0**-17
"""Near the usual 1e-5, and 1 - epsilon is a float32: the root of variance plus epsilon is exactly 1."""
_IDENTITY = {"scale": 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0 - _EPSILON}


def unfold(model: ir.Model) -> tuple[ir.Model, tuple[str, ...]]:
    """A copy with an identity BatchNormalization behind layers, and the names of these nodes.

    Chosen is every Conv and Gemm of the main graph with a float32 weight and bias of its own that are not quantized,
    unless it gives an output or a BatchNormalization follows. The name of the layer's output goes to the normalized
    value, which is what readers of that name see.
    """
    unfolded = model.clone()
    heads = {use.node for use in output_layers(unfolded)}
    layers = [node for node in unfolded.graph if node not in heads and _may_be_folded(node)]
    return unfolded, tuple(_normalize(unfolded.graph, layer) for layer in layers)


def estimate(
    module: fx.GraphModule, names: Sequence[str], batches: Iterable[tuple[Tensor, ...]]
) -> fx.GraphModule:
    """Set restored normalizations to the statistics of what reaches them, in place; the function is unchanged.

    Args:
        module: an unfolded model in torch, on any device, the normalizations still identities.
        names: of `unfold`.
        batches: inputs of the module, on any device. Without any, nothing changes.
    """
    moments: dict[str, list[Tensor]] = {}
    handles = []
    for node, name in _calls(module, names):
        handles.append(node.register_forward_pre_hook(_observer(moments.setdefault(name, []))))
    device = next(module.parameters()).device
    was = module.training
    module.eval()
    with torch.no_grad():
        for inputs in batches:
            module(*(x.to(device) for x in inputs))
    module.train(was)
    for handle in handles:
        handle.remove()
    for name, found in moments.items():
        if not found:
            continue
        count, total, squares = found
        mean = total / count
        _set(module, name, mean, (squares / count - mean**2).clamp(min=0))
    return module


def fold_again(trained: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy that computes the same, its restored normalizations identities, their effect in the layers before them.

    The layers keep the names of their weights and biases.
    """
    folded = trained.clone()
    wanted = set(names)
    for node in folded.graph:
        if node.name in wanted:
            _fold(node)
    return folded


def _may_be_folded(layer: ir.Node) -> bool:
    if layer.op_type not in ("Conv", "Gemm") or layer.domain not in ("", "ai.onnx") or len(layer.inputs) < 3:
        return False
    weight, bias, made = layer.inputs[1], layer.inputs[2], layer.outputs[0]
    if not (_own(weight) and _own(bias)) or made.is_graph_output() or not made.uses():
        return False
    follower = sole_consumer(made)
    if follower is not None and follower.op_type == "BatchNormalization":
        return False
    array, shift = constant(weight), constant(bias)
    if array is None or shift is None or shift.shape != (array.shape[output_axis(layer)],):
        return False
    return layer.op_type == "Conv" or _is_plain(layer)


def _own(value: ir.Value | None) -> bool:
    """True for a float32 initializer that this layer alone reads."""
    return (
        value is not None
        and value.is_initializer()
        and is_constant(value)
        and value.dtype == ir.DataType.FLOAT
        and sole_consumer(value) is not None
    )


def _is_plain(gemm: ir.Node) -> bool:
    """True for x W + b, without factors or a transposed x."""
    factors = [gemm.attributes[key].as_float() for key in ("alpha", "beta") if key in gemm.attributes]
    return all(factor == 1 for factor in factors) and not attribute(gemm, "transA", 0)


def _normalize(graph: ir.Graph, layer: ir.Node) -> str:
    """Put an identity behind the layer; its name, which also begins the names of its parameters."""
    made, bias = layer.outputs[0], constant(layer.inputs[2])
    if bias is None:
        raise ValueError(f"{layer.name}: no stored bias")
    name = unique_name(graph, f"{made.name}_batchnorm")
    operands = [
        add_initializer(graph, unique_name(graph, f"{name}_{part}"), np.full(bias.shape, value, np.float32))
        for part, value in _IDENTITY.items()
    ]
    node = ir.node("BatchNormalization", [made, *operands], {"epsilon": _EPSILON}, name=name)
    output = node.outputs[0]
    output.type, output.shape = made.type, made.shape
    made.replace_all_uses_with(output)
    node.replace_input_with(0, made)
    output.name, made.name = made.name, name
    graph.insert_after(layer, node)
    return name


def _calls(module: fx.GraphModule, names: Sequence[str]) -> list[tuple[torch.nn.Module, str]]:
    """The modules that run the restored normalizations, with their names."""
    paths = {module.meta[NAMES][f"{name}_mean"]: name for name in names}
    found = []
    for node in module.graph.nodes:
        operand = node.args[3] if node.op == "call_module" and len(node.args) > 4 else None
        if isinstance(operand, fx.Node) and operand.target in paths:
            found.append((module.get_submodule(str(node.target)), paths[str(operand.target)]))
    return found


def _observer(moments: list[Tensor]) -> Callable[[torch.nn.Module, tuple[Tensor, ...]], None]:
    """A hook that adds up count, sum and sum of squares per channel, in float64."""

    def observe(_: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
        x = given[0].double()
        axes = [axis for axis in range(x.dim()) if axis != 1]
        found = [torch.tensor(x.numel() / x.shape[1]), x.sum(axes), x.square().sum(axes)]
        moments[:] = [old + new for old, new in zip(moments, found, strict=True)] if moments else found

    return observe


def _set(module: fx.GraphModule, name: str, mean: Tensor, var: Tensor) -> None:
    """Write statistics, and the scale and bias that undo them."""
    values = {"scale": (var + _EPSILON).sqrt(), "bias": mean, "mean": mean, "var": var}
    with torch.no_grad():
        for part, value in values.items():
            path, _, leaf = module.meta[NAMES][f"{name}_{part}"].rpartition(".")
            getattr(module.get_submodule(path), leaf).copy_(value)


def _fold(node: ir.Node) -> None:
    """Move what a normalization does into the layer before it, in place."""
    layer = None if node.inputs[0] is None else node.inputs[0].producer()
    arrays = [constant(value) for value in node.inputs[1:5]]
    if layer is None or any(array is None for array in arrays):
        raise ValueError(f"{node.name}: not a restored normalization")
    scale, bias, mean, var = (np.asarray(array, np.float64) for array in arrays)
    factor = scale / np.sqrt(var + _EPSILON)
    weight, shift = (np.asarray(constant(value), np.float64) for value in layer.inputs[1:3])
    along = [1] * weight.ndim
    along[output_axis(layer)] = -1
    _store(layer.inputs[1], weight * factor.reshape(along))
    _store(layer.inputs[2], factor * (shift - mean) + bias)
    for value, part in zip(node.inputs[1:5], _IDENTITY.values(), strict=True):
        _store(value, np.full_like(bias, part))


def _store(value: ir.Value | None, array: np.ndarray) -> None:
    if value is None:
        raise ValueError("an input is omitted")
    value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
