"""Adding constants to a model, many at once: all names are read one time."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compressor.graph import add_initializer


class Additions:
    """Constants of the main graph, under names that no value of the model has."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        graphs = list(model.graphs())
        self.taken: set[str | None] = {name for graph in graphs for name in graph.initializers}
        self.taken |= {value.name for graph in graphs for value in graph.inputs}
        self.taken |= {value.name for graph in graphs for node in graph for value in node.outputs}

    def add(self, name: str, array: np.ndarray, dtype: ir.DataType | None = None) -> ir.Value:
        """A constant called `name`, or `name_1`, `name_2`, ..."""
        free, number = name, 0
        while free in self.taken:
            number += 1
            free = f"{name}_{number}"
        self.taken.add(free)
        return add_initializer(self.graph, free, array, dtype)
