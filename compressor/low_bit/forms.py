"""In which form a coded weight runs fastest: decided by what its layers read, and by measurement.

- "integer": the input of its layers is quantized, so an int8 kernel takes the codes as they are.
- "kernel": MatMulNBits multiplies by the codes (`kernel_form`), where that is faster than floats at the layer's shape.
- "float": onnxruntime makes floats of the codes, once, when it loads the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Literal

import numpy as np
import onnx_ir as ir

from compressor.errors import ModelError, OptionError
from compressor.low_bit import kernel_form
from compressor.low_bit.coded_weights import FLOATS, CodedWeight
from compressor.low_bit.kernel_form import Matrix
from compressor.packing import Inserter
from compressor.pipeline import Context
from compressor.timing import Protocol, Ratio

Form = Literal["integer", "kernel", "float"]
WORTH = 1.1
"""How many times as fast as floats MatMulNBits must surely be; it rounds activations, which floats do not."""
_FEWEST = 2**14
"""Codes; smaller matrices take microseconds either way."""
_QUICK = Protocol(visits=9, visit_ms=4.0, sessions=3, time_limit_s=3.0)
_INTEGER = ("Conv", "Gemm", "MatMul")


@dataclass
class Choice:
    """The form of each weight.

    Args:
        forms: weight -> its form.
        kernels: weight -> what MatMulNBits gets, where that is its form.
        speeds: "rows x inputs x outputs, bits" -> how many times as fast as floats MatMulNBits is there.
        declined: weight -> why it is not multiplied by MatMulNBits, where a measurement was possible.
    """

    forms: dict[str, Form] = field(default_factory=dict)
    kernels: dict[str, Matrix] = field(default_factory=dict)
    speeds: dict[str, float] = field(default_factory=dict)
    declined: dict[str, str] = field(default_factory=dict)


def choose(model: ir.Model, weights: list[CodedWeight], context: Context) -> Choice:
    """The fastest form of each weight on the provider of the context; the model stays as it was.

    Layers of the same shape are measured once. How many rows a layer multiplies is read off the shapes, or where those
    do not tell, off a run on one sample.
    """
    choice, measured = Choice(), dict[tuple[int, ...], Ratio | str]()
    floating = [coded for coded in weights if not reads_integers(coded)]
    rows = _rows(model, floating, context)
    for coded in weights:
        choice.forms[coded.name] = "float" if coded in floating else "integer"
    for coded in floating:
        if FLOATS in coded.node.metadata_props:
            continue
        stored = kernel_form.matrix(coded)
        count = max((rows.get(use.node.inputs[0], 0) for use in coded.layers), default=0)
        if isinstance(stored, str) or stored.codes.size < _FEWEST or not count:
            continue
        key = (count, *stored.codes.shape[::-1], stored.bits, stored.block)
        if key not in measured:
            measured[key] = _measured(stored, count, context)
        found, shape = measured[key], f"{' x '.join(map(str, key[:3]))}, {stored.bits} bits"
        if isinstance(found, str):
            choice.declined[coded.name] = f"stored to run as floats: {found}"
            continue
        choice.speeds[shape] = found.value
        if found.low > WORTH:
            choice.forms[coded.name] = "kernel"
            choice.kernels[coded.name] = stored
    return choice


def reads_integers(coded: CodedWeight) -> bool:
    """Whether every layer that reads the weight multiplies it by a quantized value."""
    return coded.in_place and all(
        use.node.op_type in _INTEGER and use.idx == 1 and _is_quantized(use.node.inputs[0])
        for use in coded.layers
    )


def _is_quantized(value: ir.Value | None) -> bool:
    maker = None if value is None else value.producer()
    return maker is not None and maker.op_type == "DequantizeLinear"


def _rows(model: ir.Model, weights: list[CodedWeight], context: Context) -> dict[ir.Value | None, int]:
    """What layers of the weights read -> how many rows it has; 0 where that is not known."""
    from compressor.watching import watch

    read = [use.node.inputs[0] for coded in weights for use in coded.layers if use.node.op_type in _INTEGER]
    found: dict[ir.Value | None, int] = {value: _known_rows(value) for value in read if value is not None}
    own = {output for node in model.graph for output in node.outputs} | set(model.graph.inputs)
    unknown = {str(value.name): value for value in own if found.get(value) == 0}
    if unknown and context.samples is not None:
        arrays = next(watch(model, unknown, context.samples.take(1), context.threads)).arrays
        found |= {unknown[name]: prod(array.shape[:-1]) for name, array in arrays.items()}
    return found


def _known_rows(value: ir.Value) -> int:
    """The product of all sizes but the last; 0 when one is not known."""
    sizes = [0] if value.shape is None else list(value.shape)[:-1]
    return prod(size if isinstance(size, int) else 0 for size in sizes)


def _measured(stored: Matrix, rows: int, context: Context) -> Ratio | str:
    """How many times as fast as floats MatMulNBits multiplies so many rows, or why it does not run."""
    from compressor.latency import measure
    from compressor.runtime import Setup

    data = np.random.default_rng(context.seed).standard_normal((rows, stored.codes.shape[1]))
    setup = Setup(context.provider, threads=1)
    try:
        found = measure(
            [_layer(stored, rows, form) for form in ("float", "kernel")],
            {"x": data.astype(np.float32)},
            setup,
            _QUICK,
        )
    except (ModelError, OptionError) as error:
        return f"MatMulNBits does not run on {context.provider!r}: {error}"
    return found.ratios[0]


def _layer(stored: Matrix, rows: int, form: Form) -> ir.Model:
    """A model of the layer alone, float [rows, inputs] to [rows, outputs]."""
    outputs, inputs = stored.codes.shape
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape((rows, inputs)))
    last = ir.node("Identity", [x], name="last")
    graph = ir.Graph([x], last.outputs, nodes=[last], name="layer", opset_imports={"": 13})
    model = ir.Model(graph, ir_version=8)
    place = Inserter(model, graph, last, {"x", "y", "last"})
    if form == "kernel":
        made = kernel_form.emit(place, x, stored, "w")
    else:
        scale = np.repeat(stored.scale, stored.block, axis=1)[:, :inputs]
        made = place.add("MatMul", [x, place.constant("w", (stored.codes * scale).T)], "product")
    last.replace_input_with(0, made)
    y = last.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape((rows, outputs))
    return model
