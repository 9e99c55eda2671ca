"""Operators that read or write elements at given indices. Negative indices count from the end of the axis."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.torch_graph.operators.host_values import integer
from compressor.torch_graph.values import Kernel

_REDUCTIONS = {"mul": "prod", "max": "amax", "min": "amin"}


def gather(data: Tensor, indices: Tensor | float, *, axis: int = 0) -> Tensor:
    """The slices of `data` at `indices`, whose shape takes the place of the axis; a matrix is read as an
    embedding, a single slice is a view.
    """
    axis %= data.dim()
    if not isinstance(indices, Tensor):
        return data.select(axis, int(indices))
    indices = _from_start(indices, data.shape[axis])
    if data.dim() == 2 and axis == 0:
        return F.embedding(indices, data)
    found = data.index_select(axis, indices.reshape(-1))
    return found.reshape(data.shape[:axis] + indices.shape + data.shape[axis + 1 :])


def gather_elements(data: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """For each index the element at its own position, but at the index along `axis`."""
    return data.gather(axis, _from_start(indices, data.shape[axis]).long())


def gather_nd(data: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """The slices at index tuples, the last axis of `indices`; the first `batch_dims` axes are common to both."""
    width = indices.shape[-1]
    sizes = data.shape[batch_dims : batch_dims + width]
    rest = data.shape[batch_dims + width :]
    position = _positions(indices, sizes)
    if batch_dims:
        batches = indices.shape[:batch_dims]
        offset = torch.arange(prod(batches), device=indices.device) * prod(sizes)
        position = position + offset.reshape(*batches, *[1] * (position.dim() - batch_dims))
    rows = data.reshape(prod(data.shape[: batch_dims + width]), *rest)
    return rows.index_select(0, position.reshape(-1)).reshape(indices.shape[:-1] + rest)


def scatter_elements(
    data: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    """`data` with each update at its own position, but at its index along `axis`.

    Args:
        reduction: none replaces; add, mul, max and min combine with what is there.
    """
    indices = _from_start(indices, data.shape[axis]).long()
    if reduction == "none":
        return data.scatter(axis, indices, updates)
    if reduction == "add":
        return data.scatter_add(axis, indices, updates)
    return data.scatter_reduce(axis, indices, updates, _REDUCTIONS[reduction])


def scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """`data` with slices replaced at index tuples, the last axis of `indices`; `reduction` as above."""
    width = indices.shape[-1]
    rows = data.reshape(prod(data.shape[:width]), prod(data.shape[width:]))
    position = _positions(indices, data.shape[:width]).reshape(-1)
    given = updates.reshape(position.shape[0], rows.shape[1])
    if reduction == "none":
        changed = rows.index_put((position,), given)
    elif reduction == "add":
        changed = rows.index_add(0, position, given)
    else:
        index = position.unsqueeze(1).expand(given.shape)
        changed = rows.scatter_reduce(0, index, given, _REDUCTIONS[reduction])
    return changed.reshape(data.shape)


def tensor_scatter(
    past_cache: Tensor,
    update: Tensor,
    write_indices: Tensor | None = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> Tensor:
    """A cache [B, ..., length, ...] with the update written along `axis` from each sample's own index on.

    Args:
        write_indices: [B], zero when omitted.
        mode: circular goes on at the beginning of the axis; linear expects room.
    """
    axis %= past_cache.dim()
    position = torch.arange(update.shape[axis], device=update.device)
    position = position.reshape([-1 if at == axis else 1 for at in range(update.dim())])
    if write_indices is not None:
        position = position + write_indices.reshape([-1] + [1] * (update.dim() - 1))
    if mode == "circular":
        position = position.remainder(past_cache.shape[axis])
    return past_cache.scatter(axis, position.expand(update.shape), update)


def one_hot(indices: Tensor, depth: float | list[float], values: Tensor, *, axis: int = -1) -> Tensor:
    """`values[1]` where the new axis of size `depth` is at the index, `values[0]` elsewhere and for an index
    outside [-depth, depth).
    """
    count = integer(depth[0] if isinstance(depth, list) else depth)
    axis %= indices.dim() + 1
    classes = torch.arange(count, device=indices.device)
    classes = classes.reshape([-1] + [1] * (indices.dim() - axis))
    found = _from_start(indices.long(), count).unsqueeze(axis) == classes
    off, on = values.unbind()
    return torch.where(found, on, off)


def compress(input: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """The slices along `axis` where `condition` is true, elements of the flat tensor when it is omitted.

    The condition may be shorter than the axis.
    """
    chosen = condition.nonzero().reshape(-1)
    return input.reshape(-1).index_select(0, chosen) if axis is None else input.index_select(axis, chosen)


def array_feature_extractor(x: Tensor, y: Tensor) -> Tensor:
    """The columns `y` of the last axis; a vector is a matrix with one row."""
    found = x.index_select(-1, y.reshape(-1))
    return found.unsqueeze(0) if x.dim() == 1 else found


def _from_start(indices: Tensor, size: int) -> Tensor:
    return torch.where(indices < 0, indices + size, indices)


def _positions(indices: Tensor, sizes: torch.Size) -> Tensor:
    """Index tuples as positions in the flattened axes, row-major."""
    position = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device)
    for index, size in zip(indices.unbind(-1), sizes, strict=True):
        position = position * size + _from_start(index, size)
    return position


KERNELS: dict[str, Kernel] = {
    "Compress": compress,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "OneHot": one_hot,
    "Scatter": scatter_elements,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TensorScatter": tensor_scatter,
    "ai.onnx.ml::ArrayFeatureExtractor": array_feature_extractor,
}
