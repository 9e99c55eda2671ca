"""The parameters and statistics of a module in the making: which ONNX value lives where."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import fx

from compressor.graph import nodes
from compressor.torch_graph.graph_building import GraphBuilder
from compressor.torch_graph.parameters import array_of, keyed
from compressor.torch_graph.placing import place
from compressor.torch_graph.tying import ties
from compressor.torch_graph.values import to_value


class Weights:
    """What training changes and `write_back` writes, inside `root`.

    Args:
        root: the module that gets the tensors.
        model: where the values come from.
    """

    def __init__(self, root: torch.nn.Module, model: ir.Model) -> None:
        self.paths: dict[str, str] = {}
        self.transposed: dict[str, str] = {}
        self._root = root
        self._model = model
        self._keys = {value: key for key, value in keyed(model).items()}
        self._homes: dict[ir.Value, str] = {}

    def add_parameters(self, values: list[ir.Value]) -> None:
        """Make each value a parameter, or what an earlier one with the same bytes already is."""
        tied = ties(values)
        for value in values:
            tie = tied.get(value)
            if tie is None:
                self._place(value, torch.nn.Parameter(to_value(array_of(value))))
                continue
            self._homes[value] = path = self._homes[tie.value]
            (self.transposed if tie.transposed else self.paths)[self._keys[value]] = path

    def add_statistics(self) -> None:
        """Make the constant running statistics of BatchNormalization buffers."""
        for node in nodes(self._model):
            if node.op_type == "BatchNormalization":
                for value in node.inputs[3:5]:
                    if value in self._keys and value not in self:
                        self._place(value, to_value(array_of(value)))

    def __contains__(self, value: object) -> bool:
        """Whether the value is one of them."""
        return value in self._homes

    def fetch(self, graph: GraphBuilder, value: ir.Value) -> fx.Node:
        """The value inside a graph of `root`."""
        node = graph.get(self._homes[value])
        return graph.call(torch.t, node) if self._keys[value] in self.transposed else node

    def _place(self, value: ir.Value, tensor: torch.Tensor) -> None:
        path = place(self._root, str(value.name), tensor)
        self._homes[value] = self.paths[self._keys[value]] = path
