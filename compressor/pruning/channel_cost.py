"""What a model costs when groups are cut to given widths: multiply-accumulates, parameters, or milliseconds.

A cost is a sum of terms that each depend on a few groups, so that trying one group's next width looks at its own
terms only. Widths are given as shares: width / size, one float per group, in the order of the groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Protocol

import numpy as np
import onnx_ir as ir

from compressor.channels import Group
from compressor.channels.grouping import sources
from compressor.graph import constant, nodes
from compressor.summary import macs, weight_values

_WEIGHTS = {"LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2), "MatMul": (0, 1), "Gemm": (0, 1)}
_COUNTED = ("Conv", "ConvTranspose", "Attention", *_WEIGHTS)


class Term(Protocol):
    """A part of a cost."""

    @property
    def groups(self) -> frozenset[int]:
        """The groups that it depends on, by number."""

    def at(self, shares: Sequence[float]) -> float:
        """Its value when each group keeps that share of its channels."""


@dataclass(frozen=True)
class Elements:
    """The elements of a constant that are kept, each counted `times` times.

    Args:
        times: multiply-accumulates per element for one sample, or 1 for a count of parameters.
        axes: per axis, how many positions carry which groups; positions of a product of axes carry several.
    """

    times: float
    axes: tuple[tuple[tuple[int, tuple[int, ...]], ...], ...]

    @property
    def groups(self) -> frozenset[int]:
        """The groups that it depends on, by number."""
        return frozenset(group for axis in self.axes for _, carried in axis for group in carried)

    def at(self, shares: Sequence[float]) -> float:
        """Times the kept positions of all axes."""
        found = self.times
        for axis in self.axes:
            found *= sum(count * prod(shares[group] for group in carried) for count, carried in axis)
        return found


@dataclass(frozen=True)
class Cost:
    """A sum of terms, and what no cut changes.

    Args:
        terms: the parts that depend on groups.
        fixed: the rest.
    """

    terms: tuple[Term, ...]
    fixed: float
    _touched: Mapping[int, tuple[Term, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Sort the terms by group."""
        touched: dict[int, list[Term]] = {}
        for term in self.terms:
            for group in term.groups:
                touched.setdefault(group, []).append(term)
        object.__setattr__(self, "_touched", {group: tuple(found) for group, found in touched.items()})

    def total(self, shares: Sequence[float]) -> float:
        """The cost of the whole model."""
        return self.fixed + sum(term.at(shares) for term in self.terms)

    def saved(self, shares: Sequence[float], group: int, share: float) -> float:
        """What going on to cut one group to `share` saves."""
        fewer = list(shares)
        fewer[group] = share
        return sum(term.at(shares) - term.at(fewer) for term in self._touched.get(group, ()))

    def neighbours(self, group: int) -> frozenset[int]:
        """The groups whose savings change when this one is cut, itself included."""
        return frozenset({group}).union(*(term.groups for term in self._touched.get(group, ())))


def multiply_accumulates(model: ir.Model, groups: Sequence[Group]) -> Cost:
    """The MACs of one sample. Products of two activations, as inside attention, are taken as fixed.

    Raises:
        ValueError: a shape that is needed is unknown, so that `summary.macs` is None.
    """
    total = macs(model)
    if total is None:
        raise ValueError("shapes are unknown")
    carried = _carried(groups)
    times: dict[ir.Value, float] = {}
    for node in nodes(model):
        for value, count in _uses(node):
            times[value] = times.get(value, 0.0) + count
    counted = [_elements(value, count, carried) for value, count in times.items()]
    terms = [term for term in counted if term.groups]
    return Cost(tuple(terms), total - sum(term.at([1.0] * len(groups)) for term in terms))


def parameters(model: ir.Model, groups: Sequence[Group]) -> Cost:
    """The weights, each once."""
    carried = _carried(groups)
    counted = [_elements(value, 1.0, carried) for value in weight_values(model)]
    changing = tuple(term for term in counted if term.groups)
    return Cost(changing, sum(term.at(()) for term in counted if not term.groups))


Carried = Mapping[tuple[ir.Value, int], list[tuple[int, np.ndarray]]]
"""(constant, axis) -> for each group that it carries, its number and bool [positions]."""


def _carried(groups: Sequence[Group]) -> Carried:
    found: dict[tuple[ir.Value, int], list[tuple[int, np.ndarray]]] = {}
    for number, group in enumerate(groups):
        for member in group.members:
            found.setdefault((member.value, member.axis), []).append((number, member.index >= 0))
    return found


def _elements(value: ir.Value, times: float, carried: Carried) -> Elements:
    array = constant(value)
    shape = () if array is None else array.shape
    axes: list[tuple[tuple[int, tuple[int, ...]], ...]] = []
    for axis, length in enumerate(shape):
        held = carried.get((value, axis), [])
        if not held:
            axes.append(((length, ()),))
            continue
        kinds, counts = np.unique(np.stack([where for _, where in held]), axis=1, return_counts=True)
        parts = []
        for kind, count in zip(kinds.T, counts, strict=True):
            parts.append((int(count), tuple(held[at][0] for at in np.flatnonzero(kind))))
        axes.append(tuple(parts))
    return Elements(times, tuple(axes))


def _uses(node: ir.Node) -> Iterator[tuple[ir.Value, float]]:
    """The weights of a node, and how often each of their elements is multiplied for one sample."""
    if node.op_type not in _COUNTED:
        return
    for place in _WEIGHTS.get(node.op_type, (1,)):
        value = node.inputs[place] if place < len(node.inputs) else None
        behind = set() if value is None else sources(value)
        if len(behind) == 1:
            yield behind.pop(), _times(node, place)


def _times(node: ir.Node, place: int) -> float:
    source, made = _sizes(node.inputs[0]), _sizes(node.outputs[0])
    match node.op_type:
        case "Conv":
            return prod(made[2:])
        case "ConvTranspose":
            return prod(source[2:])
        case "Gemm":
            return 1.0
        case "MatMul":
            weight = _sizes(node.inputs[place])
            return prod(made[1:]) * source[-1] / max(prod(weight), 1)
        case "Attention":
            return prod(source[1:-1])
        case _:
            return source[0]


def _sizes(value: ir.Value | None) -> list[int]:
    """The shape, a length that is decided at run time as 1."""
    if value is None or value.shape is None:
        return [1]
    return [size if isinstance(size, int) else 1 for size in value.shape]
