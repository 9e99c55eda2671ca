"""Pad and CenterCropPad: values around a tensor, or its edges cut."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compressor.torch_graph.values import Kernel

_NATIVE = {"edge": "replicate", "reflect": "reflect"}


def pad(
    data: Tensor,
    pads: list[int],
    constant_value: float | list[float] | None = None,
    axes: list[int] | None = None,
    *,
    mode: str = "constant",
    value: float = 0.0,
) -> Tensor:
    """The tensor with `pads` (all begins, then all ends, of the given axes) around it; a negative pad cuts.

    Args:
        mode: constant; edge, the last element again; reflect, mirrored at the last element; wrap, periodic.
        value: what `constant_value` was before operator set 11.
    """
    axes = list(range(data.dim())) if axes is None else [axis % data.dim() for axis in axes]
    widths = [(0, 0)] * data.dim()
    for at, axis in enumerate(axes):
        widths[axis] = (pads[at], pads[at + len(axes)])
    if mode == "constant":
        fill = value if constant_value is None else constant_value
        return torch.constant_pad_nd(data, _flat(widths), fill[0] if isinstance(fill, list) else fill)
    if any(width < 0 for pair in widths for width in pair):
        data = torch.constant_pad_nd(data, _flat([(min(begin, 0), min(end, 0)) for begin, end in widths]))
        widths = [(max(begin, 0), max(end, 0)) for begin, end in widths]
    if mode in _NATIVE and _has_native(data, widths):
        return F.pad(data, _flat(widths[2:]), _NATIVE[mode])
    for axis, (begin, end) in enumerate(widths):
        if begin or end:
            data = data.index_select(axis, _source(mode, data.shape[axis], begin, end, data.device))
    return data


def center_crop_pad(input_data: Tensor, shape: list[int], *, axes: list[int] | None = None) -> Tensor:
    """The middle of the given axes at the given sizes: cut where they are smaller, zeros around where larger.

    An odd difference cuts or adds the extra element at the end.
    """
    axes = list(range(input_data.dim())) if axes is None else axes
    widths = [(0, 0)] * input_data.dim()
    for axis, size in zip(axes, shape, strict=True):
        difference = size - input_data.shape[axis]
        begin = difference // 2 if difference > 0 else -(-difference // 2)
        widths[axis] = (begin, difference - begin)
    return torch.constant_pad_nd(input_data, _flat(widths))


def _has_native(data: Tensor, widths: list[tuple[int, int]]) -> bool:
    """Whether torch's own padding does it: 1 to 3 spatial axes, no reflection beyond the other end."""
    if not (3 <= data.dim() <= 5 and data.is_floating_point()) or any(map(any, widths[:2])):
        return False
    return all(max(pair) < size for pair, size in zip(widths[2:], data.shape[2:], strict=True))


def _source(mode: str, size: int, begin: int, end: int, device: torch.device) -> Tensor:
    """For each position of the padded axis, the position of the element that it repeats."""
    position = torch.arange(-begin, size + end, device=device)
    if mode == "edge":
        return position.clamp(0, size - 1)
    if mode == "wrap":
        return position.remainder(size)
    period = max(2 * (size - 1), 1)
    position = position.remainder(period)
    return torch.minimum(position, period - position)


def _flat(widths: list[tuple[int, int]]) -> list[int]:
    """Widths as torch wants them: pairs from the last axis to the first."""
    return [width for pair in reversed(widths) for width in pair]


KERNELS: dict[str, Kernel] = {"CenterCropPad": center_crop_pad, "Pad": pad}
