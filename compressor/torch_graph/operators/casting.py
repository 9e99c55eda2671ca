"""Changing the type of a tensor: by value, to the type of another tensor, by bits."""

from __future__ import annotations

import math

import onnx_ir as ir
import torch
from torch import Tensor

from compressor.torch_graph.values import TORCH_TYPES, Kernel

_FLOAT8 = frozenset(
    {
        torch.float8_e4m3fn,
        torch.float8_e4m3fnuz,
        torch.float8_e5m2,
        torch.float8_e5m2fnuz,
        torch.float8_e8m0fnu,
    }
)
_E8M0_BIAS, _E8M0_GREATEST, _E8M0_NAN = 127, 254, 255
_E4M3_OVERFLOW = 464  # half a step above the greatest value, 448
_ROUND_UP_FROM = {"up": 0.5 + 2**-24, "nearest": 0.75, "down": math.inf}
"""Rounding mode -> the float32 mantissa, in [0.5, 1), from which the exponent is one more."""


def cast(input: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """The values in the type with ONNX's number `to`; the gradient passes between floats.

    Integers wrap, floats lose their fraction on the way to integers, bool is "not zero". To 8-bit floats, what is out
    of range becomes the greatest value, or with `saturate` 0 an infinity or NaN. `round_mode` ("up", "nearest",
    "down") is for float8e8m0, the powers of two.
    """
    return _cast(input, TORCH_TYPES[ir.DataType(to)], saturate, round_mode)


def cast_like(input: Tensor, target_type: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    """The values in the type of another tensor; the rest as `cast`."""
    return _cast(input, target_type.dtype, saturate, round_mode)


def bit_cast(input: Tensor, *, to: int) -> Tensor:
    """The same bits read as the type with ONNX's number `to`, of the same width; no gradient."""
    return input.view(TORCH_TYPES[ir.DataType(to)])


def identity(input: Tensor | list[Tensor] | None) -> Tensor | list[Tensor] | None:
    """The input, whatever it is."""
    return input


def _cast(x: Tensor, kind: torch.dtype, saturate: int, round_mode: str) -> Tensor:
    if kind not in _FLOAT8 or x.dtype == kind:
        return x.to(kind)
    if x.dtype in _FLOAT8:
        x = x.float()  # torch computes nothing with 8-bit floats
    if kind == torch.float8_e8m0fnu:
        return _power_of_two(x.float(), saturate, round_mode)
    if saturate:
        end = torch.finfo(kind).max
        return x.clamp(-end, end).to(kind)
    if kind == torch.float8_e4m3fn:  # some versions of torch saturate here
        x = torch.where(x.abs() > _E4M3_OVERFLOW, math.nan, x)
    return x.to(kind)


def _power_of_two(x: Tensor, saturate: int, round_mode: str) -> Tensor:
    """|x| rounded to float8e8m0: 2^(code - 127) for the codes 0 to 254, 255 is NaN."""
    mantissa, exponent = torch.frexp(x.abs())
    code = exponent + (_E8M0_BIAS - 1) + (mantissa >= _ROUND_UP_FROM[round_mode])
    code = torch.where(x == 0, -1, torch.where(x.isinf(), _E8M0_NAN, code))
    if saturate:
        code = code.clamp(0, _E8M0_GREATEST)
    outside = (code < 0) | (code > _E8M0_GREATEST) | x.isnan()
    return torch.where(outside, _E8M0_NAN, code).to(torch.uint8).view(torch.float8_e8m0fnu)


KERNELS: dict[str, Kernel] = {"BitCast": bit_cast, "Cast": cast, "CastLike": cast_like, "Identity": identity}
