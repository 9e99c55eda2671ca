"""Operators that choose elements by their values: the largest, the distinct, the non-zero, the best boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.torch_graph.values import Kernel


def top_k(
    x: Tensor, k: int | list[int], *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, Tensor]:
    """The k largest or smallest elements along an axis and their indices, in order (also where `sorted` leaves the
    order open); of equal elements the first, as onnxruntime, so the sort is a stable one and not torch.topk.
    """
    count = k[0] if isinstance(k, list) else k
    values, indices = x.sort(dim=axis, descending=bool(largest), stable=True)
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)


def nonzero(x: Tensor) -> Tensor:
    """The indices of the non-zero elements, [rank, count]; [0, count] for a scalar."""
    return x.nonzero().t()


def unique(
    x: Tensor, *, axis: int | None = None, sorted: int = 1, outputs: int = 4
) -> Tensor | tuple[Tensor, ...]:
    """The distinct elements (slices along `axis`), the index of their first occurrence, for each element the index
    of its value, and how often each occurs; in ascending order or in that of first occurrence.
    """
    source, dim = (x.reshape(-1), 0) if axis is None else (x, axis)
    _, inverse, counts = torch.unique(source, return_inverse=True, return_counts=True, dim=dim)
    positions = torch.arange(source.shape[dim], device=x.device)
    first = torch.full_like(counts, source.shape[dim]).scatter_reduce(0, inverse, positions, "amin")
    if not sorted:
        order = first.argsort()
        first, counts, inverse = first[order], counts[order], order.argsort()[inverse]
    found = source.index_select(dim, first), first, inverse, counts
    return found[:outputs] if outputs > 1 else found[0]


def non_max_suppression(
    boxes: Tensor,
    scores: Tensor,
    max_output_boxes_per_class: float | list[float] | None = None,
    iou_threshold: float | list[float] | None = None,
    score_threshold: float | list[float] | None = None,
    *,
    center_point_box: int = 0,
) -> Tensor:
    """The boxes that remain when, by falling score, each removes those of its class that overlap it.

    Args:
        boxes: [batch, box, 4]: two corners y, x, y, x, or with `center_point_box` centre x, y, width, height.
        scores: [batch, class, box].
        max_output_boxes_per_class: 0 when omitted, which selects nothing.
        iou_threshold: an intersection over union above it removes; 0 when omitted.
        score_threshold: only scores above it take part; all when omitted.

    Returns:
        [selected, 3] int64: batch, class, box.
    """
    limit = int(_number(max_output_boxes_per_class) or 0)
    overlap, floor = _number(iou_threshold) or 0.0, _number(score_threshold)
    found = []
    corners = _corners(boxes.detach().cpu(), center_point_box)
    for batch, classes in enumerate(scores.detach().cpu()):
        for category, values in enumerate(classes):
            order = values.argsort(descending=True, stable=True)
            if floor is not None:
                order = order[values[order] > floor]
            kept = _suppressed(corners[batch], order, limit, overlap)
            found += [(batch, category, box) for box in kept]
    return torch.tensor(found, dtype=torch.int64, device=boxes.device).reshape(-1, 3)


def _suppressed(corners: Tensor, order: Tensor, limit: int, overlap: float) -> list[int]:
    """The first boxes in `order` that no box before them overlaps, at most `limit`."""
    kept: list[int] = []
    while len(order) and len(kept) < limit:
        kept.append(int(order[0]))
        order = order[1:]
        order = order[_intersection_over_union(corners[kept[-1]], corners[order]) <= overlap]
    return kept


def _intersection_over_union(box: Tensor, others: Tensor) -> Tensor:
    """Of one box with each of the others, in [0, 1]; 0 where an area is empty."""
    low = torch.maximum(box[:2], others[:, :2])
    high = torch.minimum(box[2:], others[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    area = (box[2:] - box[:2]).prod()
    union = area + (others[:, 2:] - others[:, :2]).prod(1) - shared
    return torch.where(shared > 0, shared / union, 0.0)


def _corners(boxes: Tensor, center_point_box: int) -> Tensor:
    """Boxes as their lower and their upper corner."""
    first, second = boxes[..., :2], boxes[..., 2:]
    if center_point_box:
        return torch.cat((first - second / 2, first + second / 2), -1)
    return torch.cat((torch.minimum(first, second), torch.maximum(first, second)), -1)


def _number(value: float | list[float] | None) -> float | None:
    return value[0] if isinstance(value, list) else value


KERNELS: dict[str, Kernel] = {
    "NonMaxSuppression": non_max_suppression,
    "NonZero": nonzero,
    "TopK": top_k,
    "Unique": unique,
}
