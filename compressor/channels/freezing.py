"""Making the lengths that a graph computes explicit, without changing what it computes.

What Shape says of dimensions that the file knows becomes a constant, and so does integer arithmetic on constants: a
scale that was computed from a length stays as it was, and a Reshape target can be rewritten. A Split into equal parts
gets its sizes, since the parts may differ after a cut, and a Slice counts from the first position on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from compressor.channels.additions import Additions
from compressor.channels.comparing import DECIDED, decided
from compressor.channels.evaluating import evaluated
from compressor.channels.sizes import Stored, count, element, held, rewrite
from compressor.channels.tracing import Place
from compressor.graph import attribute, constant, integers, is_constant, opset

_MOST = 64
"""Elements of an integer tensor that is followed: a shape has fewer."""
_BIASED = ("Conv", "ConvTranspose", "Gemm")
_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)


class Freezer:
    """Makes lengths explicit node by node, in the order of the graph; what it replaces is left dead."""

    def __init__(self, model: ir.Model) -> None:
        self.additions = Additions(model)
        self.opset = opset(model)

    def freeze(self, node: ir.Node) -> None:
        """Let the lengths that the file knows be constants, in place."""
        result = None if node.outputs[0].is_graph_output() else evaluated(node, self.opset)
        if result is not None:
            name, dtype = f"{node.outputs[0].name}_known", node.outputs[0].dtype
            _replace(node.outputs[0], self.additions.add(name, result, dtype))
        elif node.op_type in ("Shape", "Size") and node.inputs[0] is not None:
            for value, sizes in list(_read(node)):
                _replace(value, self.additions.add(f"{value.name}_known", sizes))
        elif node.op_type in _ARITHMETIC:
            _compute(node, self)
        elif node.op_type in DECIDED:
            _decide(node, self)
        elif node.op_type == "Reshape":
            _infer_one(node, self)
        elif node.op_type == "Slice":
            _count_from_first(node, self)
        elif node.op_type == "Split":
            _write_sizes(node, self)
        elif node.op_type in _BIASED:
            _own_bias(node, self)


def _own_bias(node: ir.Node, freezer: Freezer) -> None:
    """A copy of a bias that a layer with another weight adds too: equal biases, stored once, tie no channels."""
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or bias is None or not is_constant(bias):
        return
    readers = [use.node for use in bias.uses() if use.node is not node]
    array = constant(bias)
    if array is not None and array.size > 1 and any(weight not in reader.inputs for reader in readers):
        node.replace_input_with(2, freezer.additions.add(f"{bias.name}_{node.name}", array, bias.dtype))


def _replace(value: ir.Value, stored: ir.Value) -> None:
    ir.convenience.replace_all_uses_with(value, stored)


def _read(node: ir.Node) -> Iterator[tuple[ir.Value, np.ndarray]]:
    """Values that hold dimensions of the node's operand, all of them known: the Shape itself, or what takes from it."""
    sizes, out = _dimensions(node), node.outputs[0]
    if sizes is None or out.is_graph_output():
        return
    if node.op_type == "Size":
        if all(size is not None for size in sizes):
            yield out, np.array(np.prod([size or 0 for size in sizes]), np.int64)
        return
    if all(size is not None for size in sizes):
        yield out, np.array(sizes, np.int64)
        return
    for use in out.uses():
        taken = _taken(use.node, sizes)
        if taken is not None and not use.node.outputs[0].is_graph_output():
            yield use.node.outputs[0], taken


def _dimensions(node: ir.Node) -> list[int | None] | None:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    sizes = [size if isinstance(size, int) else None for size in source.shape]
    start, end = attribute(node, "start", 0), attribute(node, "end", len(sizes))
    return sizes[start:end]


def _taken(node: ir.Node, sizes: list[int | None]) -> np.ndarray | None:
    """What Gather or Slice takes from these sizes, when it is known."""
    data = np.array([-1 if size is None else size for size in sizes], np.int64)
    if node.op_type == "Gather" and is_constant(node.inputs[1]):
        found = data[constant(node.inputs[1])]
    elif node.op_type == "Slice" and len(node.inputs) > 2 and all(is_constant(v) for v in node.inputs[1:3]):
        step = constant(node.inputs[4]) if len(node.inputs) > 4 else None
        begin, end = (int(np.ravel(constant(v))[0]) for v in node.inputs[1:3])  # type: ignore[arg-type]
        found = data[begin : end : 1 if step is None else int(step[0])]
    else:
        return None
    return None if (np.asarray(found) < 0).any() else np.asarray(found)


