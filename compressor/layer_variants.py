"""A model with one layer compressed and all else as it was: what `sensitivity` measures, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import onnx_ir as ir

from compressor.channels import cut, find
from compressor.low_bit.codes import Method
from compressor.low_bit.methods import encode
from compressor.pruning.channel_importance import combined, norm
from compressor.pruning.masks import Pattern, keeps
from compressor.pruning.prunable import Weight

Kind = Literal["sparsity", "channels", "bits"]
LEVELS: dict[Kind, tuple[float, ...]] = {
    "sparsity": (0.3, 0.5, 0.7, 0.8, 0.9),
    "channels": (0.125, 0.25, 0.5, 0.75),
    "bits": (8, 4, 3, 2, 1),
}
"""Shares of a layer's weights that are zero, shares of its channels that are cut, bits of each of its weights."""


class Variant(NamedTuple):
    """One layer at one level; `build` makes the model."""

    layer: str
    kind: Kind
    level: float
    build: Callable[[], ir.Model]


def weight_variants(
    model: ir.Model, weight: Weight, kind: Kind, levels: Sequence[float]
) -> Iterator[Variant]:
    """The model with one weight pruned by magnitude, or stored in few bits, at each level."""
    name = str(weight.value.name)
    change = sparse if kind == "sparsity" else rounded
    for level in levels:
        yield Variant(name, kind, level, partial(_with, model, weight, partial(change, weight.view, level)))


def channel_variants(
    model: ir.Model, levels: Sequence[float], wanted: Callable[[str], bool]
) -> Iterator[Variant]:
    """The model with a share of the channels of one group cut, those of the smallest l2 norm, at each level."""
    for group in find(model.clone()).groups:
        if group.normalized is not None or not wanted(group.name):
            continue
        for level in levels:
            if round(level * group.size) in range(1, group.size):
                yield Variant(group.name, "channels", level, partial(_cut, model, group.name, level))


def sparse(view: np.ndarray, share: float) -> np.ndarray:
    """The weight with that share of zeros, those of the smallest magnitude.

    >>> sparse(np.array([[[3.0, -1.0, 2.0, -4.0]]]), 0.5).tolist()
    [[[3.0, 0.0, 0.0, -4.0]]]
    """
    return np.where(keeps(np.abs(view), share, Pattern()), view, view.dtype.type(0))


def rounded(view: np.ndarray, bits: float) -> np.ndarray:
    """The weight [rows, positions, run] as codes of 8, 4, 3, 2 or 1 bits, a scale per row.

    One bit is quantize-binary's default, two bits quantize-ternary's, the others those of quantize-weights.

    >>> rounded(np.array([[[3.0, -1.0]]]), 1).tolist()
    [[[2.0, -2.0]]]
    """
    method = Method("xnor") if bits == 1 else Method("uniform", int(bits))
    rows = view.reshape(len(view), -1).astype(np.float32)
    found: np.ndarray = encode(rows, method).decoded().reshape(view.shape).astype(view.dtype)
    return found


def _with(model: ir.Model, weight: Weight, view: Callable[[], np.ndarray]) -> ir.Model:
    """A copy in which a weight has the values that `view` gives."""
    copy = model.clone()
    value = next(
        graph.initializers[str(weight.value.name)]
        for graph in copy.graphs()
        if str(weight.value.name) in graph.initializers
    )
    array = np.ascontiguousarray(weight.layout.restored(view(), weight.array.shape))
    value.const_value = ir.tensor(array, dtype=weight.value.dtype, name=value.name)
    return copy


def _cut(model: ir.Model, name: str, share: float) -> ir.Model:
    """A copy in which a share of the channels of a group is cut."""
    copy = model.clone()
    found = find(copy)
    group = next(group for group in found.groups if group.name == name)
    kept = np.ones(group.size, bool)
    scores = combined(norm(group, 2), "mean")
    kept[np.argsort(scores, kind="stable")[: round(share * group.size)]] = False
    cut(copy, found, {group: kept})
    return copy
