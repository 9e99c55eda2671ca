"""Products with integer weights and activations quantized at run time, in the forms onnxruntime fuses."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from compressor import quantization as q
from compressor.graph import attribute, constant, is_constant, rank
from compressor.low_bit.coded_weights import KEY, CodedWeight, coded_value
from compressor.packing import Inserter, at_start, take_over
from compressor.placement import output_axis, stored_weight
from compressor.weight_storage import is_table, store_rows

OPERATORS = ("MatMul", "Gemm", "LSTM", "Attention", "Gather")
"""What can be written; Attention is that of com.microsoft, Gather a lookup in a float table."""
_ROWS = 4
"""The rows per sample for which `min_elements` was measured."""
_MOST_ROWS = 16
MIN_COLUMNS = 32
"""With fewer output columns, quantizing the activations takes longer than the product saves (measured)."""
CONVOLUTION = "ConvInteger is 8 to 12 times slower than the float Conv"
_NEVER = {
    "GRU": "onnxruntime has no dynamic integer GRU",
    "RNN": "onnxruntime has no dynamic integer RNN",
    "Conv": CONVOLUTION,
    "ConvTranspose": "onnxruntime has no dynamic integer ConvTranspose",
}
_UINT8, _INT32, _FLOAT = ir.DataType.UINT8, ir.DataType.INT32, ir.DataType.FLOAT


def is_candidate(node: ir.Node) -> bool:
    """True for a product with weights, be it one that can be written as integers or one that cannot."""
    if node.op_type == "Attention":
        return node.domain == "com.microsoft"
    if node.op_type == "Gather":
        table = node.inputs[0]
        return is_constant(table) and table is not None and table.dtype == _FLOAT and rank(table) == 2
    return node.domain in ("", "ai.onnx") and (node.op_type in OPERATORS or node.op_type in _NEVER)


def refusal(node: ir.Node, min_elements: int) -> str | None:
    """Why the node stays float whatever the user's selection, or None."""
    if node.op_type in _NEVER:
        return _NEVER[node.op_type]
    for index in _operands(node):
        array = stored_weight(node.inputs[index])
        if array is None:
            first = node.op_type == "MatMul" and is_constant(node.inputs[0])
            return "its constant is the first operand" if first else "its weight is not a constant"
        if reason := _weight_refusal(node, array) or _coded_refusal(node, coded_value(node.inputs[index])):
            return reason
    held = {i: stored_weight(node.inputs[i]) for i in _operands(node)}
    work = sum(array.size * _rows(node, i) for i, array in held.items() if array is not None)
    if work < min_elements * _ROWS:
        size = sum(array.size for array in held.values() if array is not None)
        return f"its weight is too small to pay: {size} elements"
    return _FORMS[node.op_type](node) if node.op_type in _FORMS else None


def _rows(node: ir.Node, index: int) -> int:
    """How many rows meet the weight in one sample, at most 16, from where on more rows change little."""
    if node.op_type == "Gather":
        return _ROWS
    source = node.inputs[0]
    if (node.op_type == "LSTM" and index == 2) or source is None or source.shape is None:
        return 1
    shape = source.shape
    if len(shape) == 2:
        return 1 if str(shape[0]) in _batch_axes(node) else _extent(shape[0])
    inner = shape[:1] if node.op_type == "LSTM" else shape[1:-1]
    return min(math.prod(_extent(d) for d in inner), _MOST_ROWS)


def _extent(dimension: int | ir.SymbolicDim) -> int:
    """An axis's length up to 16, which is also what an unknown length counts as."""
    return min(dimension, _MOST_ROWS) if isinstance(dimension, int) else _MOST_ROWS


def _batch_axes(node: ir.Node) -> set[str]:
    """The first axes of the graph's inputs, as text."""
    inputs = [] if node.graph is None else node.graph.inputs
    return {str(v.shape[0]) for v in inputs if v.shape is not None and len(v.shape)}


