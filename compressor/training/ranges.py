"""Scales of quantizers that training can move: their logarithm is what the optimizer changes.

A scale does not grow beyond what onnxruntime needs to run the activation before it as part of an integer kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from compressor.graph import constant, nodes
from compressor.low_bit.signs import signs
from compressor.torch_graph.parameters import scales
from compressor.torch_graph.quantizers import code_limits
from compressor.torch_graph.writing import NAMES


class Relative(nn.Module):
    """s = min(s0 exp(t), limit), ds/dt = s, with t = 0 at the start.

    A scale then stays above 0, and a step changes it by a share of itself whatever its size: Jain et al. 2020
    (arXiv:1903.08066, section 3.2), on top of LSQ's gradient (arXiv:1902.08153). Beyond the limit only a gradient that
    makes the scale smaller counts.
    """

    def __init__(self, start: Tensor, limit: float = math.inf) -> None:
        super().__init__()
        self.register_buffer("start", start)
        self.limit = limit

    def forward(self, exponent: Tensor) -> Tensor:
        """The scale."""
        scale: Tensor = _AtMost.apply(self.start * exponent.exp(), self.limit)  # type: ignore[no-untyped-call,operator]
        return scale

    def right_inverse(self, scale: Tensor) -> Tensor:
        """The exponent of a scale."""
        return torch.log(scale / self.start)  # type: ignore[operator]


class _AtMost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> Tensor:
        ctx.save_for_backward(x > limit)
        return x.clamp(max=limit)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (beyond,) = ctx.saved_tensors
        return torch.where(beyond, gradient.clamp(min=0), gradient), None


def learn_relatively(network: fx.GraphModule, limits: Mapping[str, float]) -> None:
    """Let scales be trained by their logarithms.

    Args:
        network: in which they are parameters; changed in place.
        limits: name of each scale in the file -> how far it may grow.
    """
    paths: dict[str, float] = {}
    for name, limit in limits.items():
        path = network.meta[NAMES][name]
        paths[path] = min(limit, paths.get(path, math.inf))
    for path, limit in paths.items():
        folder, _, leaf = path.rpartition(".")
        home = network.get_submodule(folder)
        start = home.get_parameter(leaf).detach().clone()
        parametrize.register_parametrization(home, leaf, Relative(start, limit))


def levels(model: ir.Model) -> dict[str, float]:
    """Name of each scale of a binary activation -> infinity: nothing limits it."""
    return {str(sign.step.name): math.inf for sign in signs(model)}


def largest_scales(model: ir.Model) -> dict[str, float]:
    """Name of each stored scale of a QuantizeLinear -> how far it may grow; infinity where nothing is in the way.

    onnxruntime makes a Clip part of the integer kernel before it only if no code stands for a number outside the
    Clip's bounds; one that is left makes the whole layer run in float. Where that holds, it is to hold after training.
    """
    found = {str(scale.name): math.inf for scale in scales(model)}
    for node in nodes(model):
        name = "" if node.op_type != "QuantizeLinear" else str(node.inputs[1].name if node.inputs[1] else "")
        if name in found:
            found[name] = min(found[name], _largest(node))
    return found


def _largest(quantize: ir.Node) -> float:
    """The largest scale whose codes are within the bounds of the Clip that is quantized."""
    source, scale = quantize.inputs[0], constant(quantize.inputs[1])
    clip, codes = None if source is None else source.producer(), code_limits(quantize)
    if clip is None or clip.op_type != "Clip" or codes is None or scale is None or scale.size != 1:
        return math.inf
    stored = constant(quantize.inputs[2]) if len(quantize.inputs) > 2 else None
    zero = 0 if stored is None else int(stored.item())
    limit = math.inf
    for index, code in enumerate(codes, 1):
        bound = constant(clip.inputs[index]) if len(clip.inputs) > index else None
        if code != zero and bound is not None:
            limit = min(limit, _within(float(bound.item()), code - zero))
    return limit if float(scale.item()) <= limit else math.inf


def _within(bound: float, steps: int) -> float:
    """The largest float32 scale of which so many steps do not pass the bound."""
    found = np.float32(bound / steps)
    while abs(float(found) * steps) > abs(bound):
        found = np.nextafter(found, np.float32(0))
    return float(found)
