"""LSTM, GRU and RNN: hidden units, in every gate and both directions alike."""

from __future__ import annotations

import onnx_ir as ir

from compressor.channels.axes import Axis, atom, length, product
from compressor.channels.rules.linear import KEEP_ZERO
from compressor.channels.rules.operands import contract, operand
from compressor.channels.tracing import Place, Rule, Trace, label
from compressor.graph import attribute

_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(trace: Trace, node: ir.Node) -> None:
    """x [T, B, I], W [D, gates * H, I], R [D, gates * H, H], bias [D, 2 * gates * H], states [D, B, H]."""
    gates, (source, inward, around) = _GATES[node.op_type], node.inputs[:3]
    x, w, r = trace.axes(source), trace.axes(inward), trace.axes(around)
    hidden, batch_first = r[2], bool(attribute(node, "layout", 0))
    trace.pin(w[0], f"the directions of {label(node)}")
    contract(trace, node, (source, 2), (inward, 2))
    trace.join(w[1], _gated(gates, hidden), node)
    trace.join(r[1], _gated(gates, hidden), node)
    if around is not None:
        trace.contracted(around, 2)
    _bias(trace, node, gates, hidden)
    if "hidden_size" in node.attributes:
        trace.extent(Place(node, "hidden_size"), hidden)
    for value in (inward, around, operand(node, 3), operand(node, 7)):
        if value is not None:
            trace.join(trace.axes(value)[0], w[0], node)
    time, batch = (x[1], x[0]) if batch_first else (x[0], x[1])
    trace.pin(time, f"the steps of {label(node)}")
    state = (batch, w[0], hidden) if batch_first else (w[0], batch, hidden)
    zero = _keeps_zero(node) and all([_initial(trace, node, state, number) for number in (5, 6)])
    if not (zero or trace.zero(around)[2]):
        trace.pin(hidden, f"{label(node)} computes its recurrent weights")
    every = (batch, time, w[0], hidden) if batch_first else (time, w[0], batch, hidden)
    for value, axes in zip(node.outputs, (every, state, state), strict=False):
        trace.give(value, axes, (*(False for _ in axes[1:]), zero))


def _gated(gates: int, hidden: Axis) -> Axis:
    """An axis of gates, each with all hidden units; the gates stay."""
    return product(atom(gates, "the gates of a recurrent layer"), hidden)


def _bias(trace: Trace, node: ir.Node, gates: int, hidden: Axis) -> None:
    """Biases of both weights one behind the other, and the peepholes of input, output and forget gate."""
    bias, peepholes = operand(node, 3), operand(node, 7)
    if bias is not None:
        trace.join(trace.axes(bias)[1], _gated(2 * gates, hidden), node)
    if peepholes is not None:
        trace.join(trace.axes(peepholes)[1], _gated(3, hidden), node)


def _initial(trace: Trace, node: ir.Node, state: tuple[Axis, ...], number: int) -> bool:
    """Join an initial state, and tell whether hidden units that are cut start from zero."""
    value = operand(node, number)
    if value is None or (number == 6 and node.op_type != "LSTM"):
        return True
    axes = trace.axes(value)
    for mine, given in zip(state, axes, strict=True):
        if length(mine) != 1 or length(given) != 1:
            trace.join(mine, given, node)
    return trace.zero(value)[2]


def _keeps_zero(node: ir.Node) -> bool:
    """Whether units whose weights are all zero stay at zero; the gates, the first activation, may be anything."""
    defaults = _DEFAULTS[node.op_type]
    given = node.attributes.get("activations")
    names = defaults if given is None else tuple(given.as_strings())
    behind = names if node.op_type == "RNN" else [n for i, n in enumerate(names) if i % len(defaults)]
    return all(name in KEEP_ZERO for name in behind)


RULES: dict[str, Rule] = dict.fromkeys(_GATES, recurrent)
