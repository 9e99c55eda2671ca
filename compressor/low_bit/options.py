"""What a pass wants of the weights of a model, which weights those are, and why others are left as they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compressor.graph import attribute, matches
from compressor.low_bit.coded_weights import coded_weights
from compressor.low_bit.codes import Method
from compressor.low_bit.ends import first_layers, last_layers
from compressor.low_bit.signs import Gradient
from compressor.pruning.prunable import Weight, weights

EIGHT = Method("uniform", 8)
"""What layers get that few bits would hurt most."""


@dataclass(frozen=True)
class Coding:
    """What a pass wants.

    Args:
        method: how codes are found.
        block: inputs that share a scale, at most; 0: all of an output.
        compensate: whether the errors are made up for on calibration samples.
        match: whether each output channel is given the mean and the deviation that it had on calibration samples.
        signs: give layers of binary weights inputs of two levels, with this gradient in training; None: do not.
        keep_first_last: whether the first and the last layers get 8 bits.
        keep_depthwise: whether depthwise convolutions that `include` does not name get 8 bits.
        include: globs over node and weight names; empty: all but embedding tables.
        exclude: globs over node and weight names.
        min_elements: smaller weights stay float.
        sensitivity: the file of `compress sensitivity` that gives layers more bits; empty: all get the same.
        max_layer_drop: the drop of the score by one layer up to which it keeps these bits, in the metric's units.
    """

    method: Method
    block: int = 0
    compensate: bool = False
    match: bool = False
    signs: Gradient | None = None
    keep_first_last: bool = True
    keep_depthwise: bool = True
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_elements: int = 1
    sensitivity: str = ""
    max_layer_drop: float = 0.01

    def refuses(self, weight: Weight) -> str | None:
        """Why a weight stays float, or None."""
        names = _names(weight)
        if matches(names, self.exclude):
            return "excluded"
        if self.include and not matches(names, self.include):
            return "no include pattern fits it"
        if not self.include and any(use.node.op_type == "Gather" for use in weight.uses):
            return "an embedding table: name it in include to code it"
        if weight.value.is_graph_output():
            return "it is an output of the model"
        array = weight.array
        if array.dtype != np.float32:
            return f"it is {array.dtype.name}, not float32"
        if array.size < self.min_elements:
            return f"it has {array.size} elements, fewer than min_elements"
        if weight.shared:
            return "its readers need different layouts"
        return _unfit(array)


def select(
    model: ir.Model, wanted: Coding, among: Collection[str] | None = None
) -> tuple[dict[str, Weight], dict[str, str]]:
    """The weights to code, in graph order, and name -> why another stays as it is.

    Args:
        model: to look through.
        wanted: by which weights are chosen.
        among: names of the weights that were chosen already; None chooses here.
    """
    found, declined = weights(model)
    if among is not None:
        given = {name: weight for name, weight in found.items() if name in among}
        refused = {name: reason for name, weight in given.items() if (reason := _unfit(weight.array))}
        return {name: weight for name, weight in given.items() if name not in refused}, refused
    declined = {
        name: reason.partition(":")[0] for name, reason in declined.items()
    }  # what follows is on pruning
    declined |= quantized_already(model)
    refused = {name: reason for name, weight in found.items() if (reason := wanted.refuses(weight))}
    chosen = {name: weight for name, weight in found.items() if name not in refused}
    return chosen, {**declined, **refused}


def quantized_already(model: ir.Model) -> dict[str, str]:
    """Name -> why a weight that stands as codes is left alone."""
    return {coded.name: f"it is quantized already: {coded.method}" for coded in coded_weights(model)}


def spared(model: ir.Model, chosen: Mapping[str, Weight], wanted: Coding) -> dict[str, str]:
    """Name -> why a weight that could be coded as wanted gets 8 bits.

    The first and the last layers, as in most work on few bits (Zhou et al. 2016, arXiv:1606.06160, section 2.7), and
    depthwise convolutions unless `include` names them: they hold few of the weights, and their channels have nothing
    that could make up for an error. Untrained, outputs matched, MobileNetV1 on Tiny-ImageNet (61.0 %) has 9.8 % with
    ternary weights elsewhere and 2.0 % with these ternary too; a MobileNetV2 on CIFAR-10 (73.3 %) 67.1 % and 62.1 %
    (1000 samples).
    """
    found: dict[str, str] = {}
    if wanted.keep_first_last:
        layers = [use.node for weight in weights(model)[0].values() for use in weight.uses]
        layers += [use.node for coded in coded_weights(model) for use in coded.layers]
        for reason, nodes in (
            ("the first layer", first_layers(model, layers)),
            ("the last layer", last_layers(model, layers)),
        ):
            found |= {
                name: reason for name, weight in chosen.items() if any(u.node in nodes for u in weight.uses)
            }
    for name, weight in chosen.items():
        named = not wanted.keep_depthwise or wanted.include
        if not named and any(_is_depthwise(use.node, weight) for use in weight.uses):
            found.setdefault(name, "a depthwise convolution")
    return found


def _unfit(array: np.ndarray) -> str | None:
    """Why codes of few bits make no sense of a weight, or None."""
    if not array.size:
        return "it is empty"
    if not np.isfinite(array).all():
        return "it contains NaN or infinity"
    if not array.any():
        return "all its weights are zero"
    same = array.size > 1 and bool((array == array.flat[0]).all())
    return "all its weights are equal" if same else None


def _is_depthwise(node: ir.Node, weight: Weight) -> bool:
    return node.op_type == "Conv" and attribute(node, "group", 1) > 1 and weight.array.shape[1] == 1


def _names(weight: Weight) -> tuple[str | None, ...]:
    readers = [*(use.node for use in weight.value.uses()), *(use.node for use in weight.uses)]
    return (weight.value.name, *(node.name for node in readers))
