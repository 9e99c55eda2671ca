"""A graph at two batch sizes at once, and new nodes in it that follow the batch.

A value carries the batch along an axis when its shape at another batch size differs there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from compressor.graph import constant, new_initializer, unique_name
from compressor.training.batch_shapes import Sizes

_TIMES = 11
"""The other batch size in units of the original: a size that broadcasts with nothing by chance."""


class Edits:
    """What is known of a graph, from its inputs to the node that is being looked at, and what is put into it.

    Args:
        model: has no functions; it is changed.
        batch: the first size of each of its inputs.
        time_first: of several sizes that equal the batch, the last is taken for it when an axis is split.
    """

    def __init__(self, model: ir.Model, batch: int, time_first: bool) -> None:
        self.graph = model.graph
        self.batch = batch
        self.time_first = time_first
        self.before = Sizes(model, batch)
        self.after = Sizes(model, batch * _TIMES)
        self._given = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
        self.static = all(isinstance(d, int) for v in self._given for d in v.shape or ())
        self._count: ir.Value | None = None

    def infer(self, node: ir.Node) -> bool:
        """Find the shapes of what a node gives; False when it does not run at one of the sizes."""
        return self.before.infer(node) and self.after.infer(node)

    def sizes(self, value: ir.Value | None) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """The shapes at the original and at the other batch size, when both are known."""
        before, after = self.before.of(value), self.after.of(value)
        return None if before is None or after is None or len(before) != len(after) else (before, after)

    def axis(self, value: ir.Value | None) -> int | None:
        """The first axis along which a value carries the batch; None without one, or when shapes are not known."""
        sizes = self.sizes(value)
        return None if sizes is None else next(iter(differing(*sizes)), None)

    def integers(self, value: ir.Value | None) -> tuple[list[int], list[int]] | None:
        """A shape, or the like, at both batch sizes."""
        before, after = self.before.integers(value), self.after.integers(value)
        if before is None or after is None or before.ndim != 1 or len(before) != len(after):
            return None
        return [int(n) for n in before], [int(n) for n in after]

    def fixed(self, value: ir.Value | None) -> list[int] | None:
        """Integers that do not follow the batch."""
        found = self.integers(value)
        return found[0] if found is not None and found[0] == found[1] else None

    def replace(self, node: ir.Node, index: int, numbers: Sequence[int]) -> None:
        """Give the node other integers; the old ones may have other readers."""
        old = node.inputs[index]
        if old is not None:
            node.replace_input_with(
                index, self._constant(f"{old.name}_any_batch", np.asarray(numbers, np.int64))
            )

    def expand_row(self, node: ir.Node, index: int, axis: int) -> None:
        """Give the node as many rows of an input as the batch has.

        Stored rows are not trained then, as they could come to differ; Tile is no place for a weight.
        """
        value, sizes = node.inputs[index], self.before.of(node.inputs[index])
        if value is None or sizes is None:
            return
        array, name = constant(value), f"{value.name}_any_batch"
        repeats = self.target(node, [None if a == axis else 1 for a in range(len(sizes))])
        if array is None or self.batch == 1:
            made = self._made(node, "Expand", [self._row(node, value, axis), repeats], name)
        else:
            row = self._constant(f"{value.name}_row", array.take([0], axis))
            made = self._made(node, "Tile", [row, repeats], name)
        node.replace_input_with(index, made)

    def broadcast_row(self, node: ir.Node, index: int, axis: int) -> None:
        """Give the node one row of an input, which broadcasts."""
        value = node.inputs[index]
        if constant(value) is not None:
            self.expand_row(node, index, axis)
        elif value is not None:
            node.replace_input_with(index, self._row(node, value, axis))

    def target(self, node: ir.Node, sizes: Sequence[int | None]) -> ir.Value:
        """A shape for `node`, in which None is the batch size."""
        parts = [
            self._samples()
            if size is None
            else self._constant(f"{node.name}_size", np.asarray([size], np.int64))
            for size in sizes
        ]
        return self._made(node, "Concat", parts, f"{node.name}_sizes", axis=0) if len(parts) > 1 else parts[0]

    def _row(self, node: ir.Node, value: ir.Value, axis: int) -> ir.Value:
        """The first row, along `axis`, of what `node` reads."""
        if self.batch == 1:
            return value
        limits = [
            self._constant(f"{value.name}_{part}", np.asarray([number], np.int64))
            for part, number in (("start", 0), ("end", 1), ("axis", axis))
        ]
        return self._made(node, "Slice", [value, *limits], f"{value.name}_row")

    def _samples(self) -> ir.Value:
        """The batch size [1], from the first input."""
        if self._count is None:
            first = self.graph[0]
            shape = self._made(first, "Shape", [self._given[0]], "batch_shape")
            zero = self._constant("batch_axis", np.asarray([0], np.int64))
            self._count = self._made(first, "Gather", [shape, zero], "batch_size")
        return self._count

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        value = new_initializer(self.graph, name, array)
        self.before.learn(value)
        self.after.learn(value)
        return value

    def _made(
        self, reader: ir.Node, kind: str, inputs: Sequence[ir.Value], name: str, **attributes: int
    ) -> ir.Value:
        """What a new node in front of `reader` gives."""
        name = unique_name(self.graph, name)
        node = ir.node(kind, inputs, attributes, name=name)
        output = node.outputs[0]
        output.name = name
        self.graph.insert_before(reader, node)
        self.infer(node)
        dtype = self.before.dtype(output)
        output.type = None if dtype is None else ir.TensorType(dtype)
        return output


def differing(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """The axes on which two shapes of one rank differ."""
    return [axis for axis, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
