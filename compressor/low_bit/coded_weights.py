"""Weights of few bits as they stand in a graph between passes: int8 codes behind one DequantizeLinear.

    w_codes (int8) -> DequantizeLinear(w_codes, w_scale float32, axis of the outputs) = w -> the layers that read w

Where the scales do not run along one axis of the weight (blocks of inputs, groups of a ConvTranspose, directions of an
LSTM), the codes are stored as rows:

    w_codes [rows, n] -> DequantizeLinear(axis=0) -> [Slice] -> Reshape [-> Transpose -> Reshape] = w

The DequantizeLinear says in its metadata how its codes were found, so that every pass knows them again; the value that
layers read has the weight's name. There is no zero point: codes of zero are zero.

    coded_weights(model) -> list[CodedWeight]
    CodedWeight(node, codes, scale, method, value)      .name .rows() .decoded() .layers()
    rows_of(weight: prunable.Weight, block=0) -> float32 [rows, n]
    write(model, weight, codes: Codes, method: Method, block=0, names=None) -> CodedWeight
    rewrite(coded, codes: Codes, method: Method) -> CodedWeight     other codes of the same shape in their place
    integer_operands(model) -> dict[ir.Value, int]                  codes that quantize-dynamic wrote into products
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np
import onnx_ir as ir

from compressor.graph import attribute, constant, is_constant, nodes
from compressor.low_bit.codes import Codes, Method
from compressor.packing import Inserter, at_start, head, names_of, reshaped
from compressor.pruning.masks import Layout
from compressor.pruning.prunable import Weight
from compressor.weight_codes import Use

KEY = "compressor.codes"
"""Key in the metadata of a DequantizeLinear of codes; the value is `str(Method)`."""
VIEW = "compressor.codes.view"
"""Key in the metadata of the nodes behind it that only bring the rows into the weight's shape."""
_PRODUCTS = ("MatMulInteger", "QAttention")
FLOATS = "compressor.codes.floats"
"""Key in the metadata of a DequantizeLinear of codes that are stored to run as floats, whatever else is faster."""
OPSET = 13
"""DequantizeLinear has an axis from this operator set on."""


@dataclass(frozen=True)
class CodedWeight:
    """A weight that stands in the graph as codes.

    Args:
        node: the DequantizeLinear.
        codes: its int8 initializer, in the weight's own shape or as [rows, n].
        scale: its float32 initializer, one number per row.
        method: how the codes were found.
        value: what layers read; it has the weight's name.
    """

    node: ir.Node
    codes: ir.Value
    scale: ir.Value
    method: Method
    value: ir.Value

    @property
    def name(self) -> str:
        """The name of the weight."""
        return str(self.value.name)

    @property
    def in_place(self) -> bool:
        """Whether the codes have the weight's own shape, so that an integer kernel can read them."""
        return self.value is self.node.outputs[0]

    @property
    def axis(self) -> int:
        """The axis of the codes that the scale runs along."""
        return attribute(self.node, "axis", 1)

    @property
    def layers(self) -> list[Use]:
        """Where the weight is read, in the order of the graph."""
        return [Use(use.node, use.idx) for use in self.value.uses()]

    def rows(self) -> Codes:
        """The codes as [rows, n], the axis of the scale first and the others in their order."""
        codes, scale = _array(self.codes), _array(self.scale)
        turned = np.moveaxis(codes, self.axis, 0)
        return Codes(np.ascontiguousarray(turned.reshape(len(turned), -1)), scale)

    def decoded(self) -> np.ndarray:
        """The weight that the layers read, float32 in its own shape, as onnxruntime computes it."""
        codes, scale = _array(self.codes), _array(self.scale)
        along = [-1 if axis == self.axis else 1 for axis in range(codes.ndim)]
        array: np.ndarray = np.asarray(codes.astype(np.float32) * scale.reshape(along), np.float32)
        for node in _views(self.node):
            array = _moved(node, array)
        return array


def coded_weights(model: ir.Model) -> list[CodedWeight]:
    """Every weight that stands as codes, those of bodies included, in the order of the graph."""
    return [found for node in nodes(model) if (found := coded_by(node)) is not None]


