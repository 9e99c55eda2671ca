"""Activations that bend at a point: rectifiers, exponential units, hard sigmoids, shrinkage."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.torch_graph.values import Kernel

_SELU_ALPHA, _SELU_GAMMA = 1.67326324, 1.05070099
_ROUNDING = 1e-6
"""ONNX attributes are float32: how far one may lie from the number that is meant."""


def relu(x: Tensor) -> Tensor:
    """max(x, 0); the gradient at 0 is 0."""
    return F.relu(x)


def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """x above 0, else alpha x."""
    return F.leaky_relu(x, alpha)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """x above 0, else slope x; the slope is broadcast to x as in numpy, [C, 1, 1] being one per channel."""
    one_each = x.ndim > 1 and slope.shape == (x.shape[1], *[1] * (x.ndim - 2))
    if x.is_floating_point() and (slope.numel() == 1 or one_each):
        return F.prelu(x, slope.flatten())
    return torch.where(x < 0, slope * x, x)


def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x above 0, else alpha (e^x - 1)."""
    return F.elu(x, alpha)


def selu(x: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """gamma x above 0, else gamma alpha (e^x - 1)."""
    if abs(alpha - _SELU_ALPHA) < _ROUNDING and abs(gamma - _SELU_GAMMA) < _ROUNDING:
        return F.selu(x)
    return gamma * F.elu(x, alpha)


def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x above 0, else alpha (e^(x / alpha) - 1)."""
    return F.celu(x, alpha)


def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """alpha x + beta, between 0 and 1."""
    if abs(alpha - 1 / 6) < _ROUNDING and beta == 0.5:
        return F.hardsigmoid(x)
    return (alpha * x + beta).clamp(0, 1)


def hard_swish(x: Tensor) -> Tensor:
    """x min(max(x / 6 + 1 / 2, 0), 1)."""
    return F.hardswish(x)


def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x above alpha, else 0."""
    return F.threshold(x, alpha, 0.0)


def shrink(input: Tensor, *, lambd: float = 0.5, bias: float = 0.0) -> Tensor:
    """x - bias above lambd, x + bias below -lambd, else 0."""
    if input.is_floating_point() and bias == 0:
        return F.hardshrink(input, lambd)
    if input.is_floating_point() and bias == lambd:
        return F.softshrink(input, lambd)
    inside = torch.zeros_like(input)
    below = torch.where(input < -lambd, input + bias, inside)
    return torch.where(input > lambd, input - bias, below).to(input.dtype)


def binarizer(x: Tensor, *, threshold: float = 0.0) -> Tensor:
    """1 above the threshold, else 0, in the dtype of x; no gradient."""
    return (x > threshold).to(x.dtype)


KERNELS: dict[str, Kernel] = {
    "Celu": celu,
    "Elu": elu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "LeakyRelu": leaky_relu,
    "PRelu": prelu,
    "Relu": relu,
    "Selu": selu,
    "Shrink": shrink,
    "ThresholdedRelu": thresholded_relu,
    "ai.onnx.ml::Binarizer": binarizer,
}
