"""Running samples through a graph a few nodes at a time, so that what lies behind can still be changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from compressor.graph import is_constant
from compressor.runtime import Session, Setup

Feeds = Mapping[str, np.ndarray]


class Stepping:
    """A model that has run up to some node of its main graph, on one batch after the other.

    Only values that nodes still to run will read are kept. Weights may be replaced, and inputs that are constants
    added, as long as the node has not run.

    Args:
        model: with the inferred types of its values.
        threads: of onnxruntime.
    """

    def __init__(self, model: ir.Model, threads: int) -> None:
        self._model = model
        self._nodes = list(model.graph)
        self._place = {node: at for at, node in enumerate(self._nodes)}
        self._setup = Setup(threads=threads, spin=False, integers=False)
        self._done = 0
        self._last = {str(value.name): self._last_use(value) for value in self._computed()}
        self.batches: list[dict[str, np.ndarray]] = []

    def start(self, feeds: Feeds) -> None:
        """Take up one more batch, before the first node has run."""
        self.batches.append(dict(feeds))

    def position(self, name: str) -> int:
        """The number of the node with that name, or of that which makes a value of that name; -1 for an input."""
        made = (
            at for at, node in enumerate(self._nodes) if name in (node.name, *(v.name for v in node.outputs))
        )
        return next(made, -1)

    def run_until(self, stop: int, wanted: Collection[str] = ()) -> None:
        """Run the nodes before number `stop`; of values that nothing reads any more those in `wanted` stay."""
        made = {str(value.name) for node in self._nodes[self._done : stop] for value in node.outputs}
        needed = [name for name in made if name in wanted or self._last[name] >= stop]
        if needed:
            session = Session(self._piece(needed), self._setup)
            for values in self.batches:
                found = session.run({name: values[name] for name in session.inputs})
                values.update(zip(session.outputs, found, strict=True))
        self._done = max(self._done, stop)
        for values in self.batches:
            for name in [n for n in values if n not in wanted and self._last.get(n, -1) < self._done]:
                del values[name]

    @property
    def bytes(self) -> int:
        """What the kept values take."""
        return sum(array.nbytes for values in self.batches for array in values.values())

    def _piece(self, needed: list[str]) -> ir.Model:
        """The nodes from the last stop on that lead to the needed values."""
        held = [str(value.name) for value in self._computed() if value.name in self.batches[0]]
        graph = ir.convenience.extract(self._model.graph, held, sorted(needed))
        for value in (*graph.inputs, *graph.outputs):
            value.dtype = value.dtype or ir.DataType.FLOAT
        return ir.Model(graph, ir_version=self._model.ir_version)

    def _computed(self) -> list[ir.Value]:
        inputs = [value for value in self._model.graph.inputs if not is_constant(value)]
        return [*inputs, *(value for node in self._nodes for value in node.outputs if value.name)]

    def _last_use(self, value: ir.Value) -> int:
        """The number of the last node that reads the value; those in bodies count as behind all others."""
        return max((self._place.get(use.node, len(self._nodes)) for use in value.uses()), default=-1)
