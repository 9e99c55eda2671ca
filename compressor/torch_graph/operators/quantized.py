"""ONNX's quantization operators on real integers: 8 and 16 bits, and 8-bit floats.

Sums of integer products run in float64, which has a fast matrix product on every device and is exact below 2^53.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.torch_graph.operators.casting import cast
from compressor.torch_graph.operators.convolution import conv
from compressor.torch_graph.operators.grids import RANGES, centred, decoded, dynamic_grid, encoded, saturated
from compressor.torch_graph.operators.straight_through import spread
from compressor.torch_graph.values import TORCH_TYPES, Kernel, torch_type

_NUMBERS = {kind: number.value for number, kind in TORCH_TYPES.items()}


def quantize_linear(
    x: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    """round(x / y_scale) + y_zero_point, saturated; uint8 unless the zero point or `output_dtype` says otherwise.

    8-bit floats are x / y_scale, cast. The quotient is computed in `precision` if given, else in x's type.
    """
    kind = torch_type(output_dtype) if output_dtype else None
    if y_zero_point is not None:
        kind = y_zero_point.dtype
    kind = kind or torch.uint8
    divided = torch_type(precision) if precision else None
    if divided is not None:
        x, y_scale = x.to(divided), y_scale.to(divided)
    if kind in RANGES:
        return encoded(x, y_scale, y_zero_point, kind, axis, block_size)
    quotient = x / spread(y_scale, x, axis, block_size)
    return cast(quotient, to=_NUMBERS[kind], saturate=saturate)


def dequantize_linear(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """(x - x_zero_point) * x_scale in the scale's type or `output_dtype`; the zero point of 8-bit floats is 0."""
    kind = (torch_type(output_dtype) if output_dtype else None) or x_scale.dtype
    if x.dtype.is_floating_point:
        return (x.float() * spread(x_scale.float(), x, axis, block_size)).to(kind)
    return decoded(x, x_scale, x_zero_point, axis, block_size).to(kind)


def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 codes, scale and zero point for the range of x and zero."""
    scale, zero_point = dynamic_grid(x)
    return encoded(x, scale, zero_point, torch.uint8), scale, zero_point


def mat_mul_integer(
    a: Tensor, b: Tensor, a_zero_point: Tensor | None = None, b_zero_point: Tensor | None = None
) -> Tensor:
    """(a - a_zero_point) @ (b - b_zero_point) in int32; zero points per tensor, per row of a, per column of b."""
    return _product(a, b, a_zero_point, b_zero_point).to(torch.int32)


def conv_integer(
    x: Tensor,
    w: Tensor,
    x_zero_point: Tensor | None = None,
    w_zero_point: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Convolution of (x - x_zero_point) by (w - w_zero_point) in int32; padding is x's zero point."""
    exact = conv(
        centred(x, x_zero_point).double(),
        centred(w, w_zero_point, axis=0).double(),
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    return exact.to(torch.int32)


def q_linear_mat_mul(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
) -> Tensor:
    """The codes of the product of two quantized matrices; scales as the zero points of `mat_mul_integer`."""
    sums = _product(a, b, a_zero_point, b_zero_point).float()
    factor = _of_rows(a_scale.float(), a) * _of_columns(b_scale.float(), b) / y_scale.float()
    return saturated(sums * factor, y_zero_point, y_zero_point.dtype)


def q_linear_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """The codes of a quantized convolution; w's scale and zero point per tensor or per output channel.

    b is int32 with the scale x_scale * w_scale.
    """
    sums = conv_integer(
        x,
        w,
        x_zero_point,
        w_zero_point,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        kernel_shape=kernel_shape,
        pads=pads,
        strides=strides,
    )
    if b is not None:
        sums = sums + spread(b, sums, axis=1)
    factor = spread(x_scale * w_scale / y_scale, sums, axis=1)
    return saturated(sums.float() * factor, y_zero_point, y_zero_point.dtype)


def _product(a: Tensor, b: Tensor, a_zero_point: Tensor | None, b_zero_point: Tensor | None) -> Tensor:
    left, right = a.to(torch.int32), b.to(torch.int32)
    if a_zero_point is not None:
        left = left - _of_rows(a_zero_point.to(torch.int32), a)
    if b_zero_point is not None:
        right = right - _of_columns(b_zero_point.to(torch.int32), b)
    return left.double() @ right.double()


def _of_rows(parameter: Tensor, a: Tensor) -> Tensor:
    """A scale or zero point of a matrix a: of the tensor, [M] of its rows, or already in a's rank."""
    if parameter.dim() == 1 and a.dim() > 1:
        return parameter.unsqueeze(-1) if parameter.numel() > 1 else parameter.reshape(())
    return parameter


def _of_columns(parameter: Tensor, b: Tensor) -> Tensor:
    """A scale or zero point of a matrix b: of the tensor, [N] of its columns, or already in b's rank."""
    return parameter.reshape(()) if parameter.numel() == 1 else parameter


KERNELS: dict[str, Kernel] = {
    "ConvInteger": conv_integer,
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLinear": dynamic_quantize_linear,
    "MatMulInteger": mat_mul_integer,
    "QLinearConv": q_linear_conv,
    "QLinearMatMul": q_linear_mat_mul,
    "QuantizeLinear": quantize_linear,
    "com.microsoft::DequantizeLinear": dequantize_linear,
    "com.microsoft::QuantizeLinear": quantize_linear,
}
