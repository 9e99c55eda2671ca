"""Two ways to store a quantized weight that no other pass takes up: decoded row by row, inside MatMulNBits."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from compressor.graph import attribute, constant, rank
from compressor.packing import (
    Inserter,
    codes_per_byte,
    head,
    look_up,
    pack,
    reshaped,
    take_over,
)
from compressor.weight_codes import Coded, encode, in_blocks

FLOAT = ir.DataType.FLOAT
_NODE_BYTES = 400
"""About what the nodes and names of one decode take in the file."""


class Stored(NamedTuple):
    """What a stored weight takes and loses: bytes, and max|w - w'| / max|w|."""

    bytes: int
    error: float


def is_table(weight: ir.Value) -> bool:
    """True for a matrix that is only looked up: by Gather along axis 0, with indices of known rank."""
    uses = [(use.node, use.idx) for use in weight.uses()]
    return rank(weight) == 2 and all(
        node.op_type == "Gather"
        and index == 0
        and not attribute(node, "axis", 0)
        and rank(node.inputs[1]) is not None
        for node, index in uses
    )


def store_rows(place: Inserter, weight: ir.Value, grid: tuple[int, int]) -> Stored | None:
    """Codes of a table [rows, width]; a Gather takes packed rows, and only those are decoded, at every run.

    Args:
        place: the start of the graph that holds the weight.
        weight: a finite float32 constant; all its readers are Gather along axis 0, with indices of known rank.
        grid: bits (8, 4 or 2), and how many columns at most share a scale (0: those of a row).

    Returns:
        None when the codes would take as much as the weight; nothing was changed then.
    """
    array, (bits, block) = _array(weight), grid
    rows, width = array.shape
    coded = encode(in_blocks(array[:, :, None], block or width)[..., 0], (2,), bits)
    result = _measured(
        array,
        _trimmed(coded.decoded()[..., None], (rows, width, 1))[..., 0],
        _packed_size(coded, bits, rows),
        coded.scale,
    )
    if result is None:
        return None
    name, flat = str(weight.name), coded.codes.reshape(rows, -1)
    if bits == 8:
        table = place.constant(f"{name}_codes", _signed(flat, coded))
    else:
        table = place.constant(f"{name}_packed", pack(flat, len(coded.values)))
    scale = place.constant(f"{name}_scale", coded.scale if coded.scale.shape[1] > 1 else coded.scale[:, 0])
    for use in list(weight.uses()):
        _gather_rows(place, use.node, (table, scale), coded, width)
    return result


def store_for_kernel(place: Inserter, weight: ir.Value, grid: tuple[int, int]) -> Stored | None:
    """Codes as com.microsoft MatMulNBits takes them, [outputs, blocks, block * bits / 8].

    Arguments and result as for `store_rows`, block at least 16. All readers must be MatMul(x, W) or Gemm without
    transA, alpha and beta. Zero points are the default 2^(bits - 1). Source: onnxruntime
    ContribOperators.
    """
    array, (bits, block) = _array(weight), grid
    turned = {_turned(use.node) for use in weight.uses()}
    if len(turned) > 1:
        return None
    matrix = array if turned == {True} else np.ascontiguousarray(array.T)
    outputs, inputs = matrix.shape
    count = -(-inputs // block)
    padded = np.pad(matrix, ((0, 0), (0, count * block - inputs))).reshape(outputs, count, block)
    coded = encode(padded, (2,), bits, with_zero=True)
    shift = 2 ** (bits - 1) - len(coded.values) // 2
    codes = pack(coded.codes + np.uint8(shift), 2**bits)
    result = _measured(matrix, coded.decoded().reshape(outputs, -1)[:, :inputs], codes.size, coded.scale)
    if result is None:
        return None
    name = str(weight.name)
    data = (place.constant(f"{name}_packed", codes), place.constant(f"{name}_scale", coded.scale.reshape(-1)))
    sizes = {"K": inputs, "N": outputs, "bits": bits, "block_size": block, "accuracy_level": 4}
    for use in list(weight.uses()):
        _multiply(place, use.node, data, sizes)
    return result


def _array(weight: ir.Value) -> np.ndarray:
    array = constant(weight)
    if array is None:
        raise ValueError(f"{weight.name} is not a constant")
    return array


def _turned(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and bool(attribute(node, "transB", 0))


def _trimmed(blocks: np.ndarray, matrix: tuple[int, int, int]) -> np.ndarray:
    """[A, blocks, size, B] as [A, inputs, B]."""
    return blocks.reshape(matrix[0], -1, matrix[2])[:, : matrix[1]]


def _packed_size(coded: Coded, bits: int, rows: int) -> int:
    per = 1 if bits == 8 else codes_per_byte(len(coded.values))
    return rows * -(-coded.codes.size // rows // per)


def _measured(array: np.ndarray, decoded: np.ndarray, codes: int, scale: np.ndarray) -> Stored | None:
    if codes + scale.nbytes + _NODE_BYTES >= array.nbytes:
        return None
    widest = float(np.max(np.abs(array)))
    error = float(np.max(np.abs(array - decoded))) / widest if widest else 0.0
    return Stored(codes + scale.nbytes, error)


def _signed(codes: np.ndarray, coded: Coded) -> np.ndarray:
    """int8 values of 8-bit codes."""
    return (codes.astype(np.int16) + coded.values[0]).astype(np.int8)


def _scaled(place: Inserter, codes: ir.Value, scale: ir.Value, name: str) -> ir.Value:
    real = place.add("Cast", [codes], f"{name}_float", to=int(FLOAT))
    return place.add("Mul", [real, scale], f"{name}_dequantized")


def _gather_rows(
    place: Inserter, node: ir.Node, stored: tuple[ir.Value, ir.Value], coded: Coded, width: int
) -> None:
    """Write Gather(table, indices) as the decoding of the gathered codes by the gathered scales."""
    indices = node.inputs[1]
    dims = rank(indices)
    if indices is None or dims is None or node.graph is None:
        raise ValueError(f"{node.name}: indices of unknown rank")
    here, name = replace(place, graph=node.graph, before=node), str(node.name)
    table, scale = stored
    rows = here.add("Gather", [table, indices], f"{name}_rows", axis=0)
    scales = here.add("Gather", [scale, indices], f"{name}_scales", axis=0)
    _, count, size = coded.codes.shape
    if table.dtype == ir.DataType.UINT8:
        rows = look_up(here, rows, coded.values, name)
        held = _array(table).shape[1] * codes_per_byte(len(coded.values))
        rows = reshaped(here, rows, (*[0] * dims, held), f"{name}_flat")
        rows = head(here, rows, dims, count * size, f"{name}_cut") if held > count * size else rows
    if count > 1:
        rows = reshaped(here, rows, (*[0] * dims, count, size), f"{name}_blocks")
    real = _scaled(here, rows, scales, name)
    if count > 1:
        real = reshaped(here, real, (*[0] * dims, count * size), f"{name}_joined")
        real = head(here, real, dims, width, f"{name}_trimmed") if count * size > width else real
    take_over(node, real)


def _multiply(place: Inserter, node: ir.Node, data: tuple[ir.Value, ir.Value], sizes: dict[str, int]) -> None:
    if node.graph is None:
        raise ValueError(f"{node.name} is in no graph")
    here = replace(place, graph=node.graph, before=node)
    made = here.add("com.microsoft.MatMulNBits", [node.inputs[0], *data], f"{node.name}_low_bit", **sizes)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        made = here.add("Add", [made, node.inputs[2]], f"{node.name}_biased")
    take_over(node, made)
