"""Attention and RotaryEmbedding of the standard operator set: heads, groups of heads that share a key, and widths."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import onnx_ir as ir

from compressor.channels.axes import Axis, Product, Sum, atom, length, product
from compressor.channels.rules.operands import operand
from compressor.channels.tracing import Known, Place, Rule, Trace, label
from compressor.graph import attribute


class Heads(NamedTuple):
    """Queries, keys or values, whatever the order of their axes.

    Args:
        batch: the axis of the batch.
        rows: positions of the sequence.
        width: what each head has of every row.
        zero: whether channels that are cut, heads or widths, are zeros.
    """

    batch: Axis
    rows: Axis
    width: Axis
    zero: bool


def split(trace: Trace, node: ir.Node, known: Known, heads: Axis) -> Heads:
    """Read [B, T, heads * width] or [B, heads, T, width]; `heads` is joined with what is found."""
    axes, zero = known
    if len(axes) == 4:
        trace.join(axes[1], heads, node)
        return Heads(axes[0], axes[2], axes[3], zero[1] and zero[3])
    width = atom((length(axes[2]) or 0) // (length(heads) or 1))
    trace.join(axes[2], product(heads, width), node)
    return Heads(axes[0], axes[1], width, zero[2])


def of(trace: Trace, value: ir.Value | None) -> Known:
    """What the trace knows of a value."""
    return Known(trace.axes(value), trace.zero(value))


def score(trace: Trace, node: ir.Node, query: Heads, key: Heads) -> None:
    """Queries meet keys, channel by channel of a head, and a softmax runs over the keys; positions stay.

    The scale, by default 1 / sqrt(width), is written out: heads that lose channels keep the scale of the whole head.
    """
    width, scale = length(query.width), node.attributes.get("scale")
    if width is None:
        trace.pin(query.width, f"{label(node)} computes its scale")
    elif scale is None or scale.as_float() == 0:
        node.attributes["scale"] = ir.AttrFloat32("scale", 1 / sqrt(width))
    trace.join(query.width, key.width, node)
    trace.join(query.batch, key.batch, node)
    trace.pin((query.rows, key.rows), f"positions in {label(node)}")
    if not (query.zero or key.zero):
        trace.pin(key.width, f"{label(node)} sums over channels that are not zero when masked")


def mask(trace: Trace, node: ir.Node, value: ir.Value | None, heads: Axis, query: Heads, key: Heads) -> None:
    """Join what is added to the scores, stretched to [B, heads, T, S]."""
    for axis, own in zip(reversed(trace.axes(value)), (key.rows, query.rows, heads), strict=False):
        if length(axis) != 1:
            trace.join(axis, own, node)


def attention(trace: Trace, node: ir.Node) -> None:
    """Q, K, V of three or four axes; every key has the same number of queries."""
    counts = _counts(trace, node)
    if counts is None:
        trace.barrier(node, f"{label(node)} with an unknown number of heads")
        return
    shared, copies = atom(counts[1]), atom(counts[0] // counts[1])
    heads = product(shared, copies)
    query = split(trace, node, of(trace, node.inputs[0]), heads)
    key, value = (split(trace, node, of(trace, v), shared) for v in node.inputs[1:3])
    score(trace, node, query, key)
    trace.join(key.rows, value.rows, node)
    mask(trace, node, operand(node, 3), heads, query, key)
    for past, own in ((operand(node, 4), key), (operand(node, 5), value)):
        if past is not None:
            trace.join(trace.axes(past)[1], shared, node)
            trace.join(trace.axes(past)[3], own.width, node)
    for name, axis in (("q_num_heads", heads), ("kv_num_heads", shared)):
        if name in node.attributes:
            trace.extent(Place(node, name), axis)
    _give(trace, node, (query, key, value), shared, copies)


def _counts(trace: Trace, node: ir.Node) -> tuple[int, int] | None:
    """Heads of queries and of keys."""
    found = []
    for value, name in zip(node.inputs, ("q_num_heads", "kv_num_heads"), strict=False):
        axes = trace.axes(value)
        count = attribute(node, name, 0) if len(axes) == 3 else length(axes[1])
        if not count or length(axes[-1]) is None:
            return None
        found.append(count)
    return None if found[0] % found[1] else (found[0], found[1])


def _give(
    trace: Trace, node: ir.Node, operands: tuple[Heads, Heads, Heads], shared: Axis, copies: Axis
) -> None:
    """Y, and the keys and values for the next call, and the scores."""
    query, key, value = operands
    heads = product(shared, copies)
    zero = value.zero and length(copies) == 1
    if len(trace.axes(node.inputs[0])) == 4:
        first = Known((query.batch, heads, query.rows, value.width), (False, zero, False, value.zero))
    else:
        first = Known((query.batch, query.rows, product(heads, value.width)), (False, False, zero))
    rows = atom(None, f"positions in {label(node)}")
    caches = [Known((key.batch, shared, rows, side.width), (False,) * 4) for side in (key, value)]
    scores = Known((query.batch, heads, query.rows, rows), (False,) * 4)
    for out, known in zip(node.outputs, (first, *caches, scores), strict=False):
        trace.give(out, *known)


def rotary(trace: Trace, node: ir.Node) -> None:
    """Pairs of channels of a head are rotated, so they go together: halves, or neighbours when interleaved."""
    known, heads = of(trace, node.inputs[0]), attribute(node, "num_heads", 0)
    rotate(trace, node, known, heads, node.inputs[1:3])


def rotate(trace: Trace, node: ir.Node, known: Known, count: int, tables: Sequence[ir.Value | None]) -> None:
    """Join the channels of every head with the cosines and sines [..., width / 2].

    Args:
        trace: where axes are joined.
        node: has `rotary_embedding_dim`, the channels that are rotated, 0 for all; the others pass.
        known: [B, T, heads * width] or [B, heads, T, width].
        count: heads; 0 to take them from the axes and the tables.
        tables: cosines and sines.
    """
    turned = attribute(node, "rotary_embedding_dim", 0)
    size, pairs = length(known.axes[-1]), length(trace.axes(tables[0])[-1])
    if len(known.axes) == 4:
        count = length(known.axes[1]) or 0
    elif size and pairs and not count:
        count = size // (2 * pairs)
    if not (size and pairs and count):
        trace.barrier(node, f"{label(node)} with an unknown number of heads")
        return
    heads, half = atom(count), atom(pairs)
    axis = _pairs(half, bool(attribute(node, "interleaved", 0)))
    passed = atom((size if len(known.axes) == 4 else size // count) - 2 * pairs)
    width: Axis = axis if length(passed) == 0 else Sum((axis, passed))
    if len(known.axes) == 4:
        trace.join(known.axes[3], width, node)
    else:
        trace.join(known.axes[2], product(heads, width), node)
    trace.pin(known.axes[-2], f"positions in {label(node)}")
    for table in tables:
        trace.join(trace.axes(table)[-1], half, node)
    if turned:
        trace.extent(Place(node, "rotary_embedding_dim"), axis)
    if attribute(node, "num_heads", 0):
        trace.extent(Place(node, "num_heads"), heads if len(known.axes) == 3 else known.axes[1])
    trace.give(node.outputs[0], *known)


def _pairs(half: Axis, neighbours: bool) -> Axis:
    return Product((half, atom(2, "the two of a rotated pair"))) if neighbours else Sum((half, half))


RULES: dict[str, Rule] = {"Attention": attention, "RotaryEmbedding": rotary}
