"""What rules of several families say of operands: broadcasting, parameters along axes, and sums over an axis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import onnx_ir as ir

from compressor.channels.axes import ONE, Axis, length
from compressor.channels.tracing import Known, Trace, label, scalar_zero


class Matrix(NamedTuple):
    """A tensor read as a batch of matrices, by the numbers of its axes.

    Args:
        value: the tensor.
        lead: its batch axes.
        free: rows of the left operand, columns of the right one; None when it is a vector.
        inner: the axis that is summed over.
    """

    value: ir.Value | None
    lead: tuple[int, ...]
    free: int | None
    inner: int


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """An input of the node; None when it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def left(trace: Trace, value: ir.Value | None, transposed: bool = False) -> Matrix:
    """The first operand of a product: [..., rows, inner], or [inner]."""
    return _matrix(trace, value, inner_is_last=not transposed)


def right(trace: Trace, value: ir.Value | None, transposed: bool = False) -> Matrix:
    """The second operand of a product: [..., inner, columns], or [inner]."""
    return _matrix(trace, value, inner_is_last=transposed)


def _matrix(trace: Trace, value: ir.Value | None, inner_is_last: bool) -> Matrix:
    rank = len(trace.axes(value))
    if rank == 1:
        return Matrix(value, (), None, 0)
    free, inner = (rank - 2, rank - 1) if inner_is_last else (rank - 1, rank - 2)
    return Matrix(value, tuple(range(rank - 2)), free, inner)


def multiplied(trace: Trace, node: ir.Node, a: Matrix, b: Matrix) -> Known:
    """What is known of the matrix product of two operands, its batch axes broadcast."""
    contract(trace, node, (a.value, a.inner), (b.value, b.inner))
    count = max(len(a.lead), len(b.lead))
    sides = [_only(trace, side.value, side.lead) for side in (a, b)]
    known = spread(trace, node, sides, any, count)
    axes, zero = [*known.axes], [*known.zero]
    for side in (a, b):
        if side.free is not None:
            axes.append(trace.axes(side.value)[side.free])
            zero.append(trace.zero(side.value)[side.free])
    return Known(tuple(axes), tuple(zero))


def _only(trace: Trace, value: ir.Value | None, numbers: Iterable[int]) -> tuple[Known, bool]:
    axes, zero = trace.axes(value), trace.zero(value)
    found = [(axes[number], zero[number]) for number in numbers]
    return Known(tuple(a for a, _ in found), tuple(z for _, z in found)), scalar_zero(value)


def contract(
    trace: Trace, node: ir.Node, a: tuple[ir.Value | None, int], b: tuple[ir.Value | None, int]
) -> None:
    """The node sums over an axis that two operands share: nothing is lost where either is zero."""
    (first, m), (second, n) = a, b
    inner = trace.axes(first)[m]
    trace.join(inner, trace.axes(second)[n], node)
    if length(inner) == 1:
        return
    for value, axis in (a, b):
        if value is not None:
            trace.contracted(value, axis)
    if not (trace.zero(first)[m] or trace.zero(second)[n]):
        trace.pin(inner, f"{label(node)} sums over channels that are not zero when masked")


def spread(
    trace: Trace,
    node: ir.Node,
    operands: Sequence[tuple[Known, bool]],
    meets: Callable[[Sequence[bool]], bool],
    count: int,
) -> Known:
    """`count` axes broadcast as numpy does.

    Args:
        trace: where axes are joined.
        node: who asks.
        operands: what is known of each, and whether it is all zeros.
        meets: from the operands' zeros to that of the result.
        count: how many axes the result has.
    """
    axes: list[Axis] = []
    zero: list[bool] = []
    for place in range(-count, 0):
        shared: Axis = ONE
        flags = []
        for known, nothing in operands:
            if len(known.axes) < -place or length(known.axes[place]) == 1:
                flags.append(nothing)
                continue
            flags.append(known.zero[place])
            if shared is ONE:
                shared = known.axes[place]
            else:
                trace.join(shared, known.axes[place], node)
                shared = known.axes[place] if length(shared) is None else shared
        axes.append(shared)
        zero.append(meets(flags))
    return Known(tuple(axes), tuple(zero))


def elementwise(
    trace: Trace,
    node: ir.Node,
    values: Sequence[ir.Value | None],
    meets: Callable[[Sequence[bool]], bool],
) -> Known:
    """What is known of f(values) element by element; values that are left out do not count."""
    held = [value for value in values if value is not None]
    operands = [(Known(trace.axes(value), trace.zero(value)), scalar_zero(value)) for value in held]
    return spread(trace, node, operands, meets, max(len(trace.axes(value)) for value in held))


def along(trace: Trace, node: ir.Node, axes: Sequence[Axis], value: ir.Value | None) -> tuple[bool, ...]:
    """Join a parameter, stretched from the last axis on, with these axes.

    Returns:
        For each axis, whether the parameter is zero where channels are cut; one that is left out is.
    """
    if value is None:
        return (True,) * len(axes)
    mine, zero, found = trace.axes(value), trace.zero(value), []
    for place in range(-len(axes), 0):
        if len(mine) < -place or (length(mine[place]) == 1 and length(axes[place]) != 1):
            found.append(scalar_zero(value))
        else:
            trace.join(axes[place], mine[place], node)
            found.append(zero[place])
    return tuple(found)


def per_channel(trace: Trace, node: ir.Node, axis: Axis, *parameters: ir.Value | None) -> None:
    """Join scales or zero points with the axis that they run along; those of one element belong to the tensor."""
    for value in parameters:
        axes = [axis for axis in trace.axes(value) if length(axis) != 1]
        if len(axes) == 1:
            trace.join(axes[0], axis, node)
        elif axes:
            trace.pin((*axes, axis), f"{label(node)} holds a scale per element of several axes")


def every(flags: Iterable[bool], others: Iterable[bool]) -> tuple[bool, ...]:
    """Both, axis by axis."""
    return tuple(a and b for a, b in zip(flags, others, strict=True))