def _operands(node: ir.Node) -> tuple[int, ...]:
    """Which inputs are the weights."""
    return {"LSTM": (1, 2), "Gather": (0,)}.get(node.op_type, (1,))


def _weight_refusal(node: ir.Node, array: np.ndarray) -> str | None:
    if array.dtype != np.float32:
        return "its weight is not float32"
    if not array.size:
        return "its weight is empty"
    if array.ndim != (3 if node.op_type == "LSTM" else 2):
        return f"its weight has {array.ndim} axes, and only a matrix has a fused kernel"
    if not np.isfinite(array).all():
        return "its weight contains NaN or infinity"
    inputs = array.shape[1] if node.op_type == "Gemm" and attribute(node, "transB", 0) else array.shape[0]
    if node.op_type in ("MatMul", "Gemm"):
        if array.size // inputs < MIN_COLUMNS:
            return f"{array.size // inputs} output columns are too few to pay"
        if inputs * 255 * 127 >= 2**31:
            return f"the int32 sum over {inputs} inputs could overflow"
    return None


def _coded_refusal(node: ir.Node, coded: CodedWeight | None) -> str | None:
    """Why a product cannot take the codes of a coded weight; None where it can, or there are none."""
    if coded is None:
        return None
    if node.op_type in ("LSTM", "Gather"):
        return f"its weight stands as codes, which no dynamic integer {node.op_type} takes"
    if not coded.in_place:
        return "the codes of its weight have scales per block, which no integer kernel takes"
    return None if coded.axis == output_axis(node) else "the scales of its codes run along its inputs"


def _gemm_refusal(node: ir.Node) -> str | None:
    if attribute(node, "transA", 0):
        return "a Gemm with transA"
    bias = _input(node, 2)
    if bias is not None and _number(node, "beta") != 1 and not is_constant(bias):
        return "a Gemm with beta whose bias is computed in the graph"
    return None


def _lstm_refusal(node: ir.Node) -> str | None:
    if attribute(node, "layout", 0):
        return "DynamicQuantizeLSTM has no batch-first layout"
    return None


def _attention_refusal(node: ir.Node) -> str | None:
    if "qkv_hidden_sizes" in node.attributes:
        return "QAttention has no qkv_hidden_sizes"
    if any(_input(node, index) is not None for index in (5, 6)):
        return "QAttention takes no attention_bias and no past_sequence_length"
    if "rotary_embedding_dim" in node.attributes:
        return "QAttention has no rotary_embedding_dim"
    return None


def _table_refusal(node: ir.Node) -> str | None:
    table = node.inputs[0]
    if table is None or not table.is_initializer() or table.is_graph_output() or not is_table(table):
        return "its table is read by others too, or not by rows"
    return None if _array(table).shape[1] > 1 else "storing its table takes as much"


_FORMS = {
    "Gemm": _gemm_refusal,
    "LSTM": _lstm_refusal,
    "Attention": _attention_refusal,
    "Gather": _table_refusal,
}


class _Rounded(NamedTuple):
    """An activation after DynamicQuantizeLinear."""

    codes: ir.Value
    scale: ir.Value
    zero_point: ir.Value


_Held = tuple[ir.Value, ir.Value]
"""Codes and scale of a weight, as constants."""


