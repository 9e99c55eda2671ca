"""Activations of two levels, which a file spells out in three nodes, as one step that has a gradient."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import onnx_ir as ir

from compressor.low_bit.signs import LEVEL, sign_by
from compressor.torch_graph.operators.sign import binarize

if TYPE_CHECKING:
    from compressor.torch_graph.lowering import Lowering


def lower(lowering: Lowering, node: ir.Node) -> bool:
    """Lower the last node of a sign as all of it; False for any other node."""
    sign = sign_by(node)
    if sign is None:
        return False
    values = (sign.source, sign.threshold, sign.step)
    source, threshold, step = (lowering.tensor(lowering.read(value)) for value in values)
    scale = lowering.graph.call(operator.mul, step, LEVEL)
    lowering.bind(node, lowering.graph.call(binarize, source, threshold, scale, gradient=sign.gradient))
    return True
