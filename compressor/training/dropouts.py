"""Dropout in front of the layers that give the outputs (Srivastava et al. 2014, JMLR 15), which exports leave out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from compressor.errors import OptionError
from compressor.graph import new_initializer, opset, sole_consumer, unique_name
from compressor.training.depths import Use, layer_uses

_HEADS = ("Conv", "Gemm", "MatMul")
_RATIO_IS_INPUT = 12
"""The operator set from which the ratio of Dropout is an input, no attribute."""


def add_dropout(model: ir.Model, ratio: float) -> ir.Model:
    """A copy with a Dropout on what each output layer reads, before its quantizer if it has one.

    It does nothing in inference; see `output_layers` for which layers those are.

    Args:
        model: stays as it was.
        ratio: share of the elements that training sets to zero, in [0, 1).

    Raises:
        OptionError: no output comes from a layer with stored weights.
    """
    dropped = model.clone()
    heads = output_layers(dropped)
    if not heads:
        raise OptionError(
            f"dropout={ratio!r}: no output comes from a {', '.join(_HEADS[:-1])} or {_HEADS[-1]} with stored weights, "
            "so there is nothing to put it in front of. Leave dropout at 0."
        )
    made: dict[ir.Value, ir.Value] = {}
    for node, slot in (_entrance(use) for use in heads):
        source = node.inputs[slot]
        if source is not None and source not in made:
            made[source] = _dropout(dropped, node, slot, ratio)
        if source is not None:
            node.replace_input_with(slot, made[source])
    return dropped


def output_layers(model: ir.Model) -> list[Use]:
    """The Conv, Gemm and MatMul nodes with stored weights that no other such layer follows, in graph order.

    Looked at is the main graph, where every output has its own; bodies of If, Loop and Scan have none.
    """
    uses = {use.node: use for use in layer_uses(model) if use.node.op_type in _HEADS}
    found: dict[ir.Node, None] = {}
    for output in model.graph.outputs:
        last = [node for node in _before(output.producer(), stop=uses) if node in uses]
        followed = {node for head in last for node in _before(head) if node is not head}
        found |= dict.fromkeys(node for node in last if node not in followed)
    return [use for node, use in uses.items() if node in found]


def _before(node: ir.Node | None, stop: dict[ir.Node, Use] | None = None) -> Iterator[ir.Node]:
    """The node and all that it depends on; what is in `stop` is given, and nothing before it."""
    seen: set[ir.Node] = set()
    waiting = [] if node is None else [node]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        if stop is None or node not in stop:
            waiting += [p for v in node.inputs if v is not None and (p := v.producer()) is not None]


def _entrance(use: Use) -> tuple[ir.Node, int]:
    """The input that is dropped from: the layer's own, or that of its quantizer when no other layer shares it."""
    node, slot = use.node, 0 if use.slot else 1
    decode = _producer(node, slot)
    encode = None if decode is None or decode.op_type != "DequantizeLinear" else _producer(decode, 0)
    if decode is None or encode is None or encode.op_type != "QuantizeLinear":
        return node, slot
    alone = sole_consumer(decode.outputs[0]) is node and sole_consumer(encode.outputs[0]) is decode
    return (encode, 0) if alone else (node, slot)


def _producer(node: ir.Node, slot: int) -> ir.Node | None:
    value = node.inputs[slot]
    return None if value is None else value.producer()


def _dropout(model: ir.Model, reader: ir.Node, slot: int, ratio: float) -> ir.Value:
    """What a new Dropout node makes of an input of `reader`, under the rules of the model's operator set."""
    source = reader.inputs[slot]
    if source is None:
        raise ValueError(f"{reader.name}: input {slot} is omitted")
    name = unique_name(model.graph, f"{source.name}_dropout")
    if opset(model) < _RATIO_IS_INPUT:
        node = ir.node("Dropout", [source], {"ratio": ratio}, name=name)
    else:
        share = new_initializer(model.graph, f"{name}_ratio", np.asarray(ratio, np.float32))
        node = ir.node("Dropout", [source, share], name=name)
    output = node.outputs[0]
    output.name, output.type, output.shape = name, source.type, source.shape
    model.graph.insert_before(reader, node)
    return output
