"""The constants that operators read as weights, seen as [rows, positions, run], and why others cannot be pruned."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compressor.graph import FLOATS, attribute, constant, is_constant, matches, nodes, rank
from compressor.pruning.masks import Layout, Pattern
from compressor.weight_codes import Use

_OPERANDS = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm"), (1,)),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2)),
    **{"MatMul": (0, 1), "Attention": (1,), "Gather": (0,)},
}
_MOVES = ("Transpose", "Identity", "Cast")
_CODED = (
    *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "MatMulNBits"),
    *("DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "QAttention", "GatherBlockQuantized"),
)
_QUANTIZED = "its weight is quantized: prune before it is"


@dataclass(frozen=True)
class Weight:
    """A constant that layers multiply by.

    Args:
        value: the initializer.
        layout: how the first of those layers sees it.
        uses: the layers that see it so.
    """

    value: ir.Value
    layout: Layout
    uses: tuple[Use, ...]

    @property
    def array(self) -> np.ndarray:
        """The weight itself."""
        found = constant(self.value)
        if found is None:
            raise ValueError(f"{self.value.name} is no constant")
        return found

    @property
    def view(self) -> np.ndarray:
        """The weight as [rows, positions, run]."""
        return self.layout.view(self.array)

    @property
    def shared(self) -> bool:
        """Whether it is read by more than `uses`: by a layer that sees it in another way, or by another operator."""
        own, todo = {use.node for use in self.uses}, [self.value]
        while todo:
            for use in todo.pop().uses():
                if use.node.op_type in _MOVES:
                    todo += use.node.outputs
                elif use.node not in own:
                    return True
        return False


@dataclass(frozen=True)
class Selection:
    """What the user wants pruned.

    Args:
        include: globs over node and weight names; empty: all but embedding tables.
        exclude: globs over node and weight names.
        min_elements: smaller weights stay as they are.
        pattern: which weights go together; its groups must fit.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_elements: int = 1
    pattern: Pattern = Pattern()  # noqa: RUF009

    def refuses(self, weight: Weight) -> str | None:
        """Why a weight is not pruned, or None."""
        value = weight.value
        readers = [*(use.node for use in value.uses()), *(use.node for use in weight.uses)]
        names = (value.name, *(node.name for node in readers))
        if matches(names, self.exclude):
            return "excluded"
        if not matches(names, self.include):
            if self.include:
                return "no include pattern fits it"
            if any(node.op_type == "Gather" for node in readers):
                return "an embedding table: name it in include to prune it"
        if value.is_graph_output():
            return "it is an output of the model"
        if weight.array.size < self.min_elements:
            return f"it has {weight.array.size} elements, fewer than min_elements"
        run = weight.view.shape[2]
        if self.pattern.of and run % self.pattern.of:
            return f"its {run} inputs are not a multiple of {self.pattern.of}"
        return None if np.isfinite(weight.array).all() else "it contains NaN or infinity"


def select(model: ir.Model, selection: Selection) -> tuple[dict[str, Weight], dict[str, str]]:
    """The weights to prune, and name -> why another cannot be or should not be."""
    found, declined = weights(model)
    refused = {name: reason for name, weight in found.items() if (reason := selection.refuses(weight))}
    return {name: weight for name, weight in found.items() if name not in refused}, {**declined, **refused}


def weights(model: ir.Model) -> tuple[dict[str, Weight], dict[str, str]]:
    """The weights of the model in graph order, by name, and name -> why something that acts as one cannot be pruned.

    A constant that several layers read is one weight, also behind Transpose, Identity and Cast.
    """
    found: dict[str, Weight] = {}
    declined: dict[str, str] = {}
    for node in nodes(model):
        if node.op_type in _CODED:
            declined[str(node.name)] = _QUANTIZED
        for index in _operands(node):
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None:
                continue
            origin, axes = _origin(value)
            name = str(origin.name)
            if not (origin.is_initializer() and is_constant(origin)):
                if reason := _reason(node, origin):
                    declined[name] = reason
                continue
            layout, known = _layout(Use(node, index), origin, axes), found.get(name)
            if origin.dtype not in FLOATS:
                continue
            if known is not None and known.value is not origin:
                declined[str(node.name)] = f"its weight has the name of another one, {name!r}: rename it"
            elif layout is not None:
                found[name] = _joined(known, Weight(origin, layout, (Use(node, index),)))
            elif node.op_type != "Gather" and known is None:
                declined[name] = f"{node.op_type} does not read it as a matrix"
    return found, declined


