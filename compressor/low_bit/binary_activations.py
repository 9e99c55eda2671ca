"""Giving layers of binary weights inputs of two levels: b where x >= t, -b elsewhere, from what they read on samples.

    t = mean of each channel        b = mean |x - t|

b is the least-squares scale of sign(x - t) for x - t (Rastegari et al. 2016, arXiv:1603.05279, section 3.2). t is not
0, because what a pretrained network gives behind a ReLU is never negative. W t, which the layer then lacks, is nearly
the same for all samples: matching the means of its outputs gives it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from compressor.errors import ModelError
from compressor.graph import attribute
from compressor.low_bit.matching import channel_axis
from compressor.low_bit.signs import Gradient, Sign, add_sign
from compressor.packing import Inserter
from compressor.pruning.prunable import Weight

_SMALLEST = 2.0**-60
"""Inputs that deviate less count as constant: the product of two such scales would be denormal."""


class Start(NamedTuple):
    """What a sign starts with: float32 thresholds that broadcast to the input, and the float32 scale, []."""

    threshold: np.ndarray
    scale: np.ndarray


@dataclass
class BinaryInputs:
    """The inputs of layers that were given two levels.

    Args:
        model: whose layers they are.
        names: every name in use; grows.
        gradient: of the steps in training.
        signs: (input, rank of its thresholds) -> its sign, which all layers that read it share.
        declined: layer -> why its input stays as it is.
    """

    model: ir.Model
    names: set[str]
    gradient: Gradient
    signs: dict[tuple[ir.Value, int], Sign] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)

    def sign(self, node: ir.Node, weight: Weight, arrays: Sequence[np.ndarray]) -> Sign | None:
        """The sign of what a layer reads, which the layer does not read yet; None where its input stays as it is.

        Args:
            node: of the main graph.
            weight: the layer's own.
            arrays: its input on samples, batch by batch.

        Raises:
            ModelError: an array holds NaN or infinity.
        """
        source, reason = node.inputs[0], refusal(node, weight)
        if source is None or reason is not None:
            self.declined[str(node.name)] = f"its input stays as it is: {reason}"
            return None
        axis = channel_axis(node, arrays[0].ndim)
        key = source, arrays[0].ndim - axis
        if key not in self.signs:
            found = start(str(source.name), arrays, axis)
            if found is None:
                self.declined[str(node.name)] = "its input stays as it is: it is the same for all samples"
                return None
            place = Inserter(self.model, self.model.graph, node, self.names)
            self.signs[key] = add_sign(place, source, *found, self.gradient)
        return self.signs[key]


def refusal(node: ir.Node, weight: Weight) -> str | None:
    """Why the input of a layer cannot have two levels, or None."""
    if len(weight.uses) != 1:
        return "several layers read its weight"
    if node.op_type not in ("Conv", "Gemm", "MatMul") or weight.uses[0].idx != 1:
        return f"no integer kernel multiplies the input of this {node.op_type}"
    return "it is transposed" if node.op_type == "Gemm" and attribute(node, "transA", 0) else None


def start(name: str, arrays: Sequence[np.ndarray], axis: int) -> Start | None:
    """Threshold and scale of a value; None where it is the same for all samples.

    Args:
        name: of the value.
        arrays: batches of it, not empty.
        axis: of the channels.

    Raises:
        ModelError: an array holds NaN or infinity.

    >>> threshold, scale = start("x", [np.array([[0.0, 1.0], [4.0, 1.0]])], 1)
    >>> threshold.tolist(), scale.tolist()
    ([2.0, 1.0], 1.0)
    """
    channels, dims = arrays[0].shape[axis], arrays[0].ndim
    others = tuple(a for a in range(dims) if a != axis)
    size = sum(array.size for array in arrays)
    total = np.sum([array.sum(axis=others, dtype=np.float64) for array in arrays], axis=0)
    threshold = np.asarray(total * channels / size, np.float32).reshape(-1, *[1] * (dims - axis - 1))
    scale = sum(np.abs(array - threshold).sum(dtype=np.float64) for array in arrays) / size
    if not np.isfinite(scale):
        raise ModelError(f"Value {name!r} becomes NaN or infinite on the samples; mend them or the model.")
    return Start(threshold, np.asarray(scale, np.float32)) if scale > _SMALLEST else None
