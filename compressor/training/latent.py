"""Quantized weights as floating-point ones that training can move, and back onto their grid.

`lift` turns every weight that is stored as integer codes into a float initializer with a QuantizeLinear and
DequantizeLinear pair behind it, the latent weight of quantization-aware training (Jacob et al. 2018,
arXiv:1712.05877, section 3); int32 biases, whose grid is far finer than training needs, become plain floats.
A latent starts from the float that was rounded where that is still known, for the codes alone have forgotten on which
side of them it was, and the small weights of a tensor with one step for all are zero in them (Krishnamoorthi 2018,
arXiv:1806.08342, section 3.2). `settle` writes trained latents as codes into the original graph, whose structure never
changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import ml_dtypes
import numpy as np
import onnx_ir as ir

from compressor.graph import add_initializer, attribute, constant, is_constant, nodes, unique_name
from compressor.low_bit.coded_weights import CodedWeight, coded_weights
from compressor.low_bit.codes import Codes
from compressor.low_bit.methods import encode, recode
from compressor.torch_graph.parameters import constants
from compressor.torch_graph.quantizers import LIMITS

LATENT = "_latent"
"""What the name of a latent weight ends with."""

_BIAS = ir.DataType.INT32
_INTEGERS = (
    *(ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16, _BIAS),
    *(ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT2, ir.DataType.UINT2),
)
_HALF = 0.5 + 2.0**-10
"""In steps: how far a float may be from what its code stands for. Codes of up to 255 are divided out in float32."""
NONE_KNOWN: Mapping[str, ir.TensorProtocol] = MappingProxyType({})
"""No float behind any code."""
NONE_TRAINED: Mapping[str, Codes] = MappingProxyType({})
"""No weight of few bits."""


def lift(model: ir.Model, floats: Mapping[str, ir.TensorProtocol] = NONE_KNOWN) -> ir.Model:
    """A copy in which stored codes are latent weights; the same as `model` where nothing is quantized.

    Args:
        model: stays as it was.
        floats: name of codes -> the floats that they round. Those of codes that were changed since are not used.
    """
    lifted = model.clone()
    for coded in coded_weights(lifted):
        _free(coded, floats.get(str(coded.codes.name)))
    latents: dict[ir.Value, ir.Value] = {}
    for node in list(_decoders(lifted)):
        codes, graph = node.inputs[0], node.graph
        if codes is None or not isinstance(graph, ir.Graph):
            continue
        if codes not in latents:
            latents[codes] = add_initializer(
                lifted.graph, f"{codes.name}{LATENT}", _start(node, floats.get(str(codes.name)))
            )
        latent = latents[codes]
        if codes.dtype == _BIAS:
            ir.convenience.replace_all_uses_with(node.outputs[0], latent)
            graph.remove(node, safe=True)
        else:
            _requantize(lifted.graph, node, latent)
    return lifted


def settle(trained: ir.Model, model: ir.Model, codes: Mapping[str, Codes] = NONE_TRAINED) -> ir.Model:
    """A copy of `model` with the codes, and the scales, that the trained latents stand for.

    Args:
        trained: `lift(model)` with trained values.
        model: the quantized model.
        codes: name of each latent weight of few bits -> its codes, which may since have been scaled row by row.
    """
    settled = model.clone()
    values = {str(value.name): _array(value) for value in constants(trained)}
    for value in constants(settled):
        array = values.get(str(value.name))
        if array is not None and array.dtype == _array(value).dtype:
            _put(value, array)
    for coded in coded_weights(settled):
        name = str(coded.node.outputs[0].name)
        if name in codes:
            _put_codes(coded, codes[name], values[name])
    for node in _decoders(settled):
        _step_bias_scale(node)
    for node in _decoders(settled):
        stored = node.inputs[0]
        latent = None if stored is None else values.get(f"{stored.name}{LATENT}")
        if stored is not None and latent is not None:
            _put(stored, _encoded(node, latent))
    return settled


def _free(coded: CodedWeight, known: ir.TensorProtocol | None) -> None:
    """Put the latent weight, under the name of what the codes stand for, in the place of codes and decoder."""
    graph, out = coded.node.graph, coded.node.outputs[0]
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"{coded.name}: codes outside of a graph")
    name, out.name = str(out.name), f"{out.name}_decoded"
    latent = add_initializer(graph, name, _latent(coded, known))
    ir.convenience.replace_all_uses_with(out, latent)
    graph.remove(coded.node, safe=True)


def _latent(coded: CodedWeight, known: ir.TensorProtocol | None) -> np.ndarray:
    """The known floats where they have these codes, else what the codes stand for; float32, of the codes' shape."""
    axis, codes = coded.axis, coded.rows()
    moved = np.moveaxis(_array(coded.codes), axis, 0).shape
    decoded = codes.decoded()
    if known is not None and known.size == decoded.size:
        floats = np.moveaxis(known.numpy().reshape(_array(coded.codes).shape), axis, 0)
        rows = np.ascontiguousarray(floats.reshape(decoded.shape), np.float32)
        if coded.method.name == "twn":  # its thresholds follow from all weights of a row
            decoded = rows if np.array_equal(encode(rows, coded.method).codes, codes.codes) else decoded
        else:
            decoded = np.where(recode(rows, codes, coded.method).codes == codes.codes, rows, decoded)
    return np.ascontiguousarray(np.moveaxis(decoded.reshape(moved), 0, axis))


