"""From the stored forms of coded weights back to the one form that passes know, to the bit."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from compressor.graph import constant, is_constant, nodes
from compressor.low_bit.coded_weights import KEY
from compressor.low_bit.folding import Known, folded
from compressor.low_bit.kernel_restoring import restore
from compressor.packing import Inserter, drop_unread, names_of


def expand(model: ir.Model) -> bool:
    """Let every weight that `storage.store` packed stand as plain codes again, in place; False if there is none.

    Weights keep their names. What was stored as floats to be, or for MatMulNBits, is a DequantizeLinear again;
    constants that a decoder reads, and that were computed from others, are constants again.
    """
    marked = [node for node in nodes(model) if KEY in node.metadata_props]
    if not marked:
        return False
    names = names_of(model)
    changed = restore(model, [node for node in marked if node.op_type == "MatMulNBits"], names)
    known: Known = {}
    for node in marked:
        if node.op_type == "Mul":
            _decode(_place(model, node, names), node)
            changed = True
    for node in list(nodes(model)):
        if node.op_type == "DequantizeLinear" or KEY in node.metadata_props:
            changed |= _hold(_place(model, node, names), node, known)
    if changed:
        drop_unread(model)
    return changed


def _place(model: ir.Model, node: ir.Node, names: set[str]) -> Inserter:
    if not isinstance(node.graph, ir.Graph):
        raise ValueError(f"{node.name} is in no graph")
    return Inserter(model, node.graph, node, names)


def _decode(place: Inserter, node: ir.Node) -> None:
    """Write Mul(Cast(codes), scale) as the DequantizeLinear that it computes; see `storage` for the scale's shape."""
    cast = None if node.inputs[0] is None else node.inputs[0].producer()
    scale, out = constant(node.inputs[1]), node.outputs[0]
    if cast is None or cast.inputs[0] is None or scale is None:
        raise ValueError(f"{out.name}: codes without a scale")
    held = place.constant(f"{out.name}_scale", scale.reshape(-1))
    rank = len(out.shape) if out.shape is not None else _rank(cast.inputs[0])
    made = ir.node(
        "DequantizeLinear",
        [cast.inputs[0], held],
        {"axis": rank - scale.ndim},
        name=place.fresh(f"{out.name}_decoded"),
    )
    made.metadata_props[KEY] = node.metadata_props[KEY]
    place.graph.insert_before(node, made)
    _stand_in(node, made)


def _rank(codes: ir.Value) -> int:
    array = folded(codes, {})
    if array is None:
        raise ValueError(f"{codes.name}: codes that are not constant")
    return array.ndim


def _stand_in(old: ir.Node, new: ir.Node) -> None:
    """Let the output of `new` take the place and name of the output of `old`, which is removed."""
    before, after = old.outputs[0], new.outputs[0]
    after.type, after.shape = ir.TensorType(ir.DataType.FLOAT), before.shape
    name, before.name = before.name, f"{before.name}_packed"
    ir.convenience.replace_all_uses_with(before, after)
    after.name = name
    if old.graph is not None:
        old.graph.remove(old, safe=True)


def _hold(place: Inserter, node: ir.Node, known: Known) -> bool:
    """Replace what a decoder reads, and constants alone decide, by constants; False if nothing was."""
    changed = False
    for value in node.inputs:
        array = None if value is None or is_constant(value) else folded(value, known)
        maker = None if value is None else value.producer()
        if value is None or array is None or maker is None or not isinstance(maker.graph, ir.Graph):
            continue
        part = "scale" if array.dtype.kind == "f" else "codes"
        made = replace(place, graph=maker.graph).constant(f"{node.outputs[0].name}_{part}", array)
        value.replace_all_uses_with(made)
        changed = True
    return changed
