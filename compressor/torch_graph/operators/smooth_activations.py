"""Smooth activations: sigmoid and tanh, and what gates its input by them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.torch_graph.values import Kernel


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x)."""
    return torch.sigmoid(x)


def tanh(input: Tensor) -> Tensor:
    """(e^x - e^-x) / (e^x + e^-x)."""
    return torch.tanh(input)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x)."""
    return F.softplus(x)


def softsign(input: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return F.softsign(input)


def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x)). Misra, arXiv:1908.08681."""
    return F.mish(x)


def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x sigmoid(alpha x). Ramachandran et al., arXiv:1710.05941."""
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


def swiglu(a: Tensor, b: Tensor, *, alpha: float = 1.0) -> Tensor:
    """swish(a) b, of equal shapes: a is the gate. Shazeer, arXiv:2002.05202."""
    return swish(a, alpha=alpha) * b


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """x Phi(x), exact or by "tanh". Hendrycks and Gimpel, arXiv:1606.08415."""
    return F.gelu(x, approximate=approximate)


def bias_gelu(a: Tensor, b: Tensor) -> Tensor:
    """The exact GELU of a + b, b[C] along the last axis."""
    return F.gelu(a + b)


def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """The tanh form of GELU of x + bias, bias[C] along the last axis."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    """x sigmoid(alpha x), the sigmoid form of GELU."""
    return swish(x, alpha=alpha)


KERNELS: dict[str, Kernel] = {
    "Gelu": gelu,
    "Mish": mish,
    "Sigmoid": sigmoid,
    "Softplus": softplus,
    "Softsign": softsign,
    "SwiGLU": swiglu,
    "Swish": swish,
    "Tanh": tanh,
    "com.microsoft::BiasGelu": bias_gelu,
    "com.microsoft::FastGelu": fast_gelu,
    "com.microsoft::Gelu": gelu,
    "com.microsoft::QuickGelu": quick_gelu,
}
