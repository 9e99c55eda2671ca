"""The values of a graph that constants alone decide, computed in numpy: what unpacks codes, and little else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from compressor.graph import attribute, constant, integers, is_constant

Arrays = list[np.ndarray]
Known = dict[ir.Value, np.ndarray | None]
"""What values always are, as far as they were asked for; None for what inputs decide."""


def folded(value: ir.Value | None, known: Known) -> np.ndarray | None:
    """The array that a value always is; None when it depends on an input, or on an operator that unpacks nothing.

    Args:
        value: of any graph.
        known: what was found before, which grows.
    """
    if value is None:
        return None
    if value not in known:
        known[value] = constant(value) if is_constant(value) else _computed(value, known)
    return known[value]


def _computed(value: ir.Value, known: Known) -> np.ndarray | None:
    node = value.producer()
    operator = None if node is None or node.domain not in ("", "ai.onnx") else _OPERATORS.get(node.op_type)
    if node is None or operator is None:
        return None
    arrays = []
    for read in node.inputs:
        array = folded(read, known)
        if array is None:
            return None
        arrays.append(array)
    for output, array in zip(node.outputs, operator(node, arrays), strict=True):
        known[output] = array
    return known[value]


def _cast(node: ir.Node, arrays: Arrays) -> Arrays:
    return [arrays[0].astype(ir.DataType(attribute(node, "to", 1)).numpy())]


def _gather(node: ir.Node, arrays: Arrays) -> Arrays:
    return [np.take(arrays[0], arrays[1], axis=attribute(node, "axis", 0))]


def _gather_elements(node: ir.Node, arrays: Arrays) -> Arrays:
    return [np.take_along_axis(arrays[0], arrays[1].astype(np.int64), axis=attribute(node, "axis", 0))]


def _range(node: ir.Node, arrays: Arrays) -> Arrays:
    return [np.arange(*(array.item() for array in arrays), dtype=arrays[0].dtype)]


def _reshape(node: ir.Node, arrays: Arrays) -> Arrays:
    return [arrays[0].reshape(arrays[1].tolist())]


def _split(node: ir.Node, arrays: Arrays) -> Arrays:
    return np.split(arrays[0], np.cumsum(arrays[1])[:-1], axis=attribute(node, "axis", 0))


def _transpose(node: ir.Node, arrays: Arrays) -> Arrays:
    return [arrays[0].transpose(integers(node, "perm"))]


_OPERATORS: Mapping[str, Callable[[ir.Node, Arrays], Arrays]] = MappingProxyType(
    {
        "Cast": _cast,
        "Div": lambda node, arrays: [
            arrays[0] // arrays[1] if arrays[0].dtype.kind in "iu" else arrays[0] / arrays[1]
        ],
        "Gather": _gather,
        "GatherElements": _gather_elements,
        "Mod": lambda node, arrays: [np.mod(*arrays)],
        "Mul": lambda node, arrays: [np.asarray(arrays[0] * arrays[1])],
        "Range": _range,
        "Reshape": _reshape,
        "Split": _split,
        "Transpose": _transpose,
    }
)
