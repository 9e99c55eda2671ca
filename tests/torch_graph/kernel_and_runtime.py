"""A kernel and onnxruntime on the same inputs, for operators of any domain."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any, get_type_hints

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compressor.runtime import Session, Setup
from compressor.torch_graph.values import Kernel, schema_defaults, to_array, to_value

Arrays = Sequence[np.ndarray | None]


def ran(kernel: Kernel, operator: str, inputs: Arrays, outputs: int, at_opset: int, **attributes: Any) -> Any:
    """The kernel's outputs as arrays, called as the lowering calls it."""
    names = signature(kernel).parameters
    given = dict(attributes)
    if onnx.defs.has(operator, at_opset):
        schema = onnx.defs.get_schema(operator, at_opset)
        given = schema_defaults(schema) | attributes | {"version": schema.since_version}
    given |= {"outputs": outputs}
    hints = get_type_hints(kernel)
    host = ["Tensor" not in str(hints[p.name]) for p in names.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    values = [
        array.tolist() if array is not None and at < len(host) and host[at] else to_value(array)
        for at, array in enumerate(inputs)
    ]
    result = kernel(*values, **{name: value for name, value in given.items() if name in names})
    return to_array(result)[:outputs] if isinstance(result, tuple) else [to_array(result)]


def both(
    kernels: dict[str, Kernel],
    operator: str,
    inputs: Arrays,
    outputs: int = 1,
    fed: int = 20,
    at_opset: int = 21,
    **attributes: Any,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Outputs by the kernel and by a model of one node on onnxruntime, whose inputs after `fed` are constants."""
    inputs = [None if array is None else np.asarray(array) for array in inputs]
    domain, _, name = operator.rpartition("::")
    names = [f"x{at}" if array is not None else "" for at, array in enumerate(inputs)]
    given = [(name, array) for name, array in zip(names, inputs, strict=True) if array is not None]
    node = helper.make_node(name, names, [f"y{at}" for at in range(outputs)], domain=domain, **attributes)
    kinds = [(n, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape) for n, array in given]
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(*kind) for kind in kinds[:fed]],
        [helper.make_empty_tensor_value_info(output) for output in node.output],
        [numpy_helper.from_array(array, n) for n, array in given[fed:]],
    )
    sets = [helper.make_opsetid("", at_opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=10)
    # As it is written: an optimized graph may round in another order.
    session = Session(model.SerializeToString(), Setup(threads=1, optimize=False))
    theirs = session.run(dict(given[:fed]))
    ours = ran(kernels[operator], operator if not domain else "", inputs, outputs, at_opset, **attributes)
    return ours, theirs
