"""Operators that move along the spatial axes and leave each channel to itself: pooling, Resize, sampling."""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from compressor.channels.axes import Axis, atom, length, product, same
from compressor.channels.rules.operands import operand
from compressor.channels.sizes import Measured, held
from compressor.channels.tracing import Place, Rule, Trace, label
from compressor.graph import attribute, constant, integers, is_constant

_SIZES = 3
"""The input of Resize that holds sizes, from operator set 11 on."""


def pool(trace: Trace, node: ir.Node) -> None:
    """[N, C, ...] to [N, C, ...]; MaxPool's second output numbers positions across channels."""
    axes, zero = trace.axes(node.inputs[0]), trace.zero(node.inputs[0])
    for number, value in enumerate(node.outputs):
        reason = f"{label(node)} numbers positions across it" if number else f"{label(node)} samples along it"
        if number and not (value.uses() or value.is_graph_output()):
            trace.give(value, (), False)
            continue
        trace.pin(axes[1 if number else 2 :], reason)
        spatial = [trace.fresh(value, place, reason) for place in range(2, len(axes))]
        trace.give(value, (*axes[:2], *spatial), (False, zero[1] and not number, *(False for _ in spatial)))


def resize(trace: Trace, node: ir.Node) -> None:
    """Axes whose scale is one, or whose size is their own length, pass; Upsample had scales only."""
    mode = node.attributes.get("coordinate_transformation_mode")
    if mode is not None and mode.as_string() == "tf_crop_and_resize":
        trace.barrier(node, f"{label(node)} crops")
        return
    axes, flags = list(trace.axes(node.inputs[0])), list(trace.zero(node.inputs[0]))
    named = [place % len(axes) for place in integers(node, "axes") or range(len(axes))]
    scales = _scales(node, len(named))
    sizes = held(node, _SIZES) if scales is None else None
    for number, place in enumerate(named):
        if scales is not None and scales[number] == 1:
            continue
        if sizes is not None and _keeps(trace, axes[place], sizes[number]):
            trace.extent(Place(node, _SIZES, number), axes[place])
            continue
        axes[place], flags[place] = _sampled(trace, node, place), False
    trace.give(node.outputs[0], axes, flags)


def _scales(node: ir.Node, count: int) -> list[float] | None:
    """One factor per axis, when they are constant."""
    if "scales" in node.attributes:
        return list(node.attributes["scales"].as_floats())
    value = operand(node, 2) if len(node.inputs) > 2 else operand(node, 1)
    array = constant(value) if is_constant(value) else None
    return None if array is None or array.size != count else [float(item) for item in array.reshape(-1)]


def _keeps(trace: Trace, axis: Axis, size: int | Measured | None) -> bool:
    if isinstance(size, Measured):
        return same(trace.axes(size.value)[size.axis], axis)
    return size is not None and size == length(axis)


def _sampled(trace: Trace, node: ir.Node, place: int) -> Axis:
    """The axis of the result where the node samples the operand."""
    reason = f"{label(node)} samples along it"
    trace.pin(trace.axes(node.inputs[0])[place], reason)
    return trace.fresh(node.outputs[0], place, reason)


def sample(trace: Trace, node: ir.Node) -> None:
    """GridSample: [N, C, ...] at the points of a grid [N, ..., 2]."""
    axes, zero = trace.axes(node.inputs[0]), trace.zero(node.inputs[0])
    trace.pin(trace.axes(node.inputs[1]), f"{label(node)} reads points from it")
    spatial = [_sampled(trace, node, place) for place in range(2, len(axes))]
    trace.give(node.outputs[0], (*axes[:2], *spatial), (False, zero[1], *(False for _ in spatial)))


def regions(trace: Trace, node: ir.Node) -> None:
    """RoiAlign, MaxRoiPool: [N, C, H, W] to [regions, C, height, width]."""
    axes, zero = trace.axes(node.inputs[0]), trace.zero(node.inputs[0])
    reason = f"{label(node)} picks regions from it"
    for value in node.inputs[1:]:
        trace.pin(trace.axes(value), reason)
    trace.pin((axes[0], *axes[2:]), reason)
    made = [trace.fresh(node.outputs[0], place, reason) for place in (0, 2, 3)]
    trace.give(node.outputs[0], (made[0], axes[1], *made[1:]), (False, zero[1], False, False))


def crop(trace: Trace, node: ir.Node) -> None:
    """CenterCropPad: the axes named get other lengths."""
    axes, flags = list(trace.axes(node.inputs[0])), list(trace.zero(node.inputs[0]))
    for place in integers(node, "axes") or range(len(axes)):
        axes[place] = _sampled(trace, node, place)
        flags[place % len(axes)] = False
    trace.give(node.outputs[0], axes, flags)


def depth_to_space(trace: Trace, node: ir.Node) -> None:
    """[N, C, H, W] to [N, C / b^2, b H, b W]: DCR has the block as the outer factor of C, CRD as the inner one."""
    axes, zero = trace.axes(node.inputs[0]), trace.zero(node.inputs[0])
    inside = attribute(node, "blocksize", 1) ** 2
    block = atom(inside, f"{label(node)} moves it into space")
    kept = atom((length(axes[1]) or 0) // inside)
    mode = node.attributes.get("mode")
    outer_first = mode is None or mode.as_string() == "DCR"
    trace.join(axes[1], product(block, kept) if outer_first else product(kept, block), node)
    spatial = [_sampled(trace, node, place) for place in (2, 3)]
    trace.give(node.outputs[0], (axes[0], kept, *spatial), (False, zero[1], False, False))


def space_to_depth(trace: Trace, node: ir.Node) -> None:
    """[N, C, H, W] to [N, b^2 C, H / b, W / b], the block as the outer factor."""
    axes, zero = trace.axes(node.inputs[0]), trace.zero(node.inputs[0])
    block = atom(attribute(node, "blocksize", 1) ** 2, f"{label(node)} moves it out of space")
    spatial = [_sampled(trace, node, place) for place in (2, 3)]
    trace.give(node.outputs[0], (axes[0], product(block, axes[1]), *spatial), (False, zero[1], False, False))


def columns_to_image(trace: Trace, node: ir.Node) -> None:
    """Col2Im: [N, C * block, L] to [N, C, ...]."""
    axes, zero, out = trace.axes(node.inputs[0]), trace.zero(node.inputs[0]), node.outputs[0]
    block = held(node, 2) or []
    known = [size for size in block if isinstance(size, int)]
    if not known or len(known) < len(block) or length(axes[1]) is None:
        trace.barrier(node, f"{label(node)}: its block is computed")
        return
    reason = f"{label(node)} moves it into space"
    kept = atom((length(axes[1]) or 0) // prod(known))
    trace.join(axes[1], product(kept, atom(prod(known), reason)), node)
    trace.pin(axes[2], reason)
    spatial = [trace.fresh(out, place, reason) for place in range(2, len(out.shape or ()))]
    trace.give(out, (axes[0], kept, *spatial), (False, zero[1], *(False for _ in spatial)))


_POOLS = ("MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool")
RULES: dict[str, Rule] = {
    **dict.fromkeys(_POOLS, pool),
    **dict.fromkeys(("Resize", "Upsample"), resize),
    "GridSample": sample,
    **dict.fromkeys(("RoiAlign", "MaxRoiPool"), regions),
    "CenterCropPad": crop,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Col2Im": columns_to_image,
}
