"""Bringing a model into the one form that the passes expect, without changing what it computes.

Functions are inlined, Constant nodes become initializers, initializers stop being inputs, nodes get names,
constants are folded where that does not make the file larger, Identity and inference Dropout go, BatchNormalization
is folded into the weights before it, and full-window pooling is written as GlobalAveragePool. The result is run on
onnxruntime beside the original; when it differs, the steps are replayed one by one and the one at fault is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from compressor import batchnorm, sparse_storage
from compressor.equivalence import difference
from compressor.graph import attribute, constant, integers, is_constant, rank

if TYPE_CHECKING:
    from compressor.data import Samples

_GROWING = (
    "ConstantOfShape",
    "Expand",
    "Tile",
    "Range",
    "OneHot",
    "Resize",
    "Upsample",
    "Pad",
    "EyeLike",
    "Trilu",
)
_OWN = "compressor."
"""What the keys of metadata that passes write begin with."""
_FOLD_BYTES = 128
"""What a node takes in the file, so that a constant of this size is no larger than the node that made it."""


class Prepared(NamedTuple):
    """The prepared model, and step -> why it was left out."""

    model: ir.Model
    declined: dict[str, str]


def prepare(model: ir.Model, samples: Samples | None = None) -> Prepared:
    """A prepared copy of `model`; the copy computes the same on onnxruntime, within float rounding."""
    work = model.clone()
    for _, step in STEPS:
        step(work)
    if difference(model, work, samples) is None:
        return Prepared(work, {})
    return _step_by_step(model, samples)


def normalized(model: ir.Model) -> ir.Model:
    """A copy in plain form, with shapes: functions inlined, constants folded; for questions only."""
    copy = model.clone()
    _plain(copy)
    _fold_constants(copy)
    return copy


def adopt(model: ir.Model, other: ir.Model) -> None:
    """Make `model` hold what `other` holds, in place."""
    model.graph = other.graph
    model.functions.clear()
    model.functions.update(other.functions)
    model.ir_version = other.ir_version


def infer_shapes(model: ir.Model) -> None:
    """Shapes and types of all values that ONNX can infer; what it cannot infer stays as it is."""
    try:
        common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return


def _step_by_step(model: ir.Model, samples: Samples | None) -> Prepared:
    declined: dict[str, str] = {}
    good = model.clone()
    for name, step in STEPS:
        trial = good.clone()
        step(trial)
        reason = difference(model, trial, samples)
        if reason is None:
            good = trial
        else:
            declined[f"prepare: {name}"] = reason
    return Prepared(good, declined)


def _plain(model: ir.Model) -> None:
    """Functions inlined, sparse storage unpacked, constants as initializers, none an input, every node named."""
    if model.functions:
        common.InlinePass()(model)
    sparse_storage.expand(model)
    _own_constants(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    model.ir_version = max(model.ir_version, 4)
    common.RemoveInitializersFromInputsPass()(model)
    common.NameFixPass()(model)
    _name_nodes(model)
    _forget_exporter_notes(model)
    common.RemoveUnusedNodesPass()(model)
    infer_shapes(model)


def _own_constants(model: ir.Model) -> None:
    """Give Constant nodes tensors of their own: a clone shares them, and lifting renames them."""
    for graph in model.graphs():
        for node in graph:
            held = node.attributes.get("value") if node.op_type == "Constant" else None
            if held is None or held.type != ir.AttributeType.TENSOR:
                continue
            tensor = held.as_tensor()
            if tensor.dtype != ir.DataType.STRING:
                node.attributes["value"] = ir.AttrTensor(
                    "value", ir.tensor(tensor.numpy(), dtype=tensor.dtype)
                )


def _name_nodes(model: ir.Model) -> None:
    """A name of its own for every node of the model, those of bodies included; the first of two keeps its name."""
    known = {node.name for graph in model.graphs() for node in graph}
    seen: set[str] = set()
    numbers: Counter[str] = Counter()
    for graph in model.graphs():
        for node in graph:
            while not node.name or node.name in seen:
                made = f"{node.op_type}_{numbers[node.op_type]}"
                numbers[node.op_type] += 1
                node.name = None if made in known else made
            seen.add(node.name)


def _forget_exporter_notes(model: ir.Model) -> None:
    """Drop doc strings and metadata of nodes and values: stack traces of the exporter, often 10 % of a small file.

    What passes note on codes stays.
    """
    for graph in model.graphs():
        for node in graph:
            for key in [key for key in node.metadata_props if not key.startswith(_OWN)]:
                del node.metadata_props[key]
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
                value.doc_string = None


def _fold_constants(model: ir.Model) -> None:
    """Evaluate what depends on constants only, unless the result would take more room than its inputs."""
    from onnxscript.optimizer import fold_constants

    def worth_it(node: ir.Node) -> bool | None:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"):
            return False
        read = sum(_goes(v) for v in node.inputs)
        sizes = [_bytes(v) for v in node.outputs]
        if None in sizes:
            return False if node.op_type in _GROWING else None
        return None if sum(s for s in sizes if s is not None) <= max(read, _FOLD_BYTES) else False

    fold_constants(
        model,
        onnx_shape_inference=False,
        input_size_limit=2**26,
        output_size_limit=2**26,
        should_fold=worth_it,
    )
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    infer_shapes(model)


def _goes(value: ir.Value | None) -> int:
    """Bytes that leave the file with one reader of a constant: its share, when all readers can be folded."""
    if value is None or value.const_value is None or value.is_graph_output():
        return 0
    readers = [use.node for use in value.uses()]
    if any(v is not None and v.const_value is None for node in readers for v in node.inputs):
        return 0
    return value.const_value.nbytes // len(readers)


def _bytes(value: ir.Value) -> int | None:
    """Bytes of the value; None when its shape is not known in full."""
    if value.shape is None or value.dtype is None:
        return None
    sizes = [d for d in value.shape if isinstance(d, int)]
    return (
        int(np.prod(sizes, dtype=np.int64) * value.dtype.itemsize) if len(sizes) == len(value.shape) else None
    )


def _drop_identities(model: ir.Model) -> None:
    for graph in model.graphs():
        for node in list(graph):
            if node.op_type == "Identity" and node.domain in ("", "ai.onnx"):
                _drop_identity(graph, node)
            if node.op_type != "Dropout" or node.domain not in ("", "ai.onnx") or not _is_inference(node):
                continue
            source, out, *mask = node.inputs[0], *node.outputs
            if source is None or out.is_graph_output() or any(m.uses() or m.is_graph_output() for m in mask):
                continue
            out.replace_all_uses_with(source)
            graph.remove(node, safe=True)


def _drop_identity(graph: ir.Graph, node: ir.Node) -> None:
    """Remove the node, unless it names an output whose value already has a name that must stay."""
    source, out = node.inputs[0], node.outputs[0]
    if source is None:
        return
    name = out.name
    if out.is_graph_output():
        producer = source.producer()
        if producer is None or producer.graph is not graph or source.is_graph_output():
            return
        ir.convenience.replace_all_uses_with(out, source, replace_graph_outputs=True)
        source.type, source.shape = out.type, out.shape if out.shape is not None else source.shape
        out.name = None
        source.name = name
    else:
        out.replace_all_uses_with(source)
    graph.remove(node, safe=True)


def _is_inference(node: ir.Node) -> bool:
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    mode = constant(node.inputs[2])
    return mode is not None and not bool(mode)


def _fold_batchnorm(model: ir.Model) -> None:
    batchnorm.fold(model)
    common.RemoveUnusedNodesPass()(model)


def _global_pooling(model: ir.Model) -> None:
    """AveragePool over the whole map and ReduceMean over both spatial axes, written as GlobalAveragePool."""
    for graph in model.graphs():
        for node in list(graph):
            source = node.inputs[0] if node.inputs else None
            if source is None or rank(source) != 4 or node.domain not in ("", "ai.onnx"):
                continue
            if source.dtype != ir.DataType.FLOAT or not (_pools_all(node, source) or _means_all(node)):
                continue
            out = node.outputs[0]
            made = [ir.node("GlobalAveragePool", [source], name=node.name)]
            made[0].outputs[0].type = out.type
            if source.shape is not None:
                made[0].outputs[0].shape = ir.Shape([*source.shape[:2], 1, 1])
            if node.op_type == "ReduceMean" and not attribute(node, "keepdims", 1):
                made.append(ir.node("Flatten", [made[0].outputs[0]], name=f"{node.name}_flatten"))
            last = made[-1].outputs[0]
            last.type, last.shape = out.type, out.shape
            graph.insert_before(node, made)
            ir.convenience.replace_all_uses_with(out, last, replace_graph_outputs=True)
            name, out.name = out.name, f"{out.name}_pooled"
            last.name = name
            graph.remove(node, safe=True)


def _pools_all(node: ir.Node, source: ir.Value) -> bool:
    if node.op_type != "AveragePool" or source.shape is None or any(integers(node, "pads") or ()):
        return False
    mode = node.attributes.get("auto_pad")
    if mode is not None and mode.as_string() not in ("NOTSET", "VALID"):
        return False
    if any(step != 1 for step in integers(node, "dilations") or ()):
        return False
    return integers(node, "kernel_shape") == tuple(source.shape)[2:]


def _means_all(node: ir.Node) -> bool:
    if node.op_type != "ReduceMean":
        return False
    axes = integers(node, "axes")
    if axes is None and len(node.inputs) > 1 and is_constant(node.inputs[1]):
        array = constant(node.inputs[1])
        axes = None if array is None else tuple(int(a) for a in array)
    return axes is not None and sorted(a % 4 for a in axes) == [2, 3]


STEPS: tuple[tuple[str, Callable[[ir.Model], None]], ...] = (
    ("inline functions, lift constants", _plain),
    ("fold constants", _fold_constants),
    ("drop Identity and Dropout", _drop_identities),
    ("fold BatchNormalization", _fold_batchnorm),
    ("write pooling as GlobalAveragePool", _global_pooling),
)
