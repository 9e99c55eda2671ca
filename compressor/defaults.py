"""The pipeline that is used when none is given, and the sentence that says why."""

from __future__ import annotations

import math
from typing import NamedTuple

import onnx_ir as ir

from compressor.errors import ModelError
from compressor.graph import constant, nodes
from compressor.prepare import normalized
from compressor.summary import summarize


class Choice(NamedTuple):
    """A recipe, and why it was chosen."""

    recipe: str
    reason: str


FALLBACK = Choice("quantize-weights", "smaller at the same speed")
"""What is tried when the first choice finds nothing that pays."""


def choose(model: ir.Model, calibrated: bool) -> Choice:
    """The default recipe for a model.

    Args:
        model: prepared or not.
        calibrated: whether there are calibration samples.

    Raises:
        ModelError: the model is already quantized.
    """
    ready = normalized(model)
    kind = summarize(ready).quantized
    if kind != "none":
        raise ModelError(
            f"The model is already quantized ({kind}). Give the float model, or a pipeline with -p."
        )
    convolutional = _conv_share(ready) >= 0.5
    if convolutional and calibrated:
        return Choice("quantize-int8", "mostly convolutions, and calibration samples are given")
    if convolutional:
        return Choice(
            "quantize-weights",
            "mostly convolutions, and no calibration samples: only the weights are quantized",
        )
    return Choice("quantize-dynamic", "mostly matrix products: activations are quantized at run time")


def _conv_share(model: ir.Model) -> float:
    """The share of convolutions in the work with weights: elements times how often one sample uses each."""
    conv = dense = 0.0
    for node in nodes(model):
        if node.op_type in ("Conv", "ConvTranspose"):
            conv += _weight_size(node, 1) * _extent(node.outputs[0], slice(2, None))
        elif node.op_type in ("MatMul", "Gemm", "Attention"):
            dense += _weight_size(node, 1) * _extent(node.outputs[0], slice(1, -1))
        elif node.op_type in ("LSTM", "GRU", "RNN"):
            both = _weight_size(node, 1) + _weight_size(node, 2)
            dense += both * _extent(node.inputs[0], slice(0, 1))
    return conv / (conv + dense) if conv + dense else 0.0


def _weight_size(node: ir.Node, index: int) -> float:
    value = node.inputs[index] if len(node.inputs) > index else None
    array = constant(value)
    return 0.0 if array is None else float(array.size)


def _extent(value: ir.Value | None, axes: slice) -> float:
    """The product of some dimensions; unknown ones count as 16."""
    if value is None or value.shape is None:
        return 1.0
    return float(math.prod(d if isinstance(d, int) else 16 for d in tuple(value.shape)[axes]))
