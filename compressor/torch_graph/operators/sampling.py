"""Reading values between the elements of an image: GridSample, AffineGrid and DeformConv."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.errors import ModelError
from compressor.torch_graph.values import Kernel

_MODES = {"linear": "bilinear", "cubic": "bicubic"}


def grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "bilinear", padding_mode: str = "zeros"
) -> Tensor:
    """x (N, C, *spatial) at the places of grid (N, *places, rank), each in [-1, 1], last axis first."""
    return F.grid_sample(x, grid, _MODES.get(mode, mode), padding_mode, bool(align_corners))


def affine_grid(theta: Tensor, size: list[int], *, align_corners: int) -> Tensor:
    """The places that GridSample reads for the affine maps theta (N, rank, rank + 1) and results of that size."""
    return F.affine_grid(theta, size, bool(align_corners))


def deform_conv(
    x: Tensor,
    w: Tensor,
    offset: Tensor,
    b: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    offset_group: int = 1,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Convolution of x (N, C, H, W) whose taps are moved by offset (N, offset_group * kernel * 2, OH, OW).

    Taps beyond the image read zero; mask, of the same layout without the 2, weighs them (Zhu et al., 2019).

    Raises:
        ModelError: x has other than two spatial axes.
    """
    if x.dim() != 4:
        raise ModelError(f"DeformConv has {x.dim() - 2} spatial axes; only 2 can be trained.")
    batch, channels = x.shape[:2]
    kernel, result = w.shape[2:], offset.shape[2:]
    taps = kernel[0] * kernel[1]
    moved = offset.reshape(batch * offset_group, taps, 2, *result)
    # measured between corners, places on images of 2^n + 1 cells are exact; one cell has no distance to measure
    corners = not any(size == 1 for size in x.shape[2:])
    places = []
    for axis in (1, 0):
        step, first, reach = (strides or [1, 1])[axis], (pads or [0] * 4)[axis], (dilations or [1, 1])[axis]
        at = moved[:, :, axis] + (_taps(kernel, axis, x) * reach + _starts(result, axis, x) * step - first)
        size = x.shape[2 + axis]
        places.append(2 * at / (size - 1) - 1 if corners else (2 * at + 1) / size - 1)
    grid = torch.stack(places, -1).flatten(1, 2)
    read = F.grid_sample(x.reshape(batch * offset_group, -1, *x.shape[2:]), grid, align_corners=corners)
    columns = read.reshape(batch, offset_group, -1, taps, *result)
    if mask is not None:
        columns = columns * mask.reshape(batch, offset_group, 1, taps, *result)
    columns = columns.reshape(batch, group, channels // group * taps, -1)
    y = (w.reshape(group, -1, columns.shape[2]) @ columns).view(batch, -1, *result)
    return y if b is None else y + b.view(-1, 1, 1)


def _taps(kernel: Sequence[int], axis: int, like: Tensor) -> Tensor:
    """The place of each tap of the kernel along one of its two axes: (taps, 1, 1)."""
    steps = torch.arange(kernel[axis], device=like.device)
    return (steps.repeat(kernel[0]) if axis else steps.repeat_interleave(kernel[1]))[:, None, None]


def _starts(result: Sequence[int], axis: int, like: Tensor) -> Tensor:
    """The index of each result along one of its two axes, to broadcast over both."""
    steps = torch.arange(result[axis], device=like.device)
    return steps if axis else steps[:, None]


KERNELS: dict[str, Kernel] = {
    "AffineGrid": affine_grid,
    "DeformConv": deform_conv,
    "GridSample": grid_sample,
    "com.microsoft::GridSample": grid_sample,
}
