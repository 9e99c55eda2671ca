"""The arithmetic of integer tensors: from codes to values and back, in float32 as onnxruntime does it."""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.torch_graph.operators.straight_through import spread

RANGES = {
    torch.uint8: (0, 255),
    torch.int8: (-128, 127),
    torch.uint16: (0, 65535),
    torch.int16: (-32768, 32767),
}
"""Integer type -> its least and greatest code."""


def centred(codes: Tensor, zero_point: Tensor | None, axis: int = 1, block_size: int = 0) -> Tensor:
    """codes - zero_point as int32."""
    wide = codes.to(torch.int32)
    if zero_point is None:
        return wide
    return wide - spread(zero_point.to(torch.int32), codes, axis, block_size)


def decoded(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int = 1, block_size: int = 0
) -> Tensor:
    """(codes - zero_point) * scale in float32, or in the scale's type if that is wider.

    >>> decoded(torch.tensor([0, 3], dtype=torch.uint8), torch.tensor(0.5), torch.tensor(1, dtype=torch.uint8))
    tensor([-0.5000,  1.0000])
    """
    kind = torch.promote_types(scale.dtype, torch.float32)
    values = centred(codes, zero_point, axis, block_size).to(kind)
    return values * spread(scale.to(kind), codes, axis, block_size)


def encoded(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, kind: torch.dtype, axis: int = 1, block_size: int = 0
) -> Tensor:
    """round(x / scale) + zero_point, saturated to the integer type, ties to even.

    >>> encoded(torch.tensor([-9.0, 0.25, 0.75]), torch.tensor(0.5), None, torch.uint8)
    tensor([0, 0, 2], dtype=torch.uint8)
    """
    return saturated(x / spread(scale, x, axis, block_size), zero_point, kind, axis, block_size)


def saturated(
    steps: Tensor, zero_point: Tensor | None, kind: torch.dtype, axis: int = 1, block_size: int = 0
) -> Tensor:
    """round(steps) + zero_point within the range of the integer type."""
    low, high = RANGES[kind]
    codes = steps.to(torch.promote_types(steps.dtype, torch.float32)).round()
    if zero_point is not None:
        codes = codes + spread(zero_point.to(torch.int32), steps, axis, block_size)
    return codes.clamp(low, high).to(torch.int32).to(kind)


def dynamic_grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and the uint8 zero point whose 256 levels span x and zero; a tensor of zeros gets a scale of 1.

    DynamicQuantizeLinear's formula; without gradient.
    """
    low, high = x.detach().aminmax()
    low, high = low.clamp(max=0), high.clamp(min=0)
    span = high - low
    scale = torch.where(span == 0, 1.0, span / 255)
    return scale, (-low / scale).clamp(0, 255).round().to(torch.uint8)
