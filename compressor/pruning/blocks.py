"""Residual branches and transformer blocks: parts of a graph that can be left out because a skip goes round them.

A *branch* is what lies between x and x + f(x) (He et al. 2016, arXiv:1512.03385), with the normalization behind the
sum where x is normalized as well (post-norm transformers). A *block* is a branch with attention and the branches behind
it up to the next attention; without attention, a branch. Leaving one out is letting x stand for the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as ir

from compressor.graph import constant, is_constant, remove_dead, sole_consumer
from compressor.watching import watch

if TYPE_CHECKING:
    from compressor.data import Samples

Unit = Literal["branch", "block"]

_SUMS = ("Add", "Sum", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", *_SUMS[2:])
_ATTENTION = ("Softmax", "Attention", "MultiHeadAttention", "GroupQueryAttention")


@dataclass(frozen=True, eq=False)
class Block:
    """A part of a graph with a way round it.

    Args:
        name: of the node that adds the skip; of the first, where there are several.
        source: x.
        target: x + f(x); source can stand for it.
        nodes: those that nothing else needs.
        parameters: elements of the constants that nothing else needs.
        attends: whether there is attention in it.
    """

    name: str
    source: ir.Value
    target: ir.Value
    nodes: tuple[ir.Node, ...]
    parameters: int
    attends: bool


def blocks(model: ir.Model, unit: Unit) -> tuple[list[Block], dict[str, str]]:
    """The blocks of the main graph in order, and node -> why the skip that it adds goes round nothing."""
    found: list[Block] = []
    declined: dict[str, str] = {}
    order = {node: place for place, node in enumerate(model.graph)}
    for node in model.graph:
        operands = [value for value in node.inputs[:2] if value is not None and not is_constant(value)]
        if node.op_type not in _SUMS or len(operands) < 2 or (node.op_type == "Sum" and len(node.inputs) > 2):
            continue
        branch = _branch(node, operands, order)
        if isinstance(branch, str):
            declined[str(node.name)] = branch
        elif any(set(branch.nodes) & set(other.nodes) for other in found):
            declined[str(node.name)] = "there are skips inside it"
        else:
            found.append(branch)
    inner = {str(node.name) for block in found for node in block.nodes}
    declined = {name: reason for name, reason in declined.items() if name not in inner}
    return (_merged(found) if unit == "block" else found), declined


def leave_out(model: ir.Model, block: Block) -> None:
    """Let the block's source stand for its target, in place; shapes, and the names of outputs, stay."""
    target, source = block.target, block.source
    if target.is_graph_output():
        node = target.producer()
        if node is None:
            raise ValueError(f"{block.name!r}: its result is not computed")
        name, target.name = target.name, f"{target.name}_left_out"
        copy = ir.node("Identity", [source], name=f"{block.name}_left_out")
        copy.outputs[0].name, copy.outputs[0].type, copy.outputs[0].shape = name, target.type, target.shape
        model.graph.insert_after(node, copy)
        ir.convenience.replace_all_uses_with(target, copy.outputs[0], replace_graph_outputs=True)
    else:
        ir.convenience.replace_all_uses_with(target, source)
    remove_dead(model)


def unequal(model: ir.Model, found: Iterable[Block], samples: Samples) -> dict[Block, str]:
    """The blocks whose source has another shape than their target on the first sample, and why they stay."""
    found = list(found)
    names = [str(value.name) for block in found for value in (block.source, block.target)]
    arrays = next(iter(watch(model, names, samples.take(1)))).arrays
    shapes = {
        block: (arrays[str(block.source.name)].shape, arrays[str(block.target.name)].shape) for block in found
    }
    return {b: f"the skip is {old} and the sum {new}" for b, (old, new) in shapes.items() if old != new}


def influence(
    model: ir.Model, found: Iterable[Block], samples: Samples, threads: int = 0
) -> dict[Block, float]:
    """How much each block turns what flows through it: 1 - mean cosine of x and x + f(x), in [0, 2].

    The cosine is that of the channels at a position (axis 1 of an image, else the last). Men et al. 2024, "ShortGPT",
    arXiv:2403.03853, eq. 1. A block of little influence is one that is little missed. NaN where values are not finite.
    """
    found = list(found)
    sums, counts = dict.fromkeys(found, 0.0), dict.fromkeys(found, 0)
    names = [str(value.name) for block in found for value in (block.source, block.target)]
    for batch in watch(model, names, samples, threads):
        for block in found:
            cosines = _cosines(*(batch.arrays[str(value.name)] for value in (block.source, block.target)))
            sums[block] += float(cosines.sum())
            counts[block] += cosines.size
    return {block: 1 - sums[block] / max(counts[block], 1) for block in found}


