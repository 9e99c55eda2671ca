"""Which nodes run in integers, and which values carry a QuantizeLinear/DequantizeLinear pair.

Only patterns that onnxruntime fuses into integer kernels are planned, because a QDQ pattern that it does not fuse is
slower than float: the weights are then dequantized at every run. Measured on x86 (onnxruntime 1.31):

    Conv -> (Relu | Clip 0..c) -> Q          always needs a quantized output; zero point at the activation's floor
    Gemm, MatMul                             quantized output, or float output when the bias is int32 or absent
    Add, Mul, Concat, GlobalAveragePool,     only when every input comes from an integer kernel;
    LeakyRelu, Sigmoid, MaxPool, Reshape...  a float island around them loses
    AveragePool, Softmax, LayerNormalization, HardSwish, ConvTranspose, LSTM, ReduceMean, ...   stay float
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from compressor.graph import attribute, constant, is_constant, matches, rank, sole_consumer
from compressor.low_bit.coded_weights import coded_value
from compressor.low_bit.signs import signs

COMPUTE = ("Conv", "Gemm", "MatMul")
REQUANTIZE = ("Add", "Mul", "Concat", "GlobalAveragePool", "LeakyRelu", "Sigmoid")
SAME_GRID = (
    "MaxPool",
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Resize",
    "DepthToSpace",
    "Pad",
)
OPERATORS = (*COMPUTE, *REQUANTIZE, *SAME_GRID)
_NO_KERNEL = {
    "ConvTranspose": "onnxruntime has no integer kernel for it",
    "LSTM": "onnxruntime has no static integer kernel for it; quantize-dynamic has",
    "GRU": "onnxruntime has no integer kernel for it",
    "RNN": "onnxruntime has no integer kernel for it",
    "Attention": "onnxruntime has no static integer kernel for it; quantize-dynamic has",
}


@dataclass(frozen=True)
class Selection:
    """What the user wants quantized: operator types (empty: all that pay) and globs over node and weight names.

    `products` names the Gemm nodes that were MatMul nodes in the user's model.
    """

    operators: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    products: frozenset[str] = frozenset()

    def refuses(self, node: ir.Node) -> str | None:
        """Why the user's selection leaves the node out, or None."""
        names = (node.name, *(v.name for v in node.inputs[1:] if v is not None))
        kind = "MatMul" if node.name in self.products else node.op_type
        if self.operators and kind not in self.operators:
            return f"{kind} is not among ops"
        if self.include and node.op_type in COMPUTE and not matches(names, self.include):
            return "no include pattern fits it"
        return "excluded" if matches(names, self.exclude) else None


@dataclass
class Plan:
    """What to quantize.

    Args:
        compute: Conv, Gemm and MatMul nodes that become integer kernels.
        made: values that an integer kernel produces; every consumer reads them through the pair.
        taken: float values that integer kernels read; only those read them through the pair.
        held: values that stand on a grid of their own: binary activations.
        same: value -> the value whose grid it shares.
        bounds: value -> (low, high) that the activation before it allows.
        declined: node name -> why it stays float.
    """

    compute: list[ir.Node] = field(default_factory=list)
    made: dict[ir.Value, None] = field(default_factory=dict)
    taken: dict[ir.Value, None] = field(default_factory=dict)
    held: dict[ir.Value, None] = field(default_factory=dict)
    same: dict[ir.Value, ir.Value] = field(default_factory=dict)
    bounds: dict[ir.Value, tuple[float, float]] = field(default_factory=dict)
    readers: dict[ir.Value, list[ir.Node]] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)

    def root(self, value: ir.Value) -> ir.Value:
        """The value whose observed range gives this one its grid."""
        while value in self.same:
            value = self.same[value]
        return value

    def sources(self) -> list[str]:
        """Names of the values that integer kernels with weights read."""
        return list(dict.fromkeys(str(n.inputs[0].name) for n in self.compute if n.inputs[0] is not None))

    def observed(self) -> list[str]:
        """Names of the values whose ranges are needed."""
        roots = (self.root(v) for v in (*self.taken, *self.made))
        return list(dict.fromkeys(str(root.name) for root in roots if root not in self.held))

    def is_integer(self, value: ir.Value) -> bool:
        """Whether the value is made of integer codes, whoever reads it."""
        return value in self.made or value in self.held


