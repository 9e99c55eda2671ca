"""The attention operators of onnxruntime (domain com.microsoft), as its transformer optimizer writes them."""

from __future__ import annotations

import onnx_ir as ir

from compressor.channels.axes import Axis, Sum, atom, length, product
from compressor.channels.rules.attention import Heads, mask, of, rotate, score, split
from compressor.channels.rules.operands import along, contract, operand
from compressor.channels.tracing import Known, Place, Rule, Trace, label
from compressor.graph import attribute, integers


def packed_projection(trace: Trace, node: ir.Node) -> None:
    """x [B, T, I], weights [I, Q | K | V] and bias of the same length; each part is heads * width."""
    source, weight, bias = node.inputs[0], node.inputs[1], operand(node, 2)
    x, w, count = trace.axes(source), trace.axes(weight), attribute(node, "num_heads", 1)
    total = length(w[1])
    sizes = integers(node, "qkv_hidden_sizes") or ((total or 0) // 3,) * 3
    if total is None or sizes[0] != sizes[1] or any(size % count for size in sizes):
        trace.barrier(node, f"{label(node)} with heads of different widths")
        return
    heads, width, own = atom(count), atom(sizes[0] // count), atom(sizes[2] // count)
    parts = product(heads, width), product(heads, width), product(heads, own)
    contract(trace, node, (source, 2), (weight, 0))
    trace.join(w[1], Sum(parts), node)
    zero = trace.zero(weight)[1] and along(trace, node, (w[1],), bias)[0]
    side = Heads(x[0], x[1], width, zero)
    score(trace, node, side, side)
    mask(trace, node, operand(node, 5), heads, side, side)
    trace.extent(Place(node, "num_heads"), heads)
    if operand(node, 4) is not None or len(node.outputs) > 1:
        trace.pin((heads, width, own), f"{label(node)} keeps a cache")
    else:
        node.attributes["qkv_hidden_sizes"] = ir.AttrInt64s("qkv_hidden_sizes", sizes)
    for number in range(3 if "qkv_hidden_sizes" in node.attributes else 0):
        trace.extent(Place(node, "qkv_hidden_sizes", number), parts[number])
    if attribute(node, "do_rotary", 0):
        trace.pin(width, f"{label(node)} rotates channels inside")
    trace.give(node.outputs[0], (x[0], x[1], parts[2]), (False, False, zero))
    for value in node.outputs[1:]:
        trace.give(value, [atom(None, f"{label(node)} keeps a cache") for _ in range(5)], False)


def multi_head(trace: Trace, node: ir.Node) -> None:
    """query, key and value, each [B, T, heads * width] or, for keys, [B, heads, T, width]; bias Q | K | V."""
    query, key, value = (of(trace, v) for v in node.inputs[:3]) if len(node.inputs) > 2 else (None,) * 3
    count = attribute(node, "num_heads", 1)
    if query is None or key is None or value is None or not (query.axes and key.axes and value.axes):
        trace.barrier(node, f"{label(node)} with queries, keys and values in one tensor")
        return
    if len(query.axes) != 3 or any(length(known.axes[-1]) is None for known in (query, key, value)):
        trace.barrier(node, f"{label(node)} with heads of unknown widths")
        return
    heads = atom(count)
    sides = [split(trace, node, known, heads) for known in (query, key, value)]
    bias = operand(node, 3)
    if bias is not None:
        trace.join(trace.axes(bias)[0], Sum(tuple(product(heads, side.width) for side in sides)), node)
        flag = trace.zero(bias)[0]
        sides = [side._replace(zero=side.zero and flag) for side in sides]
    score(trace, node, sides[0], sides[1])
    trace.join(sides[1].rows, sides[2].rows, node)
    mask(trace, node, operand(node, 5), heads, sides[0], sides[1])
    for number, side in ((6, sides[1]), (7, sides[2])):
        past = operand(node, number)
        if past is not None:
            trace.join(trace.axes(past)[1], heads, node)
            trace.join(trace.axes(past)[3], side.width, node)
    trace.extent(Place(node, "num_heads"), heads)
    _answer(trace, node, (sides[0], sides[1], sides[2]), heads, heads)


def group_query(trace: Trace, node: ir.Node) -> None:
    """query [B, T, heads * width], key and value [B, T, shared * width], or all three behind one another.

    Widths stay: onnxruntime takes multiples of eight only.
    """
    count, fewer = attribute(node, "num_heads", 1), attribute(node, "kv_num_heads", 1)
    known, together = of(trace, node.inputs[0]), operand(node, 1) is None
    total = length(known.axes[-1])
    if total is None or any(operand(node, number) is not None for number in (12, 13)):
        trace.barrier(node, f"{label(node)} with a quantized cache, or heads of unknown widths")
        return
    shared, copies = atom(fewer), atom(count // fewer)
    wide = total // (count + 2 * fewer if together else count)
    heads, width = (
        product(shared, copies),
        atom(wide, f"{label(node)} takes widths that are multiples of eight"),
    )
    queries, keys = product(heads, width), product(shared, width)
    trace.join(known.axes[2], Sum((queries, keys, keys)) if together else queries, node)
    for given in () if together else node.inputs[1:3]:
        trace.join(trace.axes(given)[2], keys, node)
    last = known if together else of(trace, node.inputs[2])
    query = Heads(known.axes[0], known.axes[1], width, known.zero[2])
    value = query._replace(zero=last.zero[2])
    trace.pin(query.rows, f"positions in {label(node)}")
    mask(trace, node, operand(node, 10), heads, query, query)
    for number in (3, 4):
        if operand(node, number) is not None:
            trace.join(trace.axes(node.inputs[number])[1], shared, node)
    if operand(node, 11) is not None:
        trace.join(trace.axes(node.inputs[11])[0], heads, node)
    trace.extent(Place(node, "num_heads"), heads)
    trace.extent(Place(node, "kv_num_heads"), shared)
    _answer(trace, node, (query, query, value), heads, shared)


def _answer(
    trace: Trace, node: ir.Node, sides: tuple[Heads, Heads, Heads], heads: Axis, shared: Axis
) -> None:
    """The output [B, T, heads * width], the caches [B, shared, S, width] and the scores."""
    query, key, value = sides
    zero = value.zero and length(heads) == length(shared)
    first = Known((query.batch, query.rows, product(heads, value.width)), (False, False, zero))
    rows = atom(None, f"positions in {label(node)}")
    caches = [Known((key.batch, shared, rows, side.width), (False,) * 4) for side in (key, value)]
    scores = Known((query.batch, heads, query.rows, rows), (False,) * 4)
    for out, known in zip(node.outputs, (first, *caches, scores), strict=False):
        trace.give(out, *known)


def rotary(trace: Trace, node: ir.Node) -> None:
    """x, positions, then the tables; otherwise as RotaryEmbedding of the standard operator set."""
    rotate(trace, node, of(trace, node.inputs[0]), attribute(node, "num_heads", 0), tuple(node.inputs[2:4]))


RULES: dict[str, Rule] = {
    "com.microsoft.Attention": packed_projection,
    "com.microsoft.MultiHeadAttention": multi_head,
    "com.microsoft.GroupQueryAttention": group_query,
    "com.microsoft.RotaryEmbedding": rotary,
}
