"""Operators whose result does not hold the elements of their operand: its lengths, numbers in a row, noise."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from compressor.channels.sizes import Measured, count, element
from compressor.channels.tracing import Rule, Trace, label

_PASSES_ON = ("Identity", "Unsqueeze", "Squeeze", "Cast", "Concat", "Gather", "Slice")
"""Operators that hand a length on as it is, at input 0; Concat at any."""
_SHAPED_BY: dict[str, tuple[int, ...]] = {
    "Reshape": (1,),
    "Expand": (1,),
    "ConstantOfShape": (0,),
    "Tile": (1,),
    "Split": (1,),
}
_SHAPED_BY |= {"Slice": (1, 2), "Resize": (3,), "Pad": (1,)}
"""Operators whose rules follow a length that they are given, and at which inputs."""


def shape(trace: Trace, node: ir.Node) -> None:
    """Lengths at run time; those that the graph computes with cannot change."""
    out = node.outputs[0]
    source = node.inputs[0]
    for reader, value in _computing(out):
        number = count(value)
        places = [element(value, index) for index in range(number or 0)]
        if number is None or None in places:
            trace.pin(trace.axes(source), f"{label(reader)} computes with its length")
        for found in places:
            if isinstance(found, Measured) and found.value is source:
                trace.pin(trace.axes(source)[found.axis], f"{label(reader)} computes with its length")
    trace.give(out, [trace.fresh(out, 0, f"{label(node)} reads lengths")], False)


def _computing(value: ir.Value) -> Iterator[tuple[ir.Node, ir.Value]]:
    """Who reads these lengths otherwise than as a shape, and the value that it reads."""
    for use in value.uses():
        node = use.node
        if use.idx in _SHAPED_BY.get(node.op_type, ()):
            continue
        if node.op_type in _PASSES_ON and (use.idx == 0 or node.op_type == "Concat"):
            yield from _computing(node.outputs[0])
        elif node.op_type != "Shape":
            yield node, value


def size(trace: Trace, node: ir.Node) -> None:
    """How many elements there are: it counts every axis."""
    trace.pin(trace.axes(node.inputs[0]), f"{label(node)} counts its elements")
    trace.give(node.outputs[0], (), False)


def made_up(trace: Trace, node: ir.Node) -> None:
    """Range, EyeLike and random numbers: the value at a position depends on how many there are."""
    reason = f"{label(node)} makes as many numbers as it has positions"
    for value in node.inputs:
        trace.pin(trace.axes(value), reason)
    for value in node.outputs:
        axes = [trace.fresh(value, place, reason) for place in range(len(value.shape or ()))]
        trace.give(value, axes, False)


_RANDOM = (
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
)
_WINDOWS = ("HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix")
RULES: dict[str, Rule] = {
    "Shape": shape,
    "Size": size,
    **dict.fromkeys(("Range", "EyeLike", *_RANDOM, *_WINDOWS), made_up),
}
