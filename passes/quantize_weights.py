"""Weight-only quantization: weights stored as 8-, 4-, 3- or 2-bit codes, computation left in float."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import ClassVar, Literal, Self, final

import numpy as np
import onnx_ir as ir
from pydantic import Field, model_validator

from compressor.errors import OptionError, did_you_mean
from compressor.graph import WEIGHTED, attribute, constant, is_constant, matches, nodes, rank
from compressor.low_bit.activations import BLOCKED, check_samples, with_integers
from compressor.low_bit.bits import curves
from compressor.low_bit.coded_weights import FLOATS, coded_weights
from compressor.low_bit.codes import Method
from compressor.low_bit.coding import code
from compressor.low_bit.options import Coding, quantized_already
from compressor.packing import Inserter, at_start, drop_unread, names_of
from compressor.pipeline import Change, Context, Pass
from compressor.weight_codes import Use
from compressor.weight_storage import Stored, is_table, store_for_kernel, store_rows

_REAL = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_OPERANDS = {"LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2), "Gather": (0,), "MatMul": (0, 1)}
_ROW_KERNEL_FROM = 2**18
"""From here MatMulNBits beats a float MatMul of one row: 1.6 times at 512 x 512, 5 to 10 times beyond."""
_ROW_BLOCK = 128
_NODE_BYTES = 400
"""About what the nodes and names of one decode take in the file."""
_NO_GAIN = "storing it as codes takes as much, or its readers need different layouts"


@final
class QuantizeWeights(Pass):
    """Weight-only quantization by symmetric rounding: w' = code * scale, codes from -(2^(bits-1) - 1) to its negative.

    8 bits: codes -127..127, the scale max|w| / 127 over an output channel, or over a block of its inputs, so that
    |w - w'| <= scale / 2. 4 bits: -7..7; 3 bits: -3..3; 2 bits: -1, 0, 1; the scale is that of the least squared
    error. Unlike quantize-ternary it treats all layers alike, and leaves activations as they are.

    The last step of the pipeline packs the codes, and stores them in the form that runs fastest: onnxruntime makes
    floats of them when it loads the model, or multiplies by them with MatMulNBits where a measurement shows that to be
    faster. form='fold' makes floats of all. form='auto' keeps embedding tables packed at run time: rows are gathered,
    then unpacked, so that memory shrinks as well.

    form='matmulnbits' writes MatMul and Gemm as com.microsoft MatMulNBits with integer accumulation (accuracy_level 4:
    activations are rounded to int8 per block, about 0.7 % of the largest output), without a block size in blocks of
    128; the scale is max|w| over the highest code there. It is faster than float for one row (5 to 10 times from
    1024 x 1024 on) and slower from 16 rows on, so form='auto' takes it when the shape says one row, from 2^18 weights
    on, and 4 or 8 bits.

    reconstruct='gptq', match_outputs, sensitivity and activations are those of quantize-ternary.

    Sources: Dettmers and Zettlemoyer 2023 (arXiv:2212.09720), section 2 (blocks); Jacob et al. 2018 (arXiv:1712.05877),
    section 2.1 (rounding); Frantar et al. 2023 (arXiv:2210.17323); onnxruntime ContribOperators, MatMulNBits.
    """

    name: ClassVar[str] = "quantize-weights"
    opset: ClassVar[int] = 13

    bits: Literal[8, 4, 3, 2] = Field(8, description="bits per stored weight")
    block: Literal[0, 16, 32, 64, 128, 256] = Field(
        0, description="most inputs under one scale; 0: an output channel"
    )
    form: Literal["auto", "fold", "matmulnbits"] = Field("auto", description="how the codes are decoded")
    reconstruct: Literal["none", "gptq"] = Field(
        "none", description="make up for each layer's error on calibration samples"
    )
    match_outputs: bool = Field(False, description="keep each channel's output mean and deviation on samples")
    activations: Literal["float", "int8"] = Field(
        "float", description="int8 quantizes activations too, and needs calibration samples"
    )
    sensitivity: str = Field("", description="file of `compress sensitivity` that gives layers more bits")
    max_layer_drop: float = Field(
        0.01, ge=0, description="for sensitivity: the drop up to which a layer has these bits"
    )
    min_elements: int = Field(1024, ge=1, description="smaller weights stay float")
    ops: tuple[str, ...] = Field(
        (), description="operator types whose weights are stored as codes; empty: all"
    )
    include: tuple[str, ...] = Field((), description="globs over node and weight names; empty: all")
    exclude: tuple[str, ...] = Field((), description="globs over node and weight names")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if reason := self._conflict():
            raise ValueError(reason)
        return self

    def _conflict(self) -> str | None:
        """Why the options do not go together, or None."""
        if self.form == "matmulnbits" and self.bits == 3:
            return "MatMulNBits takes 2, 4 or 8 bits, got bits=3; give form='fold'"
        asked = [option for option, given in self._looking().items() if given]
        asked += [f"sensitivity={self.sensitivity!r}"] * bool(self.sensitivity)
        if self.form == "matmulnbits" and asked:
            return f"form='matmulnbits' rounds each weight by itself; leave out {asked[0]}"
        return BLOCKED.format(self.block) if self.block and self.activations == "int8" else None

    def _looking(self) -> dict[str, bool]:
        """The options that look at samples, as they are written, and whether each is given."""
        return {
            "activations='int8'": self.activations == "int8",
            "reconstruct='gptq'": self.reconstruct == "gptq",
            "match_outputs=True": self.match_outputs,
        }

    def check(self, context: Context) -> None:
        """Refuse when samples or the file of curves are missing."""
        check_samples(self.name, self._looking(), context)
        if self.sensitivity:
            curves(self.sensitivity)

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Replace weights by codes."""
        self.check(context)
        if unknown := [op for op in self.ops if op not in WEIGHTED]:
            raise OptionError(
                f"{self.name}: no weights in {unknown[0]!r} of ops. {did_you_mean(unknown[0], WEIGHTED)}"
            )
        sizes = {str(weight.name): _size(weight) for weight in _weights(model)}
        stored, coded, declined = self._sorted(model, context)
        change = code(model, self._coding(), context, coded) if coded else Change()
        if self.form == "fold":
            _note_floats(model, change.touched)
        declined |= {name: reason for name, reason in change.declined.items() if name != "model"}
        if not stored and not change.touched:
            return Change(declined={"model": "no float32 weight to store as codes", **declined})
        drop_unread(model)
        figures = self._figures(stored, change, sizes)
        change = replace(change, touched=(*stored, *change.touched), declined=declined, figures=figures)
        return with_integers(change, model, context) if self.activations == "int8" else change

    def _sorted(
        self, model: ir.Model, context: Context
    ) -> tuple[dict[str, Stored], list[str], dict[str, str]]:
        """Weights written in a form of their own, those that are to be coded, and weight -> why it stays float."""
        names, declined = names_of(model), quantized_already(model)
        stored: dict[str, Stored] = {}
        coded: list[str] = []
        for weight in _weights(model):
            label = str(weight.name)
            if reason := self._refuses(weight):
                declined[label] = reason
            elif not self._has_own_form(weight, context):
                coded.append(label)
            elif (made := self._replace(at_start(model, weight, names), weight)) is None:
                declined[label] = _NO_GAIN
            else:
                stored[label] = made
        return stored, coded, declined

    def _figures(
        self, stored: Mapping[str, Stored], coded: Change, sizes: Mapping[str, int]
    ) -> dict[str, float | str]:
        """The bytes of all weights before and after, and what coding says of its own."""
        bits = float(coded.figures.get("mean bits", 0))
        after = sum(made.bytes for made in stored.values())
        after += sum(round(sizes[name] * bits / 8) for name in coded.touched)
        touched = (*stored, *coded.touched)
        figures: dict[str, float | str] = {"bits": self.bits, "tensors": len(touched)}
        figures |= {
            "weight bytes before": sum(sizes[name] * 4 for name in touched),
            "weight bytes after": after,
        }
        if stored:
            figures["largest relative error"] = max(made.error for made in stored.values())
        return figures | {name: value for name, value in coded.figures.items() if name != "layers"}

    def _coding(self) -> Coding:
        return Coding(
            method=Method("uniform", self.bits),
            block=self.block,
            compensate=self.reconstruct == "gptq",
            match=self.match_outputs,
            keep_first_last=False,
            keep_depthwise=False,
            sensitivity=self.sensitivity,
            max_layer_drop=self.max_layer_drop,
        )

    def _refuses(self, weight: ir.Value) -> str | None:
        """Why a weight stays float, or None."""
        for use in weight.uses():
            if self.ops and use.node.op_type in WEIGHTED and use.node.op_type not in self.ops:
                return f"{use.node.op_type} is not among ops"
            if matches((use.node.name, weight.name), self.exclude):
                return "excluded"
        if self.include and not any(
            matches((use.node.name, weight.name), self.include) for use in weight.uses()
        ):
            return "no include pattern fits it"
        array = constant(weight)
        if array is None or array.dtype != np.float32:
            return "it is not float32"
        if array.size < self.min_elements:
            return f"it has {array.size} elements, fewer than min_elements"
        if not np.isfinite(array).all():
            return "it contains NaN or infinity"
        if weight.is_graph_output():
            return "it is an output of the model"
        return None if self._gains(array) else _NO_GAIN

    def _gains(self, array: np.ndarray) -> bool:
        """Whether codes and scales take less than the floats."""
        rows = array.shape[0] if not self.block else max(array.shape[0], array.size // self.block)
        return bool(array.size * self.bits / 8 + 4 * rows + _NODE_BYTES < array.nbytes)

    def _has_own_form(self, weight: ir.Value, context: Context) -> bool:
        """True for an embedding table and a matrix of MatMulNBits, which are not coded for the next passes."""
        if self.form == "auto" and is_table(weight):
            return self.bits != 3
        plain = not any(self._looking().values()) and not self.sensitivity and self.bits != 3
        return plain and self._by_kernel(weight, context)

    def _replace(self, place: Inserter, weight: ir.Value) -> Stored | None:
        """Write the codes in the form that fits; None when that would not make the file smaller."""
        if self.form == "auto" and is_table(weight):
            return store_rows(place, weight, (self.bits, self.block))
        return store_for_kernel(place, weight, (self.bits, self.block or _ROW_BLOCK))

    def _by_kernel(self, weight: ir.Value, context: Context) -> bool:
        """True for a matrix whose readers MatMulNBits can all replace and, with 'auto', makes faster."""
        uses = list(weight.uses())
        replaceable = rank(weight) == 2 and all(_is_product(u.node, u.idx) for u in uses)
        if self.form == "fold" or not replaceable:
            return False
        if self.form == "matmulnbits":
            return True
        pays = self.bits > 2 and _size(weight) >= _ROW_KERNEL_FROM and context.provider == "cpu"
        return pays and all(_is_one_row(u.node.inputs[0]) for u in uses)


def _note_floats(model: ir.Model, names: Collection[str]) -> None:
    """Let weights run as floats even where a kernel for codes is faster."""
    for coded in coded_weights(model):
        if coded.name in names:
            coded.node.metadata_props[FLOATS] = ""


def _weights(model: ir.Model) -> dict[ir.Value, Use]:
    """The constants of rank 2 or more that operators read as weights, and the first such use."""
    found: dict[ir.Value, Use] = {}
    for node in nodes(model):
        if node.op_type not in WEIGHTED or (
            node.domain not in ("", "ai.onnx") and node.op_type != "Attention"
        ):
            continue
        for index in _OPERANDS.get(node.op_type, (1,)):
            value = node.inputs[index] if index < len(node.inputs) else None
            if (
                value is None
                or not value.is_initializer()
                or not is_constant(value)
                or value.dtype not in _REAL
            ):
                continue
            if (rank(value) or 0) >= 2:
                found.setdefault(value, Use(node, index))
    return found


def _size(weight: ir.Value) -> int:
    array = constant(weight)
    return 0 if array is None else array.size


def _is_product(node: ir.Node, index: int) -> bool:
    """True for MatMul(x, W) with a known rank above 1, and for Gemm without transA, alpha and beta."""
    if index != 1 or node.op_type not in ("MatMul", "Gemm"):
        return False
    if node.op_type == "MatMul":
        return (rank(node.inputs[0]) or 0) >= 2
    plain = all(node.attributes[k].as_float() == 1 for k in ("alpha", "beta") if k in node.attributes)
    return plain and not attribute(node, "transA", 0)


def _is_one_row(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and all(d == 1 for d in tuple(value.shape)[:-1])