def _put_codes(coded: CodedWeight, codes: Codes, values: np.ndarray) -> None:
    """Store codes, and the scale that `values` are codes times; a negative factor turns the codes round."""
    axis = coded.axis
    moved = np.moveaxis(values, axis, 0)
    rows, decoded = moved.reshape(codes.codes.shape), codes.decoded()
    stored, scale = codes
    if not np.array_equal(rows, decoded):
        widest = np.abs(stored.astype(np.int16)).argmax(1)[:, None]
        ends = [np.take_along_axis(array, widest, 1)[:, 0] for array in (rows, decoded)]
        factor = np.divide(ends[0], ends[1], out=np.ones_like(ends[0]), where=ends[1] != 0)
        stored = np.where(factor[:, None] == 0, 0, np.sign(factor)[:, None] * stored).astype(np.int8)
        scale = np.where(factor == 0, np.float32(1), np.abs(scale * factor)).astype(np.float32)
    _put(coded.codes, np.ascontiguousarray(np.moveaxis(stored.reshape(moved.shape), 0, axis)))
    _put(coded.scale, scale.reshape(_array(coded.scale).shape))


def _decoders(model: ir.Model) -> Iterator[ir.Node]:
    """The DequantizeLinear nodes that read stored codes with a constant scale."""
    for node in nodes(model):
        if node.op_type != "DequantizeLinear":
            continue
        codes, scale = node.inputs[0], node.inputs[1]
        known = is_constant(codes) and is_constant(scale)
        if known and codes is not None and codes.is_initializer() and codes.dtype in _INTEGERS:
            yield node


def _requantize(graph: ir.Graph, node: ir.Node, latent: ir.Value) -> None:
    """Put a QuantizeLinear on the node's own grid between the latent weight and the node."""
    codes, scale = node.inputs[0], node.inputs[1]
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if codes is None or scale is None or codes.dtype is None:
        raise ValueError(f"{node.name}: codes without a type")
    if zero is None:
        name = f"{codes.name}_zero_point{LATENT}"
        if name not in graph.initializers:
            add_initializer(graph, name, np.zeros(_array(scale).shape, codes.dtype.numpy()), codes.dtype)
        zero = graph.initializers[name]
    made = ir.Value(
        name=unique_name(graph, f"{latent.name}_codes"), type=ir.TensorType(codes.dtype), shape=codes.shape
    )
    operands, attributes = [latent, scale, zero], dict(node.attributes)
    encode = ir.node("QuantizeLinear", operands, attributes, outputs=[made], name=made.name)
    encode.meta[LIMITS] = _limits(_array(codes))
    if node.graph is None:
        raise ValueError(f"{node.name}: not in a graph")
    node.graph.insert_before(node, encode)
    node.replace_input_with(0, made)