def plan(model: ir.Model, selection: Selection, withdrawn: Iterable[str] = ()) -> Plan:
    """The plan for the main graph.

    Args:
        model: prepared, with shapes.
        selection: the user's choice.
        withdrawn: names of nodes that turned out not to fuse on the target.
    """
    found = signs(model)
    result = Plan(held={sign.value: None for sign in found})
    compared = {sign.comparison for sign in found}
    away = set(withdrawn)
    for node in model.graph:
        if node.op_type in COMPUTE and node.domain in ("", "ai.onnx"):
            reason = selection.refuses(node) or refusal(node)
            if node.name in away:
                reason = "onnxruntime does not fuse it here, so it would be slower than float"
            if reason is None:
                result.compute.append(node)
            else:
                result.declined[str(node.name)] = reason
        elif node.op_type in _NO_KERNEL:
            result.declined[str(node.name)] = _NO_KERNEL[node.op_type]
    _decline_bodies(model, result)
    chosen = set(result.compute)
    for node in model.graph:
        if node in chosen:
            _add_compute(node, chosen, compared, result)
        elif (
            node.op_type in (*REQUANTIZE, *SAME_GRID)
            and node.domain in ("", "ai.onnx")
            and node.name not in away
            and not selection.refuses(node)
        ):
            _add_follower(node, chosen, result)
    return result


def activation_end(node: ir.Node) -> tuple[ir.Value, tuple[float, float] | None]:
    """The value behind a Relu or Clip(0, c) that alone reads the node's output, and the bounds it sets."""
    out = node.outputs[0]
    after = sole_consumer(out)
    if after is None or after.graph is not node.graph:
        return out, None
    if after.op_type == "Relu":
        return after.outputs[0], (0.0, float("inf"))
    if (
        after.op_type == "Clip"
        and (limits := _clip_limits(after)) is not None
        and limits[0] == 0.0 < limits[1]
    ):
        return after.outputs[0], limits
    return out, None


def _clip_limits(node: ir.Node) -> tuple[float, float] | None:
    low, high = float("-inf"), float("inf")
    if "min" in node.attributes or "max" in node.attributes:
        low = node.attributes["min"].as_float() if "min" in node.attributes else low
        high = node.attributes["max"].as_float() if "max" in node.attributes else high
        return low, high
    for index in (1, 2):
        given = node.inputs[index] if len(node.inputs) > index else None
        if given is None:
            continue
        array = constant(given) if is_constant(given) else None
        if array is None or array.size != 1:
            return None
        low, high = (array.item(), high) if index == 1 else (low, array.item())
    return low, high


def refusal(node: ir.Node) -> str | None:
    """Why the node cannot be an integer kernel, whatever the user wants."""
    source, weight = node.inputs[0], node.inputs[1]
    if source is None or is_constant(source):
        return "its input is a constant"
    array = stored_weight(weight)
    if array is None:
        made_by = None if weight is None else weight.producer()
        decoded = made_by is not None and made_by.op_type == "DequantizeLinear"
        return "it is quantized already" if decoded else "its second operand is not a constant"
    if reason := _coded_refusal(node):
        return reason
    if array.dtype.name != "float32" or not array.size:
        return f"its weight is {'not float32' if array.size else 'empty'}"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not is_constant(bias):
        return "its bias is computed in the graph"
    added = None if bias is None else constant(bias)
    if not np.isfinite(array).all() or (added is not None and not np.isfinite(added).all()):
        return "its weight or bias contains NaN or infinity"
    if node.op_type == "Conv":
        return None if array.ndim in (3, 4) else "no fast integer kernel for a 3-D convolution"
    if node.op_type == "MatMul":
        return None if array.ndim == 2 else "its weight is not a matrix"
    return _gemm_refusal(node, added)


def stored_weight(value: ir.Value | None) -> np.ndarray | None:
    """What a layer multiplies by, float: a constant, or what the codes of a coded weight stand for; None otherwise."""
    coded = coded_value(value)
    if coded is not None:
        return coded.decoded()
    return constant(value) if is_constant(value) else None


def output_axis(node: ir.Node) -> int:
    """The axis of a weight that counts the output channels."""
    if node.op_type == "Conv":
        return 0
    return 0 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 1


def _coded_refusal(node: ir.Node) -> str | None:
    """Why an integer kernel cannot read the codes of a coded weight; None where it can, or there are none."""
    coded = coded_value(node.inputs[1])
    if coded is None:
        return None
    if not coded.in_place:
        return "the codes of its weight have scales per block, which no integer kernel takes"
    return None if coded.axis == output_axis(node) else "the scales of its codes run along its inputs"


