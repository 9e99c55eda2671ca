"""Weight-only quantization: weights stored as 8-, 4- or 2-bit codes, computation left in float."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import numpy as np
import onnx_ir as ir
from pydantic import Field

from compressor.errors import OptionError, did_you_mean
from compressor.graph import WEIGHTED, attribute, constant, is_constant, matches, nodes, rank
from compressor.packing import Inserter, at_start, drop_unread, names_of
from compressor.pipeline import Change, Context, Pass
from compressor.weight_codes import Use
from compressor.weight_storage import Stored, is_table, store_folded, store_for_kernel, store_rows

_REAL = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_OPERANDS = {"LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2), "Gather": (0,), "MatMul": (0, 1)}
_ROW_KERNEL_FROM = 2**18
"""From here MatMulNBits beats a float MatMul of one row: 1.6 times at 512 x 512, 5 to 10 times beyond."""
_ROW_BLOCK = 128


@final
class QuantizeWeights(Pass):
    """Weight-only quantization by symmetric rounding: w' = code * scale, |w - w'| <= scale / 2.

    8 bits: codes -127..127; 4 bits: -7..7; both hold zero exactly. 2 bits: the four levels -3, -1, 1, 3 half
    steps, or -1, 0, 1, whichever has the smaller squared error on the tensor. A scale is max|w| over an
    output channel, or over a block of its inputs, divided by the highest code.

    form='fold' writes the decoding in standard operators, which onnxruntime evaluates when it loads the
    model: the file shrinks, speed and memory are those of the float model. form='matmulnbits' writes MatMul
    and Gemm as com.microsoft MatMulNBits with integer accumulation (accuracy_level 4: activations are rounded
    to int8 per block, about 0.7 % of the largest output), without a block size in blocks of 128. It is
    written directly, not as a block-wise DequantizeLinear that onnxruntime would fuse to it: that needs
    operator set 21, and a scale per channel becomes its slow kernel with blocks of 32. Two bits have only the
    levels -1, 0, 1 there. It is faster than float for one row (5 to 10 times from 1024 x 1024 on) and slower
    from 16 rows on, so form='auto' takes it only when the shape says one row, from 2^18 weights on, and 4 or
    8 bits. 'auto' also keeps embedding tables packed at run time: rows are gathered, then unpacked, so that
    memory shrinks as well. All else is folded.

    Sources: Dettmers and Zettlemoyer 2023 (arXiv:2212.09720), section 2 (blocks); Jacob et al. 2018
    (arXiv:1712.05877), section 2.1 (rounding); onnxruntime ContribOperators, MatMulNBits.
    """

    name: ClassVar[str] = "quantize-weights"

    bits: Literal[8, 4, 2] = Field(8, description="bits per stored weight")
    block: Literal[0, 16, 32, 64, 128, 256] = Field(
        0, description="most inputs under one scale; 0: an output channel"
    )
    form: Literal["auto", "fold", "matmulnbits"] = Field("auto", description="how the codes are decoded")
    min_elements: int = Field(1024, ge=1, description="smaller weights stay float")
    ops: tuple[str, ...] = Field(
        (), description="operator types whose weights are stored as codes; empty: all"
    )
    include: tuple[str, ...] = Field((), description="globs over node and weight names; empty: all")
    exclude: tuple[str, ...] = Field((), description="globs over node and weight names")

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Replace weights by codes and the nodes that decode them."""
        if unknown := [op for op in self.ops if op not in WEIGHTED]:
            raise OptionError(
                f"{self.name}: no weights in {unknown[0]!r} of ops. {did_you_mean(unknown[0], WEIGHTED)}"
            )
        names = names_of(model)
        touched: list[str] = []
        declined: dict[str, str] = {}
        before = after = 0
        error = 0.0
        for weight, use in _weights(model).items():
            label = str(weight.name)
            reason = self._refuses(weight)
            made = None if reason else self._replace(at_start(model, weight, names), weight, use, context)
            if made is None:
                declined[label] = (
                    reason or "storing it as codes takes as much, or its readers need different layouts"
                )
                continue
            touched.append(label)
            before, after, error = before + _size(weight) * 4, after + made.bytes, max(error, made.error)
        if not touched:
            return Change(declined={"model": "no float32 weight to store as codes", **declined})
        drop_unread(model)
        figures: dict[str, float | str] = {
            "bits": self.bits,
            "tensors": len(touched),
            "weight bytes before": before,
        }
        figures |= {"weight bytes after": after, "largest relative error": error}
        return Change(tuple(touched), declined, figures)

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
        return "it is an output of the model" if weight.is_graph_output() else None

    def _replace(self, place: Inserter, weight: ir.Value, use: Use, context: Context) -> Stored | None:
        """Write the codes in the form that fits; None when that would not make the file smaller."""
        if self.form == "auto" and is_table(weight):
            return store_rows(place, weight, (self.bits, self.block))
        if self._by_kernel(weight, context):
            return store_for_kernel(place, weight, (self.bits, self.block or _ROW_BLOCK))
        return store_folded(place, weight, use, (self.bits, self.block))

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
