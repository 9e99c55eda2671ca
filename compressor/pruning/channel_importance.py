"""What each channel of a group is worth, from its weights, its gradients or what its consumers read.

An importance is a list of parts, one per layer that it was taken from: float64 [channels], not negative. `combined`
makes one score per channel of them. The slices that make a channel are those of the members with the role "output".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import onnx_ir as ir

from compressor.channels import Group, Member
from compressor.graph import attribute, constant

Importance = Literal["l1", "l2", "fpgm", "bn-gamma", "taylor", "hessian", "activation", "random"]
Normalization = Literal["sum", "mean", "max", "none"]

_SCALED = ("BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization")


_Map = Callable[[np.ndarray], np.ndarray]


class Part(NamedTuple):
    """What one layer says of the channels.

    Args:
        scores: float64 [channels].
        layers: how much of a layer the channels are: 1, less where others lie beside them on its axis, more where the
            scores are of several layers.
    """

    scores: np.ndarray
    layers: float


def norm(group: Group, order: Literal[1, 2]) -> list[Part]:
    """The l1 or l2 norm of the weights that make each channel (Li et al. 2017, arXiv:1608.08710, section 3.1)."""
    return [
        Part(per_channel(np.abs(real(m.value)) ** order, m, group.size) ** (1 / order), layers(m))
        for m in group.weights("output")
    ]


def distance_to_others(group: Group) -> list[Part]:
    """FPGM: sum of the l2 distances to all other channels; the channel nearest to the geometric median can be replaced
    by the others (He et al. 2019, arXiv:1811.00250, section 3.3).
    """
    found = []
    for member in group.weights("output"):
        rows = channel_rows(real(member.value), member, group.size).astype(np.float64)
        squares = np.einsum("ij,ij->i", rows, rows)
        distances = np.maximum(squares[:, None] + squares[None, :] - 2 * (rows @ rows.T), 0)
        found.append(Part(np.sqrt(distances).sum(axis=1), layers(member)))
    return found


def normalization_scale(group: Group) -> list[Part]:
    """|gamma| of the normalization behind each channel (Liu et al. 2017, arXiv:1708.06519, section 3).

    None where there is no normalization: a BatchNormalization that was folded has multiplied its gamma into the
    weights, whose l2 norm takes its place.
    """
    scales = [member for member in group.weights("along") if _is_scale(member.value)]
    return [Part(per_channel(np.abs(real(m.value)), m, group.size), layers(m)) for m in scales]


Batches = Iterable[Mapping[str, np.ndarray]]
"""Gradients of one batch each, by initializer name; an initializer without one adds nothing."""


def taylor(groups: Sequence[Group], batches: Batches) -> dict[Group, np.ndarray]:
    """The squared first-order change of the loss when a channel goes: the mean over batches of (sum w g)^2 over the
    weights and biases that make it (Molchanov et al. 2019, arXiv:1906.10771, equation 8).
    """
    return _mean(groups, batches, lambda slopes: slopes, np.square)


def hessian(groups: Sequence[Group], batches: Batches) -> dict[Group, np.ndarray]:
    """Half the sum of w^2 F over the weights that make a channel: what optimal brain damage expects its removal to
    cost, with the diagonal of the empirical Fisher matrix, the mean of g^2, for the Hessian (LeCun et al. 1989,
    equation 5; Theis et al. 2018, arXiv:1801.05787, section 2.1).
    """
    return _mean(groups, batches, np.square, lambda sums: sums / 2)


def _mean(groups: Sequence[Group], batches: Batches, each: _Map, whole: _Map) -> dict[Group, np.ndarray]:
    """Per channel the mean over batches of whole(sum each(w g))."""
    found = {group: np.zeros(group.size) for group in groups}
    for count, gradients in enumerate(batches, 1):
        for group, mean in found.items():
            sums = np.zeros(group.size)
            for member in makers(group):
                gradient = gradients.get(str(member.value.name))
                if gradient is not None:
                    sums += per_channel(each(real(member.value) * gradient), member, group.size)
            mean += (whole(sums) - mean) / count
    return found


def activation(group: Group, norms: Mapping[str, np.ndarray]) -> list[Part]:
    """The sum of |w| * ||x|| over the weights that read a channel, ||x|| the l2 norm of what each of them reads on
    calibration samples: Wanda's score, summed over a channel (Sun et al. 2023, arXiv:2306.11695, section 3).

    Args:
        group: the one to score; there is a part per weight that reads its channels and has a norm.
        norms: initializer name -> ||x||, in a shape that broadcasts to the initializer's.
    """
    found = []
    for member in group.weights("input"):
        read = norms.get(str(member.value.name))
        if read is not None:
            products = np.abs(real(member.value)) * read
            found.append(Part(per_channel(products, member, group.size), layers(member)))
    return found


def combined(parts: Sequence[Part], how: Normalization) -> np.ndarray:
    """One score per channel: the sum of the parts, each on a scale that layers share.

    Weights are larger in some layers than in others without mattering more there (Fang et al. 2023, arXiv:2301.12900,
    section 3.3, for "mean"). "sum" makes a score the share of its layer, so that a channel of few is worth more than
    one of many. Gradients measure the loss, so that "none" compares layers as they are.

    >>> combined([Part(np.array([1.0, 3.0]), 1)], "sum").tolist()
    [0.25, 0.75]
    >>> combined([Part(np.array([1.0, 3.0]), 1)], "mean").tolist()
    [0.5, 1.5]
    """
    return np.sum([_scaled(part, how) for part in parts], axis=0)  # type: ignore[no-any-return]


def _scaled(part: Part, how: Normalization) -> np.ndarray:
    total = float(part.scores.sum())
    if how == "none" or total <= 0:
        return part.scores
    if how == "sum":
        return part.scores * (part.layers / total)
    return part.scores / float(part.scores.mean() if how == "mean" else part.scores.max())


def layers(*members: Member) -> float:
    """How many layers the channels are, counting the share of each axis that carries them."""
    return sum(float(np.mean(member.index >= 0)) for member in members)


def makers(group: Group) -> list[Member]:
    """The members whose slices add up to the channel: weights that make it, biases and scales along it."""
    return [member for member in group.members if member.role != "input"]


def per_channel(array: np.ndarray, member: Member, size: int) -> np.ndarray:
    """float64 [size]: the sum of the array over the slices of each channel.

    Args:
        array: as large as the member's constant.
        member: which of its axes carries the channels, and where.
        size: the number of channels.
    """
    lanes = np.moveaxis(array, member.axis, 0).reshape(len(member.index), -1).sum(axis=1, dtype=np.float64)
    carried = member.index >= 0
    return np.bincount(member.index[carried], lanes[carried], size)


def channel_rows(array: np.ndarray, member: Member, size: int) -> np.ndarray:
    """[size, elements]: the slices of each channel, flattened."""
    order = np.argsort(member.index, kind="stable")[np.count_nonzero(member.index < 0) :]
    return np.moveaxis(array, member.axis, 0)[order].reshape(size, -1)


def real(value: ir.Value) -> np.ndarray:
    """The constant as the numbers it stands for: codes that a DequantizeLinear reads are decoded."""
    array = constant(value)
    if array is None:
        raise ValueError(f"{value.name!r} is not a constant")
    for use in value.uses():
        if use.node.op_type == "DequantizeLinear" and use.idx == 0:
            return _decoded(array, use.node)
    return array


def _decoded(codes: np.ndarray, node: ir.Node) -> np.ndarray:
    axis, block = attribute(node, "axis", 1), attribute(node, "block_size", 0)

    def spread(parameter: np.ndarray) -> np.ndarray:
        if block:
            return np.repeat(parameter, block, axis)[tuple(slice(n) for n in codes.shape)]
        if parameter.size == 1:
            return parameter.reshape(())
        return parameter.reshape([-1 if at == axis % codes.ndim else 1 for at in range(codes.ndim)])

    scale, zero = (constant(v) for v in (*node.inputs[1:3], None)[:2])
    if scale is None:
        raise ValueError(f"{node.name!r} has no constant scale")
    shifted = codes.astype(np.float32) - (0 if zero is None else spread(zero.astype(np.float32)))
    decoded: np.ndarray = shifted * spread(scale.astype(np.float32))
    return decoded


def _is_scale(value: ir.Value) -> bool:
    return any(use.node.op_type in _SCALED and use.idx == 1 for use in value.uses())