def _joined(known: Weight | None, other: Weight) -> Weight:
    """One weight of two uses; a layer's view counts before that of a Gather."""
    if known is None:
        return other
    if known.layout == other.layout:
        return Weight(known.value, known.layout, (*known.uses, *other.uses))
    return other if all(use.node.op_type == "Gather" for use in known.uses) else known


def _operands(node: ir.Node) -> tuple[int, ...]:
    own = "com.microsoft" if node.op_type == "Attention" else ""
    return _OPERANDS.get(node.op_type, ()) if node.domain.replace("ai.onnx", "") == own else ()


def _origin(value: ir.Value) -> tuple[ir.Value, tuple[int, ...] | None]:
    """What a value is a moved view of, and the order of its axes in the view; None for their own order."""
    axes: tuple[int, ...] | None = None
    node = value.producer()
    while node is not None and node.op_type in _MOVES and node.inputs[0] is not None:
        before = node.inputs[0]
        if node.op_type == "Transpose":
            given = node.attributes.get("perm")
            order = tuple(given.as_ints()) if given is not None else tuple(range(rank(before) or 0))[::-1]
            axes = order if axes is None else tuple(order[axis] for axis in axes)
        value, node = before, before.producer()
    return value, axes


def _reason(node: ir.Node, origin: ir.Value) -> str | None:
    """Why what a layer reads in the place of a weight is none that can be pruned; None when it is plainly data."""
    maker = origin.producer()
    if maker is not None and maker.op_type == "DequantizeLinear" and _is_fixed(origin):
        return _QUANTIZED
    if _is_fixed(origin):
        return f"computed in the graph, by {maker.op_type if maker else 'a caller'}: prune what it is computed from"
    if node.op_type in ("Conv", "ConvTranspose"):
        return "computed in the graph from its inputs"
    return None


def _is_fixed(value: ir.Value) -> bool:
    """True for what depends on constants alone."""
    todo, seen = [value], {value}
    while todo:
        current = todo.pop()
        if is_constant(current):
            continue
        maker = current.producer()
        if maker is None:
            return False
        fresh = {read for read in maker.inputs if read is not None} - seen
        seen |= fresh
        todo += fresh
    return True


def _layout(use: Use, origin: ir.Value, axes: tuple[int, ...] | None) -> Layout | None:
    """How the layer sees the constant; None for what has fewer than two axes, or is turned as no layer needs it."""
    shape = () if origin.shape is None else origin.shape.numpy()
    if len(shape) < 2:
        return None
    turned = shape if axes is None else tuple(shape[axis] for axis in axes)
    layout = _own_layout(use, turned)
    if layout is None or axes is None:
        return layout
    if layout.shape != turned:
        return None
    return Layout(shape, tuple(axes[axis] for axis in layout.axes), layout.outputs)


def _own_layout(use: Use, shape: tuple[int, ...]) -> Layout | None:
    node, dims = use.node, len(shape)
    every = tuple(range(dims))
    if node.op_type == "Conv":
        return Layout(shape, (0, *every[2:], 1))
    if node.op_type == "ConvTranspose":
        groups = attribute(node, "group", 1)
        split = (groups, shape[0] // groups, *shape[1:])
        return Layout(split, (0, 2, *range(3, dims + 1), 1), 2)
    if node.op_type in ("LSTM", "GRU", "RNN"):
        return Layout(shape, every, 2)
    upright = node.op_type == "Gather" or (node.op_type == "Gemm" and bool(attribute(node, "transB", 0)))
    if upright or (node.op_type == "MatMul" and use.idx == 0):
        return Layout(shape, every, dims - 1)
    return Layout(shape, (*every[:-2], dims - 1, dims - 2), dims - 1)
