"""Static int8 quantization: weights and activations as integers, in the patterns that onnxruntime fuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import ClassVar, Literal, final

import numpy as np
import onnx_ir as ir
from pydantic import Field

from compressor import cpu
from compressor.bias_correction import WithMean
from compressor.calibration import calibrate
from compressor.clipping import Range
from compressor.errors import DataError, OptionError, did_you_mean
from compressor.fusion import kernels
from compressor.graph import nodes, rank, sole_consumer
from compressor.integer_io import store
from compressor.observers import Method, Observer, observer
from compressor.pipeline import Change, Context, Pass
from compressor.placement import OPERATORS, Plan, Selection, plan, refusal
from compressor.prepare import adopt
from compressor.qdq import Scheme, Writer
from compressor.rewrites import matmul_add_to_gemm
from compressor.summary import quantization_of

_NOTHING = "no convolution or matrix product with constant weights"

Ranges = dict[str, Range]
Means = dict[str, np.ndarray]


@final
class QuantizeInt8(Pass):
    """Static int8 quantization with calibrated activation ranges, written as QDQ.

    Options left at 'auto' are decided from the processor and the provider, and stored resolved. On x86 that is
    uint8 activations with int8 weights, the only pair with a fast kernel; weights use 7 bits where the processor
    has no VNNI instructions. Arm takes int8 for both, TensorRT and CUDA symmetric int8.

    The mean output that rounding the weights takes away is given back in the biases (Nagel et al. 2019,
    arXiv:1906.04721, section 4.2): on a MobileNetV1 it is worth more than any choice of ranges.

    Nodes that onnxruntime turns out not to run as integer kernels are given back to float.
    Sources: Jacob et al. 2018 (arXiv:1712.05877); Krishnamoorthi 2018 (arXiv:1806.08342).
    """

    name: ClassVar[str] = "quantize-int8"
    needs: ClassVar[tuple[Literal["calibration", "data", "train"], ...]] = ("calibration",)
    opset: ClassVar[int] = 13

    calibration: Method = Field("mse", description="how activation ranges are chosen")
    percentile: float = Field(
        99.99, gt=50, le=100, description="for calibration='percentile': the share kept at each end"
    )
    activations: Literal["auto", "uint8", "int8"] = Field("auto", description="integer type of activations")
    weights: Literal["auto", "int8", "uint8"] = Field("auto", description="integer type of weights")
    granularity: Literal["channel", "tensor"] = Field(
        "channel", description="one weight scale per output channel, or one"
    )
    symmetric: Literal["auto"] | bool = Field("auto", description="activation ranges symmetric around zero")
    ops: tuple[str, ...] = Field(
        (), description="operator types to quantize; empty: all that have a fast kernel"
    )
    include: tuple[str, ...] = Field((), description="globs over node and weight names; empty: all")
    exclude: tuple[str, ...] = Field((), description="globs over node and weight names")
    reduce_range: Literal["auto"] | bool = Field("auto", description="7-bit weights, for x86 without VNNI")
    bias_correction: bool = Field(
        True, description="take back the mean error that rounding the weights causes"
    )
    float_io: bool = Field(True, description="keep float inputs and outputs; False stores them as integers")

    def resolved(self, context: Context) -> QuantizeInt8:
        """The same pass with types and ranges decided for the context's provider and this processor."""
        accelerator = context.provider in ("cuda", "tensorrt", "nvtensorrtrtx")
        signed = accelerator or (context.provider == "cpu" and not cpu.is_x86())
        chosen = {
            "activations": "int8" if signed else "uint8",
            "weights": "int8",
            "symmetric": accelerator,
            "reduce_range": context.provider == "cpu" and not cpu.multiplies_u8s8_exactly(),
        }
        return self.model_copy(update={k: v for k, v in chosen.items() if getattr(self, k) == "auto"})

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Calibrate, insert QDQ, and withdraw what the runtime does not fuse."""
        this = self.resolved(context)
        if unknown := [op for op in this.ops if op not in OPERATORS]:
            raise OptionError(
                f"quantize-int8: no integer kernel for {unknown[0]!r} in ops. {did_you_mean(unknown[0], OPERATORS)}"
            )
        if reason := _unfit(model):
            return Change(declined={"model": reason})
        work = model.clone()
        products = _rewrite(work, Selection(this.ops, this.include, this.exclude))
        selection = Selection(this.ops, this.include, this.exclude, products)
        first = plan(work, selection)
        if not first.compute:
            return Change(declined={"model": _NOTHING, **first.declined})
        return this._place(model, work, selection, context)

    def _watch(self, model: ir.Model, current: Plan, context: Context) -> tuple[Ranges, Means]:
        """Ranges of the values that get a grid, and channel means of those that layers with weights read."""
        if context.calibration is None:
            raise DataError("quantize-int8 needs calibration samples. Give calibration=... to the Context.")
        watchers: dict[str, Observer] = {
            name: observer(self.calibration, self.percentile) for name in current.observed()
        }
        averaged = {
            name: WithMean(watchers.get(name) or observer("minmax"))
            for name in (current.sources() if self.bias_correction else ())
        }
        watchers |= averaged
        ranges = calibrate(model, list(watchers), context.calibration, watchers, context)
        means = {name: mean for name, seen in averaged.items() if (mean := seen.mean()) is not None}
        return ranges, means

    def _place(self, model: ir.Model, work: ir.Model, selection: Selection, context: Context) -> Change:
        """Write pairs into copies of `work` until the runtime fuses all that are left; `model` becomes the last."""
        withdrawn: set[str] = set()
        ranges: Ranges = {}
        means: Means = {}
        while True:
            trial = work.clone()
            current = plan(trial, selection, withdrawn)
            if not current.compute:
                return Change(declined={"model": "onnxruntime fuses none of its nodes", **current.declined})
            if any(name not in ranges for name in current.observed()):
                ranges, means = self._watch(work, current, context)
            writer = Writer(trial, current, ranges, self._scheme(context), means)
            writer.write()
            found = kernels(trial) if context.provider == "cpu" else None
            unfused = _reading(current, found.unfused if found else ())
            if not unfused:
                break
            withdrawn |= unfused
        adopt(model, trial)
        figures: dict[str, float | str] = {"quantized": len(current.compute), "ranges": len(ranges)}
        if not self.float_io:
            figures["integer inputs and outputs"] = ", ".join(store(model)) or "none"
        if found:
            figures |= {"integer kernels": found.integer, "float kernels": len(found.floating)}
        touched = tuple(str(node.name) for node in current.compute)
        return Change(touched, current.declined, figures, writer.latents)

    def _scheme(self, context: Context) -> Scheme:
        return Scheme(
            activations="int8" if self.activations == "int8" else "uint8",
            weights="uint8" if self.weights == "uint8" else "int8",
            per_channel=self.granularity == "channel",
            symmetric=self.symmetric is True,
            bits=7 if self.reduce_range is True else 8,
            barriers=context.provider == "cpu",
        )


def _unfit(model: ir.Model) -> str | None:
    """Why nothing in the model can be quantized, or None."""
    if quantization_of(Counter(node.op_type for node in nodes(model))) == "static":
        return "it is quantized already"
    return None if model.graph.inputs else "it has no inputs, so nothing can be calibrated"


def _reading(current: Plan, stored: Iterable[str]) -> set[str]:
    """Names of the planned nodes whose stored weight is among the names given."""
    wanted = set(stored)
    found: set[str] = set()
    for node in current.compute:
        decoder = None if node.inputs[1] is None else node.inputs[1].producer()
        codes = None if decoder is None else decoder.inputs[0]
        if codes is not None and codes.name in wanted:
            found.add(str(node.name))
    return found


def _rewrite(model: ir.Model, selection: Selection) -> frozenset[str]:
    """Give selected MatMul+Add the form of a Gemm, whose int32 bias fuses; the names of those nodes."""
    made: set[str] = set()
    for node in list(model.graph):
        if node.op_type != "MatMul" or refusal(node) or selection.refuses(node) or not _adds_row(node):
            continue
        if matmul_add_to_gemm(model.graph, node):
            made.add(str(node.name))
    return frozenset(made)


def _adds_row(node: ir.Node) -> bool:
    """True when the sum behind a MatMul keeps its rank: the other operand has from one to that many axes."""
    add, dims = sole_consumer(node.outputs[0]), rank(node.inputs[0])
    if add is None or dims is None:
        return False
    return all(1 <= (rank(v) or 0) <= dims for v in add.inputs if v is not node.outputs[0])