def _cosines(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The cosine at every position; 1 where both are zero, 0 where one is, NaN where something is not finite."""
    axis = 1 if before.ndim > 3 else -1
    a, b = before.astype(np.float64), after.astype(np.float64)
    with np.errstate(invalid="ignore"):
        lengths = np.sqrt((a * a).sum(axis) * (b * b).sum(axis))
        products = (a * b).sum(axis)
        alike = np.divide(products, lengths, out=np.zeros_like(products), where=lengths != 0)
    alike[((a == 0).all(axis)) & ((b == 0).all(axis))] = 1
    return np.asarray(alike)


def _branch(node: ir.Node, operands: list[ir.Value], order: Mapping[ir.Node, int]) -> Block | str:
    """The branch that a sum closes, or why there is none."""
    for skip, result in (operands, operands[::-1]):
        inside = _between(skip, result, order)
        if inside is None:
            continue
        target = _behind(node, skip)
        if not _alike(skip, target):
            return "the skip has another shape than the sum"
        ends = {node} | {made for made in (target.producer(),) if made is not None}
        dying = _private(inside, ends)
        parameters = sum(array.size for array in _constants(dying))
        if not parameters:
            return "the branch has no weights of its own"
        kept = tuple(sorted((n for n in dying), key=lambda n: order[n]))
        attends = any(n.op_type in _ATTENTION for n in dying)
        return Block(str(node.name), skip, target, kept, parameters, attends)
    return "neither operand is computed from the other: its skip is no identity"


def _between(source: ir.Value, result: ir.Value, order: Mapping[ir.Node, int]) -> set[ir.Node] | None:
    """The nodes between two values; None when the second is not computed from the first."""
    producer = source.producer()
    first = order.get(producer, -1) if producer is not None else -1
    behind: dict[ir.Node, bool] = {}

    def reaches(start: ir.Value) -> bool:
        stack = [start.producer()]
        seen: list[ir.Node] = []
        while stack:
            node = stack.pop()
            if node is None or node in behind or order.get(node, -1) <= first:
                continue
            behind[node] = False
            seen.append(node)
            stack += [value.producer() for value in node.inputs if value is not None]
        for node in sorted(seen, key=lambda n: order[n]):
            behind[node] = any(
                value is source or (value is not None and behind.get(value.producer(), False))  # type: ignore[arg-type]
                for value in node.inputs
            )
        last = start.producer()
        return last is not None and behind.get(last, False)

    return {node for node, inside in behind.items() if inside} if reaches(result) else None


def _behind(node: ir.Node, skip: ir.Value) -> ir.Value:
    """The result of the sum; of the normalization behind it, where the skip is normalized too."""
    out, before = node.outputs[0], skip.producer()
    after = sole_consumer(out)
    if before is None or before.op_type not in _NORMS or after is None or after.op_type not in _NORMS:
        return out
    return after.outputs[0] if after.inputs[0] is out and after.op_type not in _SUMS else out


def _private(inside: set[ir.Node], ends: set[ir.Node]) -> set[ir.Node]:
    """The nodes that nothing needs once `ends` are gone: those inside, and the constants' views that they read."""
    dying = set(ends)
    stack = list(ends)
    while stack:
        node = stack.pop()
        for value in node.inputs:
            made = None if value is None else value.producer()
            if made is None or made in dying or (made not in inside and not _of_constants(made)):
                continue
            readers = {use.node for out in made.outputs for use in out.uses()}
            if readers <= dying and not any(out.is_graph_output() for out in made.outputs):
                dying.add(made)
                stack.append(made)
    return dying - ends


def _of_constants(node: ir.Node) -> bool:
    return all(value is None or is_constant(value) for value in node.inputs)


def _constants(dying: set[ir.Node]) -> Iterator[np.ndarray]:
    """Constants that only these nodes read."""
    seen: set[ir.Value] = set()
    for node in dying:
        for value in node.inputs:
            if value is None or value in seen or not is_constant(value):
                continue
            seen.add(value)
            array = constant(value)
            if array is not None and {use.node for use in value.uses()} <= dying:
                yield array


def _merged(branches: list[Block]) -> list[Block]:
    """Branches joined into blocks: from one attention to the next."""
    made: list[Block] = []
    for branch in branches:
        last = made[-1] if made else None
        if last is not None and last.attends and not branch.attends and branch.source is last.target:
            nodes = (*last.nodes, *branch.nodes)
            parameters = last.parameters + branch.parameters
            made[-1] = Block(last.name, last.source, branch.target, nodes, parameters, attends=True)
        else:
            made.append(branch)
    return made


def _alike(a: ir.Value, b: ir.Value) -> bool:
    """True unless the file tells that type or shape differ: what only a run decides, `unequal` tells."""
    if a.dtype != b.dtype and a.dtype is not None and b.dtype is not None:
        return False
    if a.shape is None or b.shape is None:
        return True
    if len(a.shape) != len(b.shape):
        return False
    pairs = zip(a.shape, b.shape, strict=True)
    return all(m == n for m, n in pairs if isinstance(m, int) and isinstance(n, int))
