"""From an ONNX graph to a torch.fx graph: one call per operator, decided once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from compressor.errors import ModelError
from compressor.torch_graph import (
    calling,
    control_flow,
    fallback,
    folding,
    function_bodies,
    quantizers,
    recurrence,
    shape_arithmetic,
    signs,
)
from compressor.torch_graph.attributes import schema
from compressor.torch_graph.conversions import beside, first, from_host, item, to_host
from compressor.torch_graph.forms import Form, Host, Known, Traced
from compressor.torch_graph.graph_building import GraphBuilder
from compressor.torch_graph.values import TORCH_TYPES, onnx_type, to_value
from compressor.torch_graph.weights import Weights

_WAYS = (
    folding.lower_constant,
    control_flow.lower,
    signs.lower,
    quantizers.lower,
    folding.lower,
    shape_arithmetic.lower,
    recurrence.lower,
    calling.lower,
    function_bodies.lower,
    fallback.lower,
)
"""How a node may be lowered: each says whether it did; the last always does, or raises."""


class Lowering:
    """One fx graph in the making; the body of a control-flow node has one of its own, with `outer` set.

    Args:
        root: the module that holds what the graph uses.
        opsets: domain -> version of its operators, "" for ONNX's own.
        weights: the parameters, in the root of the outermost graph.
        outer: the lowering of the graph around a body.
    """

    def __init__(
        self,
        root: torch.nn.Module,
        opsets: Mapping[str, int],
        weights: Weights,
        outer: Lowering | None = None,
    ) -> None:
        self.opsets = opsets
        self.weights = weights
        self.graph = GraphBuilder(root)
        self.forms: dict[ir.Value, Form] = {}
        self._outer = outer
        self._captured: list[ir.Value] = []
        self._first: ir.Value | None = None if outer is None else outer._first

    def module(self, graph: ir.Graph) -> fx.GraphModule:
        """The whole graph as a module: a body always returns a tuple, the outermost graph a single output as it is."""
        self._declare([value for value in graph.inputs if value.name not in graph.initializers])
        for node in graph:
            self.lower(node)
        outputs = tuple(self.tensor(self.read(value)) for value in graph.outputs)
        return self.graph.finish(outputs[0] if len(outputs) == 1 and self._outer is None else outputs)

    def body(self, graph: ir.Graph) -> tuple[fx.GraphModule, Sequence[ir.Value]]:
        """A body as a module, and the values from around it that it takes after its own inputs."""
        inner = Lowering(torch.nn.Module(), self.opsets, self.weights, outer=self)
        return inner.module(graph), inner._captured

    def lower(self, node: ir.Node) -> None:
        """Add what runs one ONNX node, in the first way that fits."""
        for way in _WAYS:
            if way(self, node):
                return

    def bind(self, node: ir.Node, result: fx.Node) -> None:
        """Say which traced result gives the node's outputs: itself, or its items when there are several."""
        if len(node.outputs) == 1:
            only = self.graph.call(first, result) if self._may_give_more(node) else result
            self.forms[node.outputs[0]] = Traced(only)
            return
        for index, output in enumerate(node.outputs):
            if output.name:
                self.forms[output] = Traced(self.graph.call(item, result, index))

    def _may_give_more(self, node: ir.Node) -> bool:
        """Whether the operator has more outputs than the one that the node has."""
        known = schema(node, self.opsets)
        return node.domain != "" if known is None else known.max_output > 1

    def call_module(self, node: ir.Node, module: torch.nn.Module, inputs: Sequence[Any]) -> None:
        """Add a module that runs the node, and its call."""
        self.bind(node, self.graph.call_module(node.op_type, module, inputs))

    def inputs_of(self, node: ir.Node) -> list[Form | None]:
        """What is known of the node's inputs; None where one is omitted."""
        return [None if value is None else self.read(value) for value in node.inputs]

    def read(self, value: ir.Value) -> Form:
        """What is known of a value here; a body captures it from the graph around it."""
        if value not in self.forms:
            self.forms[value] = self._found(value)
        return self.forms[value]

    def _found(self, value: ir.Value) -> Form:
        if value not in self.weights and value.const_value is not None:
            return Known(to_value(value.const_value.numpy()), value.name)
        if self._outer is not None:
            return self._capture(value, self._outer.read(value))
        if value not in self.weights:
            raise ModelError(f"Nothing in the graph gives the value {value.name!r}.")
        return Traced(self.weights.fetch(self.graph, value))

    def _capture(self, value: ir.Value, form: Form) -> Form:
        """A form of the graph around as one of this graph, which takes the value as a further input."""
        if isinstance(form, Known):
            return form
        self._captured.append(value)
        node = self.graph.input(value.name)
        return Host(node, form.dtype, form.rank) if isinstance(form, Host) else Traced(node)

    def read_as(self, kind: str, form: Form) -> Any:
        """A form as a kernel wants it: as a "tensor", a "number", a "list" of them, or "either" (see `Signature`)."""
        if kind == "either":
            one = isinstance(form, Known) and isinstance(form.value, torch.Tensor) and not form.value.ndim
            kind = "number" if one else "tensor"
        if kind == "tensor":
            return self.tensor(form)
        if kind == "list":
            return self.numbers(form)
        if isinstance(form, Known):
            return to_host(form.value, kind)
        if isinstance(form, Host):
            return self.graph.call(item, form.expression, 0) if form.rank else form.expression
        return self.graph.call(to_host, form.node, kind)

    def numbers(self, form: Form) -> Any:
        """A form as Python numbers: a literal, or what computes them at run time."""
        if isinstance(form, Host):
            return form.expression
        if isinstance(form, Known):
            return form.value.tolist() if hasattr(form.value, "tolist") else form.value
        return self.graph.call(to_host, form.node)

    def tensor(self, form: Form) -> Any:
        """A form as what kernels take: a traced tensor, or a constant kept as a buffer of the module."""
        if isinstance(form, Traced):
            return form.node
        if isinstance(form, Host):
            return self.graph.call(from_host, form.expression, TORCH_TYPES[form.dtype], self._anchor())
        if isinstance(form.value, list):
            return [self.tensor(Known(one)) for one in form.value]
        return None if form.value is None else self.graph.constant(form.value, form.name)

    def type_of(self, value: ir.Value | None) -> ir.DataType:
        """The element type of a value, from what is known of it; float where nothing is."""
        form = None if value is None else self.read(value)
        if isinstance(form, Host):
            return form.dtype
        if isinstance(form, Known):
            return onnx_type(form.value)
        return (value and value.dtype) or ir.DataType.FLOAT

    def beside(self, result: fx.Node) -> fx.Node:
        """A tensor that no other one was made from, on the device of the inputs."""
        anchor = self._anchor()
        return result if anchor is None else self.graph.call(beside, result, anchor)

    def _declare(self, inputs: Sequence[ir.Value]) -> None:
        """Add the inputs of the graph, in order."""
        for value in inputs:
            self.forms[value] = Traced(self.graph.input(value.name))
        tensors = [v for v in inputs if not isinstance(v.type, ir.SequenceType | ir.OptionalType)]
        self._first = tensors[0] if tensors else self._first

    def _anchor(self) -> fx.Node | None:
        """A tensor whose device new ones are made on: the first input, here or around; None when there is none."""
        form = None if self._first is None else self.read(self._first)
        return form.node if isinstance(form, Traced) else None
