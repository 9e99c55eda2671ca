"""Operators that work along an axis: reductions, cumulated sums, Softmax, the greatest elements."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from compressor.channels.axes import ONE, Axis
from compressor.channels.rules.operands import operand
from compressor.channels.rules.reshaping import named_axes
from compressor.channels.tracing import Rule, Trace, label
from compressor.graph import attribute, constant, is_constant

_SUMS = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum")
_OTHERS = ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSumExp")
_OF_ZEROS_NOT_ZERO = ("ReduceLogSum", "ReduceLogSumExp")


def reduced(trace: Trace, node: ir.Node) -> None:
    """A sum loses nothing where cut channels are zeros; a mean changes its count; what else is reduced stays whole."""
    value = node.inputs[0]
    axes, zero = trace.axes(value), trace.zero(value)
    named = named_axes(node, 1)
    if named is None and operand(node, 1) is not None:
        trace.barrier(node, f"{label(node)}: its axes are computed")
        return
    if not named:
        named = [] if attribute(node, "noop_with_empty_axes", 0) else list(range(len(axes)))
    places = {place % len(axes) for place in named}
    for place in places:
        if node.op_type == "ReduceMean":
            trace.normalized(axes[place], node)
        elif node.op_type not in _SUMS or not zero[place]:
            trace.pin(axes[place], f"{label(node)} runs over it")
    keep = attribute(node, "keepdims", 1)
    kept = [i for i in range(len(axes)) if keep or i not in places]
    flags = [zero[i] and node.op_type not in _OF_ZEROS_NOT_ZERO for i in kept]
    trace.give(node.outputs[0], [ONE if i in places else axes[i] for i in kept], flags)


def cumulated(trace: Trace, node: ir.Node) -> None:
    """Sums of all positions up to each: what is zero adds nothing."""
    value, where = node.inputs[0], node.inputs[1]
    axes, zero = trace.axes(value), list(trace.zero(value))
    array = constant(where) if is_constant(where) else None
    places = range(len(axes)) if array is None else [int(array.reshape(-1)[0]) % len(axes)]
    for place in places:
        if node.op_type == "CumProd" or not zero[place]:
            trace.pin(axes[place], f"{label(node)} runs over it")
        zero[place] = False
    trace.give(node.outputs[0], axes, zero)


def softmax(trace: Trace, node: ir.Node) -> None:
    """Each position depends on all others of the axis; before operator set 13 on all axes from it on."""
    axes = trace.axes(node.inputs[0])
    last = attribute(node, "axis", -1 if trace.opset >= 13 else 1) % max(len(axes), 1)
    along = axes[last : last + 1] if trace.opset >= 13 else axes[last:]
    _runs_over(trace, node, along)
    trace.give(node.outputs[0], axes, False)


def greatest(trace: Trace, node: ir.Node) -> None:
    """ArgMax, ArgMin: which position, and the axis is gone or of length one."""
    axes = list(trace.axes(node.inputs[0]))
    place = attribute(node, "axis", 0) % len(axes)
    _runs_over(trace, node, [axes[place]])
    axes[place : place + 1] = [ONE] if attribute(node, "keepdims", 1) else []
    trace.give(node.outputs[0], axes, False)


def top_k(trace: Trace, node: ir.Node) -> None:
    """The first k of the sorted axis, and where they were."""
    _with_new_axis(trace, node, attribute(node, "axis", -1))


def compress(trace: Trace, node: ir.Node) -> None:
    """Positions that a condition picks, from one axis or from all elements."""
    axes = trace.axes(node.inputs[0])
    if "axis" in node.attributes:
        _with_new_axis(trace, node, attribute(node, "axis", 0))
        return
    _runs_over(trace, node, axes)
    trace.give(node.outputs[0], [trace.fresh(node.outputs[0], 0, f"{label(node)} picks from it")], False)


def _with_new_axis(trace: Trace, node: ir.Node, place: int) -> None:
    axes, zero = list(trace.axes(node.inputs[0])), trace.zero(node.inputs[0])
    place %= len(axes)
    _runs_over(trace, node, [axes[place]])
    for number, value in enumerate(node.outputs):
        axes[place] = trace.fresh(value, place, f"{label(node)} picks from it")
        trace.give(value, axes, zero if number == 0 else False)


def triangle(trace: Trace, node: ir.Node) -> None:
    """Trilu: the last two axes are compared position by position."""
    axes = trace.axes(node.inputs[0])
    _runs_over(trace, node, axes[-2:])
    trace.give(node.outputs[0], axes, trace.zero(node.inputs[0]))


def reversed_sequence(trace: Trace, node: ir.Node) -> None:
    """ReverseSequence: another order of one axis for each position of another."""
    axes = trace.axes(node.inputs[0])
    over = [axes[attribute(node, name, default)] for name, default in (("batch_axis", 1), ("time_axis", 0))]
    _runs_over(trace, node, over)
    trace.give(node.outputs[0], axes, trace.zero(node.inputs[0]))


def determinant(trace: Trace, node: ir.Node) -> None:
    """Det: of the matrices in the last two axes."""
    axes = trace.axes(node.inputs[0])
    _runs_over(trace, node, axes[-2:])
    trace.give(node.outputs[0], axes[:-2], False)


def _runs_over(trace: Trace, node: ir.Node, axes: Iterable[Axis]) -> None:
    trace.pin(axes, f"{label(node)} runs over it")


RULES: dict[str, Rule] = {
    **dict.fromkeys((*_SUMS, *_OTHERS, "ReduceMean"), reduced),
    **dict.fromkeys(("CumSum", "CumProd"), cumulated),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), softmax),
    **dict.fromkeys(("ArgMax", "ArgMin"), greatest),
    "TopK": top_k,
    "Compress": compress,
    "Trilu": triangle,
    "ReverseSequence": reversed_sequence,
    "Det": determinant,
}
