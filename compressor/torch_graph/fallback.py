"""Operators that torch has no form for: run by ONNX's reference evaluator, outside the gradient path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import RuntimeImplementationError

from compressor.errors import ModelError
from compressor.torch_graph.values import to_array, to_value

if TYPE_CHECKING:
    from compressor.torch_graph.lowering import Lowering


class Reference(torch.nn.Module):
    """One node run by ONNX's reference evaluator on numpy arrays; it has no gradient, and says so."""

    def __init__(self, node: ir.Node, opsets: Mapping[str, int]) -> None:
        super().__init__()
        self.label = f"Node {node.name!r} ({node.op_type})"
        self.evaluator = ReferenceEvaluator(_model(node, opsets))
        self.names = [None if value is None else value.name for value in node.inputs]

    def forward(self, *inputs: Any) -> Any:
        """Run the node; ModelError when a gradient would have to go through it."""
        if torch.is_grad_enabled() and any(isinstance(v, torch.Tensor) and v.requires_grad for v in inputs):
            raise ModelError(
                f"{self.label} has no gradient, and weights before it are trained. Freeze them (freeze=...), or "
                "cut the node from the graph before training."
            )
        feeds = {name: to_array(value) for name, value in zip(self.names, inputs, strict=False) if name}
        found = tuple(to_value(_as_array(value)) for value in self.evaluator.run(None, feeds))
        device = next((v.device for v in inputs if isinstance(v, torch.Tensor)), None)
        moved = tuple(v.to(device) if isinstance(v, torch.Tensor) else v for v in found)
        return moved if len(moved) > 1 else moved[0]


def lower(lowering: Lowering, node: ir.Node) -> bool:
    """Add a call of the reference evaluator; the last way to run a node, so it never gives False.

    Raises:
        ModelError: the reference evaluator does not have the operator either.
    """
    if not exists(node, lowering.opsets):
        where = f" of {node.domain}" if node.domain else ""
        raise ModelError(f"Node {node.name!r}: the operator {node.op_type}{where} cannot be run in torch.")
    inputs = tuple(None if form is None else lowering.tensor(form) for form in lowering.inputs_of(node))
    lowering.call_module(node, Reference(node, lowering.opsets), inputs)
    return True


def exists(node: ir.Node, opsets: Mapping[str, int]) -> bool:
    """Whether the reference evaluator has the operator."""
    if not onnx.defs.has(node.op_type, opsets.get(node.domain, 1), node.domain):
        return False
    try:
        ReferenceEvaluator(_model(node, opsets))
    except (RuntimeImplementationError, NotImplementedError, KeyError):
        return False
    return True


def _model(node: ir.Node, opsets: Mapping[str, int]) -> onnx.ModelProto:
    """A model of the node alone."""
    proto = ir.to_proto(node)
    unknown = onnx.TypeProto()
    inputs = [onnx.helper.make_value_info(name, unknown) for name in dict.fromkeys(proto.input) if name]
    outputs = [onnx.helper.make_value_info(name, unknown) for name in proto.output if name]
    graph = onnx.helper.make_graph([proto], "node", inputs, outputs)
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    return onnx.helper.make_model(graph, opset_imports=imports)


def _as_array(value: Any) -> Any:
    if isinstance(value, list) or value is None:
        return value
    return np.asarray(value)
