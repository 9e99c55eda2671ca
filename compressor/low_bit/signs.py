"""Binary activations as they stand in a graph: codes of two levels behind one DequantizeLinear.

    x -> GreaterOrEqual(x, t) -> Where(., 254, 0) (uint8) -> DequantizeLinear(b / 127, zero point 127) = b or -b

with a threshold t per channel (RSign: Liu et al. 2020, ReActNet, arXiv:2003.03488, section 4.2) and one scale b
(Rastegari et al. 2016, XNOR-Net, arXiv:1603.05279, section 3.2). A layer of int8 weights that reads it is one integer
kernel; no QuantizeLinear runs. The zeros with which a convolution pads are code 127, the middle: they add nothing.
The codes are not 2, 1 and 0, because the int32 bias of the layer counts in products of both scales: b times that of
binary weights is a step as large as one input adds.

The DequantizeLinear says in its metadata which gradient the step has in training; see
`compressor.torch_graph.operators.sign`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import onnx_ir as ir

from compressor.graph import constant, is_constant, nodes
from compressor.packing import Inserter

SIGN = "compressor.sign"
"""Key in the metadata of the DequantizeLinear; the value is the gradient."""
OPSET = 13
"""Where takes uint8, and GreaterOrEqual is there, from operator set 12 on; coded weights need 13."""
Gradient = Literal["approximate", "straight"]

LEVEL = 127
"""The codes are this far from the middle."""
_ABOVE, _BELOW, _MIDDLE = np.uint8(2 * LEVEL), np.uint8(0), np.uint8(LEVEL)


@dataclass(frozen=True)
class Sign:
    """A value of two levels, b where x >= t and -b elsewhere.

    Args:
        node: the DequantizeLinear.
        source: x.
        threshold: t, a constant that broadcasts to the shape of x.
        step: b / 127, a constant of one number above 0.
        gradient: of the step in training.
    """

    node: ir.Node
    source: ir.Value
    threshold: ir.Value
    step: ir.Value
    gradient: Gradient

    @property
    def comparison(self) -> ir.Node:
        """The first node of the pattern."""
        return self.node.inputs[0].producer().inputs[0].producer()  # type: ignore[union-attr, return-value]

    @property
    def zero_point(self) -> ir.Value:
        """The middle, a constant of one number."""
        return self.node.inputs[2]  # type: ignore[return-value]

    @property
    def value(self) -> ir.Value:
        """What layers read."""
        return self.node.outputs[0]

    def applied(self, array: np.ndarray) -> np.ndarray:
        """What the graph makes of a value of x."""
        scale = np.float32(LEVEL) * _array(self.step)
        return np.where(array >= _array(self.threshold), scale, -scale)


def signs(model: ir.Model) -> list[Sign]:
    """All of a model, those of bodies included, in the order of the graph."""
    return [found for node in nodes(model) if (found := sign_by(node)) is not None]


def sign_of(value: ir.Value | None) -> Sign | None:
    """The sign that a value is; None for any other value."""
    node = None if value is None else value.producer()
    return None if node is None else sign_by(node)


def sign_by(node: ir.Node) -> Sign | None:
    """The sign whose codes a node decodes; None where the marked pattern is not there, or was taken apart."""
    gradient = node.metadata_props.get(SIGN)
    if gradient not in get_args(Gradient) or node.op_type != "DequantizeLinear":
        return None
    chosen = _maker(node, "Where")
    compared = None if chosen is None else _maker(chosen, "GreaterOrEqual")
    if chosen is None or compared is None:
        return None
    levels = [constant(value) for value in (*chosen.inputs[1:3], *node.inputs[2:3])]
    if levels != [_ABOVE, _BELOW, _MIDDLE]:
        return None
    (source, threshold), step = compared.inputs[:2], node.inputs[1]
    if source is None or threshold is None or step is None or not is_constant(threshold):
        return None
    return Sign(node, source, threshold, step, gradient) if is_constant(step) else None  # type: ignore[arg-type]


def add_sign(
    place: Inserter, source: ir.Value, threshold: np.ndarray, scale: np.ndarray, gradient: Gradient
) -> Sign:
    """Write the sign of a value; whoever is to read it has to be told.

    Args:
        place: where the nodes go, behind what makes the value.
        source: float32.
        threshold: float32, broadcasts to the shape of the value.
        scale: b, float32 [], above 0.
        gradient: of the step in training.
    """
    name = f"{source.name}_sign"
    step = np.asarray(scale / LEVEL, np.float32)
    held = place.constant(f"{name}_threshold", threshold), place.constant(f"{name}_step", step)
    above = place.add("GreaterOrEqual", [source, held[0]], f"{name}_above")
    levels = [place.shared(f"{name}_code_{level}", np.asarray(level)) for level in (_ABOVE, _BELOW, _MIDDLE)]
    codes = place.add("Where", [above, *levels[:2]], f"{name}_codes")
    real = place.add("DequantizeLinear", [codes, held[1], levels[2]], name)
    for value, dtype in ((above, ir.DataType.BOOL), (codes, ir.DataType.UINT8), (real, ir.DataType.FLOAT)):
        value.type, value.shape = ir.TensorType(dtype), source.shape
    real.producer().metadata_props[SIGN] = gradient  # type: ignore[union-attr]
    found = sign_of(real)
    if found is None:
        raise ValueError(f"{name} was not written as a sign")
    return found


def _maker(node: ir.Node, operator: str) -> ir.Node | None:
    """What makes the first input of a node, if it is of this operator."""
    made_by = None if node.inputs[0] is None else node.inputs[0].producer()
    return made_by if made_by is not None and made_by.op_type == operator else None


def _array(value: ir.Value) -> np.ndarray:
    array = constant(value)
    if array is None:
        raise ValueError(f"{value} is not a constant")
    return array
