"""Cutting channels out of a model: every slice of every constant of a group, and every length that the graph holds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from compressor.channels.additions import Additions
from compressor.channels.axes import Atom, Axis, atoms, layout, length
from compressor.channels.grouping import Found, Group
from compressor.channels.sizes import rewrite
from compressor.graph import constant, remove_dead
from compressor.prepare import infer_shapes

Kept = Mapping[Group, np.ndarray]
"""Group -> bool [size]: True where the channel stays. Groups that are not in it stay whole."""


def cut(model: ir.Model, found: Found, kept: Kept) -> None:
    """Remove the channels that are not kept, in place; `found` no longer describes the model then.

    Raises:
        ValueError: a mask of another length, or one that keeps nothing.
    """
    for group, mask in kept.items():
        if mask.shape != (group.size,) or not mask.any():
            raise ValueError(f"{group.name}: a mask of {group.size} with at least one channel, got {mask!r}")
    kept = {group: mask for group, mask in kept.items() if not mask.all()}
    _cut_constants(kept)
    masks, additions = {group.atom: mask for group, mask in kept.items()}, Additions(model)
    for extent in found.extents:
        known = all(length(axis) is not None for axis in extent.axes)  # what is not known follows by itself
        if known and any(a in masks for axis in extent.axes for a in atoms(axis)):
            size = sum(int(remaining(axis, masks).sum()) for axis in extent.axes)
            rewrite(extent.place, size, additions)
    _forget_shapes(model)
    remove_dead(model)
    infer_shapes(model)


def remaining(axis: Axis, masks: Mapping[Atom, np.ndarray]) -> np.ndarray:
    """bool [length]: which positions of an axis of known length stay."""
    stays = np.ones(length(axis) or 0, bool)
    for found, index in layout(axis).items():
        if found in masks:
            stays &= (index < 0) | masks[found][index]
    return stays


def masked(array: np.ndarray, axis: int, stays: np.ndarray, fill: float = 0) -> np.ndarray:
    """A copy in which the positions that do not stay hold `fill`."""
    result = np.array(array)
    result[(slice(None),) * axis + (~stays,)] = fill
    return result


def _cut_constants(kept: Kept) -> None:
    """One new tensor per constant, whatever number of groups cut it."""
    stays: dict[ir.Value, dict[int, np.ndarray]] = {}
    for group, mask in kept.items():
        for member in group.members:
            along = stays.setdefault(member.value, {})
            here = (member.index < 0) | mask[member.index]
            along[member.axis] = along.get(member.axis, np.ones(len(here), bool)) & here
    for value, axes in stays.items():
        array = constant(value)
        if array is None:
            raise ValueError(f"{value.name!r} is not a constant")
        for axis, mask in axes.items():
            array = np.compress(mask, array, axis)
        tensor = ir.tensor(np.ascontiguousarray(array), dtype=value.dtype, name=value.name)
        value.const_value, value.shape = tensor, ir.Shape(array.shape)


def _forget_shapes(model: ir.Model) -> None:
    """Drop inferred shapes, which are those before the cut; inputs and outputs of the model keep theirs.

    Those of bodies keep their rank: onnxruntime runs no Loop whose body does not say it.
    """
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                if not value.is_graph_output():
                    value.shape = None
        for value in (*graph.inputs, *graph.outputs) if graph is not model.graph else ():
            if value.shape is not None:
                value.shape = ir.Shape([None] * len(value.shape))
