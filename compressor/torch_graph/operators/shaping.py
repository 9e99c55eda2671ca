"""Operators that move elements without changing them: views, joins, cuts."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from compressor.torch_graph.values import Kernel

_FARTHEST = -(2**62)
"""Before every axis; torch warns of a slice bound near the least int64."""


def reshape(data: Tensor, shape: list[int], *, allowzero: int = 0) -> Tensor:
    """The elements in another shape; one size may be -1 (what is left), and 0 copies the input's size at that
    axis, unless `allowzero` makes it a size of zero.
    """
    if allowzero:
        return data.reshape(shape)
    return data.reshape([data.shape[axis] if size == 0 else size for axis, size in enumerate(shape)])


def flatten(input: Tensor, *, axis: int = 1) -> Tensor:
    """A matrix: the axes before `axis` as rows, the others as columns."""
    return input.reshape(prod(input.shape[:axis]), prod(input.shape[axis:]))


def squeeze(data: Tensor, axes: int | list[int] | None = None) -> Tensor:
    """The tensor without the given axes, which must be of size 1; without all such axes when none are given."""
    if axes is None or axes == []:
        return data.squeeze()
    gone = {axis % data.dim() for axis in _listed(axes)}
    return data.reshape([size for axis, size in enumerate(data.shape) if axis not in gone])


def unsqueeze(data: Tensor, axes: int | list[int]) -> Tensor:
    """The tensor with axes of size 1; `axes` counts in the result."""
    axes = _listed(axes)
    rank = data.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        data = data.unsqueeze(axis)
    return data


def transpose(data: Tensor, *, perm: list[int] | None = None) -> Tensor:
    """The axes in another order, reversed when `perm` is omitted."""
    return data.permute(perm if perm is not None else list(range(data.dim()))[::-1])


def concat(*inputs: Tensor, axis: int) -> Tensor:
    """The inputs one after another along an axis."""
    return torch.cat(inputs, axis)


def split(
    input: Tensor,
    split: list[int] | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    outputs: int = 1,
) -> Tensor | tuple[Tensor, ...]:
    """The parts of the given sizes, or equal parts, of which the last may be smaller; views of the input."""
    if split is None:
        count, size = num_outputs or outputs, input.shape[axis]
        part = (size + count - 1) // count
        split = [part] * (count - 1) + [size - part * (count - 1)]
    parts: tuple[Tensor, ...] = input.split(split, axis)  # type: ignore[no-untyped-call]
    return parts if outputs > 1 else parts[0]


def expand(input: Tensor, shape: list[int]) -> Tensor:
    """The input repeated along axes of size 1; both shapes give way, so that a 1 in `shape` keeps a size."""
    rank = max(len(shape), input.dim())
    sizes = [1] * (rank - input.dim()) + list(input.shape)
    wanted = [1] * (rank - len(shape)) + list(shape)
    return input.expand([size if want == 1 else want for size, want in zip(sizes, wanted, strict=True)])


def tile(input: Tensor, repeats: list[int]) -> Tensor:
    """The input repeated as a whole along every axis."""
    return input.repeat(repeats)


def slice_(
    data: Tensor,
    starts: list[int],
    ends: list[int],
    axes: list[int] | None = None,
    steps: list[int] | None = None,
) -> Tensor:
    """Every step-th element from a start to before an end along the given axes, the first ones when omitted.

    Bounds below zero count from the end; bounds outside the axis mean its ends. With a negative step the axis is
    flipped and the bounds are counted in the flipped axis.
    """
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    index = [slice(None)] * data.dim()
    flipped = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step > 0:
            index[axis] = slice(max(start, _FARTHEST), max(end, _FARTHEST), step)
            continue
        size = data.shape[axis]
        first = min(~start, size - 1) if start < 0 else max(size - 1 - start, 0)
        last = ~end if end < 0 else max(size - 1 - end, 0)
        index[axis] = slice(first, last, -step)
        flipped.append(axis)
    return (data.flip(flipped) if flipped else data)[tuple(index)]


def shape(data: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """The sizes of the axes from `start` to before `end`."""
    return torch.tensor(list(data.shape[start:end]), dtype=torch.int64, device=data.device)


def size(data: Tensor) -> Tensor:
    """The number of elements."""
    return torch.tensor(data.numel(), dtype=torch.int64, device=data.device)


def constant_of_shape(input: list[int], *, value: Tensor | None = None) -> Tensor:
    """One value everywhere, float 0 when omitted; on the device of `value`."""
    value = torch.zeros(1) if value is None else value
    return value.reshape([1] * len(input)).expand(input).contiguous()


def trilu(input: Tensor, k: int | list[int] | None = None, *, upper: int = 1) -> Tensor:
    """The triangle on and above (`upper`) or below the k-th diagonal of every matrix, zero elsewhere."""
    diagonal = 0 if k is None else _listed(k)[0]
    return input.triu(diagonal) if upper else input.tril(diagonal)


def reverse_sequence(
    input: Tensor, sequence_lens: Tensor, *, batch_axis: int = 1, time_axis: int = 0
) -> Tensor:
    """The first `sequence_lens[b]` steps of sample b backwards, the others as they are."""
    batch_axis, time_axis = batch_axis % input.dim(), time_axis % input.dim()
    steps = torch.arange(input.shape[time_axis], device=input.device)
    lengths = sequence_lens.unsqueeze(1)
    source = torch.where(steps < lengths, lengths - 1 - steps, steps)
    if batch_axis > time_axis:
        source = source.t()
    shape = [input.shape[axis] if axis in (batch_axis, time_axis) else 1 for axis in range(input.dim())]
    return input.gather(time_axis, source.reshape(shape).expand(input.shape))


def _listed(value: int | list[int]) -> list[int]:
    return value if isinstance(value, list) else [value]


KERNELS: dict[str, Kernel] = {
    "Concat": concat,
    "ConstantOfShape": constant_of_shape,
    "Expand": expand,
    "Flatten": flatten,
    "Reshape": reshape,
    "ReverseSequence": reverse_sequence,
    "Shape": shape,
    "Size": size,
    "Slice": slice_,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": trilu,
    "Unsqueeze": unsqueeze,
}
