"""The widths that a group may be cut to: those that run fast, and that leave something.

onnxruntime computes float convolutions in blocks of 16 channels on the CPU (measured on 1.31 with AVX-512: 97 of 128
channels cost as much as 112, and a count that 4 does not divide is slower than the uncut layer); a group of one block
may still be halved, which the layer that makes it does not feel and the one that reads it does. int8 convolutions
run in proportion at multiples of 8, depthwise ones at multiples of 16 only. NVIDIA's tensor cores
want channels in eights in half precision (Appleyard and Yokim 2017, "Programming Tensor Cores in CUDA 9") and, being
fed 16 bytes at a time, in sixteens in int8; neither was measured here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, gcd
from typing import Literal

import numpy as np
import onnx_ir as ir

from compressor.channels import Group
from compressor.graph import attribute

RoundTo = int | Literal["auto"]

_BLOCK = 16
_HALF_BLOCK = 8
_NVIDIA = ("cuda", "tensorrt", "nvtensorrtrtx")
_INT8 = (ir.DataType.INT8, ir.DataType.UINT8)


def step(group: Group, round_to: RoundTo, provider: str) -> int:
    """How many channels of a group go at once, so that every layer it passes has a width that runs fast.

    A channel that is several positions of an axis, like a head, counts for all of them: heads of 64 go one by one.
    """
    multiple = _multiple(group, provider) if round_to == "auto" else round_to
    per_channel = [np.bincount(m.index[m.index >= 0]).min() for m in group.weights("output")]
    return max((multiple // gcd(multiple, int(count)) for count in per_channel), default=multiple)


def widths(size: int, step: int, max_ratio: float) -> tuple[int, ...]:
    """The widths that a group of `size` may have, the largest first; multiples of the step below the size.

    Args:
        size: how many channels there are.
        step: what widths are multiples of.
        max_ratio: the largest share of the channels that may go.

    >>> widths(100, 16, 0.6), widths(16, 16, 0.9)
    ((100, 96, 80, 64, 48), (16,))
    """
    least = max(step, ceil(size * (1 - max_ratio) - 1e-9))
    fewer = range((size - 1) // step * step, least - 1, -step)
    return (size, *fewer)


def inner(groups: Sequence[Group]) -> dict[Group, Group]:
    """Groups that are the inner factor of an axis -> the group outside: the width of heads -> the heads."""
    carried: dict[tuple[ir.Value, int], list[tuple[Group, np.ndarray]]] = {}
    for group in groups:
        for member in group.members:
            carried.setdefault((member.value, member.axis), []).append((group, member.index))
    found: dict[Group, Group] = {}
    for held in carried.values():
        for at, (first, a) in enumerate(held):
            for second, b in held[at + 1 :]:
                both = (a >= 0) & (b >= 0)
                if both.any():
                    inside = _changes(a[both]) > _changes(b[both])
                    found.setdefault(*((first, second) if inside else (second, first)))
    return found


def _changes(index: np.ndarray) -> int:
    return int(np.count_nonzero(np.diff(index)))


def _multiple(group: Group, provider: str) -> int:
    convolutions = [node for node in _readers(group) if node.op_type == "Conv"]
    int8 = any(member.value.dtype in _INT8 for member in group.weights("output"))
    if provider in _NVIDIA:
        return _BLOCK if int8 else _HALF_BLOCK
    dense = bool(convolutions) and all(attribute(node, "group", 1) == 1 for node in convolutions)
    half = dense if int8 else _is_one_block(group)
    return _HALF_BLOCK if half else _BLOCK


def _is_one_block(group: Group) -> bool:
    """True when no axis that the group makes holds more than a block, other channels beside it included."""
    return all(len(member.index) <= _BLOCK for member in group.weights("output"))


def _readers(group: Group) -> Iterator[ir.Node]:
    """The nodes that read the weights of a group, through what decodes them."""
    for member in group.members:
        if member.role == "along":
            continue
        for use in member.value.uses():
            if use.node.op_type == "DequantizeLinear":
                yield from (behind.node for behind in use.node.outputs[0].uses())
            else:
                yield use.node
