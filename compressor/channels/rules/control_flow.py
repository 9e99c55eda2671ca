"""If, Loop and Scan: their bodies are walked as part of the graph."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from compressor.channels.axes import Axis, atom, length
from compressor.channels.rules.operands import every
from compressor.channels.tracing import Known, Rule, Trace, label
from compressor.graph import attribute, integers


def branches(trace: Trace, node: ir.Node) -> None:
    """If: both branches make the same axes."""
    bodies = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    for body in bodies:
        trace.walk(body)
    for out, first, second in zip(node.outputs, bodies[0].outputs, bodies[1].outputs, strict=True):
        axes, others = trace.axes(first), trace.axes(second)
        if len(axes) != len(others):
            trace.pin((*axes, *others), f"{label(node)} makes tensors of different rank")
        for mine, other in zip(axes, others, strict=False):
            if length(mine) != 1 or length(other) != 1:
                trace.join(mine, other, node)
        zero = every(trace.zero(first), trace.zero(second)) if len(axes) == len(others) else False
        trace.give(out, axes, zero)


def loop(trace: Trace, node: ir.Node) -> None:
    """Loop: a state is the same axes before, inside and after; what is collected gets a new first axis."""
    body = node.attributes["body"].as_graph()
    states = node.inputs[2:]
    for value in body.inputs[:2]:
        trace.give(value, (), False)
    _enter(trace, node, states, body.inputs[2:])
    trace.walk(body)
    ends = body.outputs[1:]
    _leave(trace, node, states, body.inputs[2:], ends)
    for out, end in zip(node.outputs[len(states) :], ends[len(states) :], strict=True):
        turns = atom(None, f"the turns of Loop {node.name!r}")
        trace.give(out, (turns, *trace.axes(end)), (False, *trace.zero(end)))


def scan(trace: Trace, node: ir.Node) -> None:
    """Scan: as Loop, and its inputs are taken apart along an axis, which stays."""
    body = node.attributes["body"].as_graph()
    if len(node.inputs) != len(body.inputs):
        trace.barrier(node, f"{label(node)} in the form of operator set 8")
        return
    taken = attribute(node, "num_scan_inputs", 0)
    count = len(body.inputs) - taken
    states = node.inputs[:count]
    _enter(trace, node, states, body.inputs[:count])
    along = integers(node, "scan_input_axes") or (0,) * taken
    for value, inner, axis in zip(node.inputs[count:], body.inputs[count:], along, strict=True):
        known = Known(trace.axes(value), trace.zero(value))
        axis %= len(known.axes)
        trace.pin(known.axes[axis], f"{label(node)} goes along it")
        rest = [number for number in range(len(known.axes)) if number != axis]
        trace.give(inner, [known.axes[n] for n in rest], [known.zero[n] for n in rest])
    trace.walk(body)
    _leave(trace, node, states, body.inputs[:count], body.outputs)
    collected = node.outputs[count:]
    along = integers(node, "scan_output_axes") or (0,) * len(collected)
    for out, end, axis in zip(collected, body.outputs[count:], along, strict=True):
        axes, zero = list(trace.axes(end)), list(trace.zero(end))
        axis %= len(axes) + 1
        axes.insert(axis, atom(None, f"{label(node)} goes along it"))
        zero.insert(axis, False)
        trace.give(out, axes, zero)


def _enter(
    trace: Trace, node: ir.Node, states: Sequence[ir.Value | None], inside: Sequence[ir.Value]
) -> None:
    """States as the body reads them; whether they are zero is not known before the body is walked."""
    for state, value in zip(states, inside, strict=True):
        trace.give(value, trace.axes(state), False)


def _leave(
    trace: Trace,
    node: ir.Node,
    states: Sequence[ir.Value | None],
    inside: Sequence[ir.Value],
    ends: Sequence[ir.Value],
) -> None:
    """States as the body leaves them, joined with what it read."""
    for out, state, value, end in zip(node.outputs, states, inside, ends, strict=False):
        before, after = trace.axes(value), trace.axes(end)
        if len(before) != len(after):
            trace.pin((*before, *after), f"{label(node)} changes the rank of a state")
            trace.give(out, _pinned(after, node), False)
            continue
        for mine, other in zip(before, after, strict=True):
            if length(mine) != 1 or length(other) != 1:
                trace.join(mine, other, node)
        trace.give(out, after, every(trace.zero(state), trace.zero(end)))


def _pinned(axes: Sequence[Axis], node: ir.Node) -> list[Axis]:
    return [atom(None, f"{label(node)} changes it") for _ in axes]


RULES: dict[str, Rule] = {"If": branches, "Loop": loop, "Scan": scan}
