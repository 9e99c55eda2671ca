"""Raising a model's operator set, only when a pass needs it, and only when the result is proven equal.

onnx's version converter silently changes some models, so its result is run on onnxruntime beside the original and
dropped when it differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
from onnx import version_converter

from compressor.equivalence import difference
from compressor.graph import opset
from compressor.prepare import adopt, infer_shapes

if TYPE_CHECKING:
    from compressor.data import Samples

NEWEST = 26
"""The newest operator set that onnxruntime 1.31 loads (measured); its newest IR version is 13."""
NEWEST_IR = 13


def upgrade(model: ir.Model, version: int, samples: Samples | None = None) -> str | None:
    """Raise `model` to operator set `version` in place; None when done or not needed, else why it was kept.

    Args:
        model: left untouched when the conversion fails or changes a result.
        version: the least operator set that is needed.
        samples: for the comparison; made-up inputs when there are none.
    """
    now = opset(model)
    if now >= version:
        return None
    from onnx_ir.passes.common._c_api_utils import call_onnx_api

    weights = {v.name: v.const_value for v in model.graph.initializers.values()}
    inputs = [v.name for v in model.graph.inputs]
    try:
        proto = call_onnx_api(lambda p: version_converter.convert_version(p, version), model.clone())
    except (RuntimeError, ValueError, IndexError, onnx.checker.ValidationError) as error:
        said = " ".join(str(error).split())[:160]
        return f"operator set {version} is needed, the model has {now}, and onnx cannot convert it: {said}"
    converted = ir.from_proto(proto)
    _restore(converted, weights, inputs)
    least = onnx.helper.find_min_ir_version_for(proto.opset_import, ignore_unknown=True)
    converted.ir_version = min(max(model.ir_version, least, 8), NEWEST_IR)
    infer_shapes(converted)
    reason = difference(model, converted, samples)
    if reason:
        return f"operator set {version} is needed, the model has {now}, and onnx's converter changes it: {reason}"
    adopt(model, converted)
    return None


def _restore(
    model: ir.Model, weights: dict[str | None, ir.TensorProtocol | None], inputs: list[str | None]
) -> None:
    """Put the weights, which travelled as inputs, back as initializers."""
    graph = model.graph
    for value in list(graph.inputs):
        if value.name not in inputs:
            graph.inputs.remove(value)
        if weights.get(value.name) is not None and value.name not in graph.initializers:
            value.const_value = weights[value.name]
            graph.register_initializer(value)
    for value in list(graph.initializers.values()):
        if weights.get(value.name) is not None:
            value.const_value = weights[value.name]