def _truncated(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(np.trunc(a / b)).astype(np.int64)


_ARITHMETIC: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    **{"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _truncated},
    **{"Max": np.maximum, "Min": np.minimum},
}


def _compute(node: ir.Node, freezer: Freezer) -> None:
    """Replace integer arithmetic on constants by its result."""
    out = node.outputs[0]
    if out.dtype not in _INTEGERS or len(node.inputs) != 2 or out.is_graph_output():
        return
    a, b = _elements(node.inputs[0]), _elements(node.inputs[1])
    if a is None or b is None or (node.op_type == "Div" and not b.all()):
        return
    result = np.asarray(_ARITHMETIC[node.op_type](a, b), out.dtype.numpy())
    _replace(out, freezer.additions.add(f"{out.name}_known", result))


def _decide(node: ir.Node, freezer: Freezer) -> None:
    """Replace a comparison of lengths by its result."""
    out = node.outputs[0]
    result = None if out.is_graph_output() else decided(node)
    if result is not None:
        _replace(out, freezer.additions.add(f"{out.name}_known", result))


def _elements(value: ir.Value | None) -> np.ndarray | None:
    """int64: the elements of a value, each followed to the constant that holds it."""
    number = count(value)
    if value is None or number is None or number > _MOST or value.shape is None:
        return None
    found = [element(value, index) for index in range(number)]
    stored = [item.size for item in found if isinstance(item, Stored)]
    if len(stored) < number:
        return None
    return np.array(stored, np.int64).reshape([int(size) for size in value.shape if isinstance(size, int)])


def _infer_one(node: ir.Node, freezer: Freezer) -> None:
    """Let a Reshape infer the one length that is computed: it follows by itself after a cut."""
    target = node.inputs[1] if len(node.inputs) > 1 else None
    made = target.producer() if target is not None else None
    sizes = held(node, 1)
    if made is None or made.op_type != "Concat" or sizes is None or attribute(node, "allowzero", 0):
        return
    if sizes.count(None) != 1 or -1 in sizes:
        return
    computed = sizes.index(None)
    operands = list(made.inputs)
    if any(count(value) != 1 for value in operands):
        return
    dtype = made.outputs[0].dtype or ir.DataType.INT64
    operands[computed] = freezer.additions.add(f"{node.name}_inferred", np.array([-1], dtype.numpy()))
    twin = ir.node("Concat", operands, dict(made.attributes))
    twin.outputs[0].type, twin.outputs[0].shape = made.outputs[0].type, made.outputs[0].shape
    if made.graph is not None:
        made.graph.insert_after(made, twin)
        node.replace_input_with(1, twin.outputs[0])


def _count_from_first(node: ir.Node, freezer: Freezer) -> None:
    """Let the bounds of a Slice that count from the last position count from the first, which a cut does not move.

    -1 may stay: one position is never cut.
    """
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    slots: tuple[str | int, ...] = ("starts", "ends", "axes") if "starts" in node.attributes else (1, 2, 3)
    starts, ends, axes = (held(node, slot) for slot in slots)
    if shape is None or starts is None or ends is None:
        return
    axes = list(range(len(starts))) if axes is None else axes
    steps = held(node, 4) or [1] * len(axes)
    for slot, bounds in zip(slots, (starts, ends), strict=False):
        for number, (bound, axis, step) in enumerate(zip(bounds, axes, steps, strict=True)):
            size = shape[axis] if isinstance(axis, int) else None
            if not (isinstance(size, int) and isinstance(bound, int) and isinstance(step, int)):
                continue
            if bound < -1 and step > 0:
                rewrite(Place(node, slot, number), max(bound + size, 0), freezer.additions)


def _write_sizes(node: ir.Node, freezer: Freezer) -> None:
    """Give a Split its sizes when it has none."""
    source = node.inputs[0]
    given = len(node.inputs) > 1 and node.inputs[1] is not None
    if given or integers(node, "split") is not None or source is None or source.shape is None:
        return
    whole = source.shape[attribute(node, "axis", 0)]
    if not isinstance(whole, int):
        return
    parts = len(node.outputs)
    each = -(-whole // parts)
    sizes = [min(each, whole - each * part) for part in range(parts)]
    if freezer.opset < 13:
        node.attributes["split"] = ir.AttrInt64s("split", sizes)
        return
    node.attributes.pop("num_outputs", None)
    node.resize_inputs(2)
    node.replace_input_with(1, freezer.additions.add(f"{node.name}_sizes", np.array(sizes, np.int64)))
