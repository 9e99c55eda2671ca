"""How an output is to be read: what the graph has applied to its scores, and where its classes are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir
import torch
from torch import Tensor

from compressor.graph import constant
from compressor.metrics.outputs import alike

Applied = Literal["", "softmax", "log-softmax", "sigmoid"]
"""What the graph already applies to its scores; empty: nothing, they are logits."""

_APPLIED: dict[str, Applied] = {"Softmax": "softmax", "LogSoftmax": "log-softmax", "Sigmoid": "sigmoid"}
_TRANSPARENT = ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Dropout")
_LEAST = 1e-30  # its inverse, a gradient, may still be multiplied by weights and loss scales
_CODED = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Form:
    """How an output is to be read.

    Args:
        applied: what the graph applies to its scores.
        axis: where its classes or channels are.
        weights: the weight of every class [classes], of mean 1 over the training labels; None: all 1.
        smoothing: share of the label that cross-entropy spreads over all classes.
        step: the distance of the levels that the output is quantized to; 0: it is not.
    """

    applied: Applied = ""
    axis: int = 1
    weights: Tensor | None = None
    smoothing: float = 0.0
    step: float = 0.0


def applied(value: ir.Value | None) -> Applied:
    """The activation that gives a value, seen through reshapes, casts and quantizers."""
    producers = list(_behind(value))
    return _APPLIED.get(producers[-1].op_type, "") if producers else ""


def step(value: ir.Value | None) -> float:
    """The distance of the levels that a value is quantized to, after its activation; 0 when it is not."""
    scales = [constant(node.inputs[1]) for node in _behind(value) if node.op_type == "DequantizeLinear"]
    return max((float(scale.max()) for scale in scales if scale is not None), default=0.0)


def _behind(value: ir.Value | None) -> Iterator[ir.Node]:
    """The nodes from a value back to the first that computes something."""
    node = None if value is None else value.producer()
    while node is not None:
        yield node
        source = node.inputs[0] if node.op_type in (*_TRANSPARENT, *_CODED) else None
        node = None if source is None else source.producer()


def channel_axis(rank: int) -> int:
    """Where channels or classes are by custom: last in [n, tokens, channels], else 1 as in [n, channels, ...]."""
    return 2 if rank == 3 else 1


def class_axis(output: tuple[int, ...], labels: tuple[int, ...]) -> int | None:
    """The axis of `output` along which labels of this shape choose a class; None when there is none.

    Labels are class ids of the output's shape without that axis, or shares of the output's own shape, then the axis
    is the customary one. Where ids fit several axes the customary one goes first; axes of length 1 do not count.
    """
    if len(output) < 2:
        return None
    custom = channel_axis(len(output))
    if alike(output, labels):
        return custom if output[custom] > 1 else None
    axes = dict.fromkeys((custom, len(output) - 1, 1))
    fitting = (axis for axis in axes if alike(output[:axis] + output[axis + 1 :], labels))
    return next((axis for axis in fitting if output[axis] > 1), None)


def full(values: Tensor) -> Tensor:
    """At least float32: sums of half-precision logarithms lose their digits."""
    return values if values.dtype == torch.float64 else values.float()


def logits(output: Tensor, form: Form) -> Tensor:
    """Scores whose softmax (of softmax and log-softmax) or sigmoid the output is; see `Applied`.

    Their gradient is that of the scores in the graph. Where quantization has rounded a chance to 0, half a step
    stands for it, straight through, so that a class which is wrongly at 0 can come back.
    """
    if form.applied == "softmax":
        return _off(output, form, 0.0).log()
    return logit(output, form) if form.applied == "sigmoid" else full(output)


def logit(chances: Tensor, form: Form) -> Tensor:
    """log(p / (1 - p)), finite where p is 0 or 1."""
    chances = _off(chances, form, torch.finfo(chances.dtype).eps)
    return chances.log() - (-chances).log1p()


def _off(chances: Tensor, form: Form, gap: float) -> Tensor:
    """Chances moved off 0 and, where there is a gap, off 1, with the gradient of the identity."""
    low = max(form.step / 2, _LEAST, torch.finfo(chances.dtype).tiny)
    high = 1 - max(form.step / 2, gap) if gap else 1.0
    chances = full(chances)
    moved: Tensor = chances + (chances.clamp(low, high) - chances).detach()
    return moved
