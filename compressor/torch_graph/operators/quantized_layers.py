"""onnxruntime's quantized layers: 8-bit codes in, 8-bit codes out, the arithmetic between in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.torch_graph.operators.grids import centred, decoded, encoded, saturated
from compressor.torch_graph.operators.pooling import average_pool
from compressor.torch_graph.operators.softmax import softmax
from compressor.torch_graph.values import Kernel


def add(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor | None,
    c_scale: Tensor,
    c_zero_point: Tensor | None = None,
) -> Tensor:
    """a + b."""
    total = decoded(a, a_scale, a_zero_point) + decoded(b, b_scale, b_zero_point)
    return encoded(total, c_scale, c_zero_point, a.dtype)


def mul(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor | None,
    c_scale: Tensor,
    c_zero_point: Tensor | None = None,
) -> Tensor:
    """a * b: the product of integers, times one factor."""
    product = (centred(a, a_zero_point) * centred(b, b_zero_point)).float()
    return saturated(product * (a_scale * b_scale / c_scale), c_zero_point, a.dtype)


def sigmoid(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
) -> Tensor:
    """1 / (1 + e^-x)."""
    return encoded(torch.sigmoid(decoded(x, x_scale, x_zero_point)), y_scale, y_zero_point, x.dtype)


def leaky_relu(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    alpha: float = 0.01,
) -> Tensor:
    """x, or alpha * x below zero."""
    return encoded(F.leaky_relu(decoded(x, x_scale, x_zero_point), alpha), y_scale, y_zero_point, x.dtype)


def q_softmax(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor,
    *,
    axis: int = -1,
    opset: int,
) -> Tensor:
    """Softmax as of the given operator set: before 13 over all axes from `axis` on."""
    probabilities = softmax(decoded(x, x_scale, x_zero_point), axis=axis, version=opset)
    return encoded(probabilities, y_scale, y_zero_point, x.dtype)


def q_average_pool(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    channels_last: int = 0,
    count_include_pad: int = 0,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """The mean of each window of x [B, C, *spatial], or [B, *spatial, C] with `channels_last`."""
    values = decoded(x, x_scale, x_zero_point)
    means = average_pool(
        values.movedim(-1, 1) if channels_last else values,
        auto_pad=auto_pad,
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    return encoded(means.movedim(1, -1) if channels_last else means, y_scale, y_zero_point, x.dtype)


def q_global_average_pool(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    *,
    channels_last: int = 0,
) -> Tensor:
    """The mean over all spatial axes, which stay with length 1."""
    axes = list(range(1, x.dim() - 1)) if channels_last else list(range(2, x.dim()))
    means = decoded(x, x_scale, x_zero_point).mean(axes, keepdim=True)
    return encoded(means, y_scale, y_zero_point, x.dtype)


def concat(y_scale: Tensor, y_zero_point: Tensor, *inputs: Tensor, axis: int) -> Tensor:
    """The inputs, given as codes, scale and zero point each, on one grid and behind each other."""
    triples = zip(inputs[::3], inputs[1::3], inputs[2::3], strict=True)
    return encoded(torch.cat([decoded(*t) for t in triples], axis), y_scale, y_zero_point, y_zero_point.dtype)


def gemm(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    c: Tensor | None = None,
    y_scale: Tensor | None = None,
    y_zero_point: Tensor | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Tensor:
    """alpha * a @ b + c as codes, or in float32 without `y_scale`; b's grid per tensor or per column.

    c is int32 with the scale alpha * a_scale * b_scale.
    """
    left = centred(a, a_zero_point).double()
    right = centred(b, b_zero_point, axis=0 if transB else 1).double()
    sums = (left.t() if transA else left) @ (right.t() if transB else right)
    if c is not None:
        sums = sums + c
    factor = alpha * a_scale * b_scale
    if y_scale is None:
        return sums.to(factor.dtype) * factor
    kind = a.dtype if y_zero_point is None else y_zero_point.dtype
    return saturated(sums.float() * (factor / y_scale), y_zero_point, kind)


def q_where(
    condition: Tensor,
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    y: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    z_scale: Tensor,
    z_zero_point: Tensor,
) -> Tensor:
    """x where the condition holds, else y."""
    chosen = torch.where(condition, decoded(x, x_scale, x_zero_point), decoded(y, y_scale, y_zero_point))
    return encoded(chosen, z_scale, z_zero_point, x.dtype)


KERNELS: dict[str, Kernel] = {
    "com.microsoft::QGemm": gemm,
    "com.microsoft::QLinearAdd": add,
    "com.microsoft::QLinearAveragePool": q_average_pool,
    "com.microsoft::QLinearConcat": concat,
    "com.microsoft::QLinearGlobalAveragePool": q_global_average_pool,
    "com.microsoft::QLinearLeakyRelu": leaky_relu,
    "com.microsoft::QLinearMul": mul,
    "com.microsoft::QLinearSigmoid": sigmoid,
    "com.microsoft::QLinearSoftmax": q_softmax,
    "com.microsoft::QLinearWhere": q_where,
}
