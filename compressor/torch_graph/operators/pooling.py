"""Pools over one to three spatial axes; their geometry is onnxruntime's, which is torch's where both have it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.torch_graph.operators.windows import Windows, unfolded, windows
from compressor.torch_graph.values import Kernel

_MAX = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVERAGE = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def max_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    outputs: int = 1,
    pads: list[int] | None = None,
    storage_order: int = 0,
    strides: list[int] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The largest value of each window; the second output is its place in x, flattened.

    `storage_order` 1 counts places within a plane column by column.
    """
    rank = len(kernel_shape)
    pool = _MAX[rank - 1]
    heads = _torch_padding(kernel_shape, auto_pad, pads)
    indexed = outputs > 1 or (
        rank == 1 and not x.is_floating_point()
    )  # only the indexed form of 1-d takes integers
    if heads is not None and not indexed:
        return pool(x, kernel_shape, strides or 1, heads, dilations or 1, ceil_mode > 0)
    window = windows(x.shape[2:], kernel_shape, strides, dilations, auto_pad, pads)
    lowest = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    padded = window.padded(x, window.counts(x.shape[2:], ceil_mode), lowest)
    if not indexed:
        return pool(padded, kernel_shape, window.strides, 0, window.dilations)
    y, places = pool(padded, kernel_shape, window.strides, 0, window.dilations, return_indices=True)
    return (y, _places_in(x, places, padded.shape[2:], window.heads, storage_order)) if outputs > 1 else y


def _torch_padding(kernel: Sequence[int], auto_pad: str, pads: list[int] | None) -> list[int] | int | None:
    """The padding as torch's pools take it: equal on both sides, at most half the kernel; None if it is not so."""
    if auto_pad not in ("NOTSET", "VALID"):
        return None
    if not pads or auto_pad == "VALID":
        return 0
    heads = pads[: len(kernel)]
    if heads != pads[len(kernel) :]:
        return None
    for head, size in zip(heads, kernel, strict=True):
        if 2 * head > size:
            return None
    return heads


def _places_in(
    x: Tensor, places: Tensor, padded: Sequence[int], heads: list[int], column_major: int
) -> Tensor:
    """Places within the planes of the padded input as places in x, flattened."""
    sizes = x.shape[2:]
    found = torch.arange(x.shape[0] * x.shape[1], device=x.device).view(
        *x.shape[:2], *[1] * len(sizes)
    ) * prod(sizes)
    for axis in reversed(range(len(sizes))):
        step = prod(sizes[:axis]) if column_major else prod(sizes[axis + 1 :])
        found = found + (places % padded[axis] - heads[axis]) * step
        places = places // padded[axis]
    return found


def average_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """The mean of each window; its padding counts with `count_include_pad`, what overhangs the padding never does."""
    pool = _AVERAGE[len(kernel_shape) - 1]
    heads = _torch_padding(kernel_shape, auto_pad, pads)
    dense = not dilations or max(dilations) == 1
    if dense and heads is not None:
        return pool(x, kernel_shape, strides or 1, heads, bool(ceil_mode), bool(count_include_pad))
    window = windows(x.shape[2:], kernel_shape, strides, dilations, auto_pad, pads)
    counts = window.counts(x.shape[2:], ceil_mode)
    padded = window.padded(x, counts, 0.0)
    if dense:
        means = pool(padded, kernel_shape, window.strides)
    else:
        means = unfolded(padded, window).mean(dim=tuple(range(-len(kernel_shape), 0)))
    for axis, share in enumerate(_counted_shares(x, window, counts, count_include_pad)):
        means = means / share.view(-1, *[1] * (len(counts) - 1 - axis))
    return means


def _counted_shares(x: Tensor, window: Windows, counts: list[int], include_pad: int) -> list[Tensor]:
    """Per spatial axis, the share of each window's cells that the mean counts."""
    shares = []
    for i, size in enumerate(x.shape[2:]):
        starts = torch.arange(counts[i], device=x.device) * window.strides[i] - window.heads[i]
        cells = starts[:, None] + torch.arange(window.kernel[i], device=x.device) * window.dilations[i]
        low, high = (-window.heads[i], size + window.tails[i]) if include_pad else (0, size)
        shares.append(((cells >= low) & (cells < high)).to(x.dtype).mean(1))
    return shares


def lp_pool(
    x: Tensor,
    *,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    kernel_shape: list[int],
    p: int = 2,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """The p-norm of each window; at a window of zeros the gradient is zero."""
    window = windows(x.shape[2:], kernel_shape, strides, dilations, auto_pad, pads)
    padded = window.padded(x, window.counts(x.shape[2:], ceil_mode), 0.0)
    axes = tuple(range(-len(kernel_shape), 0))
    norms: Tensor = torch.linalg.vector_norm(unfolded(padded, window), ord=p, dim=axes)
    return norms


def global_average_pool(x: Tensor) -> Tensor:
    """The mean over the spatial axes, which stay with length 1."""
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


def global_max_pool(x: Tensor) -> Tensor:
    """The largest value over the spatial axes, which stay with length 1; the gradient goes to one place, as torch's."""
    return x.flatten(2).max(2).values.view(*x.shape[:2], *[1] * (x.dim() - 2))


def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    """The p-norm over the spatial axes, which stay with length 1."""
    norms: Tensor = torch.linalg.vector_norm(x, ord=p, dim=tuple(range(2, x.dim())), keepdim=True)
    return norms


def max_unpool(
    x: Tensor,
    i: Tensor,
    output_shape: list[int] | None = None,
    *,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Zeros but for the values of x at the places i, flattened, of the shape that MaxPool had as its input.

    With a larger `output_shape` that result is at the start of each axis.
    """
    window = windows(x.shape[2:], kernel_shape, strides, None, "NOTSET", pads)
    sizes = [
        (size - 1) * stride + k - head - tail
        for size, stride, k, head, tail in zip(
            x.shape[2:], window.strides, kernel_shape, window.heads, window.tails, strict=True
        )
    ]
    shape = [*x.shape[:2], *sizes]
    y = x.new_zeros(prod(shape)).scatter(0, i.flatten(), x.flatten()).view(shape)
    if output_shape is None:
        return y
    more = [
        end
        for want, had in zip(reversed(output_shape), reversed(shape), strict=True)
        for end in (0, want - had)
    ]
    return F.pad(y, more)


KERNELS: dict[str, Kernel] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalLpPool": global_lp_pool,
    "GlobalMaxPool": global_max_pool,
    "LpPool": lp_pool,
    "MaxPool": max_pool,
    "MaxUnpool": max_unpool,
}