def coded_by(node: ir.Node) -> CodedWeight | None:
    """The weight whose codes a node decodes; None where it is no DequantizeLinear of codes with their scale."""
    text = node.metadata_props.get(KEY)
    if text is None or node.op_type != "DequantizeLinear":
        return None
    codes, scale = node.inputs[0], node.inputs[1]
    if codes is None or scale is None or not (is_constant(codes) and is_constant(scale)):
        return None
    views = _views(node)
    return CodedWeight(
        node, codes, scale, Method.parse(text), views[-1].outputs[0] if views else node.outputs[0]
    )


def integer_operands(model: ir.Model) -> dict[ir.Value, int]:
    """Codes of coded weights that a product of integers reads as they are, and the axis of its outputs."""
    found: dict[ir.Value, int] = {}
    for node in nodes(model):
        codes = node.inputs[1] if KEY in node.metadata_props and node.op_type in _PRODUCTS else None
        if codes is not None and is_constant(codes):
            found[codes] = 1
    return found


def coded_value(value: ir.Value | None) -> CodedWeight | None:
    """The coded weight that a value is; None for any other value."""
    node = None if value is None else value.producer()
    while node is not None and VIEW in node.metadata_props:
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    found = None if node is None else coded_by(node)
    return found if found is not None and found.value is value else None


def rows_of(weight: Weight, block: int = 0) -> np.ndarray:
    """The rows that share a scale, float32 [outputs * blocks, n].

    The inputs of an output run as `layer_inputs` counts K: over the input channels, then over the kernel positions,
    the last fastest. Where they do not divide into blocks, the last value is repeated at the end; `write` leaves what
    is coded there out again.

    Args:
        weight: of any float type.
        block: how many inputs share a scale, at most; see `block_size`. 0: those of an output.
    """
    turned = weight.array.astype(np.float32).reshape(weight.layout.shape).transpose(_order(weight.layout))
    rows = turned.reshape(prod(turned.shape[: weight.layout.outputs]), -1)
    size = block_size(rows.shape[1], block)
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % size)), mode="edge")
    return np.ascontiguousarray(padded.reshape(-1, size))