def _gemm_refusal(node: ir.Node, bias: np.ndarray | None) -> str | None:
    plain = all(node.attributes[k].as_float() == 1 for k in ("alpha", "beta") if k in node.attributes)
    if attribute(node, "transA", 0) or not plain:
        return "a Gemm with transA, alpha or beta"
    varies = bias is not None and bias.size > 1 and bias.shape[-1] != bias.size
    return "its bias differs per row" if varies else None


def _decline_bodies(model: ir.Model, result: Plan) -> None:
    """Nodes inside If, Loop and Scan: their activations cannot be watched from outside."""
    for graph in model.graphs():
        if graph is model.graph:
            continue
        for node in graph:
            if node.op_type in COMPUTE and node.domain in ("", "ai.onnx"):
                result.declined[str(node.name)] = (
                    "inside an If, Loop or Scan body, where activations cannot be watched"
                )


def _add_compute(node: ir.Node, chosen: set[ir.Node], compared: set[ir.Node], result: Plan) -> None:
    source = node.inputs[0]
    if source is None:
        return
    _reads(node, source, result)
    end, bounds = activation_end(node)
    reading = (
        chosen if bounds is None else chosen | compared
    )  # a Relu of floats would make the Gemm one of floats
    if node.op_type == "Conv" or _only_read_by(end, reading):
        result.made[end] = None
        if bounds:
            result.bounds[end] = bounds


def _add_follower(node: ir.Node, chosen: set[ir.Node], result: Plan) -> None:
    data = [v for v in _data_inputs(node) if v is not None]
    if not any(result.is_integer(v) for v in data) or not _fits(node):
        return
    if not all(result.is_integer(v) or _is_read_by(v, chosen) for v in data):
        return
    if node.op_type in SAME_GRID:
        if node.op_type != "MaxPool" and not _leads_to(node.outputs[0], chosen):
            return
        result.same[node.outputs[0]] = data[0]
        result.made[node.outputs[0]] = None
    else:
        end, bounds = activation_end(node)
        result.made[end] = None
        if bounds or node.op_type == "Sigmoid":
            result.bounds[end] = bounds or (0.0, 1.0)
    for value in data:
        _reads(node, value, result)


def _data_inputs(node: ir.Node) -> tuple[ir.Value | None, ...]:
    """The inputs that carry activations; shapes, indices and sizes are left out."""
    return tuple(node.inputs) if node.op_type in ("Add", "Mul", "Concat") else tuple(node.inputs[:1])


def _fits(node: ir.Node) -> bool:
    if node.op_type == "Resize":
        mode = node.attributes.get("mode")
        return mode is None or mode.as_string() == "nearest"
    if node.op_type == "Pad":
        filler = node.inputs[2] if len(node.inputs) > 2 else None
        return filler is None or (is_constant(filler) and not (constant(filler) or 0))
    if node.op_type == "MaxPool":
        return len(node.outputs) == 1 and rank(node.inputs[0]) in (3, 4)
    return node.op_type != "GlobalAveragePool" or rank(node.inputs[0]) == 4


def _leads_to(value: ir.Value, chosen: set[ir.Node]) -> bool:
    """True when some consumer, behind operators that work on integers, is an integer kernel."""
    through = (*SAME_GRID, *REQUANTIZE, "Relu", "Clip")
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop()
        if _is_read_by(current, chosen):
            return True
        ahead = {u.node.outputs[0] for u in current.uses() if u.node.op_type in through} - seen
        seen |= ahead
        waiting += ahead
    return False


def _is_read_by(value: ir.Value, chosen: set[ir.Node]) -> bool:
    """True when an integer kernel reads the value as its activation, so that it is quantized anyway."""
    return any(u.node in chosen and u.idx == 0 for u in value.uses())


def _only_read_by(value: ir.Value, chosen: set[ir.Node]) -> bool:
    uses = list(value.uses())
    return bool(uses) and not value.is_graph_output() and all(u.node in chosen and u.idx == 0 for u in uses)


def _reads(node: ir.Node, value: ir.Value, result: Plan) -> None:
    if not result.is_integer(value):
        result.taken[value] = None
        result.readers.setdefault(value, []).append(node)
