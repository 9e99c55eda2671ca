"""Quantization that trains: the forward pass rounds, the backward pass looks through it.

    codes q = clamp(round(x / scale) + zero_point, low, high)      round to nearest, ties to even, as ONNX
    value   = (q - zero_point) * scale

The values are those of `QuantizeLinear` and `DequantizeLinear`, to the last bit: x is divided by the scale, as there,
and not multiplied by its reciprocal as in `torch.fake_quantize_per_tensor_affine`.

Everywhere below, scale and zero_point have one shape: one element (one grid for the whole tensor), [C] (one per index
of `axis`), or with a `block_size` the shape of x with `axis` divided by it, rounded up (one per block).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def spread(parameter: Tensor, x: Tensor, axis: int, block_size: int = 0) -> Tensor:
    """A scale or zero point in a shape that broadcasts with x: per tensor, per index of an axis, or per block.

    >>> spread(torch.tensor([1.0, 2.0]), torch.zeros(2, 3), axis=0).shape
    torch.Size([2, 1])
    >>> spread(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 3), axis=1, block_size=2)
    tensor([[1., 1., 2.]])
    """
    if parameter.numel() == 1:
        return parameter.reshape(())
    if block_size:
        return parameter.repeat_interleave(block_size, axis).narrow(axis, 0, x.shape[axis])
    shape = [1] * x.ndim
    shape[axis] = -1
    return parameter.reshape(shape)


def round_ste(x: Tensor) -> Tensor:
    """Round to nearest, ties to even, with the gradient of the identity.

    q(x) = round(x);  dq/dx = 1.  Bengio et al., Estimating or Propagating Gradients (1308.3432), section 4.

    >>> round_ste(torch.tensor([0.5, 1.5, 2.7]))
    tensor([0., 2., 3.])
    """
    rounded: Tensor = _Round.apply(x)  # type: ignore[no-untyped-call]
    return rounded


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    low: int,
    high: int,
    axis: int = 1,
    block_size: int = 0,
) -> Tensor:
    """x on its quantization grid, with the straight-through gradient; scale and zero point are constants.

    q(x) = (clamp(round(x / scale) + zero_point, low, high) - zero_point) * scale
    dq/dx = 1 where low <= round(x / scale) + zero_point <= high, else 0.
    Jacob et al., Quantization and Training of Neural Networks (1712.05877), section 3; the gradient as 1308.3432.

    >>> fake_quantize(torch.tensor([0.26, 9.0]), torch.tensor(0.5), low=-8, high=7)
    tensor([0.5000, 3.5000])
    """
    step = spread(scale.detach(), x, axis, block_size)
    zero = None if zero_point is None else spread(zero_point.detach(), x, axis, block_size).to(x.dtype)
    quantized: Tensor = _FakeQuantize.apply(x, step, zero, low, high)  # type: ignore[no-untyped-call]
    return quantized


def learned_fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    low: int,
    high: int,
    axis: int = 1,
    block_size: int = 0,
) -> Tensor:
    """x on a quantization grid whose scale is learned (LSQ); scale is a parameter above 0.

    With v = x / scale, Qn = zero_point - low, Qp = high - zero_point:

    q(x) = clamp(round(v), -Qn, Qp) * scale
    dq/dx = 1 where -Qn < v < Qp, else 0
    dq/dscale = g * (round(v) - v where -Qn < v < Qp, -Qn below, Qp above),  g = 1 / sqrt(N * Qp)

    N is the number of elements of x that share a scale, those of the whole batch for an activation; Qp counts as at
    least 1. Esser et al., Learned Step Size Quantization (1902.08153), equations 3 and 5 and section 2.2.

    >>> step = torch.tensor(1.0, requires_grad=True)
    >>> learned_fake_quantize(torch.tensor([0.75, 9.0]), step, low=-8, high=7).sum().backward()
    >>> step.grad  # (1 - 0.75 + 7) / sqrt(2 * 7)
    tensor(1.9376)
    """
    zero = torch.zeros_like(scale) if zero_point is None else zero_point.to(scale.dtype).reshape(scale.shape)
    zero = spread(zero.detach(), x, axis, block_size)
    above = (high - zero).clamp(min=1)
    factor = (above * (x.numel() // scale.numel())).rsqrt()
    quantized: Tensor = _LearnedFakeQuantize.apply(  # type: ignore[no-untyped-call]
        x, spread(scale, x, axis, block_size), low - zero, high - zero, factor
    )
    return quantized


def quantize_codes(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    low: int,
    high: int,
    axis: int = 1,
    block_size: int = 0,
) -> Tensor:
    """The codes of x as floats, for graphs that hold something between QuantizeLinear and DequantizeLinear.

    q(x) = clamp(round(x / scale) + zero_point, low, high)
    dq/dx = 1 / scale where low <= round(x / scale) + zero_point <= high, else 0; dq/dscale = -x / scale^2 there.
    Followed by `dequantize_codes`, the scale gets LSQ's gradient (1902.08153, equation 3) with g = 1, but for the half
    steps beyond the last codes, which count as inside.
    """
    codes = round_ste(x / spread(scale, x, axis, block_size))
    if zero_point is not None:
        codes = codes + spread(zero_point, x, axis, block_size).to(x.dtype)
    return codes.clamp(low, high)


def dequantize_codes(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, axis: int = 1, block_size: int = 0
) -> Tensor:
    """The values of float codes: (codes - zero_point) * scale, linear in the codes and in the scale."""
    if zero_point is not None:
        codes = codes - spread(zero_point, codes, axis, block_size).to(codes.dtype)
    return codes * spread(scale, codes, axis, block_size)


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _FakeQuantize(torch.autograd.Function):
    """In place after the division, and a mask of bytes for the backward pass: weights pass here at every step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor | None, low: int, high: int) -> Tensor:
        codes = (x / scale).round_()
        if zero is not None:
            codes.add_(zero)
        clamped = codes.clamp(low, high)
        ctx.save_for_backward(codes == clamped)
        if zero is not None:
            clamped.sub_(zero)
        return clamped.mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None, None, None


class _LearnedFakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Tensor, high: Tensor, factor: Tensor) -> Tensor:
        ratio = x / scale
        codes = ratio.round().clamp_(low, high)
        inside = (ratio > low) & (ratio < high)
        ctx.save_for_backward(inside, torch.where(inside, codes - ratio, codes), factor)
        return codes.mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inside, slope, factor = ctx.saved_tensors
        return gradient * inside, (gradient * slope).sum_to_size(factor.shape) * factor, None, None, None
