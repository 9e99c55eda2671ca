"""Which weights of a model have few bits, whoever wrote it, and what they take in its file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import fsum

import numpy as np
import onnx_ir as ir

from compressor import sparse_storage
from compressor.graph import attribute, constant, is_constant, nodes
from compressor.low_bit import expanding, kernel_form
from compressor.low_bit.coded_weights import coded_by
from compressor.low_bit.codes import BINARY
from compressor.low_bit.reading import codes_read

_READERS = {
    **{"DequantizeLinear": 0, "MatMulNBits": 1, "ConvInteger": 1, "MatMulInteger": 1},
    **{"QLinearConv": 3, "QLinearMatMul": 3},
}
"""Operator -> the input where it reads codes of weights."""
_GLANCE = 4096
"""Codes that are looked at before all are: enough to see that there are many levels."""


@dataclass(frozen=True)
class LowBit:
    """A weight of few bits.

    Args:
        name: of the weight; of its codes where another tool wrote them.
        shape: of the weight, or of its codes.
        kind: "ternary", "binary" or "uniform".
        bits: of a code, without scales, as whole bits; ternary codes packed five to a byte take 1.6 of these 2.
        zeros: the share of zeros, 0 to 1.
        parameters: how many weights it has.
        stored_bits: what the file spends on each of them: codes, packed or not, scales, tables and shapes. What
            several weights share is divided by their numbers of weights. None where it could not be traced.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    bits: int
    zeros: float
    parameters: int
    stored_bits: float | None = None

    def __str__(self) -> str:
        """In words.

        >>> str(LowBit("w", (4, 4), "ternary", 2, 0.625, 16)), str(LowBit("w", (4, 4), "binary", 1, 0.0, 16))
        ('ternary, 2 bits, 62 % zeros', 'binary, 1 bit')
        """
        zeros = f", {100 * self.zeros:.0f} % zeros" if self.kind == "ternary" else ""
        return f"{self.kind}, {self.bits} bit{'s' if self.bits > 1 else ''}{zeros}"


def low_bit_weights(model: ir.Model) -> list[LowBit]:
    """The weights that this package coded, and those of fewer than 8 bits by any other, in the order of the graph.

    Known are codes with our mark, packed in any form or not; and, from other tools, codes that MatMulNBits, a
    DequantizeLinear or an integer operator reads, where their type has fewer than 8 bits or they have few values:
    two, or three of which one is 0 and the others differ in sign only. `model` stays as it was.
    """
    plain = unpacked(model)
    found: dict[str, LowBit] = {}
    for node in nodes(plain):
        weight = _coded(node) or _uncoded(node)
        if weight is not None:
            found.setdefault(weight.name, weight)
    return _with_stored_bits(model, list(found.values()))


def unpacked(model: ir.Model) -> ir.Model:
    """A copy whose packed and sparse weights stand as plain codes and constants; for questions only."""
    copy = model.clone()
    sparse_storage.expand(copy)
    expanding.expand(copy)
    return copy


def _coded(node: ir.Node) -> LowBit | None:
    """The weight that a DequantizeLinear of our own gives."""
    coded = coded_by(node)
    if coded is None:
        return None
    codes, method = coded.decoded(), coded.method
    if method.levels == 3:
        kind, bits = "ternary", 2
    else:
        kind, bits = "binary" if method.name in BINARY else "uniform", max(method.count, 1)
    return LowBit(coded.name, codes.shape, kind, bits, _zeros(codes), codes.size)


def _uncoded(node: ir.Node) -> LowBit | None:
    """The weight of another tool whose codes a node reads, where it has few bits."""
    index = _READERS.get(node.op_type)
    value = node.inputs[index] if index is not None else None
    codes = None if index is None or value is None else codes_read(node, index)
    if codes is None or value is None or codes.ndim < 2 or codes.size < 2 * _scales(node):
        return None
    few = _few_levels(codes)
    if few is None and (nominal := _nominal_bits(node, value)) < 8:
        few = "uniform", nominal
    return None if few is None else LowBit(str(value.name), codes.shape, *few, _zeros(codes), codes.size)


def _few_levels(codes: np.ndarray) -> tuple[str, int] | None:
    """Kind and bits of codes that have two values, or three: 0 and two that differ in sign only."""
    levels = np.unique(codes.reshape(-1)[:_GLANCE])
    if len(levels) <= 3:
        levels = np.unique(codes)
    if len(levels) == 2:
        return "binary", 1
    if len(levels) == 3 and levels[1] == 0 and levels[0] == -levels[2]:
        return "ternary", 2
    return None


def _nominal_bits(node: ir.Node, value: ir.Value) -> int:
    if node.op_type == "MatMulNBits":
        return attribute(node, "bits", 4)
    return 8 if value.dtype is None else int(value.dtype.bitwidth)


def _scales(node: ir.Node) -> int:
    """How many scales the codes have, as far as the node says; each code with its own has any two values it likes."""
    scale = constant(node.inputs[1]) if node.op_type == "DequantizeLinear" else None
    return 1 if scale is None else scale.size


def _zeros(codes: np.ndarray) -> float:
    return float(np.mean(codes == 0))


def _with_stored_bits(model: ir.Model, found: list[LowBit]) -> list[LowBit]:
    """The weights with what each takes in the file; what several share is divided by their numbers of weights."""
    values = {str(v.name): v for graph in model.graphs() for v in _values(graph)} | _in_kernels(model)
    behind = {w.name: _constants_behind(values[w.name]) for w in found if w.name in values}
    readers: Counter[ir.Value] = Counter()
    for weight in found:
        readers.update(dict.fromkeys(behind.get(weight.name, ()), weight.parameters))

    def bits(weight: LowBit) -> float | None:
        if weight.name not in behind:
            return None
        return fsum(
            8 * v.const_value.nbytes / readers[v] for v in behind[weight.name] if v.const_value is not None
        )

    return [replace(weight, stored_bits=bits(weight)) for weight in found]


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.initializers.values()
    yield from (value for node in graph for value in node.outputs)


def _in_kernels(model: ir.Model) -> dict[str, ir.Value]:
    """Weight -> its packed codes, for those that stand in a MatMulNBits of our own: there is no value of their name."""
    own = [node for node in nodes(model) if kernel_form.LAYER in node.metadata_props]
    packed = [(json.loads(node.metadata_props[kernel_form.LAYER]), node.inputs[1]) for node in own]
    return {str(layer["weight"]): codes for layer, codes in packed if codes is not None}


def _constants_behind(value: ir.Value) -> set[ir.Value]:
    """The constants that a value is computed from, and for codes the scales and zero points that they are read with."""
    todo = [value]
    for use in value.uses() if is_constant(value) else ():
        if use.idx == _READERS.get(use.node.op_type):
            todo += [v for v in use.node.inputs[use.idx : use.idx + 3] if v is not None and is_constant(v)]
    found: set[ir.Value] = set()
    seen = set(todo)
    while todo:
        current = todo.pop()
        if is_constant(current):
            found.add(current)
            continue
        maker = current.producer()
        fresh = {v for v in maker.inputs if v is not None} - seen if maker is not None else set()
        seen |= fresh
        todo += fresh
    return found
