"""Weights that a file holds twice, found by their bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compressor.torch_graph.parameters import array_of, is_filled


@dataclass(frozen=True)
class Tie:
    """A weight that is another one: the same bytes, or the bytes of its transpose."""

    value: ir.Value
    transposed: bool


def ties(values: list[ir.Value]) -> dict[ir.Value, Tie]:
    """Value -> the earlier one with the same bytes: a weight that the exporter wrote twice stays one.

    Exporters transpose the embedding that is the output layer too: matrices are compared both ways. Only weights of
    two axes or more whose elements differ are compared: vectors of ones or zeros are equal by chance.
    """
    first: dict[bytes, ir.Value] = {}
    shapes: set[tuple[int, ...]] = set()
    found: dict[ir.Value, Tie] = {}
    for value in values:
        array = array_of(value)
        if array.ndim < 2 or array.size < 2 or is_filled(array):
            continue
        digest = _digest(array)
        if digest in first:
            found[value] = Tie(first[digest], transposed=False)
            continue
        mirrored = first.get(_digest(array.T)) if array.ndim == 2 and array.shape[::-1] in shapes else None
        if mirrored is not None:
            found[value] = Tie(mirrored, transposed=True)
            continue
        first[digest] = value
        shapes.add(array.shape)
    return found


def _digest(array: np.ndarray) -> bytes:
    return hashlib.sha256(f"{array.shape}{array.dtype}".encode() + array.tobytes()).digest()
