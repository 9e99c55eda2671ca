"""The importance of the channels of a model's groups, with what it takes from samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from compressor.channels import Group
from compressor.graph import attribute
from compressor.pipeline import Context
from compressor.pruning import channel_importance as importances
from compressor.pruning.channel_importance import Importance, Part
from compressor.pruning.layer_inputs import refusal, square_norms

if TYPE_CHECKING:
    from compressor.data import Samples

FROM_SAMPLES = ("taylor", "hessian", "activation")
"""Importances that look at samples."""
_INTEGERS = (ir.DataType.INT8, ir.DataType.UINT8)


def scores(
    model: ir.Model, groups: Sequence[Group], how: Importance, samples: Samples | None, context: Context
) -> tuple[dict[Group, list[Part]], dict[str, str]]:
    """The parts of each group's importance; and group name -> what stands in where `how` says nothing of it.

    Args:
        model: with the weights of the groups.
        groups: those to score.
        how: see `channel_importance`.
        samples: for "taylor", "hessian" and "activation".
        context: seed, threads, progress.
    """
    found = _scores(model, groups, how, samples, context)
    missing = [group for group in groups if not found[group]]
    notes = {group.name: f"by l2: {_ABSENT[how]}" for group in missing}
    return found | {group: importances.norm(group, 2) for group in missing}, notes


def _scores(
    model: ir.Model, groups: Sequence[Group], how: Importance, samples: Samples | None, context: Context
) -> dict[Group, list[Part]]:
    match how:
        case "l1":
            return {group: importances.norm(group, 1) for group in groups}
        case "l2":
            return {group: importances.norm(group, 2) for group in groups}
        case "fpgm":
            return {group: importances.distance_to_others(group) for group in groups}
        case "bn-gamma":
            return {group: importances.normalization_scale(group) for group in groups}
        case "random":
            rng = np.random.default_rng(context.seed)
            return {group: [Part(rng.random(group.size), _layers(group))] for group in groups}
    if samples is None:
        raise ValueError("the pass asks for samples")
    if how == "activation":
        norms = _input_norms(model, groups, samples, context)
        return {group: importances.activation(group, norms) for group in groups}
    return _from_gradients(model, groups, how, samples, context)


_ABSENT: Mapping[str, str] = {
    "bn-gamma": "no normalization scales it; one that was folded is in the weights",
    "activation": "no Conv, Gemm or MatMul reads it",
    "taylor": "none of its weights has a gradient",
    "hessian": "none of its weights has a gradient",
}


def _from_gradients(
    model: ir.Model, groups: Sequence[Group], how: Importance, samples: Samples, context: Context
) -> dict[Group, list[Part]]:
    from compressor.torch_graph.parameters import trainable
    from compressor.training.saliency import gradients

    trained = {value.name for value in trainable(model)}
    wanted = {
        str(member.value.name)
        for group in groups
        for member in importances.makers(group)
        if member.value.name in trained or (member.role == "output" and member.value.dtype in _INTEGERS)
    }
    reached = [g for g in groups if any(m.value.name in wanted for m in importances.makers(g))]
    if not reached:
        return {group: [] for group in groups}
    context.progress("gradients", 0, 0)
    score = importances.taylor if how == "taylor" else importances.hessian
    scored = score(reached, gradients(model, samples, wanted, context))
    return {group: [Part(scored[group], _layers(group))] if group in scored else [] for group in groups}


def _layers(group: Group) -> float:
    """How many layers make the channels."""
    return importances.layers(*group.weights("output"))


def _input_norms(
    model: ir.Model, groups: Sequence[Group], samples: Samples, context: Context
) -> dict[str, np.ndarray]:
    """Weight name -> the root mean square of what each of its elements is multiplied by, broadcastable to it."""
    readers: dict[ir.Node, ir.Value] = {}
    for group in groups:
        for member in group.weights("input"):
            for node, place in _uses(member.value):
                if refusal(model, node, place) is None:
                    readers[node] = member.value
    context.progress("activations", 0, 0)
    means = square_norms(model, readers, samples, context.threads)
    return {str(readers[node].name): _laid_out(node, readers[node], np.sqrt(m)) for node, m in means.items()}


def _uses(weight: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """The nodes that read a weight, and as which input, through what decodes it."""
    for use in weight.uses():
        if use.node.op_type == "DequantizeLinear":
            yield from _uses(use.node.outputs[0])
        else:
            yield use.node, use.idx


def _laid_out(node: ir.Node, weight: ir.Value, norms: np.ndarray) -> np.ndarray:
    """[groups, K] in the shape of the weight, 1 for axes that it does not depend on."""
    shape = weight.shape.numpy() if weight.shape else ()
    if node.op_type == "Conv":
        return np.repeat(norms, shape[0] // len(norms), axis=0).reshape(shape)
    if node.op_type == "ConvTranspose":
        return norms.reshape(shape[0], 1, *shape[2:])
    last = node.op_type in ("LSTM", "GRU", "RNN") or attribute(node, "transB", 0)
    return norms.reshape(1, -1) if last else norms.reshape(-1, 1)