class Writer:
    """Writes nodes of one model; activations and weights that several nodes read are quantized once.

    Args:
        model: changed in place.
        per_channel: one weight scale per output channel, or one per weight.
        bits: 8 or 7.
        names: every name in use.
    """

    def __init__(self, model: ir.Model, per_channel: bool, bits: int, names: set[str]) -> None:
        self.model = model
        self.per_channel = per_channel
        self.bits = bits
        self.names = names
        self._rounded: dict[tuple[ir.Graph, ir.Value], _Rounded] = {}
        self._weights: dict[tuple[ir.Value, bool, float], _Held] = {}

    def write(self, node: ir.Node) -> None:
        """Replace one node that `refusal` lets pass. Nodes must come in the order of their graph."""
        if node.graph is None:
            return  # another Gather on the same table has taken it along
        graph = node.graph if isinstance(node.graph, ir.Graph) else node.graph.graph
        place = Inserter(self.model, graph, node, self.names)
        if node.op_type == "LSTM":
            self._lstm(place, node)
        elif node.op_type == "Attention":
            self._attention(place, node)
        elif node.op_type == "Gather":
            self._table(node)
        else:
            self._product(place, node)

    def _product(self, place: Inserter, node: ir.Node) -> None:
        name = str(node.name)
        turned, alpha = bool(attribute(node, "transB", 0)), _number(node, "alpha")
        rounded = self._activation(place, node.inputs[0])
        codes, scale = self._matrix(place, node.inputs[1], turned, alpha)
        whole = place.add("MatMulInteger", [rounded.codes, codes, rounded.zero_point], f"{name}_integer")
        self._sign(whole.producer(), node.inputs[1])
        real = place.add("Cast", [whole], f"{name}_float", to=int(_FLOAT))
        step = place.add("Mul", [rounded.scale, scale], f"{name}_step")
        made = place.add("Mul", [real, step], f"{name}_scaled")
        bias = _input(node, 2)
        if bias is not None:
            made = place.add("Add", [made, self._bias(place, node, bias)], f"{name}_biased")
        take_over(node, made)

    def _table(self, node: ir.Node) -> None:
        """Rows of int8, gathered and then scaled, for every Gather on the table at once."""
        table = node.inputs[0]
        if table is not None:
            store_rows(at_start(self.model, table, self.names), table, (8, 0))

    def _activation(self, place: Inserter, value: ir.Value | None) -> _Rounded:
        if value is None:
            raise ValueError("a product without an input")
        key = (place.graph, value)
        if key not in self._rounded:
            name = place.fresh(f"{value.name}_quantize")
            made = ir.node("DynamicQuantizeLinear", [value], num_outputs=3, name=name)
            for out, part in zip(made.outputs, ("quantized", "scale", "zero_point"), strict=True):
                out.name = place.fresh(f"{value.name}_{part}")
            place.graph.insert_before(place.before, made)
            self._rounded[key] = _Rounded(*made.outputs)
        return self._rounded[key]

    def _matrix(self, place: Inserter, weight: ir.Value | None, turned: bool, factor: float) -> _Held:
        """int8 [inputs, outputs] and its float scale, [outputs] or []."""
        array = stored_weight(weight)
        if weight is None or array is None:
            raise ValueError("a product without a constant weight")
        key = (weight, turned, factor)
        if key not in self._weights:
            coded = self._coded(weight)
            if coded is None:
                matrix = (array.T if turned else array) * np.float32(factor)
                made = q.quantize_weight(matrix, 1 if self.per_channel else None, bits=self.bits)
                codes, scale = made.codes, made.grid.scale
            else:
                codes, scale = _array(coded.codes), coded.rows().scale * np.float32(factor)
                codes = codes.T if turned else codes
            self._weights[key] = self._keep(place, str(weight.name), codes, scale)
        return self._weights[key]

    def _coded(self, weight: ir.Value | None) -> CodedWeight | None:
        """The coded weight that a value is, unless its codes are wider than the weights of this writer."""
        coded = coded_value(weight)
        if coded is None:
            return None
        widest = np.abs(_array(coded.codes).astype(np.int16)).max(initial=0)
        return coded if widest < 2 ** (self.bits - 1) else None

    def _sign(self, node: ir.Node | None, weight: ir.Value | None) -> None:
        """Let a node say how the codes that it reads now were found."""
        coded = self._coded(weight)
        if node is not None and coded is not None:
            node.metadata_props[KEY] = str(coded.method)

    def _keep(self, place: Inserter, name: str, codes: np.ndarray, scale: np.ndarray) -> _Held:
        """Constants of the main graph, so that bodies can share them."""
        home = Inserter(self.model, self.model.graph, place.before, self.names)
        return home.constant(f"{name}_quantized", codes), home.constant(f"{name}_scale", scale)

    def _bias(self, place: Inserter, node: ir.Node, bias: ir.Value) -> ir.Value:
        """Gemm's C times beta; a constant row as a vector, which fuses."""
        beta, array = _number(node, "beta"), constant(bias) if is_constant(bias) else None
        if array is None or (beta == 1 and array.ndim == 1):
            return bias
        flat = array.reshape(-1) if array.ndim == 2 and array.shape[0] == 1 else array
        return place.constant(f"{bias.name}_row", flat * np.float32(beta))

    def _lstm(self, place: Inserter, node: ir.Node) -> None:
        """W [directions, 4 hidden, inputs] becomes int8 [directions, inputs, 4 hidden]; R alike."""
        parts: list[ir.Value] = []
        for index in (1, 2):
            weight = node.inputs[index]
            array = constant(weight)
            if weight is None or array is None:
                raise ValueError(f"{node.name}: no constant weight")
            codes, scale = self._directions(array)
            held = self._keep(place, str(weight.name), codes, scale)
            parts += [*held, place.constant(f"{weight.name}_zero_point", np.zeros(scale.shape, np.int8))]
        w, w_scale, w_zero, r, r_scale, r_zero = parts
        rest = [_input(node, index) for index in range(3, 8)]
        inputs = [node.inputs[0], w, r, *rest, w_scale, w_zero, r_scale, r_zero]
        attributes = [a for a in node.attributes.values() if a.name != "layout"]
        self._swap(place, node, "DynamicQuantizeLSTM", inputs, attributes)

    def _directions(self, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int8 [directions, inputs, 4 hidden], and scales [directions, 4 hidden] or [directions]."""
        axis = 1 if self.per_channel else None
        held = [q.quantize_weight(part.T, axis, bits=self.bits) for part in array]
        return np.stack([h.codes for h in held]), np.stack([h.grid.scale for h in held])

    def _attention(self, place: Inserter, node: ir.Node) -> None:
        rounded, weight = self._activation(place, node.inputs[0]), node.inputs[1]
        codes, scale = self._matrix(place, weight, False, 1.0)
        bias = _input(node, 2)
        if bias is None:
            columns = _array(codes).shape[1]
            bias = place.constant(f"{node.name}_bias", np.zeros(columns, np.float32))
        zero = place.constant(f"{node.name}_weight_zero_point", np.zeros(_array(scale).shape, np.int8))
        mask, past = _input(node, 3), _input(node, 4)
        inputs = [rounded.codes, codes, bias, rounded.scale, scale, mask, rounded.zero_point, zero, past]
        made = self._swap(place, node, "QAttention", inputs, list(node.attributes.values()))
        self._sign(made, weight)

    def _swap(
        self,
        place: Inserter,
        node: ir.Node,
        kind: str,
        inputs: list[ir.Value | None],
        attributes: list[ir.Attr],
    ) -> ir.Node:
        """Put a com.microsoft node with the same outputs in the place of `node`."""
        count = len(node.outputs)
        name = place.fresh(f"{node.name}_integer")
        made = ir.Node("com.microsoft", kind, inputs, attributes, num_outputs=count, name=name)
        self.model.graph.opset_imports["com.microsoft"] = 1
        place.graph.insert_before(node, made)
        for old, new in zip(node.outputs, made.outputs, strict=True):
            new.type, new.shape = old.type, old.shape
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
            taken, old.name = old.name, f"{old.name}_replaced"
            new.name = taken
        place.graph.remove(node, safe=True)
        return made


def _array(value: ir.Value | None) -> np.ndarray:
    array = constant(value)
    if array is None:
        raise ValueError("a weight that is not a constant")
    return array


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _number(node: ir.Node, name: str) -> float:
    found = node.attributes.get(name)
    return 1.0 if found is None else found.as_float()
