"""Where sliding windows lie: the padding of convolutions and pools, and how many windows fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Windows(NamedTuple):
    """Windows over the spatial axes, one entry per axis; `heads` and `tails` are what is padded on either side."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    heads: list[int]
    tails: list[int]

    def extents(self) -> list[int]:
        """How many cells a window spans, dilation included."""
        return [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]

    def counts(self, sizes: Sequence[int], ceil_mode: int) -> list[int]:
        """How many windows fit. With `ceil_mode` the last may overhang, if it starts before the padding behind."""
        found = []
        for i, extent in enumerate(self.extents()):
            stride = self.strides[i]
            room = sizes[i] + self.heads[i] + self.tails[i] - extent
            count = (room + stride - 1) // stride + 1 if ceil_mode else room // stride + 1
            overhangs = ceil_mode and (count - 1) * stride >= sizes[i] + self.heads[i]
            found.append(count - 1 if overhangs else count)
        return found

    def padded(self, x: Tensor, counts: Sequence[int], value: float) -> Tensor:
        """x padded, or cut, to exactly what that many windows cover."""
        tails = [
            (count - 1) * stride + extent - size - head
            for count, stride, extent, size, head in zip(
                counts, self.strides, self.extents(), x.shape[2:], self.heads, strict=True
            )
        ]
        return pad(x, self.heads, tails, value)


def windows(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    auto_pad: str,
    pads: Sequence[int] | None,
) -> Windows:
    """The windows that these attributes of ONNX mean; strides and dilations are 1 where omitted, pads 0."""
    rank = len(kernel)
    made = Windows(
        list(kernel), list(strides or [1] * rank), list(dilations or [1] * rank), [0] * rank, [0] * rank
    )
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max((-(-size // stride) - 1) * stride + extent - size, 0)
            for size, stride, extent in zip(sizes, made.strides, made.extents(), strict=True)
        ]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        heads, tails = (less, more) if auto_pad == "SAME_UPPER" else (more, less)
        return made._replace(heads=heads, tails=tails)
    if auto_pad == "VALID" or not pads:
        return made
    return made._replace(heads=list(pads[:rank]), tails=list(pads[rank:]))


def pad(x: Tensor, heads: Sequence[int], tails: Sequence[int], value: float = 0.0) -> Tensor:
    """x with `heads` and `tails` cells added to its last axes; negative numbers cut."""
    ends = [end for pair in zip(reversed(heads), reversed(tails), strict=True) for end in pair]
    return F.pad(x, ends, value=value) if any(ends) else x


def unfolded(x: Tensor, window: Windows) -> Tensor:
    """A view of every window of an already padded x: (N, C, *counts, *kernel)."""
    for axis, (extent, stride) in enumerate(zip(window.extents(), window.strides, strict=True), start=2):
        x = x.unfold(axis, extent, stride)
    strided: tuple[Any, ...] = (..., *(slice(None, None, step) for step in window.dilations))
    return x[strided]
