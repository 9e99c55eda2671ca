"""The last step of a pipeline: coded weights packed, in the form that runs fastest.

A weight that meets quantized values stays int8 codes in front of its DequantizeLinear, which onnxruntime fuses with
the layer. One that meets floats is written

    codes -> Cast(float) -> Mul(scale)          scale: [outputs, 1, ...], without the axes of 1 before it

because onnxruntime evaluates that when it loads the model, and a DequantizeLinear at every run. The codes of both are
packed (`blobs`); those of MatMulNBits lie packed in it (`kernel_form`). `expanding.expand` undoes all of it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping
from math import prod

import numpy as np
import onnx_ir as ir

from compressor import sparse_storage
from compressor.graph import constant
from compressor.low_bit import kernel_form
from compressor.low_bit.blobs import BLOB_BYTES, write
from compressor.low_bit.coded_weights import KEY, CodedWeight, coded_weights, integer_operands
from compressor.low_bit.digits import Packing, packing
from compressor.low_bit.economy import economize
from compressor.low_bit.forms import Choice, choose
from compressor.packing import Inserter, at_start, drop_unread, names_of
from compressor.pipeline import Change, Context

Part = tuple[ir.Value, Packing]
"""Codes and how they are packed."""
_LARGEST = 2**27
"""Codes of one blob; what onnxruntime makes of more on the way would pass half of what it folds at most (1 GB)."""
_NAMED = {
    "integer": "weights for int8 kernels",
    "float": "weights for float kernels",
    "kernel": "weights for MatMulNBits",
}
_UNFUSED = "onnxruntime does not fuse it with its layer, so its codes become floats when the model is loaded"


def store(model: ir.Model, context: Context, sparse: bool = False) -> Change:
    """Pack every coded weight in place, losslessly, and let the graph around them take little room.

    Args:
        model: with coded weights in the form in which passes write them.
        context: provider, samples, and the original model, whose names stay.
        sparse: whether sparse storage follows; what it makes smaller is left to it.
    """
    weights, packable = coded_weights(model), integer_operands(model)
    if not weights and not packable:
        return Change()
    codes = _sizes(weights) | {
        str(value.name): prod(value.shape.numpy()) for value in packable if value.shape
    }
    choice = choose(model, weights, context)
    names = names_of(model)
    for coded in weights:
        place = _before(model, coded.node, names)
        if (form := choice.forms[coded.name]) == "kernel":
            packable[kernel_form.store(place, coded, choice.kernels[coded.name])] = 0
            continue
        packable[coded.codes] = coded.axis
        if form == "float":
            _write_floats(place, coded)
    drop_unread(model)
    for coded in _unfused(model, context):
        choice.forms[coded.name] = "float"
        choice.declined[coded.name] = _UNFUSED
        _write_floats(_before(model, coded.node, names), coded)
    saved = _pack(model, packable, names, sparse)
    drop_unread(model)
    given = names_of(context.original) if context.original is not None else set()
    economize(model, given | codes.keys())
    return Change(tuple(codes), choice.declined, _figures(choice, sum(codes.values()), saved))


def _sizes(weights: list[CodedWeight]) -> dict[str, int]:
    return {
        coded.name: int(np.prod(coded.codes.shape.numpy()))
        for coded in weights
        if coded.codes.shape is not None
    }


def _before(model: ir.Model, node: ir.Node, names: set[str]) -> Inserter:
    if not isinstance(node.graph, ir.Graph):
        raise ValueError(f"{node.name} is in no graph")
    return Inserter(model, node.graph, node, names)


def _write_floats(place: Inserter, coded: CodedWeight) -> None:
    """Put Cast and Mul in the place of the DequantizeLinear of a weight."""
    scale, shape = constant(coded.scale), coded.codes.shape
    if scale is None or shape is None:
        raise ValueError(f"{coded.name}: codes without a scale")
    out = coded.node.outputs[0]
    along = place.constant(f"{out.name}_factor", scale.reshape(-1, *[1] * (len(shape) - 1 - coded.axis)))
    real = place.add("Cast", [coded.codes], f"{out.name}_float", to=int(ir.DataType.FLOAT))
    made = place.add("Mul", [real, along], f"{out.name}_product")
    node = made.producer()
    if node is not None:
        node.metadata_props[KEY] = str(coded.method)
    made.type, made.shape = out.type, out.shape
    name, out.name = out.name, f"{out.name}_decoded"
    ir.convenience.replace_all_uses_with(out, made, replace_graph_outputs=True)
    made.name = name
    place.graph.remove(coded.node, safe=True)


def _unfused(model: ir.Model, context: Context) -> list[CodedWeight]:
    """The weights whose codes onnxruntime would decode at every run."""
    from compressor.fusion import kernels

    left = coded_weights(model)
    if not left or context.provider != "cpu":
        return []
    slow = set(kernels(model).unfused)
    return [coded for coded in left if coded.codes.name in slow]


def _pack(model: ir.Model, tensors: Mapping[ir.Value, int], names: set[str], sparse: bool) -> int:
    """Pack constants of codes, each given with the axis of its rows, where that saves room; how many bytes it saves."""
    saved = 0
    for group in _blobs(tensors, sparse).values():
        for part in _parts(group):
            gain = sum(made.digits.size - made.nbytes for _, made in part) - BLOB_BYTES
            if gain > 0:
                write(at_start(model, part[0][0], names), part, [tensors[value] for value, _ in part])
                saved += gain
    return saved


def _blobs(tensors: Mapping[ir.Value, int], sparse: bool) -> Mapping[Hashable, list[Part]]:
    """The tensors that packing makes smaller, by graph, type and levels."""
    blobs: dict[Hashable, list[Part]] = defaultdict(list)
    for value, axis in tensors.items():
        array = constant(value)
        made = None if array is None or array.size > _LARGEST else packing(array, axis)
        if made is None:
            continue
        other = sparse_storage.stored_bytes(value) if sparse else None
        if other is None or made.nbytes <= other:
            blobs[value.graph, value.dtype, made.levels].append((value, made))
    return blobs


def _parts(group: list[Part]) -> list[list[Part]]:
    """Consecutive tensors of at most `_LARGEST` codes together."""
    parts: list[list[Part]] = [[]]
    held = 0
    for pair in group:
        size = pair[1].digits.size
        if parts[-1] and held + size > _LARGEST:
            parts.append([])
            held = 0
        parts[-1].append(pair)
        held += size
    return parts


def _figures(choice: Choice, codes: int, saved: int) -> dict[str, float | str]:
    forms = Counter(choice.forms.values())
    figures: dict[str, float | str] = {"codes": codes, "bytes saved by packing them": saved}
    figures |= {_NAMED[form]: count for form, count in forms.items()}
    figures |= {
        f"MatMulNBits against floats, {shape}": round(speed, 2) for shape, speed in choice.speeds.items()
    }
    return figures
