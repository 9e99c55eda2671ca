"""Weights that a file cuts up and joins before a layer reads them, as views of the weights and the fewest joins.

torch's exporter keeps a module's weights as initializers and brings gates, directions and biases into ONNX's order in
the graph, by operators that only move elements. They run once, on numbers that stand for the elements: what comes out
says where each element is from. What the layer moves itself is added before anything is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import onnx_ir as ir
import torch
from torch import Tensor, fx

from compressor.torch_graph.conversions import item
from compressor.torch_graph.folding import evaluated
from compressor.torch_graph.forms import Known

if TYPE_CHECKING:
    from compressor.torch_graph.lowering import Lowering

_MOVES = (
    "Concat",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
_MOST = 16
"""Runs that a tensor is joined from, at most: four gates in four places. A transposed matrix has one per element."""


class Run(NamedTuple):
    """Consecutive numbers, up to before `stop`."""

    start: int
    stop: int


class Piece(NamedTuple):
    """What holds the elements with the numbers up to before `stop`, row by row."""

    stop: int
    node: fx.Node
    shape: list[int]


class Rearranged:
    """Values by the numbers of their elements, for the nodes of one graph.

    The elements of a constant have consecutive numbers, row by row. A number is left out after each constant, so that
    no run goes on into the next one.
    """

    def __init__(self, lowering: Lowering, graph: ir.Graph | None) -> None:
        self._lowering = lowering
        self._graph = graph
        self._constants: dict[ir.Value, Tensor] = {}
        self._next = 0

    def numbers(self, value: ir.Value | None) -> Tensor | None:
        """The number of each element; None of a value that is not made of constants by moving their elements."""
        if value is None:
            return None
        self._number(value)
        if value in self._constants:
            return self._constants[value]
        node = value.producer()
        if node is None or node.graph is not self._graph or node.op_type not in _MOVES or node.domain:
            return None
        results = self._moved(node)
        return None if results is None else results[node.outputs.index(value)]

    def joined(self, wanted: Sequence[Tensor]) -> list[fx.Node] | None:
        """Tensors of the elements with these numbers; None when one would have to be joined from too many pieces."""
        runs = [_runs(numbers) for numbers in wanted]
        if not all(runs):
            return None
        pieces = self._pieces({bound for found in runs for run in found for bound in run})
        return [
            self._join([piece for run in found for piece in _between(pieces, run)], list(numbers.shape))
            for numbers, found in zip(wanted, runs, strict=True)
        ]

    def _number(self, value: ir.Value) -> None:
        """Give the elements of a constant their numbers, unless they have them."""
        shape = self._constant_shape(value)
        if value not in self._constants and shape is not None and shape.numel():
            stop = self._next + shape.numel()
            self._constants[value] = torch.arange(self._next, stop).reshape(shape)
            self._next = stop + 1

    def _constant_shape(self, value: ir.Value) -> torch.Size | None:
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None:
            return torch.Size(tensor.shape.numpy())
        form = self._lowering.forms.get(value)
        return form.value.shape if isinstance(form, Known) and isinstance(form.value, Tensor) else None

    def _moved(self, node: ir.Node) -> Sequence[Tensor] | None:
        """What the node makes of the numbers of its data; where to move them must be known."""
        given: list[Tensor | None] = []
        for index, value in enumerate(node.inputs):
            if index == 0 or node.op_type == "Concat":
                found = self.numbers(value)
            else:
                form = None if value is None else self._lowering.read(value)
                found = form.value if isinstance(form, Known) else None
            if found is None and value is not None:
                return None
            given.append(found)
        return evaluated(self._lowering, node, given)

    def _pieces(self, bounds: set[int]) -> dict[int, Piece]:
        """The constants that have any of the bounds, cut there: first number -> piece."""
        found: dict[int, Piece] = {}
        for value, numbers in self._constants.items():
            start = int(numbers.reshape(-1)[0])
            stop = start + numbers.numel()
            inside = {bound for bound in bounds if start <= bound <= stop}
            if inside:
                found |= self._cut(value, [Run(*ends) for ends in pairwise(sorted({start, stop, *inside}))])
        return found

    def _cut(self, value: ir.Value, parts: Sequence[Run]) -> dict[int, Piece]:
        """A constant in parts: matrices where they are whole rows, else vectors."""
        shape = list(self._constants[value].shape)
        node, graph = self._lowering.tensor(self._lowering.read(value)), self._lowering.graph
        if len(parts) == 1:
            return {parts[0].start: Piece(parts[0].stop, node, shape)}
        sizes = [part.stop - part.start for part in parts]
        row = shape[-1:] if len(shape) > 1 and not any(size % shape[-1] for size in sizes) else []
        lengths = [size // prod(row) for size in sizes]
        rows = node if len(shape) == 1 + len(row) else graph.call(torch.reshape, node, [-1, *row])
        split = graph.call(torch.split, rows, lengths)
        return {
            part.start: Piece(part.stop, graph.call(item, split, index), [lengths[index], *row])
            for index, part in enumerate(parts)
        }

    def _join(self, pieces: Sequence[Piece], shape: list[int]) -> fx.Node:
        call = self._lowering.graph.call
        if len(pieces) == 1:
            one = pieces[0]
            return one.node if one.shape == shape else call(torch.reshape, one.node, shape)
        if all(len(piece.shape) == len(shape) and piece.shape[1:] == shape[1:] for piece in pieces):
            return call(torch.cat, [piece.node for piece in pieces])
        flat = [call(torch.reshape, piece.node, [-1]) for piece in pieces]
        return call(torch.reshape, call(torch.cat, flat), shape)


def _runs(numbers: Tensor) -> list[Run]:
    """The numbers as few runs; none when they are more than a few."""
    flat = numbers.reshape(-1)
    breaks = (flat.diff() != 1).nonzero().reshape(-1) + 1
    if len(breaks) >= _MOST or not len(flat):
        return []
    ends = pairwise([0, *breaks.tolist(), len(flat)])
    return [Run(int(flat[first]), int(flat[last - 1]) + 1) for first, last in ends]


def _between(pieces: dict[int, Piece], run: Run) -> list[Piece]:
    """The pieces that a run consists of."""
    found, at = [], run.start
    while at < run.stop:
        found.append(pieces[at])
        at = pieces[at].stop
    return found
