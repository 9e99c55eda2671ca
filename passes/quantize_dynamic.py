"""Dynamic int8 quantization: int8 weights, activations quantized at every run, no calibration."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import onnx_ir as ir
from pydantic import Field

from compressor import cpu
from compressor.dynamic import CONVOLUTION, OPERATORS, Writer, is_candidate, refusal
from compressor.errors import OptionError, did_you_mean
from compressor.graph import matches, nodes, opset
from compressor.opset import upgrade
from compressor.packing import drop_unread, names_of
from compressor.pipeline import Change, Context, Pass


@final
class QuantizeDynamic(Pass):
    """Dynamic int8 quantization of matrix products and LSTMs: int8 weights, activations rounded at run time.

    MatMul and Gemm become DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul(x_scale * w_scale) [->
    Add(bias)], which onnxruntime fuses to DynamicQuantizeMatMul, or to MatMulIntegerToFloat where several
    products share one DynamicQuantizeLinear. LSTM becomes com.microsoft DynamicQuantizeLSTM, com.microsoft
    Attention QAttention. Embedding tables keep int8 rows in memory, scaled after the Gather. Activations are
    uint8 over the whole tensor's range, which always includes zero; weights are symmetric, with a scale per
    output channel (or one), and use 7 bits where the processor has no VNNI instructions, whose 16-bit sums
    would saturate. Bodies of If, Loop and Scan are included.

    Convolutions stay float: onnxruntime's ConvInteger is 8 to 12 times slower than its float Conv.
    A product needs enough weights and rows, and 32 output columns, before it is faster than in float: 256x256
    weights measured 0.85x at 1 row, 1.05x at 4 and 1.81x at 16. `min_elements` is for 4 rows per sample; with
    16 rows a quarter of it suffices, with one row four times as many are needed.

    Sources: Jacob et al. 2018 (arXiv:1712.05877), section 2.1; ONNX DynamicQuantizeLinear; onnxruntime
    ContribOperators (DynamicQuantizeMatMul, DynamicQuantizeLSTM, QAttention).
    """

    name: ClassVar[str] = "quantize-dynamic"

    granularity: Literal["channel", "tensor"] = Field(
        "channel", description="a weight scale per output channel, or one"
    )
    min_elements: int = Field(
        32768, ge=1, description="weights smaller than this stay float, at 4 rows per sample"
    )
    reduce_range: Literal["auto"] | bool = Field("auto", description="7-bit weights, for x86 without VNNI")
    ops: tuple[str, ...] = Field((), description="operator types to quantize; empty: all")
    include: tuple[str, ...] = Field((), description="globs over node and weight names; empty: all")
    exclude: tuple[str, ...] = Field((), description="globs over node and weight names")

    def resolved(self, context: Context) -> QuantizeDynamic:
        """The same pass with reduce_range decided for this processor."""
        if self.reduce_range != "auto":
            return self
        narrow = context.provider == "cpu" and not cpu.multiplies_u8s8_exactly()
        return self.model_copy(update={"reduce_range": narrow})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Replace every product that pays by its integer form."""
        this = self.resolved(context)
        if unknown := [op for op in this.ops if op not in OPERATORS]:
            hint = did_you_mean(unknown[0], OPERATORS)
            raise OptionError(f"{self.name}: no dynamic integer kernel for {unknown[0]!r} in ops. {hint}")
        if not this._chosen(model):
            return Change(
                declined={"model": "no matrix product or LSTM to quantize", **this._declined(model)}
            )
        if opset(model) < 11 and (reason := upgrade(model, 11, context.samples)):
            return Change(declined={"model": reason})
        chosen, declined = this._chosen(model), this._declined(model)
        writer = Writer(model, this.granularity == "channel", this._bits(), names_of(model))
        for node in chosen:
            writer.write(node)
        drop_unread(model)
        kept = {name: reason for name, reason in declined.items() if reason != CONVOLUTION}
        return Change(tuple(str(node.name) for node in chosen), kept, {"quantized": len(chosen)})

    def _bits(self) -> int:
        return 7 if self.reduce_range is True else 8

    def _chosen(self, model: ir.Model) -> list[ir.Node]:
        declined = self._declined(model)
        return [node for node in nodes(model) if is_candidate(node) and node.name not in declined]

    def _declined(self, model: ir.Model) -> dict[str, str]:
        """Node name -> why it stays float."""
        found: dict[str, str] = {}
        for node in nodes(model):
            if is_candidate(node) and (reason := self._unwanted(node) or refusal(node, self.min_elements)):
                found[str(node.name)] = reason
        return found

    def _unwanted(self, node: ir.Node) -> str | None:
        read = node.inputs if node.op_type == "Gather" else node.inputs[1:]
        names = (node.name, *(value.name for value in read if value is not None))
        if self.ops and node.op_type in OPERATORS and node.op_type not in self.ops:
            return f"{node.op_type} is not among ops"
        if self.include and not matches(names, self.include):
            return "no include pattern fits it"
        return "excluded" if matches(names, self.exclude) else None
