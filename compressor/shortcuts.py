"""Shortcuts that skip rows and pad channels, written as convolutions with weights 0 and 1.

Between two stages of a ResNet of the CIFAR kind the shortcut takes every second row and column (Slice) and appends
channels of zeros (Pad): option A of He et al. 2016 (arXiv:1512.03385, section 4.2). onnxruntime keeps channels in
blocks from one convolution to the next on the CPU, and leaves that layout around both. The same shortcut as a 1x1
convolution stays in it, and is added where the convolution beside it ends:

    y[n, o, h, w] = sum_i k[o, i] * x[n, i, h * s, w * t],    k[before + i, i] = 1, else 0

Every output is one input, or 0: equal for finite inputs, but for the sign of a zero. The sum behind it is computed
within a convolution, and so rounded in another order. An Inf or NaN reaches all channels of its place (0 * Inf is
NaN), and a provider that rounds what convolutions read (TF32) rounds the shortcut too.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from compressor.graph import constant, integers, is_constant, new_initializer, remove_dead, sole_consumer
from compressor.summary import constant_bytes, macs

_LONGEST = 2**31 - 1
"""An end of a Slice that no axis lies behind."""

Steps = tuple[int, int]
"""Along rows and columns: every n-th one is taken."""


class _Shortcut(NamedTuple):
    """The nodes from first to last, and what they do together: channels of zeros go before and behind the others."""

    nodes: list[ir.Node]
    steps: Steps
    channels: int
    before: int
    behind: int

    @property
    def result(self) -> ir.Value:
        """What it makes."""
        return self.nodes[-1].outputs[0]

    def kernel(self) -> np.ndarray:
        """The weights of the convolution, [channels made, channels read, 1, 1]."""
        made = self.before + self.channels + self.behind
        return np.eye(made, self.channels, -self.before, dtype=np.float32)[:, :, None, None]


def shortcuts_to_convolutions(model: ir.Model, share: float = 0.05) -> list[str]:
    """Rewrite the shortcuts of the main graph in place; the names of the convolutions.

    A shortcut is a Pad of zeros along the channels with Slices of every n-th row or column before or behind it, float32
    and of four axes, that nothing but a sum reads.

    Args:
        model: with the inferred shapes of its values.
        share: the most that all of them may add to the bytes of the constants, and to the multiply-accumulates.
    """
    bytes_left, macs_left = share * constant_bytes(model), share * (macs(model) or 0)
    made: list[str] = []
    for shortcut in [found for node in model.graph if (found := _shortcut(node)) is not None]:
        kernel = shortcut.kernel()
        work = kernel.size * _places(shortcut.result)
        if kernel.nbytes <= bytes_left and work <= macs_left:
            bytes_left, macs_left = bytes_left - kernel.nbytes, macs_left - work
            made.append(_rewrite(model.graph, shortcut, kernel))
    if made:
        remove_dead(model)
    return made


def _shortcut(pad: ir.Node) -> _Shortcut | None:
    """The shortcut that a Pad is part of."""
    padding = _padding(pad)
    if padding is None:
        return None
    nodes, rows, columns = [pad], 1, 1
    while (first := _before(nodes[0])) is not None and (steps := _steps(first)) is not None:
        nodes, rows, columns = [first, *nodes], rows * steps[0], columns * steps[1]
    while (last := _behind(nodes[-1])) is not None and (steps := _steps(last)) is not None:
        nodes, rows, columns = [*nodes, last], rows * steps[0], columns * steps[1]
    channels, reader = _channels(nodes[0].inputs[0]), _behind(nodes[-1])
    if rows * columns == 1 or channels is None or reader is None or reader.op_type != "Add":
        return None
    return _Shortcut(nodes, (rows, columns), channels, *padding)


def _before(node: ir.Node) -> ir.Node | None:
    """The node that makes the data for this one alone."""
    data = node.inputs[0]
    maker = None if data is None else data.producer()
    return maker if maker is not None and _behind(maker) is node else None


def _behind(node: ir.Node) -> ir.Node | None:
    """The node of the same graph that alone reads what this one makes."""
    reader = sole_consumer(node.outputs[0])
    return reader if reader is not None and reader.graph is node.graph else None


def _channels(value: ir.Value | None) -> int | None:
    """Of float32 images [N, C, H, W]; None for anything else, and when unknown."""
    if value is None or value.dtype != ir.DataType.FLOAT or value.shape is None or len(value.shape) != 4:
        return None
    return value.shape[1] if isinstance(value.shape[1], int) else None


def _steps(node: ir.Node) -> Steps | None:
    """The steps of a Slice that takes every n-th row and column from the first on, up to the end."""
    data = node.inputs[0] if node.inputs else None
    if node.op_type != "Slice" or node.domain not in ("", "ai.onnx") or data is None or data.shape is None:
        return None
    names = ("starts", "ends", "axes", "steps")
    starts, ends, axes, steps = (_integers(node, name, at) for at, name in enumerate(names, 1))
    if starts is None or ends is None or axes is None or steps is None or len(data.shape) != 4:
        return None
    axes = tuple(axis % 4 for axis in axes or range(len(starts)))
    steps = steps or (1,) * len(starts)
    if len({len(starts), len(ends), len(axes), len(steps), len(set(axes))}) > 1 or any(starts):
        return None
    extents = [data.shape[axis] for axis in axes]
    if any(
        end < (size if isinstance(size, int) else _LONGEST) for end, size in zip(ends, extents, strict=True)
    ):
        return None
    along = {axis: 1 for axis in range(4)} | dict(zip(axes, steps, strict=True))
    return (along[2], along[3]) if along[0] == along[1] == 1 and min(along.values()) > 0 else None


def _padding(node: ir.Node) -> tuple[int, int] | None:
    """How many channels of zeros a Pad puts before and behind the others, where it does nothing else."""
    if node.op_type != "Pad" or node.domain not in ("", "ai.onnx") or not _fills_with_zeros(node):
        return None
    pads, axes = _integers(node, "pads", 1), _integers(node, "axes", 3)
    if pads is None or axes is None:
        return None
    axes = tuple(axis % 4 for axis in axes or range(4))
    if len(pads) != 2 * len(axes) or len(set(axes)) < len(axes):
        return None
    begins, ends = dict(zip(axes, pads, strict=False)), dict(zip(axes, pads[len(axes) :], strict=True))
    before, behind = begins.pop(1, 0), ends.pop(1, 0)
    if before < 0 or behind < 0 or any(begins.values()) or any(ends.values()):
        return None
    return before, behind


def _fills_with_zeros(pad: ir.Node) -> bool:
    mode, fill = pad.attributes.get("mode"), pad.attributes.get("value")
    if (mode is not None and mode.as_string() != "constant") or (fill is not None and fill.as_float()):
        return False
    given = pad.inputs[2] if len(pad.inputs) > 2 else None
    return given is None or (is_constant(given) and not np.any(constant(given)))


def _integers(node: ir.Node, name: str, place: int) -> tuple[int, ...] | None:
    """What an input holds, or the attribute of older operator sets; () when not given, None when computed."""
    given = node.inputs[place] if len(node.inputs) > place else None
    if given is None:
        return integers(node, name) or ()
    array = constant(given) if is_constant(given) else None
    return None if array is None else tuple(int(number) for number in array.reshape(-1))


def _places(value: ir.Value) -> int:
    """Height times width; an unknown one counts as 1, as in `summary.macs`."""
    return math.prod(size for size in (value.shape or ())[2:] if isinstance(size, int))


def _rewrite(graph: ir.Graph, shortcut: _Shortcut, kernel: np.ndarray) -> str:
    """Put the convolution in place of the nodes; its result keeps the name."""
    last, old = shortcut.nodes[-1], shortcut.result
    name = str(last.name or old.name)
    weight = new_initializer(graph, f"{name}_weight", kernel)
    node = ir.node(
        "Conv",
        [shortcut.nodes[0].inputs[0], weight],
        {"kernel_shape": [1, 1], "strides": list(shortcut.steps)},
        name=name,
    )
    new = node.outputs[0]
    new.type, new.shape = old.type, old.shape
    graph.insert_before(last, node)
    old.replace_all_uses_with(new)
    new.name, old.name = old.name, None
    graph.remove(reversed(shortcut.nodes), safe=True)
    return name
