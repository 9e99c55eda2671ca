"""Matrix products: MatMul, Gemm, Einsum, and onnxruntime's fused forms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.torch_graph.operators.fused_activation import activated
from compressor.torch_graph.values import Kernel

_WIDE_UNSIGNED = (torch.uint32, torch.uint64)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """numpy's matmul: the last two axes multiply, those before broadcast."""
    if a.dtype in _WIDE_UNSIGNED:  # torch has no product of these; int64 wraps to the same bits
        return torch.matmul(a.to(torch.int64), b.to(torch.int64)).to(a.dtype)
    return torch.matmul(a, b)


def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Tensor:
    """alpha * A' B' + beta * C, where C broadcasts to (M, N)."""
    if a.dtype in _WIDE_UNSIGNED:
        wide = [None if t is None else t.to(torch.int64) for t in (b, c)]
        product = gemm(a.to(torch.int64), *wide, alpha=alpha, beta=beta, transA=transA, transB=transB)  # type: ignore[arg-type]
        return product.to(a.dtype)
    if transB and not transA and alpha == 1 and (c is None or (beta == 1 and c.dim() == 1)):
        return F.linear(a, b, c)
    if transA:
        a = a.t()
    if transB:
        b = b.t()
    if not a.is_floating_point():
        alpha, beta = int(alpha), int(beta)
    if c is not None:
        return torch.addmm(c, a, b, beta=beta, alpha=alpha)
    return torch.mm(a, b) if alpha == 1 else torch.mm(a, b) * alpha


def einsum(*inputs: Tensor, equation: str) -> Tensor:
    """Einstein summation; without an arrow the output's letters are those that occur once, in alphabetical order."""
    return torch.einsum(equation, *inputs)


def fused_gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    activation: str = "",
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Tensor:
    """Gemm and an activation (com.microsoft)."""
    y = gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    return activated(y, activation, (activation_alpha, activation_beta, activation_gamma))


def fused_matmul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
    transBatchA: int = 0,  # noqa: N803
    transBatchB: int = 0,  # noqa: N803
) -> Tensor:
    """alpha * A' B' (com.microsoft).

    `transA` swaps the last two axes, as of a matrix; `transBatchA` moves the first axis behind the other batch
    axes, before that. Vectors are not transposed.
    """
    y = torch.matmul(_transposed(a, transBatchA, transA), _transposed(b, transBatchB, transB))
    return y if alpha == 1 else y * alpha


def _transposed(x: Tensor, batch: int, matrix: int) -> Tensor:
    if x.dim() < 2:
        return x
    if batch:
        x = x.movedim(0, -2)
    return x.mT if matrix else x


KERNELS: dict[str, Kernel] = {
    "Einsum": einsum,
    "Gemm": gemm,
    "MatMul": matmul,
    "com.microsoft::FusedGemm": fused_gemm,
    "com.microsoft::FusedMatMul": fused_matmul,
}
