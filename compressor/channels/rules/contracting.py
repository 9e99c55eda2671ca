"""Einsum: letters are axes, and a letter that the result does not have is summed over."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from compressor.channels.axes import ONE, Axis, length
from compressor.channels.tracing import Rule, Trace, label, scalar_zero
from compressor.graph import is_constant


def einsum(trace: Trace, node: ir.Node) -> None:
    """Equal letters are one axis."""
    values = [value for value in node.inputs if value is not None]
    terms, result = _letters(node, [len(trace.axes(value)) for value in values])
    axes: dict[str, Axis] = {}
    zeros: dict[str, list[bool]] = {}
    for value, term in zip(values, terms, strict=True):
        for place, letter in enumerate(term):
            if term.count(letter) > 1:
                trace.pin(trace.axes(value)[place], f"{label(node)} takes its diagonal")
            _meet(trace, node, axes, letter, trace.axes(value)[place])
            if length(trace.axes(value)[place]) != 1:
                zeros.setdefault(letter, []).append(trace.zero(value)[place])
            if letter not in result and is_constant(value):
                trace.contracted(value, place)
    nothing = any(scalar_zero(value) for value in values)
    for letter, axis in axes.items():
        if letter not in result and not (nothing or any(zeros.get(letter, [True]))):
            trace.pin(axis, f"{label(node)} sums over channels that are not zero when masked")
    flags = [nothing or any(zeros.get(letter, [False])) for letter in result]
    trace.give(node.outputs[0], [axes[letter] for letter in result], flags)


def _meet(trace: Trace, node: ir.Node, axes: dict[str, Axis], letter: str, axis: Axis) -> None:
    known = axes.get(letter, ONE)
    if length(known) == 1:
        axes[letter] = axis
    elif length(axis) != 1:
        trace.join(known, axis, node)


def _letters(node: ir.Node, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """Per operand, and for the result: a name for each axis; those of an ellipsis are numbered from the last."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    left, _, right = equation.partition("->")
    terms = left.split(",")
    wide = max(rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True))
    if "->" not in equation:
        plain = left.replace(",", "").replace("...", "")
        single = sorted(letter for letter in set(plain) if plain.count(letter) == 1)
        right = ("..." if "..." in left else "") + "".join(single)
    named = [_spelled(term, rank) for term, rank in zip(terms, ranks, strict=True)]
    return named, _spelled(right, wide + len(right.replace("...", "")))


def _spelled(term: str, rank: int) -> list[str]:
    if "..." not in term:
        return list(term)
    before, _, after = term.partition("...")
    many = rank - len(before) - len(after)
    return [*before, *(f"...{number}" for number in range(many, 0, -1)), *after]


RULES: dict[str, Rule] = {"Einsum": einsum}
