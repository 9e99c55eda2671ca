"""What fixes the batch size inside a graph, rewritten operator by operator.

Whatever has the original batch size on an axis of the batch, but keeps it at another batch size, is fixed:

- a Reshape whose target counts the samples: that entry becomes -1;
- Resize to sizes: the first is taken from the input;
- an Expand of what already carries the batch: that entry becomes 1;
- a Slice that keeps the whole batch: its end becomes the largest integer;
- Concat, initial states of recurrent layers, broadcasting: the rows that were made for one batch size are taken to be
  the same, so one of them is expanded or broadcast.

Not everything here is proved; the caller compares the result with the original.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from compressor.graph import attribute, constant
from compressor.training.batch_edits import Edits, differing
from compressor.training.batch_reshape import batch_axis, resolved

_BROADCASTING = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Mean", "Sum", "Where", "MatMul"),
    *("And", "Or", "Xor", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"),
)
_END = np.iinfo(np.int64).max


def rewrite(edits: Edits) -> bool:
    """Rewrite all nodes, in place; False when one does not run at another batch size all the same."""
    for node in list(edits.graph):
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is not None:
            rule(edits, node)
        if not edits.infer(node):
            return False
    return True


def _reshape(edits: Edits, node: ir.Node) -> None:
    sizes, target = edits.sizes(node.inputs[0]), edits.fixed(node.inputs[1])
    carried = edits.axis(node.inputs[0])
    if sizes is None or target is None or carried is None:
        return
    copies = not attribute(node, "allowzero", 0)
    shape = resolved(target, sizes[0], copies)
    axis = batch_axis(sizes[0], carried, shape, edits.batch, edits.time_first)
    if axis is None or target[axis] == -1 or (target[axis] == 0 and axis == carried):
        return
    if edits.static:
        edits.replace(node, 1, [*shape[:axis], -1, *shape[axis + 1 :]])
    elif -1 not in target:
        edits.replace(node, 1, [*target[:axis], -1, *target[axis + 1 :]])
    elif axis == carried and copies:
        edits.replace(node, 1, [*target[:axis], 0, *target[axis + 1 :]])


def _resize(edits: Edits, node: ir.Node) -> None:
    sizes = edits.fixed(node.inputs[3]) if len(node.inputs) > 3 else None
    if (
        sizes
        and edits.axis(node.inputs[0]) == 0
        and sizes[0] == edits.batch
        and "axes" not in node.attributes
    ):
        node.replace_input_with(3, edits.target(node, [None, *sizes[1:]]))


def _expand(edits: Edits, node: ir.Node) -> None:
    """Counted from the last axis, on which data and target are aligned."""
    sizes, targets = edits.sizes(node.inputs[0]), edits.integers(node.inputs[1])
    if sizes is None or targets is None:
        return
    rank = len(sizes[0])
    carried = [a - rank for a in differing(*sizes)]
    followed = [a - len(targets[0]) for a in differing(*targets)]
    target = targets[0]
    if not followed and any(-a <= len(target) and target[a] != 1 for a in carried):
        edits.replace(node, 1, [1 if a - len(target) in carried else n for a, n in enumerate(target)])
    for axis in followed:
        if edits.batch > 1 and axis not in carried and -axis <= rank and sizes[0][axis] == edits.batch:
            edits.expand_row(node, 0, axis + rank)


def _slice(edits: Edits, node: ir.Node) -> None:
    sizes, axis = edits.sizes(node.inputs[0]), edits.axis(node.inputs[0])
    if sizes is None or axis is None or len(node.inputs) < 3:
        return
    starts, ends = edits.fixed(node.inputs[1]), edits.fixed(node.inputs[2])
    if starts is None or ends is None:
        return
    axes = edits.fixed(node.inputs[3]) if len(node.inputs) > 3 else None
    for at, which in enumerate(axes or range(len(starts))):
        whole = which % len(sizes[0]) == axis and starts[at] == 0
        if whole and sizes[0][axis] <= ends[at] < sizes[1][axis]:
            edits.replace(node, 2, [*ends[:at], _END, *ends[at + 1 :]])


def _concat(edits: Edits, node: ir.Node) -> None:
    carried = {axis for value in node.inputs if (axis := edits.axis(value)) is not None}
    for axis in sorted(carried):
        for index, value in enumerate(node.inputs):
            sizes = edits.sizes(value)
            if sizes is None or attribute(node, "axis", 0) % len(sizes[0]) == axis:
                continue
            if sizes[0] == sizes[1] and sizes[0][axis] == edits.batch:
                edits.expand_row(node, index, axis)


def _recurrent(edits: Edits, node: ir.Node) -> None:
    """Sequence lengths [batch] and initial states [directions, batch, size], or with `layout` the batch first."""
    axis = 0 if attribute(node, "layout", 0) else 1
    if edits.axis(node.inputs[0]) != axis:
        return
    for index, along in ((4, 0), (5, axis), (6, axis)):
        value = node.inputs[index] if index < len(node.inputs) else None
        sizes = edits.sizes(value)
        if sizes is None or sizes[0] != sizes[1]:
            continue
        array = constant(value)
        if index > 4 and array is not None and not array.any():
            node.replace_input_with(index, None)
        else:
            edits.expand_row(node, index, along)


def _broadcast(edits: Edits, node: ir.Node) -> None:
    """Counted from the last axis, on which shapes are aligned; the matrices of MatMul do not broadcast."""
    if edits.batch == 1:
        return
    inner = 2 if node.op_type == "MatMul" else 0
    found = [edits.sizes(value) for value in node.inputs]
    carried = {
        axis - len(s[0]) for s in found if s is not None for axis in differing(*s) if axis < len(s[0]) - inner
    }
    for index, sizes in enumerate(found):
        for axis in sorted(carried):
            if (
                sizes is not None
                and -axis <= len(sizes[0])
                and sizes[0][axis] == sizes[1][axis] == edits.batch
            ):
                edits.broadcast_row(node, index, axis + len(sizes[0]))


RULES: dict[str, Callable[[Edits, ir.Node], None]] = {
    "Reshape": _reshape,
    "Resize": _resize,
    "Expand": _expand,
    "Slice": _slice,
    "Concat": _concat,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(_BROADCASTING, _broadcast),
}
"""Operator -> how it is rewritten."""
