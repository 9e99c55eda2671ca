"""Pools over regions of interest: RoiAlign and MaxRoiPool."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.torch_graph.values import Kernel


class _Samples(NamedTuple):
    """Along one axis, per region, bin and sample: the two cells read and their weights; whether it counts at all."""

    cells: Tensor
    weights: Tensor
    used: Tensor


def roi_align(
    x: Tensor,
    rois: Tensor,
    batch_indices: Tensor,
    *,
    coordinate_transformation_mode: str = "output_half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """Each region (x1, y1, x2, y2) of x (N, C, H, W) in output_height by output_width bins (He et al., 2017).

    A bin is the mean, or the maximum, of samples between the cells: `sampling_ratio` along each axis, or with 0 as
    many as the bin is long, which waits for the device. As in ONNX, the maximum is over the weighted cells.
    """
    half = coordinate_transformation_mode == "half_pixel"
    corners = rois * spatial_scale - (0.5 if half else 0.0)
    start, extent = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not half:
        extent = extent.clamp(min=1.0)
    row = _samples(start[:, 1], extent[:, 1], output_height, x.shape[2], sampling_ratio)
    column = _samples(start[:, 0], extent[:, 0], output_width, x.shape[3], sampling_ratio)
    # axes: region, bin row, bin column, sample row, sample column, cell row, cell column
    cells = row.cells[:, :, None, :, None, :, None] * x.shape[3] + column.cells[:, None, :, None, :, None, :]
    cells = cells + (batch_indices * (x.shape[2] * x.shape[3])).view(-1, *[1] * 6)
    weights = row.weights[:, :, None, :, None, :, None] * column.weights[:, None, :, None, :, None, :]
    used = row.used[:, None, None, :, None] & column.used[:, None, None, None, :]
    table = x.permute(0, 2, 3, 1).flatten(0, 2)
    bins = (rois.shape[0], output_height, output_width)
    if mode == "avg":
        count = used.flatten(1).sum(1).clamp(min=1).view(-1, *[1] * 6)
        shares = (weights * used[..., None, None] / count).to(x.dtype).flatten(3).flatten(0, 2)
        pooled = F.embedding_bag(cells.flatten(3).flatten(0, 2), table, per_sample_weights=shares, mode="sum")
    else:
        values = table[cells] * weights.to(x.dtype)[..., None]
        values = values.masked_fill(~used[..., None, None, None], -torch.inf).flatten(3, 6).max(3).values
        pooled = values.masked_fill(values == -torch.inf, 0.0)
    return pooled.view(*bins, x.shape[1]).permute(0, 3, 1, 2)


def _samples(start: Tensor, extent: Tensor, bins: int, size: int, ratio: int) -> _Samples:
    length = (extent / bins)[:, None, None]
    count = torch.full_like(length, ratio) if ratio > 0 else length.ceil().clamp(min=0)
    most = ratio if ratio > 0 else max([1, *count.amax((1, 2)).int().tolist()])
    sample = torch.arange(most, device=start.device)
    first = start[:, None, None] + torch.arange(bins, device=start.device)[:, None] * length
    at = first + (sample + 0.5) * length / count.clamp(min=1)
    inside = (at >= -1) & (at <= size)
    at = at.clamp(0, size - 1)
    low = at.detach().floor()
    rest = at - low
    cells = torch.stack([low, (low + 1).clamp(max=size - 1)], -1).to(torch.int64)
    weights = torch.stack([1 - rest, rest], -1) * inside[..., None]
    return _Samples(cells, weights, (sample < count)[:, 0])


def max_roi_pool(x: Tensor, rois: Tensor, *, pooled_shape: list[int], spatial_scale: float) -> Tensor:
    """The largest value in each bin of each region, whose corners are rounded (Girshick, 2015).

    A region is (index into the batch, x1, y1, x2, y2); a bin without cells is zero.
    """
    corners = (rois[:, 1:] * spatial_scale + 0.5).floor()
    y = x[rois[:, 0].to(torch.int64)]
    for axis, bins in ((3, pooled_shape[1]), (2, pooled_shape[0])):
        first, last = corners[:, 3 - axis], corners[:, 5 - axis]
        inside = _bin_cells(first, (last - first + 1).clamp(min=1), bins, x.shape[axis])
        shape = (len(rois), 1, 1, -1) if axis == 3 else (len(rois), 1, -1, 1)
        maxima = [y.masked_fill(~inside[:, i].view(shape), -torch.inf).max(axis).values for i in range(bins)]
        y = torch.stack(maxima, axis)
    return y.masked_fill(y == -torch.inf, 0.0)


def _bin_cells(first: Tensor, extent: Tensor, bins: int, size: int) -> Tensor:
    """Which cells of an axis lie in which bin: (regions, bins, size)."""
    bin_ = torch.arange(bins, device=first.device)
    length = (extent / bins)[:, None]
    start = ((bin_ * length).floor() + first[:, None])[..., None]
    end = (((bin_ + 1) * length).ceil() + first[:, None])[..., None]
    cells = torch.arange(size, device=first.device)
    return (cells >= start) & (cells < end)


KERNELS: dict[str, Kernel] = {"MaxRoiPool": max_roi_pool, "RoiAlign": roi_align}
