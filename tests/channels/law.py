"""The law of pruning: cutting channels equals masking them, on onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from compressor.channels import Found, cut, find, masked
from compressor.errors import CompressorError
from compressor.graph import attribute, constant
from compressor.prepare import infer_shapes
from compressor.runtime import Session, Setup

RELATIVE = 1e-4
"""Allowed difference in units of the largest output: a sum of the same numbers in another order."""
_ZERO_POINTS: dict[str, dict[int, int]] = {
    "DequantizeLinear": {0: 2},
    "MatMulInteger": {1: 3},
    "ConvInteger": {1: 3},
    "QLinearConv": {3: 5},
    "QLinearMatMul": {3: 5},
    "MatMulIntegerToFloat": {1: 5},
    "DynamicQuantizeMatMul": {1: 3},
    "QGemm": {3: 5},
    "QLinearAdd": {3: 5},
}
"""Operator -> quantized weight -> its zero point, by the numbers of its inputs."""
Feeds = Callable[[int], Mapping[str, np.ndarray]]
"""Batch size -> input name -> array."""
Masks = dict[int, np.ndarray]
"""Which group, by its number, keeps which channels."""
_KEPT_ONE = {"Div": 1, "BatchNormalization": 4, "QuantizeLinear": 1, "DequantizeLinear": 1}
"""Operator -> the input that must not be zero."""


def plain(proto: onnx.ModelProto) -> ir.Model:
    """The model as `find` wants it, but with all its nodes: constants as initializers, named nodes, shapes."""
    model = ir.from_proto(proto)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for graph in model.graphs():
        for number, node in enumerate(graph):
            node.name = node.name or f"{node.op_type}_{number}"
    infer_shapes(model)
    return model


def groups(proto: onnx.ModelProto) -> dict[str, int]:
    """Group name -> how many channels."""
    return {group.name: group.size for group in find(plain(proto)).groups}


def reasons(proto: onnx.ModelProto) -> dict[str, str]:
    """Weight -> why its channels stay."""
    return dict(find(plain(proto)).declined)


def assert_law(proto: onnx.ModelProto, feeds: Feeds | None = None, trials: int = 2) -> None:
    """Cutting equals masking for each group of the model alone and for all together."""
    found = groups(proto)
    assert found, f"nothing can be cut: {reasons(proto)}"
    assert broken(plain(proto), feeds, trials) == []


def broken(model: ir.Model, feeds: Feeds | None = None, trials: int = 2, seed: int = 0) -> list[str]:
    """What contradicts the law, one line each; groups under a normalization are left out.

    Args:
        model: prepared; left as it is.
        feeds: standard normal floats and small integers when not given.
        trials: random index sets per group, and for all groups together.
        seed: of the index sets and of the inputs.
    """
    generator = np.random.default_rng(seed)
    found = find(model.clone())
    able = [n for n, group in enumerate(found.groups) if group.normalized is None]
    given = feeds or (lambda batch: random_feeds(model, batch, seed))
    batches = [given(2), given(3)] if _dynamic(model) else [given(1)]
    batches = [batch for batch in batches if not isinstance(_outputs(model, batch), str)]
    if not batches:
        return ["the original does not run"]
    choices = [[n] for n in able for _ in range(trials)] + [able] * trials * (len(able) > 1)
    told = []
    for chosen in choices:
        masks = {n: _mask(found.groups[n].size, generator) for n in chosen}
        what = ", ".join(found.groups[n].name for n in chosen)
        told += [f"{what}: {line}" for line in _compared(model, masks, batches)]
    return told


def _compared(model: ir.Model, masks: Masks, batches: list[Mapping[str, np.ndarray]]) -> list[str]:
    expected, small = _masked(model, masks), _cut(model, masks)
    lines = [f"invalid: {said}" for said in _invalid(small) if not list(_invalid(model))]
    for batch in batches:
        a, b = _outputs(expected, batch), _outputs(small, batch)
        if isinstance(a, str) or isinstance(b, str):
            lines.append(f"does not run: masked {str(a)[:200]}, cut {str(b)[:200]}")
            continue
        for name, want, got in zip(expected.graph.outputs, a, b, strict=True):
            if want.shape != got.shape:
                lines.append(f"{name.name}: {want.shape} became {got.shape}")
                continue
            scale = float(np.abs(want).max(initial=0)) if want.dtype.kind == "f" else 1.0
            worst = float(np.abs(want.astype(float) - got.astype(float)).max(initial=0))
            if not worst <= RELATIVE * max(scale, 1e-6):
                lines.append(f"{name.name}: differs by {worst:.3g} of {scale:.3g}")
    return lines


def _invalid(model: ir.Model) -> Iterator[str]:
    """What the checker says."""
    try:
        onnx.checker.check_model(ir.to_proto(model))
    except onnx.checker.ValidationError as error:
        yield str(error)[:200]


def _cut(model: ir.Model, masks: Masks) -> ir.Model:
    work = model.clone()
    found = find(work)
    cut(work, found, {found.groups[n]: mask for n, mask in masks.items()})
    return work


def _masked(model: ir.Model, masks: Masks) -> ir.Model:
    work = model.clone()
    found: Found = find(work)
    for n, mask in masks.items():
        for member in found.groups[n].members:
            array = constant(member.value)
            if array is None:
                raise ValueError(f"{member.value.name!r} is not a constant")
            stays = (member.index < 0) | mask[member.index]
            zeros = _zero_points(member.value)
            if zeros is None:
                array = masked(array, member.axis, stays, _fill(member.value))
            else:
                array = np.where(np.expand_dims(stays, _all_but(member.axis, array.ndim)), array, zeros)
            member.value.const_value = ir.tensor(array, dtype=member.value.dtype, name=member.value.name)
    return work


def _zero_points(value: ir.Value) -> np.ndarray | None:
    """What stands for zero in a quantized tensor, broadcast to it; itself for zero points, None for floats."""
    for use in value.uses():
        places = _ZERO_POINTS.get(use.node.op_type, {})
        array = constant(value)
        if use.idx in places.values() or array is None:
            return array
        if use.idx in places:
            number = places[use.idx]
            point = constant(use.node.inputs[number]) if number < len(use.node.inputs) else None
            if point is None:
                return np.zeros_like(array)
            axis = _channel_axis(use.node, array.ndim) if point.ndim == 1 and point.size > 1 else 0
            return (
                point.reshape([point.size if n == axis else 1 for n in range(array.ndim)])
                if point.ndim < 2
                else point
            )
    return None


def _channel_axis(node: ir.Node, rank: int) -> int:
    """The axis of a weight that zero points run along."""
    if "axis" in node.attributes or node.op_type == "DequantizeLinear":
        return attribute(node, "axis", 1) % rank
    return 0 if "Conv" in node.op_type else rank - 1


def _all_but(axis: int, rank: int) -> list[int]:
    return [n for n in range(rank) if n != axis]


def _fill(value: ir.Value) -> float:
    """1 for what is divided by, or taken the root of; else 0."""
    for use in value.uses():
        op = use.node.op_type
        if _KEPT_ONE.get(op) == use.idx or op in ("Sqrt", "Reciprocal", "Log"):
            return 1
        if op in ("Reshape", "Unsqueeze", "Cast", "Add", "Identity", "Expand") and _fill(use.node.outputs[0]):
            return 1
    return 0


def _mask(size: int, generator: np.random.Generator) -> np.ndarray:
    """bool [size]: from one channel to all but one, at random."""
    kept = generator.permutation(size)[: generator.integers(1, max(size, 2))]
    mask = np.zeros(size, bool)
    mask[kept] = True
    return mask


def random_feeds(model: ir.Model, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs of the model; symbolic dimensions are the batch size."""
    generator = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.inputs:
        shape = [size if isinstance(size, int) and size > 0 else batch for size in value.shape or ()]
        dtype = (value.dtype or ir.DataType.FLOAT).numpy()
        if np.issubdtype(dtype, np.floating):
            feeds[str(value.name)] = generator.standard_normal(shape).astype(dtype)
        else:
            feeds[str(value.name)] = generator.integers(0, 2, shape).astype(dtype)
    return feeds


def _dynamic(model: ir.Model) -> bool:
    return any(not isinstance(size, int) for value in model.graph.inputs for size in value.shape or ())


def _outputs(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray] | str:
    """What onnxruntime computes, or why it does not."""
    try:
        return Session(model, Setup(threads=1)).run(feeds)
    except CompressorError as error:
        return str(error)
