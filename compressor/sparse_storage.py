"""Tensors that are mostly one value, stored as a bitmask and the other values; stock onnxruntime unpacks them.

onnxruntime makes a sparse_initializer dense with 12 bytes per non-zero, and runs zeros no faster. What zeros do bring
is size. A tensor is written in standard operators (operator set 11), which onnxruntime evaluates once, when it creates
the session, so the graph that runs is the dense one:

    bits (uint8) -> lookup [bytes, 8] -> Reshape, Slice -> Cast(int32) = m
    index = CumSum(m) * m          0 where the bit is not set, else 1, 2, 3, ...
    tensor = Reshape(Gather([fill, values...], index), shape)

It is exact to the bit: what is not bitwise the fill value is among the values.
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from compressor.graph import add_initializer, constant, is_constant, nodes
from compressor.packing import (
    Inserter,
    at_start,
    drop_unread,
    head,
    look_up,
    names_of,
    pack,
    reshaped,
    unpack,
)
from compressor.pipeline import Change

OPSET = 11
"""CumSum is there from this operator set on."""

_DTYPES = (
    *(ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE),
    *(ir.DataType.INT8, ir.DataType.UINT8),
)
_NODE_BYTES = 950
"""What the nodes, names and shapes of one tensor take in the file, without its own name in six places (measured)."""
_TABLE_BYTES = 2200
"""What the lookup table takes, once per model."""
_LARGEST = 2**27
"""Elements; the int32 index of more would pass half of what onnxruntime folds at most (1 GB)."""


def worthwhile(model: ir.Model) -> bool:
    """True when `store` would make the file smaller."""
    saved = 0
    for graph in model.graphs():
        for value in graph.initializers.values():
            if packed := _packed(value):
                saved += value.const_value.nbytes - _stored_bytes(value, packed)  # type: ignore[union-attr]
    return saved > _TABLE_BYTES


def store(model: ir.Model) -> Change:
    """Write every constant of two axes or more that this makes smaller as bitmask and values, in place.

    The model must be of operator set 11 or later.
    """
    names = names_of(model)
    before = after = 0
    stored: list[str] = []
    for graph in list(model.graphs()):
        for weight in list(graph.initializers.values()):
            packed = _packed(weight)
            if packed is None:
                continue
            bits, values = packed
            before, after = before + weight.const_value.nbytes, after + bits.nbytes + values.nbytes  # type: ignore[union-attr]
            stored.append(str(weight.name))
            _write(at_start(model, weight, names), weight, (bits, values))
    drop_unread(model)
    return Change(tuple(stored), figures={"sparse bytes before": before, "sparse bytes after": after})


def expand(model: ir.Model) -> bool:
    """Let every tensor that `store` wrote be a constant again, in place and under its name; False if there is none."""
    found = [(node, dense) for node in nodes(model) if (dense := _dense(node)) is not None]
    for node, dense in found:
        out, graph = node.outputs[0], node.graph
        if not isinstance(graph, ir.Graph):
            continue
        name, out.name = str(out.name), f"{out.name}_unpacked"
        value = add_initializer(graph, name, dense)
        ir.convenience.replace_all_uses_with(out, value)
        graph.remove(node, safe=True)
    if found:
        drop_unread(model)
    return bool(found)


def stored_bytes(weight: ir.Value) -> int | None:
    """What a constant takes as bitmask and values; None when that is not less than it takes now."""
    packed = _packed(weight)
    return None if packed is None else _stored_bytes(weight, packed)


def _packed(weight: ir.Value) -> tuple[np.ndarray, np.ndarray] | None:
    """The bitmask, and the fill value with the others behind it; None when that is no smaller."""
    unfit = weight.dtype not in _DTYPES or weight.is_graph_output() or weight.is_graph_input()
    if unfit or not weight.uses() or len(weight.shape or ()) < 2:
        return None
    if prod(int(size) for size in weight.shape or () if isinstance(size, int)) > _LARGEST:
        return None
    array = constant(weight)
    if array is None or array.nbytes <= _NODE_BYTES:
        return None
    flat = np.ascontiguousarray(array).reshape(-1)
    fill = _commonest(flat)
    kept = _bitwise(flat) != _bitwise(fill)
    values = np.concatenate([fill, flat[kept]])
    bits = pack(kept.astype(np.uint8), 2)
    return (bits, values) if _stored_bytes(weight, (bits, values)) < array.nbytes else None


def _stored_bytes(weight: ir.Value, packed: tuple[np.ndarray, np.ndarray]) -> int:
    return sum(array.nbytes for array in packed) + _NODE_BYTES + 6 * len(weight.name or "")


def _commonest(flat: np.ndarray) -> np.ndarray:
    """Zero, or for integers the code that occurs most often (that of zero, where the zero point is another): [1]."""
    if flat.dtype.kind == "f":
        return np.zeros(1, flat.dtype)
    codes, counts = np.unique(flat, return_counts=True)
    return codes[[counts.argmax()]]


def _bitwise(array: np.ndarray) -> np.ndarray:
    """The same bits as unsigned integers, so that -0.0 and 0.0 differ."""
    return array.view(f"u{array.dtype.itemsize}")


def _write(place: Inserter, weight: ir.Value, packed: tuple[np.ndarray, np.ndarray]) -> None:
    """Put the nodes that unpack it in the place of a constant; the result takes over its name."""
    (bits, values), name, stem = packed, str(weight.name), place.fresh("unpacked")
    shape = tuple(int(size) for size in weight.shape or () if isinstance(size, int))
    count = prod(shape)
    mask = reshaped(
        place, look_up(place, place.constant(f"{name}_bits", bits), (0, 1), stem), (-1,), f"{stem}_mask"
    )
    if bits.size * 8 > count:
        mask = head(place, mask, 0, count, f"{stem}_cut")
    ones = place.add("Cast", [mask], f"{stem}_ones", to=int(ir.DataType.INT32))
    first = place.shared("axis_0", np.array(0, np.int64))
    rank = place.add("CumSum", [ones, first], f"{stem}_rank")
    index = place.add("Mul", [rank, ones], f"{stem}_where")
    flat = place.add("Gather", [place.constant(f"{name}_values", values), index], f"{stem}_flat", axis=0)
    dense = reshaped(place, flat, shape, f"{stem}_dense")
    dense.type, dense.shape = weight.type, ir.Shape(shape)
    weight.replace_all_uses_with(dense)
    graph = weight.graph
    if graph is not None:
        del graph.initializers[name]
    dense.name = name


def _dense(node: ir.Node) -> np.ndarray | None:
    """The tensor that ends at this node, when it is the Reshape behind what `_write` writes."""
    target = constant(node.inputs[1]) if node.op_type == "Reshape" and len(node.inputs) > 1 else None
    gather = _made(node.inputs[0], "Gather") if target is not None else None
    where = _made(gather.inputs[1], "Mul") if gather is not None else None
    rank = _made(where.inputs[0], "CumSum") if where is not None else None
    if gather is None or where is None or rank is None or where.inputs[1] is not rank.inputs[0]:
        return None
    ones = _made(rank.inputs[0], "Cast")
    mask = ones.inputs[0] if ones is not None else None
    cut = _made(mask, "Slice")
    flat = _made(cut.inputs[0] if cut is not None else mask, "Reshape")
    looked = _made(flat.inputs[0], "Gather") if flat is not None else None
    index = _made(looked.inputs[1], "Cast") if looked is not None else None
    bits = index.inputs[0] if index is not None else None
    if not is_constant(bits) or not is_constant(gather.inputs[0]) or target is None:
        return None
    stored, values = constant(bits), constant(gather.inputs[0])
    if stored is None or values is None or stored.dtype != np.uint8 or stored.ndim != 1:
        return None
    kept = unpack(stored, 2, prod(target.tolist())).astype(np.int64)
    found: np.ndarray = values[np.cumsum(kept) * kept].reshape(target)
    return found


def _made(value: ir.Value | None, operator: str) -> ir.Node | None:
    """The node that makes the value, when it is of that type."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == operator else None
