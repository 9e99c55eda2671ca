"""Codes packed in bytes, and the standard-operator subgraph that unpacks them.

Codes with `levels` possible values are the digits of a byte in base `levels`, the first code in the lowest
place: 8 per byte for 2 levels, 5 for 3, 4 for 4 and 2 for 16. For powers of two that is the bit order of
ONNX's INT4 and INT2. The subgraph looks a whole byte up in a table, so any codebook works, from operator set
7 on:

    bytes (uint8) -> Cast(int32) -> Gather(table[256, per byte], int8) -> Reshape

onnxruntime evaluates it once, when it creates the session (it never does so with DequantizeLinear): the file
is small and the graph that runs is the float, or int8, graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from compressor.graph import constant, opset, remove_dead


def codes_per_byte(levels: int, size: int = 256) -> int:
    """How many codes of `levels` values fit into one byte, or into a word of `size` values; levels in 2..256.

    >>> [codes_per_byte(levels) for levels in (2, 3, 4, 16, 256)], codes_per_byte(7, 2**16)
    ([8, 5, 4, 2, 1], 5)
    """
    count = 1
    while levels ** (count + 1) <= size:
        count += 1
    return count


def pack(codes: np.ndarray, levels: int, word: type[np.unsignedinteger] = np.uint8) -> np.ndarray:
    """Pack along the last axis: uint8 [..., n] with values in [0, levels) to uint8 [..., ceil(n / per byte)].

    The last byte is filled with zeros. Another `word` than a byte holds as many codes as fit into it.

    >>> pack(np.array([1, 2, 3], np.uint8), 16)
    array([33,  3], dtype=uint8)
    """
    per = codes_per_byte(levels, int(np.iinfo(word).max) + 1)
    short = -codes.shape[-1] % per
    full = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, short)])
    digits = full.reshape(*codes.shape[:-1], full.shape[-1] // per, per)
    result = np.zeros(digits.shape[:-1], word)
    for place in range(per):
        result += digits[..., place] * word(levels**place)
    return result


def unpack(packed: np.ndarray, levels: int, length: int) -> np.ndarray:
    """The codes that `pack` packed: uint8 [..., bytes] to uint8 [..., length]."""
    digits = lookup_table(range(levels)).astype(np.uint8)[packed]
    flat: np.ndarray = digits.reshape(*packed.shape[:-1], packed.shape[-1] * digits.shape[-1])
    return flat[..., :length]


def lookup_table(values: Sequence[int]) -> np.ndarray:
    """int8 [256, per byte]: what each byte stands for when code i means values[i]; values in -128..127.

    >>> lookup_table((-1, 0, 1))[5].tolist()
    [1, 0, -1, -1, -1]
    """
    levels = len(values)
    places = levels ** np.arange(codes_per_byte(levels))
    digits = np.arange(256)[:, None] // places % levels
    return np.asarray(np.asarray(values, np.int64)[digits], np.int8)


@dataclass(frozen=True)
class Inserter:
    """Adds constants and nodes to a graph in front of one of its nodes, all with names new to the model.

    Args:
        model: whose names stay unique.
        graph: the graph that receives them, the main one or a body.
        before: the node of that graph in front of which nodes go.
        names: every name in use, `names_of(model)` at first; grows.
    """

    model: ir.Model
    graph: ir.Graph
    before: ir.Node
    names: set[str]

    def fresh(self, name: str) -> str:
        """`name`, or `name_1`, `name_2`, ..., not used anywhere in the model so far."""
        found, count = name, 0
        while found in self.names:
            count += 1
            found = f"{name}_{count}"
        self.names.add(found)
        return found

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """A new initializer."""
        tensor = ir.tensor(np.array(array, order="C"), name=self.fresh(name))
        value = ir.Value(
            name=tensor.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value

    def shared(self, name: str, array: np.ndarray) -> ir.Value:
        """A constant of the main graph that is stored once, found again by its name and content."""
        for found in (
            v for k, v in self.model.graph.initializers.items() if k == name or k.startswith(f"{name}_")
        ):
            held = constant(found)
            if held is not None and held.dtype == array.dtype and np.array_equal(held, array):
                return found
        return replace(self, graph=self.model.graph).constant(name, array)

    def add(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        **attributes: int | float | str | Sequence[int],
    ) -> ir.Value:
        """The output of a new node; operators of another domain carry it: `com.microsoft.MatMulNBits`.

        Type and shape are left to whoever reads the model: written down, they would fill the file.
        """
        domain, _, kind = operator.rpartition(".")
        made = ir.node(kind, inputs, attributes, domain=domain, name=self.fresh(name))
        made.outputs[0].name = made.name
        if domain:
            self.model.graph.opset_imports[domain] = 1
        self.graph.insert_before(self.before, made)
        return made.outputs[0]


def names_of(model: ir.Model) -> set[str]:
    """The names of all values and nodes, bodies included."""
    found: set[str | None] = set()
    for graph in model.graphs():
        found |= {v.name for v in (*graph.inputs, *graph.initializers.values())}
        for node in graph:
            found |= {node.name, *(v.name for v in node.outputs)}
    return {name for name in found if name}


def at_start(model: ir.Model, weight: ir.Value, names: set[str]) -> Inserter:
    """The place before everything else in the graph that holds an initializer."""
    owner = next(g for g in model.graphs() if g.initializers.get(str(weight.name)) is weight)
    return Inserter(model, owner, owner[0], names)


def look_up(place: Inserter, packed: ir.Value, values: Sequence[int], name: str) -> ir.Value:
    """int8 [..., per byte] for packed uint8 [...]."""
    table = place.shared(f"unpack_{len(values)}_levels", lookup_table(values))
    index = place.add("Cast", [packed], f"{name}_index", to=int(ir.DataType.INT32))
    return place.add("Gather", [table, index], f"{name}_lookup", axis=0)


def reshaped(place: Inserter, value: ir.Value, shape: Sequence[int], name: str) -> ir.Value:
    """Reshape to `shape`; 0 keeps the dimension in that place."""
    target = place.shared(f"shape_{'x'.join(map(str, shape))}", np.array(shape, np.int64))
    return place.add("Reshape", [value, target], name)


def head(place: Inserter, value: ir.Value, axis: int, length: int, name: str) -> ir.Value:
    """The first `length` entries along a non-negative axis, with the Slice of the model's operator set."""
    if opset(place.model) < 10:
        return place.add("Slice", [value], name, starts=[0], ends=[length], axes=[axis])
    bounds = [place.shared(f"at_{number}", np.array([number], np.int64)) for number in (0, length, axis)]
    return place.add("Slice", [value, *bounds], name)


def take_over(old: ir.Node, new: ir.Value) -> None:
    """Let `new` stand for the only output of `old`, under its name, and remove `old`."""
    out = old.outputs[0]
    new.type = out.type or new.type
    new.shape = out.shape if out.shape is not None else new.shape
    ir.convenience.replace_all_uses_with(out, new, replace_graph_outputs=True)
    name, out.name = out.name, f"{out.name}_replaced"
    new.name = name
    if old.graph is not None:
        old.graph.remove(old, safe=True)


def drop_unread(model: ir.Model) -> None:
    """Remove dead nodes and every initializer that nothing reads, those of bodies included."""
    remove_dead(model)
    for graph in model.graphs():
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                del graph.initializers[name]
