"""One fx graph, and the module that holds what it uses, in the making."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import fx

from compressor.torch_graph.placing import identifier, place


class GraphBuilder:
    """Adds inputs, constants and calls to a graph whose tensors and modules are in `root`."""

    def __init__(self, root: torch.nn.Module) -> None:
        self._root = root
        self._graph = fx.Graph()
        self._constants: dict[int, tuple[Any, fx.Node]] = {}

    def input(self, name: str | None) -> fx.Node:
        """A further input, after those that are there."""
        taken = {node.target for node in self._graph.nodes if node.op == "placeholder"}
        free = identifier(name)
        while free in taken:
            free += "_"
        with self._at_start():
            return self._graph.placeholder(free)

    def get(self, path: str) -> fx.Node:
        """What the root has under a path."""
        return self._graph.get_attr(path)

    def constant(self, value: Any, name: str | None = None) -> fx.Node:
        """A tensor as a buffer, or an array as an attribute, kept in the root once."""
        if id(value) not in self._constants:
            path = name or f"constant_{len(self._constants)}"
            if isinstance(value, torch.Tensor):
                path = place(self._root, path, value.contiguous())
            else:
                path = identifier(f"array_{len(self._constants)}")
                setattr(self._root, path, value)
            with self._at_start():
                self._constants[id(value)] = (value, self._graph.get_attr(path))
        return self._constants[id(value)][1]

    def call(self, function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> fx.Node:
        """A call of a function."""
        return self._graph.call_function(function, arguments, keywords)

    def call_module(self, name: str, module: torch.nn.Module, inputs: Sequence[Any]) -> fx.Node:
        """A call of a module, which the root gets under a name that begins with `name`."""
        number = len(self._root._modules)
        while hasattr(self._root, f"{identifier(name)}_{number}"):
            number += 1
        path = f"{identifier(name)}_{number}"
        self._root.add_module(path, module)
        return self._graph.call_module(path, tuple(inputs))

    def finish(self, result: Any) -> fx.GraphModule:
        """The module, which returns `result`, without what nothing reads."""
        self._graph.output(result)
        module = fx.GraphModule(self._root, self._graph, class_name="OnnxGraph")
        if module.graph.eliminate_dead_code():
            module.recompile()
        return module

    def _at_start(self) -> AbstractContextManager[Any]:
        """What is added in here comes right after the inputs, so that every node may use it."""
        after = next((node for node in self._graph.nodes if node.op != "placeholder"), None)
        return nullcontext() if after is None else self._graph.inserting_before(after)
