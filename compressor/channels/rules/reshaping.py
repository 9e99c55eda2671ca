"""Operators that give the same elements another shape: Reshape, Flatten, Squeeze, Unsqueeze, Transpose."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from compressor.channels.alignment import Extents, measured, remainder, runs
from compressor.channels.axes import ONE, Axis, atom, atoms, length, product
from compressor.channels.sizes import Measured, held
from compressor.channels.tracing import Place, Rule, Trace, label
from compressor.graph import attribute, constant, integers, is_constant


def reshape(trace: Trace, node: ir.Node) -> None:
    """Runs of axes with the same product are joined; the lengths of the target are rewritten after a cut."""
    slot: str | int = "shape" if "shape" in node.attributes else 1
    sizes = held(node, slot) or [None] * len(node.outputs[0].shape or ())
    axes = trace.axes(node.inputs[0])
    wanted = _wanted(trace, node, sizes)
    aligned = None if wanted is None else runs([measured(a) for a in axes], [measured(w) for w in wanted])
    if wanted is None or aligned is None:
        trace.barrier(node, f"{label(node)}: its shape is computed")
        return
    made: list[Axis] = []
    zero: list[bool] = []
    for before, after in aligned:
        whole = product(*(axes[i] for i in before))
        made += _taken_apart(trace, node, whole, [wanted[j] for j in after])
        zero += [merged_zero(trace, node.inputs[0], before)] * len(after)
    copies = attribute(node, "allowzero", 0) == 0
    for place, (axis, size) in enumerate(zip(made, sizes, strict=True)):
        if not (size == 0 and copies):
            trace.extent(Place(node, slot, place), axis)
    trace.give(node.outputs[0], made, zero)


def _wanted(trace: Trace, node: ir.Node, sizes: Sequence[int | Measured | None]) -> list[Axis] | None:
    """An axis of the right length for each dimension of the target; None when two or more cannot be told."""
    axes, shape = trace.axes(node.inputs[0]), node.outputs[0].shape or ()
    found: list[Axis | None] = []
    for place, size in enumerate(sizes):
        said = shape[place] if place < len(shape) else None
        if isinstance(size, Measured):
            found.append(trace.axes(size.value)[size.axis])
        elif size == 0 and not attribute(node, "allowzero", 0):
            found.append(axes[place] if place < len(axes) else None)
        elif size is not None and size >= 0:
            found.append(atom(size))
        elif isinstance(said, int):
            found.append(atom(said))
        elif isinstance(said, ir.SymbolicDim) and size is None and said.value in trace.symbols:
            found.append(trace.symbols[said.value])
        else:
            found.append(None)
    if found.count(None) == 1:
        others: list[Extents] = [measured(axis) for axis in found if axis is not None]
        found[found.index(None)] = remainder(axes, others)
    told = [axis for axis in found if axis is not None]
    return told if len(told) == len(found) else None


def _taken_apart(trace: Trace, node: ir.Node, whole: Axis, parts: list[Axis]) -> list[Axis]:
    """The axis as these factors."""
    longer = [place for place, part in enumerate(parts) if length(part) != 1]
    if len(longer) == 1:
        return [whole if place == longer[0] else ONE for place in range(len(parts))]
    trace.join(whole, product(*parts), node)
    return parts


def merged_zero(trace: Trace, value: ir.Value | None, places: Sequence[int]) -> bool:
    """Whether cut channels of any of these axes are zeros; axes that are never cut do not count."""
    axes, zero = trace.axes(value), trace.zero(value)
    return all(zero[i] for i in places if any(found.reason is None for found in atoms(axes[i])))


def flatten(trace: Trace, node: ir.Node) -> None:
    """[product of the axes before `axis`, product of the others]."""
    axes = trace.axes(node.inputs[0])
    axis = attribute(node, "axis", 1)
    axis += len(axes) if axis < 0 else 0
    zero = [merged_zero(trace, node.inputs[0], part) for part in (range(axis), range(axis, len(axes)))]
    trace.give(node.outputs[0], (product(*axes[:axis]), product(*axes[axis:])), zero)


def transpose(trace: Trace, node: ir.Node) -> None:
    """Axes in another order; reversed by default."""
    axes, zero = trace.axes(node.inputs[0]), trace.zero(node.inputs[0])
    order = integers(node, "perm") or tuple(reversed(range(len(axes))))
    trace.give(node.outputs[0], [axes[i] for i in order], [zero[i] for i in order])


def squeeze(trace: Trace, node: ir.Node) -> None:
    """Axes of length one left out: those named, else all."""
    axes, zero = trace.axes(node.inputs[0]), trace.zero(node.inputs[0])
    named = named_axes(node, 1)
    if named is None and len(node.inputs) < 2 and all(length(axis) is not None for axis in axes):
        named = [i for i, axis in enumerate(axes) if length(axis) == 1]
    if named is None:
        trace.barrier(node, f"{label(node)}: its axes are not known")
        return
    gone = {i % len(axes) for i in named}
    kept = [i for i in range(len(axes)) if i not in gone]
    trace.give(node.outputs[0], [axes[i] for i in kept], [zero[i] for i in kept])


def unsqueeze(trace: Trace, node: ir.Node) -> None:
    """New axes of length one."""
    axes, zero = list(trace.axes(node.inputs[0])), list(trace.zero(node.inputs[0]))
    named = named_axes(node, 1)
    if named is None:
        trace.barrier(node, f"{label(node)}: its axes are not known")
        return
    for place in sorted(i % (len(axes) + len(named)) for i in named):
        axes.insert(place, ONE)
        zero.insert(place, False)
    trace.give(node.outputs[0], axes, zero)


def named_axes(node: ir.Node, slot: int) -> list[int] | None:
    """The axes in the attribute `axes` (older operator sets) or in a constant input; None when there are none."""
    listed = integers(node, "axes")
    if listed is not None:
        return list(listed)
    value = node.inputs[slot] if slot < len(node.inputs) else None
    array = constant(value) if is_constant(value) else None
    return None if array is None else [int(axis) for axis in array.reshape(-1)]


RULES: dict[str, Rule] = {
    "Reshape": reshape,
    "Flatten": flatten,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
}
