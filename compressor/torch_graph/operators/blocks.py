"""Operators that move blocks of an image to the channels and back: DepthToSpace, SpaceToDepth, Col2Im."""

from __future__ import annotations

from itertools import product
from math import prod

import torch.nn.functional as F
from torch import Tensor

from compressor.torch_graph.values import Kernel


def depth_to_space(input: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """[N, C b b, H, W] -> [N, C, H b, W b]; the channels are ordered block row, block column, C (DCR) or C first
    (CRD).
    """
    if mode == "CRD":
        return F.pixel_shuffle(input, blocksize)
    batch, channels, height, width = input.shape
    depth = channels // (blocksize * blocksize)
    blocks = input.reshape(batch, blocksize, blocksize, depth, height, width).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(batch, depth, height * blocksize, width * blocksize)


def space_to_depth(input: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """[N, C, H b, W b] -> [N, C b b, H, W], the inverse of `depth_to_space`."""
    if mode == "CRD":
        return F.pixel_unshuffle(input, blocksize)
    batch, depth, height, width = input.shape
    rows, columns = height // blocksize, width // blocksize
    blocks = input.reshape(batch, depth, rows, blocksize, columns, blocksize).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(batch, depth * blocksize * blocksize, rows, columns)


def col2im(
    input: Tensor,
    image_shape: list[int],
    block_shape: list[int],
    *,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """[N, C * block, L] -> [N, C, *image]: the L blocks added into an image, from which the pads are cut.

    Any number of spatial axes; pads may differ at the two ends of an axis.
    """
    rank = len(image_shape)
    dilations, strides = dilations or [1] * rank, strides or [1] * rank
    pads = pads or [0] * (2 * rank)
    padded = [size + pads[axis] + pads[axis + rank] for axis, size in enumerate(image_shape)]
    if rank == 2:
        image = F.fold(input, tuple(padded), tuple(block_shape), tuple(dilations), 0, tuple(strides))
    else:
        image = _folded(input, padded, block_shape, dilations, strides)
    for axis, size in enumerate(image_shape):
        image = image.narrow(2 + axis, pads[axis], size)
    return image


def _folded(
    columns: Tensor, sizes: list[int], block: list[int], dilations: list[int], strides: list[int]
) -> Tensor:
    """What F.fold does, for any number of axes: one strided addition per element of the block."""
    counts = [
        (size - dilation * (width - 1) - 1) // stride + 1
        for size, width, dilation, stride in zip(sizes, block, dilations, strides, strict=True)
    ]
    batch, channels = columns.shape[0], columns.shape[1] // prod(block)
    parts = columns.reshape(batch, channels, prod(block), *counts).unbind(2)
    image = columns.new_zeros(batch, channels, *sizes)
    for part, offsets in zip(parts, product(*map(range, block)), strict=True):
        where = [
            slice(offset * dilation, offset * dilation + (count - 1) * stride + 1, stride)
            for offset, dilation, count, stride in zip(offsets, dilations, counts, strides, strict=True)
        ]
        image[(slice(None), slice(None), *where)] += part
    return image


KERNELS: dict[str, Kernel] = {
    "Col2Im": col2im,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
}
