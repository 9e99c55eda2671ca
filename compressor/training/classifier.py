"""The layer that tells classes apart, and another in its place. No torch here.

Found is the last Gemm, MatMul with its Add, or 1x1 Conv before the first output, when only operators that treat all
classes alike, or that change the shape around them, lie in between.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from compressor.data import Samples, synthetic
from compressor.errors import CompressorError
from compressor.graph import FLOATS, attribute, constant, is_constant, new_initializer, sole_consumer
from compressor.placement import output_axis
from compressor.prepare import infer_shapes
from compressor.runtime import Session, Setup
from compressor.training.depths import Use
from compressor.training.initialization import draw, layout

_BEHIND = (
    *("Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid", "Identity", "Cast", "Dropout"),
    *("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "GlobalAveragePool", "ReduceMean"),
)
_LAYERS = ("Gemm", "MatMul", "Conv")


class Classifier(NamedTuple):
    """A layer that can be replaced.

    Args:
        layer: the Gemm, MatMul or Conv; its weight is input 1.
        bias: the node that adds a stored bias and which input that is; None without one.
        targets: Reshape nodes behind it whose target counts the classes.
        classes: how many there are.
    """

    layer: ir.Node
    bias: tuple[ir.Node, int] | None
    targets: tuple[ir.Node, ...]
    classes: int


def find(model: ir.Model) -> Classifier | str:
    """The classifier of the first output, or why there is none to replace."""
    behind: list[ir.Node] = []
    node = model.graph.outputs[0].producer() if model.graph.outputs else None
    while node is not None and node.op_type in _BEHIND:
        behind.append(node)
        node = _before(node, 0)
    bias = _added(node)
    layer = node if bias is None or node is None else _before(node, 1 - bias)
    if layer is None or layer.op_type not in _LAYERS:
        return _refused(node if layer is None else layer)
    weight, own = constant(layer.inputs[1]), len(layer.inputs) > 2 and layer.inputs[2] is not None
    if weight is None or not is_constant(layer.inputs[1]):
        decoded = _before(layer, 1)
        quantized = decoded is not None and decoded.op_type == "DequantizeLinear"
        return _refused(decoded if quantized else layer)
    if not _is_float(layer.inputs[1]) or (own and not is_constant(layer.inputs[2])):
        return _refused(layer)
    if layer.op_type == "Conv" and (
        any(size != 1 for size in weight.shape[2:]) or attribute(layer, "group", 1) != 1
    ):
        return (
            f"the first output comes from a Conv with weights {list(weight.shape)}, no 1x1 one without groups"
        )
    if weight.ndim < 2 or (layer.op_type != "Conv" and weight.ndim != 2):
        return _refused(layer)
    if own and bias is not None:
        return "something is added to the classifier's output behind its own bias"
    classes = int(weight.shape[output_axis(layer)])
    added = (layer, 2) if own else None if bias is None or node is None else (node, bias)
    targets = [n for n in behind if n.op_type == "Reshape" and classes in _target(n)]
    return Classifier(layer, added, tuple(targets), classes)


def replace(found: Classifier, classes: int, init: str, seed: int) -> tuple[str, ...]:
    """Put new weights in, a zero bias where there was one; the names of the initializers that were changed.

    Args:
        found: of `find`; its graph is changed.
        classes: how many the new classifier tells apart.
        init: a distribution of `initialization`, or "zero".
        seed: of the weights.
    """
    old, axis = constant(found.layer.inputs[1]), output_axis(found.layer)
    if old is None:
        raise ValueError(f"{found.layer.name}: no stored weight")
    shape = [*old.shape[:axis], classes, *old.shape[axis + 1 :]]
    weight = _stored(found.layer, 1, np.zeros(shape, old.dtype))
    names = [str(weight.name)]
    if init != "zero":
        form = layout(Use(weight, found.layer, 1))
        drawn = draw(init, form, np.random.default_rng(seed))
        drawn = drawn.swapaxes(1, 2) if form.inputs_first else drawn
        weight.const_value = ir.tensor(
            drawn.reshape(shape).astype(old.dtype), dtype=weight.dtype, name=weight.name
        )
    if found.bias is not None:
        node, index = found.bias
        bias = constant(node.inputs[index])
        if bias is not None and bias.size == found.classes:
            names.append(
                str(
                    _stored(
                        node, index, np.zeros(_exchanged(bias.shape, found.classes, classes), bias.dtype)
                    ).name
                )
            )
    for node in found.targets:
        _stored(node, 1, np.asarray(_exchanged(_target(node), found.classes, classes), np.int64))
    return tuple(names)


def declare(
    original: ir.Model, made: ir.Model, classes: tuple[int, int], samples: Samples | None, seed: int
) -> str | None:
    """Write the output shapes that the new classifier gives; or say why the graph behind it does not take it.

    Both models run on two samples, made up if there are none. Of each output one axis may change, from the first number
    of `classes` to the second, and not its first axis.
    """
    few = samples.take(2) if samples is not None else synthetic(original, 2, seed)
    feeds = next(iter(few.batches())).feeds
    setup = Setup(threads=1)
    for node in made.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    try:
        before = Session(original, setup).run(feeds)
    except CompressorError as error:
        return f"the original does not run on {'samples' if samples else 'made-up inputs'}: {error}"
    try:
        after = Session(made, setup).run(feeds)
    except CompressorError as error:
        return f"the graph behind the classifier does not take another number of classes: {error}"
    for value, old, new in zip(made.graph.outputs, before, after, strict=True):
        axes = [a for a, (b, c) in enumerate(zip(old.shape, new.shape, strict=False)) if b != c]
        counted = all(a > 0 and (old.shape[a], new.shape[a]) == classes for a in axes)
        if old.ndim != new.ndim or len(axes) > 1 or not counted:
            return f"output {value.name!r} would change from {list(old.shape)} to {list(new.shape)}"
        if value.shape is not None:
            sizes = [new.shape[a] if a in axes else d for a, d in enumerate(value.shape)]
            value.shape = ir.Shape(sizes)
    infer_shapes(made)
    return None


def _before(node: ir.Node, index: int) -> ir.Node | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None else value.producer()


def _is_float(value: ir.Value | None) -> bool:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return tensor is not None and tensor.dtype in FLOATS


def _added(node: ir.Node | None) -> int | None:
    """The input of an Add that is a stored bias."""
    if node is None or node.op_type != "Add":
        return None
    return next(
        (i for i in (1, 0) if is_constant(node.inputs[i]) and not is_constant(node.inputs[1 - i])), None
    )


def _target(node: ir.Node) -> list[int]:
    """The target of a Reshape; none when it is computed."""
    array = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return [] if array is None else [int(size) for size in array]


def _exchanged(sizes: tuple[int, ...] | list[int], old: int, new: int) -> list[int]:
    """The sizes, the last that is `old` being `new`."""
    at = max(i for i, size in enumerate(sizes) if size == old)
    return [*sizes[:at], new, *sizes[at + 1 :]]


def _stored(node: ir.Node, index: int, array: np.ndarray) -> ir.Value:
    """Store another array for an input, under the old name where nothing else reads the old one."""
    old = node.inputs[index]
    if old is None or not isinstance(node.graph, ir.Graph):
        raise ValueError(f"{node.name}: input {index} is omitted")
    if not old.is_initializer() or sole_consumer(old) is None:
        new = new_initializer(node.graph, str(old.name), array, old.dtype)
        node.replace_input_with(index, new)
        return new
    old.const_value = ir.tensor(array, dtype=old.dtype, name=old.name)
    old.shape = ir.Shape(array.shape)
    return old


def _refused(node: ir.Node | None) -> str:
    quantized = ("quantize", "integer", "qlinear", "qgemm", "nbits")
    if node is not None and any(word in node.op_type.lower() for word in quantized):
        return "the classifier is quantized: replace it in the float model, then quantize"
    what = "an input or a constant" if node is None else f"{node.op_type} {node.name!r}"
    return f"the first output comes from {what}, not from a Gemm, MatMul or Conv with stored float weights"