def _grid(node: ir.Node) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point as float64, in shapes that broadcast with the codes."""
    codes, scale = _array(node.inputs[0]), _array(node.inputs[1])
    stored = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    zero = np.zeros(scale.shape) if stored is None else stored.astype(np.float64)
    axis, block = attribute(node, "axis", 1), attribute(node, "block_size", 0)
    return tuple(_along(a.astype(np.float64), codes.shape, axis, block) for a in (scale, zero))  # type: ignore[return-value]


def _along(array: np.ndarray, shape: tuple[int, ...], axis: int, block: int) -> np.ndarray:
    """One number, one per index of `axis`, or one per block, in a shape that broadcasts to `shape`."""
    if block:
        return np.repeat(array, block, axis)[tuple(slice(0, extent) for extent in shape)]
    if array.size == 1:
        return array.reshape(())
    along = [1] * len(shape)
    along[axis] = -1
    return array.reshape(along)


def _start(node: ir.Node, known: ir.TensorProtocol | None) -> np.ndarray:
    """The known floats where the codes are what they round to, else what the codes stand for."""
    scale, zero = _grid(node)
    codes = _array(node.inputs[0])
    decoded: np.ndarray = ((codes.astype(np.float64) - zero) * scale).astype(_array(node.inputs[1]).dtype)
    if known is None or tuple(known.shape.numpy()) != decoded.shape:
        return decoded
    floats: np.ndarray = known.numpy().astype(decoded.dtype)
    if (np.abs(floats - decoded) > _HALF * scale).any():
        return decoded
    return np.where(_encoded(node, floats) == codes, floats, decoded)


def _encoded(node: ir.Node, latent: np.ndarray) -> np.ndarray:
    """The nearest codes, within the limits of the old ones."""
    old = _array(node.inputs[0])
    scale, zero = _grid(node)
    low, high = _limits(old)
    found: np.ndarray = np.clip(np.rint(latent / scale) + zero, low, high).astype(old.dtype)
    return found


def _limits(codes: np.ndarray) -> tuple[int, int]:
    """The lowest and the highest code that training may give: those of the type.

    int8 stays symmetric where it was, and within the half range where all were (7-bit weights).
    """
    info = np.iinfo(codes.dtype) if codes.dtype.kind in "iu" else ml_dtypes.iinfo(codes.dtype)  # type: ignore[no-untyped-call]
    low, high = int(info.min), int(info.max)
    if codes.dtype != np.int8:
        return low, high
    if np.abs(codes.astype(np.int16)).max(initial=0) <= 63:
        return -63, 63
    return (low if int(codes.min(initial=0)) == low else -high), high


def _step_bias_scale(node: ir.Node) -> None:
    """Make the scale of an int32 bias the float32 product of its layer's input and weight scales."""
    codes, scale = node.inputs[0], node.inputs[1]
    if codes is None or scale is None or codes.dtype != _BIAS:
        return
    for use in node.outputs[0].uses():
        if use.idx != 2:
            continue
        sources = [None if v is None else v.producer() for v in use.node.inputs[:2]]
        steps = [constant(s.inputs[1]) for s in sources if s is not None and s.op_type == "DequantizeLinear"]
        if len(steps) == 2 and steps[0] is not None and steps[1] is not None:
            product = np.asarray(steps[0].astype(np.float32) * steps[1].astype(np.float32))
            _put(scale, product.reshape(_array(scale).shape))


def _put(value: ir.Value, array: np.ndarray) -> None:
    """Replace the data of an initializer, or of the Constant node that gives the value, where it differs."""
    if np.array_equal(array, _array(value)):
        return
    tensor = ir.tensor(array, dtype=value.dtype, name=value.name)
    node = value.producer()
    if node is not None:
        node.attributes.clear()
        node.attributes.add(ir.AttrTensor("value", tensor))
    if value.const_value is not None:
        value.const_value = tensor


def _array(value: ir.Value | None) -> np.ndarray:
    """The data of a constant."""
    found = constant(value)
    if found is None:
        raise ValueError(f"{value} is not a constant")
    return found
