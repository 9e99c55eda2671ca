"""Writing QuantizeLinear/DequantizeLinear pairs into a graph in the exact form that onnxruntime fuses.

Scales and zero points of activations are scalars ([1] makes models unloadable); the int32 bias scale is exactly the
float32 product s_x * s_w (any other is fused all the same by Gemm and gives wrong results).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compressor import quantization as q
from compressor.bias_correction import shift
from compressor.clipping import Range
from compressor.graph import add_initializer, attribute, constant, remove_dead
from compressor.low_bit.coded_weights import CodedWeight, coded_value, rewrite
from compressor.low_bit.codes import Codes
from compressor.low_bit.signs import sign_of
from compressor.packing import names_of
from compressor.placement import Plan, output_axis, stored_weight

_SLOW_IN_INTEGERS = ("MaxPool", "AveragePool", "Softmax")
_MOVES = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Relu", "Clip")


@dataclass(frozen=True)
class Scheme:
    """Integer types and granularity.

    `barriers` keeps onnxruntime from moving a QuantizeLinear in front of a float pooling or Softmax, where the integer
    kernel is 3 to 15 times slower than the float one (measured on x86: MaxPool 15, AveragePool 3).
    """

    activations: q.Kind = "uint8"
    weights: q.Kind = "int8"
    per_channel: bool = True
    symmetric: bool = False
    bits: int = 8
    barriers: bool = False


class Writer:
    """Writes one plan into one graph; holds the grids already written.

    Args:
        model: changed in place.
        plan: of this very model.
        ranges: value -> what its grid must represent.
        scheme: integer types and granularity.
        means: value -> mean of each channel, where a layer that reads it is to have its bias corrected.

    Attributes:
        latents: name of written weight and bias codes -> the floats that they round.
    """

    def __init__(
        self,
        model: ir.Model,
        plan: Plan,
        ranges: Mapping[str, Range],
        scheme: Scheme,
        means: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.means = means or {}
        self.latents: dict[str, ir.TensorProtocol] = {}
        self.graph = model.graph
        self.model = model
        self.plan = plan
        self.ranges = ranges
        self.scheme = scheme
        self._grids: dict[ir.Value, tuple[ir.Value, ir.Value, q.Grid]] = {}
        self._weights: dict[tuple[ir.Value, int | None, bytes], ir.Value] = {}
        self._zeros: dict[int, ir.Value] = {}
        self._names = names_of(model)

    def write(self) -> None:
        """Insert all pairs; the plan's values become what the graph computes around them."""
        for node in self.plan.compute:
            self._weigh(node)
        for value in self.plan.made:
            self._pair(value, None)
        for value in self.plan.taken:
            self._pair(value, self.plan.readers[value])
        for value in self.plan.same:
            self._pad_integers(value)
        remove_dead(self.model)

    def grid(self, value: ir.Value) -> tuple[ir.Value, ir.Value, q.Grid]:
        """Scale, zero point (as graph values) and grid of an activation."""
        root = self.plan.root(value)
        if (sign := sign_of(root)) is not None:
            return sign.step, sign.zero_point, q.Grid(*map(_array, (sign.step, sign.zero_point)))
        if root not in self._grids:
            grid = self._choose(root)
            name = str(root.name)
            scale = self._store(f"{name}_scale", grid.scale)
            zero = self._store(f"{name}_zero_point", grid.zero_point)
            self._grids[root] = (scale, zero, grid)
        return self._grids[root]

    def _choose(self, root: ir.Value) -> q.Grid:
        low, high = self.ranges[str(root.name)]
        floor, ceiling = self.plan.bounds.get(root, (-np.inf, np.inf))
        low, high = max(low, floor), min(high, ceiling)
        grid = q.activation_grid(low, high, self.scheme.activations, self.scheme.symmetric)
        lowest = grid.zero_point == np.iinfo(grid.zero_point.dtype).min
        if lowest and float(grid.scale) * 255 > ceiling:  # a Clip is fused only if no code lies above it
            grid = q.Grid(np.asarray(np.nextafter(grid.scale, np.float32(0))), grid.zero_point)
        return grid

    def _pair(self, value: ir.Value, readers: list[ir.Node] | None) -> None:
        """Put Q and DQ behind `value`, for the given readers or for all."""
        scale, zero, _ = self.grid(value)
        name = str(value.name)
        barrier = self._barrier(value) if readers and self.scheme.barriers and is_pooled(value) else None
        source = value if barrier is None else barrier.outputs[0]
        quantize = ir.node("QuantizeLinear", [source, scale, zero], name=self._fresh(f"{name}_quantize"))
        dequantize = ir.node(
            "DequantizeLinear", [quantize.outputs[0], scale, zero], name=self._fresh(f"{name}_dequantize")
        )
        integer, real = quantize.outputs[0], dequantize.outputs[0]
        integer.name, real.name = self._fresh(f"{name}_quantized"), self._fresh(f"{name}_dequantized")
        integer.type, real.type = (
            ir.TensorType(zero.dtype or ir.DataType.UINT8),
            ir.TensorType(ir.DataType.FLOAT),
        )
        integer.shape, real.shape = value.shape, value.shape
        for use in list(value.uses()):
            if (
                use.node not in (quantize, barrier)
                and (readers is None or use.node in readers)
                and self._is_data(use.node, use.idx, readers)
            ):
                use.node.replace_input_with(use.idx, real)
        made = [quantize, dequantize] if barrier is None else [barrier, quantize, dequantize]
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], made)
        else:
            producer_graph = producer.graph or self.graph
            producer_graph.insert_after(producer, made)
        if readers is None and value.is_graph_output():
            self._take_over_output(value, real)

    def _pad_integers(self, value: ir.Value) -> None:
        """Turn DQ -> Pad -> Q on one grid into a Pad of the integers with the zero point, which nothing else fuses."""
        pad = value.producer()
        if pad is None or pad.op_type != "Pad" or pad.inputs[0] is None:
            return
        before = pad.inputs[0].producer()
        after = next(u.node for u in value.uses() if u.node.op_type == "QuantizeLinear")
        if before is None:
            return
        if len(pad.inputs) < 3:
            pad.resize_inputs(3)
        pad.replace_input_with(0, before.inputs[0])
        pad.replace_input_with(2, after.inputs[2])
        integer = after.outputs[0]
        value.type = integer.type
        ir.convenience.replace_all_uses_with(integer, value)
        self.graph.remove(after, safe=True)

    def _is_data(self, node: ir.Node, index: int, readers: list[ir.Node] | None) -> bool:
        return readers is None or node.op_type not in ("Conv", "Gemm", "MatMul") or index == 0

    def _barrier(self, value: ir.Value) -> ir.Node:
        """A Max with the lowest float: changes nothing, and QuantizeLinear does not pass it."""
        name = str(value.name)
        lowest = self._store(f"{name}_lowest", np.asarray(np.finfo(np.float32).min))
        node = ir.node("Max", [value, lowest], name=self._fresh(f"{name}_barrier"))
        out = node.outputs[0]
        out.name, out.type, out.shape = self._fresh(f"{name}_pooled"), value.type, value.shape
        return node

    def _fresh(self, name: str) -> str:
        """The name, or name_1, name_2, ... when a value or node has it."""
        found = next(
            n for i in range(len(self._names) + 1) if (n := f"{name}_{i}" if i else name) not in self._names
        )
        self._names.add(found)
        return found

    def _store(self, name: str, array: np.ndarray) -> ir.Value:
        return add_initializer(self.graph, self._fresh(name), array)

    def _take_over_output(self, value: ir.Value, real: ir.Value) -> None:
        """The dequantized value becomes the graph's output, under the output's name."""
        outputs = self.graph.outputs
        for index, output in enumerate(outputs):
            if output is value:
                outputs[index] = real
        name = str(value.name)
        value.name = self._fresh(f"{name}_float")
        real.name = name

    def _weigh(self, node: ir.Node) -> None:
        """Replace weight and bias of a node by dequantized integers."""
        weight, source = node.inputs[1], node.inputs[0]
        if weight is None or source is None:
            raise ValueError(f"{node.name}: an input is missing")
        grid = self.grid(source)[2]
        array, bias = stored_weight(weight), constant(node.inputs[2]) if len(node.inputs) > 2 else None
        real, scale = self._weight(node, weight, bias, float(grid.scale))
        node.replace_input_with(1, real)
        lost = None if array is None or real is weight else self._lost(node, source, array, scale)
        if lost is None and bias is None:
            return
        channels = self._channels(node, weight)
        flat = np.zeros(channels) if bias is None else np.broadcast_to(bias.reshape(-1), (channels,))
        shifted = flat if lost is None else flat + lost
        codes = q.quantize_bias(shifted, grid.scale, scale)
        had = node.inputs[2] if len(node.inputs) > 2 else None
        name = str(had.name) if had is not None else f"{node.name}_bias"
        value = self._store(f"{name}_quantized", codes.codes)
        step = self._store(f"{name}_scale", codes.grid.scale)
        self.latents[str(value.name)] = ir.tensor(shifted)
        node.resize_inputs(3)
        node.replace_input_with(2, self._dequantized(node, value, step, None, 0))

    def _lost(
        self, node: ir.Node, source: ir.Value, array: np.ndarray, scale: np.ndarray
    ) -> np.ndarray | None:
        """What rounding the weights takes off the mean output of each channel; None when the mean is not known."""
        mean = self.means.get(str(source.name))
        if mean is None or node.op_type == "MatMul":
            return None
        axis = output_axis(node)
        along = axis if scale.ndim else None
        grid = q.Grid(scale, np.zeros(scale.shape, np.int8))
        codes = q.codes_on(array, grid, along, bits=self.scheme.bits)
        error = array - q.dequantize(codes.codes, codes.grid, along)
        groups = attribute(node, "group", 1)
        error = error if axis == 0 else error.T
        return shift(error, mean, groups) if mean.size == groups * error.shape[1] else None

    def _weight(
        self, node: ir.Node, weight: ir.Value, bias: np.ndarray | None, step: float
    ) -> tuple[ir.Value, np.ndarray]:
        coded, array = coded_value(weight), stored_weight(weight)
        if array is None:
            raise ValueError(f"{node.name}: no constant weight")
        if coded is not None and (held := self._held(coded, bias, step)) is not None:
            if node.op_type != "Conv":  # which alone is fused without one
                self._add_zero_point(coded)
            return weight, held
        axis = output_axis(node) if self.scheme.per_channel else None
        grid = q.weight_grid(array, axis, self.scheme.bits)
        if bias is not None:
            grid = q.widen_for_bias(grid, bias.reshape(-1), step)
        key = (weight, axis, grid.scale.tobytes())
        if key not in self._weights:
            codes = q.codes_on(array, grid, axis, self.scheme.weights, self.scheme.bits)
            name = str(weight.name)
            value = self._store(f"{name}_quantized", codes.codes)
            scale = self._store(f"{name}_scale", codes.grid.scale)
            zero = self._store(f"{name}_zero_point", codes.grid.zero_point)
            self.latents[str(value.name)] = weight.const_value or ir.tensor(array)
            self._weights[key] = self._dequantized(node, value, scale, zero, axis)
        return self._weights[key], grid.scale

    def _held(self, coded: CodedWeight, bias: np.ndarray | None, step: float) -> np.ndarray | None:
        """The scale of codes that stay; None where they are too wide, or another layer needs another scale.

        Where the int32 bias would overflow, which is next to a weight that hardly counts, the scale is raised. Codes of
        -1, 0 and 1 stay then: n of them are worth n 255 / 2^31 of the bias at most.
        """
        codes, scale = coded.rows()
        widest = int(np.abs(codes.astype(np.int16)).max(initial=0))
        if widest >= 2 ** (self.scheme.bits - 1):
            return None
        grid = q.Grid(scale, np.zeros(scale.shape, np.int8))
        needed = scale if bias is None else q.widen_for_bias(grid, bias.reshape(-1), step).scale
        if np.array_equal(needed, scale):
            return scale
        if len(coded.layers) > 1:
            return None
        moved = codes if widest == 1 else np.rint(codes * (scale / needed)[:, None]).astype(np.int8)
        rewrite(coded, Codes(moved, needed), coded.method)
        return needed

    def _add_zero_point(self, coded: CodedWeight) -> None:
        channels = coded.rows().scale.size
        if channels not in self._zeros:
            self._zeros[channels] = self._store(f"{channels}_zeros", np.zeros(channels, np.int8))
        coded.node.resize_inputs(3)
        coded.node.replace_input_with(2, self._zeros[channels])

    def _dequantized(
        self, node: ir.Node, value: ir.Value, scale: ir.Value, zero: ir.Value | None, axis: int | None
    ) -> ir.Value:
        attributes = {} if axis is None or rank_of(scale) == 0 else {"axis": axis}
        inputs = [value, scale] if zero is None else [value, scale, zero]
        made = ir.node("DequantizeLinear", inputs, attributes, name=self._fresh(f"{value.name}_dequantize"))
        real = made.outputs[0]
        real.name = self._fresh(f"{value.name}_dequantized")
        real.type, real.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
        self.graph.insert_before(node, made)
        return real

    def _channels(self, node: ir.Node, weight: ir.Value) -> int:
        array = stored_weight(weight)
        return 0 if array is None else int(array.shape[output_axis(node)])


def _array(value: ir.Value) -> np.ndarray:
    array = constant(value)
    if array is None:
        raise ValueError(f"{value.name!r} is not a constant")
    return array


def is_pooled(value: ir.Value) -> bool:
    """True behind MaxPool, AveragePool or Softmax, also when only moved since then."""
    node = value.producer()
    while node is not None and node.op_type in _MOVES and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type in _SLOW_IN_INTEGERS


def rank_of(value: ir.Value) -> int:
    """The number of dimensions of a constant."""
    return 0 if value.shape is None else len(value.shape)
