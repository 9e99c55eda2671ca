"""What is in a model, and what could be compressed."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from compressor.graph import nodes, opset
from compressor.low_bit.recognition import LowBit, low_bit_weights, unpacked
from compressor.measurement import size_of
from compressor.model_io import invalid_reason, load
from compressor.placement import Selection, plan
from compressor.prepare import prepare
from compressor.proof import ModelLike
from compressor.report import Size
from compressor.summary import Summary, operators_of, summarize


@dataclass(frozen=True)
class Inspection:
    """What is in a model.

    Args:
        inputs: name -> type and shape.
        outputs: the same.
        opset: of the default domain.
        summary: counts; packed weights are counted as what they unpack to, operators as they stand.
        size: of the file, also in bits per weight.
        low_bit: the weights that stand as codes of few bits.
        invalid: why the ONNX checker refuses it, or None.
        compressible: pass -> what it would find.
    """

    inputs: dict[str, str]
    outputs: dict[str, str]
    opset: int
    summary: Summary
    size: Size
    low_bit: list[LowBit]
    invalid: str | None
    compressible: dict[str, str]


def inspect(model: ModelLike) -> Inspection:
    """Inputs, operators, parameters, MACs, sparsity, quantized or not, and what the passes would find."""
    found = load(model)
    source = Path(model) if isinstance(model, (str, os.PathLike)) else found
    plain = unpacked(found)
    ready = prepare(plain).model
    summary, shaped = summarize(plain), summarize(ready)
    return Inspection(
        inputs={str(v.name): _type(v) for v in found.graph.inputs if v.name not in found.graph.initializers},
        outputs={str(v.name): _type(v) for v in found.graph.outputs},
        opset=opset(found),
        summary=replace(summary, operators=operators_of(found), macs=shaped.macs),
        size=size_of(source),
        low_bit=low_bit_weights(found),
        invalid=invalid_reason(found),
        compressible=_compressible(ready),
    )


def _type(value: ir.Value) -> str:
    dims = (
        "?"
        if value.shape is None
        else "x".join(str(d) if isinstance(d, int) else str(d.value or "?") for d in value.shape)
    )
    return f"{value.dtype.name.lower() if value.dtype else 'unknown'} {dims}".strip()


def _compressible(ready: ir.Model) -> dict[str, str]:
    """Pass name -> what it would find in a prepared model."""
    found = plan(ready, Selection())
    products = [n for n in nodes(ready) if n.op_type in ("MatMul", "Gemm", "LSTM", "Attention")]
    made = {"quantize-int8": f"{len(found.compute)} convolutions and matrix products"}
    if found.declined:
        why = next(iter(found.declined.items()))
        made["quantize-int8"] += f"; {len(found.declined)} stay float (as {why[0]}: {why[1]})"
    made["quantize-dynamic"] = f"{len(products)} matrix products and LSTMs"
    return made
