"""Binary weights: -1 or 1 times a scale per output channel, or sums of up to three of these."""

from __future__ import annotations

from typing import ClassVar, Literal, Self, final

import onnx_ir as ir
from pydantic import Field, model_validator

from compressor.low_bit.activations import BLOCKED, check_samples, with_integers
from compressor.low_bit.bits import curves
from compressor.low_bit.codes import Method
from compressor.low_bit.coding import code
from compressor.low_bit.options import Coding
from compressor.low_bit.signs import Gradient
from compressor.pipeline import Change, Context, Pass


@final
class QuantizeBinary(Pass):
    """Binary weights: w' = scale * code, code in {-1, 1}, a scale per output channel or block of its inputs.

    method='xnor' takes the sign, 1 for zero, and mean|w| as the scale, which has the least squared error.
    'residual' is the sum of `bases` such products, 2^bases levels per channel, stored in as many bits.

    All else is as in quantize-ternary: the first and the last layers and depthwise convolutions get 8 bits, a
    sensitivity file gives others more, reconstruct='gptq' makes up for errors layer by layer, and activations='int8'
    quantizes the rest. Without training, hardly any model is of use with one bit: put finetune behind it.

    activations='binary' also gives what layers of binary weights read two levels, b where x >= t and -b elsewhere,
    with a threshold t per channel and one scale b, which finetune trains; they run on the same int8 kernels. A
    convolution pads with zeros, which lie between the levels. This needs training by all means.

    Sources: Rastegari et al. 2016 (arXiv:1603.05279), section 3; Lin et al. 2017 (arXiv:1711.11294); Frantar et al.
    2023 (arXiv:2210.17323); Liu et al. 2018 (arXiv:1808.00278) and 2020 (arXiv:2003.03488) for activations.
    """

    name: ClassVar[str] = "quantize-binary"
    opset: ClassVar[int] = 13

    method: Literal["xnor", "residual"] = Field("xnor", description="one sign per weight, or a sum of some")
    bases: Literal[1, 2, 3] = Field(1, description="for method='residual': how many signs are summed")
    reconstruct: Literal["none", "gptq"] = Field(
        "none", description="make up for each layer's error on calibration samples"
    )
    activations: Literal["int8", "float", "binary"] = Field(
        "int8", description="binary: two levels in front of binary weights, int8 elsewhere; both need samples"
    )
    gradient: Gradient = Field(
        "approximate", description="for activations='binary': the slope of a level's edge in training"
    )
    match_outputs: Literal["auto"] | bool = Field(
        "auto", description="keep each channel's output mean and deviation; auto: where there are samples"
    )
    block: Literal[0, 16, 32, 64, 128, 256] = Field(
        0, description="most inputs under one scale; 0: an output channel"
    )
    keep_first_last: bool = Field(True, description="8 bits for the first and the last layers")
    sensitivity: str = Field("", description="file of `compress sensitivity` that gives layers more bits")
    max_layer_drop: float = Field(
        0.01, ge=0, description="for sensitivity: the drop up to which a layer stays binary"
    )
    include: tuple[str, ...] = Field((), description="globs over node and weight names; empty: all layers")
    exclude: tuple[str, ...] = Field((), description="globs over node and weight names")
    min_elements: int = Field(1024, ge=1, description="smaller weights are not coded")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.bases > 1 and self.method != "residual":
            raise ValueError(f"bases={self.bases} is for method='residual', got method={self.method!r}")
        if self.block and self.activations != "float":
            raise ValueError(BLOCKED.format(self.block))
        return self

    def resolved(self, context: Context) -> QuantizeBinary:
        """The same pass with match_outputs decided by whether there are calibration samples."""
        if self.match_outputs != "auto":
            return self
        return self.model_copy(update={"match_outputs": context.calibration is not None})

    def check(self, context: Context) -> None:
        """Refuse when samples or the file of curves are missing."""
        asked = {
            f"activations={self.activations!r}": self.activations != "float",
            "reconstruct='gptq'": self.reconstruct == "gptq",
        }
        check_samples(self.name, {**asked, "match_outputs=True": self.match_outputs is True}, context)
        if self.sensitivity:
            curves(self.sensitivity)

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Write the codes, and quantize the activations if asked to."""
        self.check(context)
        change = code(model, self.resolved(context)._coding(), context)
        if self.activations == "float" or not change.touched:
            return change
        return with_integers(change, model, context)

    def _coding(self) -> Coding:
        several = self.method == "residual" and self.bases > 1
        return Coding(
            method=Method("residual", self.bases) if several else Method("xnor"),
            block=self.block,
            compensate=self.reconstruct == "gptq",
            match=self.match_outputs is True,
            signs=self.gradient if self.activations == "binary" else None,
            keep_first_last=self.keep_first_last,
            include=self.include,
            exclude=self.exclude,
            min_elements=self.min_elements,
            sensitivity=self.sensitivity,
            max_layer_drop=self.max_layer_drop,
        )
