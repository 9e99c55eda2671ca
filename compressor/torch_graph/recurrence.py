"""LSTM, GRU and RNN on the weights as the file keeps them, without ONNX's order of gates in between.

An exported torch module has its own order of gates, which the graph brings into ONNX's and a kernel of torch needs
again: the two cancel out, and the kernel gets the initializers themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from torch import Tensor, fx

from compressor.torch_graph import attributes, table
from compressor.torch_graph.operators.recurrent_fused import Fused, fused_form, fused_layer
from compressor.torch_graph.operators.recurrent_layers import DIRECTIONS, by_direction
from compressor.torch_graph.rearranging import Rearranged

if TYPE_CHECKING:
    from compressor.torch_graph.lowering import Lowering

_STATES = {"LSTM": 2, "GRU": 1, "RNN": 1}
_PEEPHOLES = 7


def lower(lowering: Lowering, node: ir.Node) -> bool:
    """Add a call of torch's kernel on views of initializers; False when it has none, or its weights are computed."""
    kernel = table.kernel_of(node)
    if kernel is None or node.op_type not in _STATES or node.domain:
        return False
    options = attributes.keywords(lowering, node, kernel)
    form = _form(node, options)
    if form is None:
        return False
    weights = _weights(lowering, node, form, DIRECTIONS[options["direction"]])
    if weights is None:
        return False
    x, _, _, _, lengths, *states = _padded(node)[: 5 + _STATES[node.op_type]]
    call = lowering.graph.call(
        fused_layer,
        _given(lowering, x, "tensor"),
        weights,
        _given(lowering, lengths, "list"),
        *(_given(lowering, state, "tensor") for state in states),
        operator=node.op_type,
        kernel=form.kernel,
        direction=options["direction"],
        layout=options.get("layout", 0),
    )
    call.meta["onnx"] = node.name
    lowering.bind(node, call)
    return True


def _form(node: ir.Node, options: Mapping[str, Any]) -> Fused | None:
    directions = DIRECTIONS.get(options["direction"])
    if directions is None or _padded(node)[_PEEPHOLES] is not None:
        return None
    switches = {name: options[name] for name in ("input_forget", "linear_before_reset") if name in options}
    return fused_form(node.op_type, directions, options.get("activations"), options.get("clip"), **switches)


def _weights(
    lowering: Lowering, node: ir.Node, form: Fused, directions: int
) -> list[tuple[fx.Node, ...]] | None:
    """The weights of each direction in the kernel's order; None when they are not initializers rearranged."""
    rearranged = Rearranged(lowering, node.graph)
    values = _padded(node)[1:4]
    w, r, b = (rearranged.numbers(value) for value in values)
    if w is None or r is None or (b is None) != (values[2] is None) or not _fit(form, directions, w, r, b):
        return None
    ordered = form.ordered(by_direction(w, r, b))
    joined = rearranged.joined([numbers for direction in ordered for numbers in direction])
    if joined is None:
        return None
    each = len(joined) // directions
    return [tuple(joined[at : at + each]) for at in range(0, len(joined), each)]


def _fit(form: Fused, directions: int, w: Tensor, r: Tensor, b: Tensor | None) -> bool:
    """Whether W, R and B have the shapes that belong together; the layer says what is wrong when it is run."""
    rows = len(form.gates) * r.shape[-1]
    both = [w.shape[:2], r.shape[:2]] == [(directions, rows)] * 2
    return both and w.dim() == r.dim() == 3 and (b is None or b.shape == (directions, 2 * rows))


def _padded(node: ir.Node) -> Sequence[ir.Value | None]:
    """All inputs that the operators may have, None where the node has none."""
    return [*node.inputs, *[None] * (_PEEPHOLES + 1 - len(node.inputs))]


def _given(lowering: Lowering, value: ir.Value | None, kind: str) -> Any:
    return None if value is None else lowering.read_as(kind, lowering.read(value))
