"""Packed codes in a file, and the nodes that unpack them.

Codes of all tensors with the same levels lie in one blob, without a gap, as digits in base `levels` of bytes or of
two-byte words (`digits`). Standard operators of operator set 13 take it apart:

    numbers = Range(0, levels ** digits)                                   every word that occurs
    table   = Gather(levels, Mod(Div(numbers, levels ** place), levels))   int8 [words, digits]
    pieces  = Split(Reshape(Gather(table, Cast(blob)), -1))
    codes   = Reshape(piece, shape)

Where each row has levels of its own, the digits look them up:

    codes   = Reshape(GatherElements(row levels, Cast(Reshape(piece, [rows, n]))), shape)

onnxruntime evaluates all of it once, when it creates a session, 1.23 (the oldest with a wheel for Python 3.11 that we
allow) as well as 1.31. One blob loads as fast and with the same peak of memory as one per tensor (measured on 11.8
million ternary codes: 94 ms and 71 MiB, against 168 ms and 161 MiB for the float file and 44 ms and 31 MiB for plain
int8); arithmetic without a table takes four times as long and three times the memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from compressor.low_bit.digits import Packing, is_second_of_two, word
from compressor.packing import Inserter, codes_per_byte, pack, reshaped

BLOB_BYTES = 400
"""What the nodes of one blob take in the file (measured)."""


def write(place: Inserter, tensors: Sequence[tuple[ir.Value, Packing]], axes: Sequence[int]) -> None:
    """Replace initializers of one graph and type by one blob and the nodes that unpack it.

    Args:
        place: the start of the graph that holds them.
        tensors: each with its packing; the levels are the same.
        axes: of the rows of each.
    """
    levels, kind = tensors[0][1].levels, tensors[0][0].dtype or ir.DataType.INT8
    digits = [made.digits for _, made in tensors]
    blob = pack(np.concatenate(digits), len(levels), word(len(levels)))
    stem = f"{len(levels)}_levels"
    index = place.add(
        "Cast", [place.constant(f"packed_{stem}", blob)], f"words_{stem}", to=int(ir.DataType.INT32)
    )
    looked = place.add(
        "Gather", [_table(place, np.array(levels, kind.numpy()), stem), index], f"looked_up_{stem}", axis=0
    )
    flat = reshaped(place, looked, (-1,), f"flat_{stem}")
    sizes = [part.size for part in digits]
    held = blob.size * codes_per_byte(len(levels), int(np.iinfo(blob.dtype).max) + 1)
    pieces = _pieces(place, flat, [*sizes, held - sum(sizes)] if held > sum(sizes) else sizes)
    for piece, (value, made), axis in zip(pieces, tensors, axes, strict=False):  # the last may be filling
        name, shape = str(value.name), tuple(value.shape.numpy() if value.shape is not None else ())
        if made.rows is None:
            codes = reshaped(place, piece, shape, f"{name}_unpacked")
        else:
            codes = _looked_up(place, piece, made.rows, (shape, axis), name)
        codes.type, codes.shape = ir.TensorType(kind), ir.Shape(shape)
        value.replace_all_uses_with(codes)
        del place.graph.initializers[name]


def _table(place: Inserter, levels: np.ndarray, stem: str) -> ir.Value:
    """[words, digits]: what every word stands for. Its formula takes less room than its values."""
    base = len(levels)
    digits = codes_per_byte(base, int(np.iinfo(word(base)).max) + 1)
    count = [
        place.shared(f"number_{number}", np.array(number, np.int32)) for number in (0, base**digits, 1, base)
    ]
    every = place.add("Range", count[:3], f"numbers_{stem}")
    column = reshaped(place, every, (-1, 1), f"column_{stem}")
    places = place.constant(f"places_{stem}", (base ** np.arange(digits)).astype(np.int32))
    digit = place.add("Mod", [place.add("Div", [column, places], f"cut_{stem}"), count[3]], f"digits_{stem}")
    return place.add(
        "Gather",
        [place.constant(f"values_{stem}", levels), digit],
        f"table_{stem}",
        axis=0,
    )


def _pieces(place: Inserter, flat: ir.Value, sizes: list[int]) -> list[ir.Value]:
    """The parts of a blob, [n] each."""
    if len(sizes) == 1:
        return [flat]
    lengths = place.constant("sizes", np.array(sizes, np.int64))
    node = ir.node("Split", [flat, lengths], {"axis": 0}, num_outputs=len(sizes), name=place.fresh("pieces"))
    for number, output in enumerate(node.outputs):
        output.name = place.fresh(f"piece_{number}")
    place.graph.insert_before(place.before, node)
    return list(node.outputs)


def _looked_up(
    place: Inserter, piece: ir.Value, rows: np.ndarray, stored: tuple[tuple[int, ...], int], name: str
) -> ir.Value:
    """The codes of a tensor whose rows have levels of their own."""
    shape, axis = stored
    turned = is_second_of_two(shape, axis)
    moved = (shape[axis], *(size for other, size in enumerate(shape) if other != axis % len(shape)))
    wide = shape if turned else (moved[0], int(np.prod(moved[1:])))
    index = place.add(
        "Cast", [reshaped(place, piece, wide, f"{name}_digits")], f"{name}_places", to=int(ir.DataType.INT32)
    )
    levels = place.constant(f"{name}_levels", rows.T if turned else rows)
    found = place.add("GatherElements", [levels, index], f"{name}_looked_up", axis=0 if turned else 1)
    if turned:
        return found
    if axis % len(shape) == 0:
        return reshaped(place, found, shape, f"{name}_unpacked")
    split = reshaped(place, found, moved, f"{name}_split")
    back = [int(other) for other in np.argsort(np.r_[axis, np.delete(np.arange(len(shape)), axis)])]
    return place.add("Transpose", [split], f"{name}_unpacked", perm=back)
