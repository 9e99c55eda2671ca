"""Piecewise constant functions, with the gradients that training expects of them, and clipping."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from compressor.torch_graph.operators.straight_through import round_ste
from compressor.torch_graph.operators.unsigned import through_int64
from compressor.torch_graph.values import Kernel


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.abs() <= 1)
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        inside: Tensor = ctx.saved_tensors[0]
        return gradient * inside


def round_to_even(x: Tensor) -> Tensor:
    """x rounded to the nearest integer, halves to the even one; dy/dx = 1, the straight-through estimator."""
    return round_ste(x)


@through_int64
def sign(input: Tensor) -> Tensor:
    """-1, 0 or 1 by the sign; dy/dx = 1 where |x| <= 1, else 0, as binary networks train.

    Courbariaux et al., Binarized Neural Networks, arXiv:1602.02830, section 1.3.
    """
    if not input.is_floating_point():
        return torch.sign(input)
    result: Tensor = _Sign.apply(input)  # type: ignore[no-untyped-call]
    return result


def floor(x: Tensor) -> Tensor:
    """The greatest integer that is not above x; its gradient is 0."""
    return torch.floor(x)


def ceiling(x: Tensor) -> Tensor:
    """The least integer that is not below x; its gradient is 0."""
    return torch.ceil(x)


@through_int64
def clip(input: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    """min(max(x, low), high): `max` wins where the bounds cross, and NaN stays.

    dy/dx = 1 from bound to bound, both included, and 0 beyond.
    """
    if min is None and max is None:
        return input
    return torch.clamp(input, _bound(min, input.dtype), _bound(max, input.dtype))


def _bound(bound: float | None, kind: torch.dtype) -> float | None:
    """The bound in a dtype that may be too narrow for it: before opset 11 the defaults are those of float32."""
    if bound is None or not kind.is_floating_point or abs(bound) <= torch.finfo(kind).max:
        return bound
    return math.copysign(math.inf, bound)


KERNELS: dict[str, Kernel] = {
    "Ceil": ceiling,
    "Clip": clip,
    "Floor": floor,
    "Round": round_to_even,
    "Sign": sign,
}
