"""One operator run twice: by its kernel with the schema's defaults, and by onnxruntime as a model of one node."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any, get_type_hints

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from compressor.runtime import Session
from compressor.torch_graph.values import Kernel, schema_defaults, to_array, to_value

OPSET = 21


def by_kernel(
    table: dict[str, Kernel],
    operator: str,
    inputs: Sequence[np.ndarray | None],
    opset: int = OPSET,
    outputs: int = 1,
    **attributes: Any,
) -> list[np.ndarray]:
    """The outputs of the operator's kernel, called as the lowering calls it."""
    kernel = table[operator]
    names = signature(kernel).parameters
    hints = get_type_hints(kernel)
    host = ["Tensor" not in str(hints[p.name]) for p in names.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    schema = onnx.defs.get_schema(operator, opset)
    given = schema_defaults(schema) | attributes | {"outputs": outputs, "version": schema.since_version}
    arguments = [
        array.tolist() if array is not None and at < len(host) and host[at] else to_value(array)
        for at, array in enumerate(inputs)
    ]
    result = kernel(*arguments, **{name: value for name, value in given.items() if name in names})
    return [to_array(value) for value in (result if isinstance(result, tuple) else (result,))][:outputs]


def by_onnxruntime(
    operator: str,
    inputs: Sequence[np.ndarray | None],
    opset: int = OPSET,
    outputs: int = 1,
    **attributes: Any,
) -> list[np.ndarray]:
    """The outputs of a model that is the operator alone."""
    names = [f"x{at}" if array is not None else "" for at, array in enumerate(inputs)]
    node = helper.make_node(operator, names, [f"y{at}" for at in range(outputs)], **attributes)
    feeds = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    results = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in node.output]
    graph = helper.make_graph([node], "one", values, results)
    for result in graph.output:
        result.ClearField("type")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return Session(ir.from_proto(onnx.shape_inference.infer_shapes(model))).run(feeds)


def assert_same(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> None:
    """Equal types, shapes and values: nothing here computes, so nothing rounds."""
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        assert mine.shape == other.shape
        np.testing.assert_array_equal(mine, other)
