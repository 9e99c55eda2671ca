"""One operator on the same inputs in torch, as a kernel or as a whole module, and on onnxruntime as a model.

Operators of other domains are written `domain::operator`; `at_opset` is not called `opset` because QLinearSoftmax
has an attribute of that name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import helper, numpy_helper

from compressor.runtime import Session, Setup
from compressor.torch_graph import table, to_torch
from compressor.torch_graph.attributes import schema_defaults
from compressor.torch_graph.conversions import to_host
from compressor.torch_graph.values import Kernel, to_array, to_value

FLOAT32 = 2e-5
"""Relative and absolute: sums of some hundred float32 products, added in another order."""

AS_WRITTEN = Setup(threads=1, optimize=False)
"""An optimized graph may round in another order."""

Arrays = Sequence[np.ndarray | None]


def by_kernel(
    kernels: Mapping[str, Kernel],
    operator: str,
    inputs: Arrays,
    at_opset: int = 21,
    outputs: int = 1,
    **attributes: Any,
) -> list[np.ndarray]:
    """The outputs of the operator's kernel, called as the lowering calls it."""
    domain, _, name = operator.rpartition("::")
    given = attributes | {"outputs": outputs}
    if onnx.defs.has(name, at_opset, domain):
        schema = onnx.defs.get_schema(name, at_opset, domain)
        given = schema_defaults(schema) | given | {"version": schema.since_version}
    wants = table.signature(kernels[operator])
    values = [_as_wanted(wants.kind(at), array) for at, array in enumerate(inputs)]
    result = kernels[operator](*values, **{key: value for key, value in given.items() if key in wants.names})
    return [to_array(value) for value in (result if isinstance(result, tuple) else (result,))][:outputs]


def by_onnxruntime(
    operator: str,
    inputs: Arrays,
    at_opset: int = 21,
    outputs: int = 1,
    fed: int | None = None,
    **attributes: Any,
) -> list[np.ndarray]:
    """The outputs of a model that is the operator alone; inputs after the first `fed` are its constants."""
    model, feeds = one_node(
        operator, inputs, len(inputs) if fed is None else fed, at_opset, outputs, attributes
    )
    return Session(model, AS_WRITTEN).run(feeds)


def both(
    kernels: Mapping[str, Kernel], operator: str, inputs: Arrays, fed: int | None = None, **given: Any
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The outputs by the kernel, and by onnxruntime."""
    arrays = [None if array is None else np.asarray(array) for array in inputs]
    return by_kernel(kernels, operator, arrays, **given), by_onnxruntime(operator, arrays, fed=fed, **given)


def agree(
    operator: str,
    inputs: Arrays,
    fed: int = 1,
    at_opset: int = 17,
    outputs: int = 1,
    tolerance: float = FLOAT32,
    **attributes: Any,
) -> None:
    """Assert that the model as a torch module gives the types, shapes and values of onnxruntime."""
    model, feeds = one_node(operator, inputs, fed, at_opset, outputs, attributes)
    theirs = Session(model, AS_WRITTEN).run(feeds)
    with torch.no_grad():
        ours = to_torch(model)(*map(to_value, feeds.values()))
    for mine, other in zip(ours if outputs > 1 else [ours], theirs, strict=True):
        assert to_array(mine).dtype == other.dtype
        assert tuple(mine.shape) == other.shape
        np.testing.assert_allclose(to_array(mine), other, rtol=tolerance, atol=tolerance)


def assert_same(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> None:
    """Equal types, shapes and values: where nothing computes, nothing rounds."""
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        assert mine.shape == other.shape
        np.testing.assert_array_equal(mine, other)


def one_node(
    operator: str, inputs: Arrays, fed: int, at_opset: int, outputs: int, attributes: Mapping[str, Any]
) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """A model that is the operator alone, and its feeds: the first `fed` inputs, omitted ones not counted."""
    domain, _, name = operator.rpartition("::")
    names = [f"x{at}" if array is not None else "" for at, array in enumerate(inputs)]
    given = [(name, array) for name, array in zip(names, inputs, strict=True) if array is not None]
    node = helper.make_node(name, names, [f"y{at}" for at in range(outputs)], domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, ir.DataType.from_numpy(array.dtype).value, array.shape)
            for name, array in given[:fed]
        ],
        [helper.make_empty_tensor_value_info(output) for output in node.output],
        [numpy_helper.from_array(array, name) for name, array in given[fed:]],
    )
    imports = [helper.make_opsetid("", at_opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    return ir.from_proto(model), dict(given[:fed])


def _as_wanted(kind: str, array: np.ndarray | None) -> Any:
    value = to_value(array)
    return value if value is None or kind in ("tensor", "either") else to_host(value, kind)
