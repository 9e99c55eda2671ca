"""Convolutions over one to three spatial axes, and onnxruntime's fused forms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compressor.errors import ModelError
from compressor.torch_graph.operators.fused_activation import activated
from compressor.torch_graph.operators.windows import pad, windows
from compressor.torch_graph.values import Kernel


def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Convolution of x (N, C, *spatial) by w (M, C / group, *kernel); `kernel_shape` repeats what w says."""
    rank = w.dim() - 2
    heads: list[int] | int = 0
    if pads and auto_pad == "NOTSET":
        heads = pads[:rank]
        if heads != pads[rank:]:
            x, heads = pad(x, heads, pads[rank:]), 0
    elif auto_pad != "NOTSET":
        window = windows(x.shape[2:], w.shape[2:], strides, dilations, auto_pad, pads)
        heads = window.heads
        if heads != window.tails:
            x, heads = pad(x, heads, window.tails), 0
    return _of_rank(rank, _CONVOLUTIONS)(x, w, b, strides or 1, heads, dilations or 1, group)


def conv_transpose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Transposed convolution of x (N, C, *spatial) by w (C, M / group, *kernel).

    `output_shape`, of the spatial axes, takes the place of `pads`; so do SAME_UPPER and SAME_LOWER, whose output
    is the input's size times the stride, or less where the kernel is shorter than the stride.
    """
    rank = w.dim() - 2
    deconvolve = _of_rank(rank, _TRANSPOSED)
    added: list[int] | int = output_padding or 0
    if output_shape is None and auto_pad == "NOTSET" and (not pads or pads[:rank] == pads[rank:]):
        return deconvolve(x, w, b, strides or 1, pads[:rank] if pads else 0, added, group, dilations or 1)
    steps = strides or [1] * rank
    whole = deconvolve(x, w, b, steps, 0, 0, group, dilations or 1)
    natural = [size + more for size, more in zip(whole.shape[2:], output_padding or [0] * rank, strict=True)]
    if auto_pad.startswith("SAME") and output_shape is None:
        grown = [size * step for size, step in zip(x.shape[2:], steps, strict=True)]
        output_shape = [min(sizes) for sizes in zip(grown, natural, strict=True)]
    if output_shape is None:
        heads, tails = (pads[:rank], pads[rank:]) if pads else ([0] * rank, [0] * rank)
    else:
        surplus = [max(size - want, 0) for size, want in zip(natural, output_shape[-rank:], strict=True)]
        less, more = [s // 2 for s in surplus], [s - s // 2 for s in surplus]
        heads, tails = (less, more) if auto_pad == "SAME_UPPER" else (more, less)
        natural = [max(size, want) for size, want in zip(natural, output_shape[-rank:], strict=True)]
    return _framed(whole, b, natural, heads, tails)


def _framed(
    whole: Tensor, b: Tensor | None, natural: list[int], heads: list[int], tails: list[int]
) -> Tensor:
    """A transposed convolution without padding grown to the natural size, then cut; cells added hold the bias."""
    grown = [size - had for size, had in zip(natural, whole.shape[2:], strict=True)]
    ends = [size - tail for size, tail in zip(grown, tails, strict=True)]
    if b is None or not any(end > 0 for end in ends):
        return pad(whole, [-head for head in heads], ends)
    bias = b.view(-1, *[1] * len(heads))
    return pad(whole - bias, [-head for head in heads], ends) + bias


def fused_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    z: Tensor | None = None,
    *,
    activation: str = "",
    activation_params: list[float] | None = None,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """activation(Conv(x, w, b) + z) (com.microsoft)."""
    y = conv(x, w, b, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides)
    return activated(y if z is None else y + z, activation, activation_params or ())


def nhwc_conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Convolution with the channels last (com.microsoft): x (N, *spatial, C), w (M, *kernel, C / group)."""
    x, w = x.movedim(-1, 1), w.movedim(-1, 1)
    y = conv(x, w, b, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides)
    return y.movedim(1, -1)


def _of_rank(rank: int, table: tuple[Callable[..., Tensor], ...]) -> Callable[..., Tensor]:
    if not 1 <= rank <= len(table):
        raise ModelError(f"A convolution has {rank} spatial axes; 1 to {len(table)} can be trained.")
    return table[rank - 1]


_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
_TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)

KERNELS: dict[str, Kernel] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "com.microsoft::FusedConv": fused_conv,
    "com.microsoft::NhwcConv": nhwc_conv,
}
