"""One operator as a model of one node, in torch and on onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx import helper, numpy_helper

from compressor.runtime import Session, Setup
from compressor.torch_graph import to_torch
from compressor.torch_graph.values import to_array, to_value

FLOAT32 = 2e-5
"""Relative and absolute: sums of some hundred float32 products, added in another order."""


def agree(
    operator: str,
    inputs: Sequence[np.ndarray | None],
    fed: int = 1,
    opset: int = 17,
    outputs: int = 1,
    tolerance: float = FLOAT32,
    **attributes: Any,
) -> None:
    """Assert equal types, shapes and values; the first `fed` inputs are the graph's, the others its initializers.

    The operator is of another domain as `domain::operator`.
    """
    domain, _, name = operator.rpartition("::")
    names = [f"x{at}" if array is not None else "" for at, array in enumerate(inputs)]
    given = [(n, array) for n, array in zip(names, inputs, strict=True) if array is not None]
    results = [f"y{at}" for at in range(outputs)]
    values = [
        helper.make_tensor_value_info(n, ir.DataType.from_numpy(array.dtype).value, array.shape)
        for n, array in given[:fed]
    ]
    graph = helper.make_graph(
        [helper.make_node(name, names, results, domain=domain, **attributes)],
        "one",
        values,
        [helper.make_empty_tensor_value_info(n) for n in results],
        [numpy_helper.from_array(array, n) for n, array in given[fed:]],
    )
    imports = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=8))
    theirs = Session(model, Setup(threads=1, optimize=False)).run(dict(given[:fed]))
    with torch.no_grad():
        ours = to_torch(model)(*(to_value(array) for _, array in given[:fed]))
    for mine, other in zip(ours if outputs > 1 else [ours], theirs, strict=True):
        assert to_array(mine).dtype == other.dtype
        assert tuple(mine.shape) == other.shape
        np.testing.assert_allclose(to_array(mine), other, rtol=tolerance, atol=tolerance)
