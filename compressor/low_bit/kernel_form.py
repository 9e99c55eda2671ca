"""Coded weights of matrix products as com.microsoft MatMulNBits keeps them, and back.

MatMulNBits multiplies by codes of 4 or 8 bits in blocks of at least 16 inputs, with activations rounded to int8 per
block (accuracy_level 4). It is the fastest kernel for one row and large matrices, where reading the weights takes the
time; for many rows it is slower than floats. Its codes of 2 bits are no faster (measured), and onnxruntime 1.23 does
not take them: codes of fewer bits are packed like all others, and made into what the kernel takes when the model is
loaded. Source: onnxruntime ContribOperators.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from compressor.graph import attribute, rank
from compressor.low_bit.coded_weights import KEY, CodedWeight
from compressor.packing import Inserter, pack, take_over

LAYER = "compressor.codes.layer"
"""Key in the metadata of a MatMulNBits of ours: JSON, the layer that it stands for."""
BLOCK = 128
"""Inputs per block where a scale is that of all inputs; smaller ones are slower, as the scales are repeated."""
BLOCKS = (16, 32, 64, 128, 256)


class Matrix(NamedTuple):
    """A coded weight as MatMulNBits takes it.

    Args:
        codes: int8 [outputs, inputs].
        scale: float32 [outputs, blocks].
        block: inputs per block; the last block may be short.
        bits: of a stored code.
    """

    codes: np.ndarray
    scale: np.ndarray
    block: int
    bits: int


def matrix(coded: CodedWeight) -> Matrix | str:
    """The weight as MatMulNBits takes it, or why it does not."""
    layers = coded.layers
    if not layers or not all(_is_product(use.node, use.idx) for use in layers):
        return "only matrix products have that kernel"
    turned = {_is_turned(use.node) for use in layers}
    codes, scale = coded.rows()
    shape = coded.value.shape
    if len(turned) > 1 or shape is None or len(shape) != 2:
        return "its readers need different layouts"
    outputs = int(shape.numpy()[0 if turned == {True} else 1])
    if coded.in_place and (coded.axis == 0) != (turned == {True}):
        return "the scales of its codes run along its inputs"
    if coded.in_place:
        block, spread = BLOCK, np.repeat(scale[:, None], -(-codes.shape[1] // BLOCK), axis=1)
    else:
        block, spread = codes.shape[1], scale.reshape(outputs, -1)
        if codes.size != int(np.prod(shape.numpy())):
            return "its last block is filled up"
        if block not in BLOCKS:
            return f"its blocks have {block} inputs; the kernel takes {', '.join(map(str, BLOCKS))}"
    low, high = int(codes.min()), int(codes.max())
    bits = next(bits for bits in (4, 8) if -(2 ** (bits - 1)) <= low and high < 2 ** (bits - 1))
    return Matrix(codes.reshape(outputs, -1), np.asarray(spread, np.float32), block, bits)


def emit(place: Inserter, data: ir.Value, stored: Matrix, name: str) -> ir.Value:
    """Multiply `data` [..., inputs] by the stored weight; the output is of a MatMulNBits."""
    outputs, inputs = stored.codes.shape
    return _multiply(place, data, _constants(place, stored, name), _sizes(stored, inputs, outputs), name)


def store(place: Inserter, coded: CodedWeight, stored: Matrix) -> ir.Value:
    """Let MatMulNBits nodes take the place of the layers that read a coded weight; their constant codes.

    Args:
        place: in front of those layers.
        coded: of the graph of the place.
        stored: the weight as the kernel takes it.
    """
    outputs, inputs = stored.codes.shape
    name, sizes = coded.name, _sizes(stored, inputs, outputs)
    data = _constants(place, stored, name)
    for use in coded.layers:
        node = use.node
        if not isinstance(node.graph, ir.Graph) or node.inputs[0] is None:
            raise ValueError(f"{node.name}: not in a graph")
        here = replace(place, graph=node.graph, before=node)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        made = _multiply(here, node.inputs[0], data, sizes, f"{node.name}_low_bit")
        kernel = made.producer()
        if kernel is None:
            raise ValueError(f"{node.name}: not written")
        kernel.metadata_props[KEY] = str(coded.method)
        kernel.metadata_props[LAYER] = json.dumps(
            {"weight": name, "operator": node.op_type, "name": node.name, "turned": _is_turned(node)}
            | {"block": 0 if coded.in_place else stored.block, "bias": bias is not None}
        )
        take_over(node, made if bias is None else here.add("Add", [made, bias], f"{node.name}_biased"))
    return data[0]


def _is_product(node: ir.Node, index: int) -> bool:
    """True for MatMul(x, W) of a value of known rank above 1, and for Gemm without transA, alpha and beta."""
    if index != 1 or node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "MatMul":
        return (rank(node.inputs[0]) or 0) >= 2
    plain = all(node.attributes[key].as_float() == 1 for key in ("alpha", "beta") if key in node.attributes)
    return plain and not attribute(node, "transA", 0)


def _is_turned(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and bool(attribute(node, "transB", 0))


def _constants(place: Inserter, stored: Matrix, name: str) -> tuple[ir.Value, ir.Value]:
    """Codes and scales."""
    return (
        place.constant(f"{name}_packed", _packed(stored)),
        place.constant(f"{name}_scales", stored.scale.reshape(-1)),
    )


def _packed(stored: Matrix) -> np.ndarray:
    """uint8 [outputs, blocks, block * bits / 8], the last block filled with codes of zero."""
    outputs, inputs = stored.codes.shape
    shift = 2 ** (stored.bits - 1)
    full = np.pad(
        stored.codes.astype(np.int16) + shift, ((0, 0), (0, -inputs % stored.block)), constant_values=shift
    )
    return pack(full.astype(np.uint8).reshape(outputs, -1, stored.block), 2**stored.bits)


def _sizes(stored: Matrix, inputs: int, outputs: int) -> dict[str, int]:
    sizes = {"K": inputs, "N": outputs, "bits": stored.bits, "block_size": stored.block}
    return {**sizes, "accuracy_level": 4}


def _multiply(
    place: Inserter, data: ir.Value, held: tuple[ir.Value, ir.Value], sizes: dict[str, int], name: str
) -> ir.Value:
    return place.add("com.microsoft.MatMulNBits", [data, *held], name, **sizes)