def block_size(inputs: int, block: int) -> int:
    """How many of the inputs of an output share a scale.

    The largest divisor between half of `block` and `block`; where there is none, blocks of even size, the last filled
    up. All of them for 0, and where `block` is not smaller.

    >>> [block_size(inputs, 32) for inputs in (576, 147, 27, 37)], block_size(576, 0)
    ([32, 21, 27, 19], 576)
    """
    if not 0 < block < inputs:
        return inputs
    whole = [size for size in range(block, (block + 1) // 2 - 1, -1) if inputs % size == 0]
    return whole[0] if whole else -(-inputs // -(-inputs // block))


def write(
    model: ir.Model,
    weight: Weight,
    codes: Codes,
    method: Method,
    block: int = 0,
    names: set[str] | None = None,
) -> CodedWeight:
    """Let codes stand for a float initializer, in place; everything that reads it reads what they decode to.

    Args:
        model: of operator set 13 or later.
        weight: of this model; float32, at most its layers' and no output of the graph.
        codes: of `rows_of(weight, block)`.
        method: how they were found.
        block: as for `rows_of`.
        names: every name in use, to be kept up over many calls; None collects them.
    """
    place = _place(model, weight.value, names_of(model) if names is None else names)
    value, layout = weight.value, weight.layout
    name, shape = str(value.name), value.shape
    axis = None if len(codes.codes) != _outputs(layout) else _row_axis(layout, weight.array.ndim)
    stored = codes.codes if axis is None else _restored(layout, codes.codes).reshape(weight.array.shape)
    real = _decoder(place, name, Codes(stored, codes.scale), method, axis or 0)
    if axis is None:
        real = _viewed(place, real, weight, codes.codes)
    value.replace_all_uses_with(real)
    del place.graph.initializers[name]
    value.name, real.name = place.fresh(f"{name}_replaced"), name
    real.type, real.shape = ir.TensorType(ir.DataType.FLOAT), shape
    found = coded_value(real)
    if found is None:
        raise ValueError(f"{name} was not written as codes")
    return found


def rewrite(coded: CodedWeight, codes: Codes, method: Method) -> CodedWeight:
    """Put other codes, [rows, n] as `CodedWeight.rows` gives them, in the place of those of a weight."""
    shape = np.moveaxis(_array(coded.codes), coded.axis, 0).shape
    array = np.moveaxis(codes.codes.reshape(shape), 0, coded.axis)
    for value, data in ((coded.codes, array), (coded.scale, codes.scale)):
        value.const_value = ir.tensor(np.ascontiguousarray(data), dtype=value.dtype, name=value.name)
    coded.node.metadata_props[KEY] = str(method)
    return CodedWeight(coded.node, coded.codes, coded.scale, method, coded.value)


def _place(model: ir.Model, weight: ir.Value, names: set[str]) -> Inserter:
    """Behind the codes that stand at the start of the graph, so that weights keep their order."""
    start = at_start(model, weight, names)
    own = (KEY, VIEW)
    before = next(node for node in start.graph if not any(key in node.metadata_props for key in own))
    return replace(start, before=before)


def _decoder(place: Inserter, name: str, codes: Codes, method: Method, axis: int) -> ir.Value:
    held = [
        place.constant(f"{name}_codes", codes.codes),
        place.constant(f"{name}_scale", codes.scale.astype(np.float32)),
    ]
    real = place.add("DequantizeLinear", held, f"{name}_decoded", axis=axis)
    real.type, real.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(codes.codes.shape)
    real.producer().metadata_props[KEY] = str(method)  # type: ignore[union-attr]
    return real


def _viewed(place: Inserter, real: ir.Value, weight: Weight, rows: np.ndarray) -> ir.Value:
    """The nodes that bring decoded rows into the weight's shape."""
    name, layout, shape = str(weight.value.name), weight.layout, weight.array.shape
    order = _order(layout)
    turned = tuple(layout.shape[axis] for axis in order)
    outputs, inputs = _outputs(layout), prod(turned[layout.outputs :])
    made = []
    if rows.size > outputs * inputs:
        made.append(reshaped(place, real, (outputs, rows.size // outputs), f"{name}_rows"))
        made.append(head(place, made[-1], 1, inputs, f"{name}_cut"))
    source = made[-1] if made else real
    if order == tuple(range(len(order))):
        made.append(reshaped(place, source, shape, f"{name}_view"))
    else:
        made.append(reshaped(place, source, turned, f"{name}_split"))
        back = [int(axis) for axis in np.argsort(order)]
        made.append(place.add("Transpose", [made[-1]], f"{name}_turned", perm=back))
        if layout.shape != shape:
            made.append(reshaped(place, made[-1], shape, f"{name}_view"))
    for value in made:
        value.producer().metadata_props[VIEW] = ""  # type: ignore[union-attr]
    return made[-1]


def _outputs(layout: Layout) -> int:
    return prod(layout.shape[axis] for axis in layout.axes[: layout.outputs])


def _order(layout: Layout) -> tuple[int, ...]:
    """The axes of the weight with those of the outputs first, then that of the input channels, then the positions."""
    own, rest = layout.axes[: layout.outputs], layout.axes[layout.outputs :]
    return (*own, rest[-1], *rest[:-1])


def _restored(layout: Layout, rows: np.ndarray) -> np.ndarray:
    order = _order(layout)
    turned = rows.reshape([layout.shape[axis] for axis in order])
    return np.asarray(turned.transpose(np.argsort(order)))


def _row_axis(layout: Layout, dims: int) -> int | None:
    """The one axis of the stored weight that counts the outputs; None where several do."""
    added = len(layout.shape) - dims
    counting = [axis for axis in layout.axes[: layout.outputs] if layout.shape[axis] > 1]
    if len(counting) > 1 or (added and layout.shape[0] > 1):
        return None
    axis = counting[0] if counting else layout.axes[layout.outputs - 1]
    return axis - added


def _views(node: ir.Node) -> list[ir.Node]:
    """The nodes behind a DequantizeLinear that bring its rows into the weight's shape."""
    found: list[ir.Node] = []
    behind: ir.Node | None = node
    while behind is not None:
        ahead = [use.node for use in behind.outputs[0].uses() if VIEW in use.node.metadata_props]
        behind = ahead[0] if ahead else None
        found += ahead[:1]
    return found


def _moved(node: ir.Node, array: np.ndarray) -> np.ndarray:
    """What a node between decoded rows and the weight makes of them."""
    if node.op_type == "Transpose":
        return array.transpose(tuple(node.attributes["perm"].as_ints()))
    if node.op_type == "Slice":
        return array[:, : int(_array(node.inputs[2])[0])]
    return array.reshape(tuple(int(size) for size in _array(node.inputs[1])))


def _array(value: ir.Value | None) -> np.ndarray:
    array = constant(value)
    if array is None:
        raise ValueError(f"{value} is not a constant")
    return array
