"""Convolutions as matrix products: the windows of their input as rows.

Chellapilla, Puri and Simard 2006, "High Performance Convolutional Neural Networks for Document Processing", section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from compressor.graph import attribute, integers

Padding = list[tuple[int, int]]


@dataclass(frozen=True)
class Kernel:
    """The shape of a convolution, per spatial axis.

    Args:
        shape: positions of the kernel.
        steps: strides of the windows; 1 for ConvTranspose.
        gaps: dilations.
        groups: of channels.
    """

    shape: tuple[int, ...]
    steps: tuple[int, ...]
    gaps: tuple[int, ...]
    groups: int

    @property
    def reach(self) -> list[int]:
        """How far the kernel reaches: gap * (positions - 1) + 1."""
        return [gap * (size - 1) + 1 for gap, size in zip(self.gaps, self.shape, strict=True)]


def convolution_rows(node: ir.Node, array: np.ndarray, rows: int | None = None) -> np.ndarray:
    """The windows of a Conv's input [N, C, *size]: float32 [groups, rows, C / groups * kernel positions].

    Args:
        node: a Conv.
        array: its data input.
        rows: how many to take at most; see `drawn`.
    """
    kernel = _kernel(node)
    padded = np.pad(array, [(0, 0), (0, 0), *_padding(node, kernel, array.shape[2:])])
    return _windows(padded, kernel, rows)


def transposed_rows(node: ir.Node, array: np.ndarray, rows: int | None = None) -> np.ndarray:
    """The same for a ConvTranspose: the windows, turned round, of its input with stride - 1 zeros between values."""
    kernel = _kernel(node)
    steps, kernel = kernel.steps, Kernel(kernel.shape, (1,) * len(kernel.shape), kernel.gaps, kernel.groups)
    spread = [(size - 1) * step + 1 for size, step in zip(array.shape[2:], steps, strict=True)]
    wide = np.zeros((*array.shape[:2], *spread), np.float32)
    _every(steps, wide, 2)[...] = array
    extra = integers(node, "output_padding") or (0,) * len(steps)
    full = [size + more + reach - 1 for size, more, reach in zip(spread, extra, kernel.reach, strict=True)]
    natural = [step * size for step, size in zip(steps, array.shape[2:], strict=True)]
    cut = _cropping(node, full, natural)
    border = [(reach - 1, reach - 1 + more) for reach, more in zip(kernel.reach, extra, strict=True)]
    padded = np.pad(wide, [(0, 0), (0, 0), *border])
    inside = [slice(low, size - high) for size, (low, high) in zip(padded.shape[2:], cut, strict=True)]
    return _windows(padded[(slice(None), slice(None), *inside)], kernel, rows, turned=True)


def drawn(total: int, rows: int | None) -> np.ndarray:
    """Which of `total` rows to take: all, or `rows` of them at random, in order; the same for the same numbers.

    >>> drawn(3, None), len(drawn(100, 7))
    (array([0, 1, 2]), 7)
    """
    if rows is None or rows >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(total).choice(total, rows, replace=False))


def _kernel(node: ir.Node) -> Kernel:
    shape = integers(node, "kernel_shape")
    if shape is None:
        weight = node.inputs[1]
        held = () if weight is None or weight.shape is None else weight.shape.numpy()
        shape = held[2:]
    ones = (1,) * len(shape)
    steps, gaps = integers(node, "strides") or ones, integers(node, "dilations") or ones
    return Kernel(shape, steps, gaps, attribute(node, "group", 1))


def _padding(node: ir.Node, kernel: Kernel, size: Sequence[int]) -> Padding:
    """(before, after) of each axis of a Conv's input."""
    mode = _mode(node)
    if not mode.startswith("SAME"):
        return _pads(node, len(size), mode)
    outputs = [-(-length // step) for length, step in zip(size, kernel.steps, strict=True)]
    short = [
        (output - 1) * step + reach - length
        for output, step, reach, length in zip(outputs, kernel.steps, kernel.reach, size, strict=True)
    ]
    return [_halves(max(missing, 0), mode == "SAME_UPPER") for missing in short]


def _cropping(node: ir.Node, full: Sequence[int], natural: Sequence[int]) -> Padding:
    """(before, after) that a ConvTranspose cuts off its `full` output; `natural` is what SAME makes of its size."""
    mode, wanted = _mode(node), integers(node, "output_shape")
    if wanted is None and not mode.startswith("SAME"):
        return _pads(node, len(full), mode)
    ends = natural if wanted is None else wanted[-len(full) :]
    return [_halves(max(size - end, 0), mode == "SAME_UPPER") for size, end in zip(full, ends, strict=True)]


def _mode(node: ir.Node) -> str:
    found = node.attributes.get("auto_pad")
    return "NOTSET" if found is None else found.as_string()


def _pads(node: ir.Node, axes: int, mode: str) -> Padding:
    both = (mode != "VALID" and integers(node, "pads")) or (0,) * (2 * axes)
    return list(zip(both[:axes], both[axes:], strict=True))


def _halves(total: int, upper: bool) -> tuple[int, int]:
    """A padding in two halves, the larger one at the end if `upper`."""
    small = total // 2
    return (small, total - small) if upper else (total - small, small)


def _windows(padded: np.ndarray, kernel: Kernel, rows: int | None, turned: bool = False) -> np.ndarray:
    """Every window of [N, C, *size], its kernel axes in reverse where `turned`."""
    n, channels = padded.shape[:2]
    axes = tuple(range(2, padded.ndim))
    view = np.lib.stride_tricks.sliding_window_view(padded, kernel.reach, axes)
    view = _every(kernel.gaps, _every(kernel.steps, view, 2), padded.ndim)
    places = (n, *view.shape[2 : padded.ndim])
    sample, *position = np.unravel_index(drawn(prod(places), rows), places)
    chosen = np.moveaxis(view, 1, len(places))[(sample, *position)]
    if turned:
        chosen = np.flip(chosen, tuple(range(2, chosen.ndim)))
    grouped = chosen.reshape(len(chosen), kernel.groups, channels // kernel.groups * prod(kernel.shape))
    return np.ascontiguousarray(grouped.transpose(1, 0, 2), np.float32)


def _every(steps: Sequence[int], array: np.ndarray, first: int) -> np.ndarray:
    """A view of every step-th element along the axes from `first` on."""
    index = [slice(None)] * first + [slice(None, None, step) for step in steps]
    strided: np.ndarray = array[tuple(index)]
    return strided
