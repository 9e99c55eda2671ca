"""Ternary weights: -1, 0 or 1 times a scale per output channel."""

from __future__ import annotations

from typing import ClassVar, Literal, Self, final

import onnx_ir as ir
from pydantic import Field, model_validator

from compressor.low_bit.activations import BLOCKED, check_samples, with_integers
from compressor.low_bit.bits import curves
from compressor.low_bit.codes import Method
from compressor.low_bit.coding import code
from compressor.low_bit.options import Coding
from compressor.pipeline import Change, Context, Pass


@final
class QuantizeTernary(Pass):
    """Ternary weights: w' = scale * code, code in {-1, 0, 1}, a scale per output channel or block of its inputs.

    method='optimal' has the least squared error of each channel: the k largest weights are not zero, and k is found by
    sorting. 'twn' is the rule close to it that Ternary Weight Networks train with, the threshold 0.7 mean|w|. 'ttq' has
    two scales, for positive and for negative weights: codes -a, 0, b.

    The first and the last layers get 8 bits, and so do depthwise convolutions unless `include` names them. With
    sensitivity=FILE a layer whose measured drop at 2 bits is above `max_layer_drop` gets 3, 4 or 8.

    reconstruct='gptq' codes layer after layer, each so that its output on calibration samples, given what the layers
    before it, already coded, make of them, is that of the original. Without training, few models are of use with
    ternary weights: put finetune behind it.

    activations='int8' then quantizes activations, and all weights that are not coded, as quantize-int8 does: that is
    what runs on onnxruntime's integer kernels, at their speed. Blocks have no integer kernel and need 'float'.

    Sources: Li and Liu 2016 (arXiv:1605.04711), section 2.2; Zhu et al. 2017 (arXiv:1612.01064); Frantar et al. 2023
    (arXiv:2210.17323).
    """

    name: ClassVar[str] = "quantize-ternary"
    opset: ClassVar[int] = 13

    method: Literal["optimal", "twn", "ttq"] = Field("optimal", description="how codes and scales are found")
    reconstruct: Literal["none", "gptq"] = Field(
        "none", description="make up for each layer's error on calibration samples"
    )
    activations: Literal["int8", "float"] = Field(
        "int8", description="int8 quantizes activations too, and needs calibration samples"
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
        0.01, ge=0, description="for sensitivity: the drop up to which a layer stays ternary"
    )
    include: tuple[str, ...] = Field((), description="globs over node and weight names; empty: all layers")
    exclude: tuple[str, ...] = Field((), description="globs over node and weight names")
    min_elements: int = Field(1024, ge=1, description="smaller weights are not coded")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.block and self.activations == "int8":
            raise ValueError(BLOCKED.format(self.block))
        return self

    def resolved(self, context: Context) -> QuantizeTernary:
        """The same pass with match_outputs decided by whether there are calibration samples."""
        if self.match_outputs != "auto":
            return self
        return self.model_copy(update={"match_outputs": context.calibration is not None})

    def check(self, context: Context) -> None:
        """Refuse when samples or the file of curves are missing."""
        asked = {
            "activations='int8'": self.activations == "int8",
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
        return Coding(
            method=Method(self.method),
            block=self.block,
            compensate=self.reconstruct == "gptq",
            match=self.match_outputs is True,
            keep_first_last=self.keep_first_last,
            include=self.include,
            exclude=self.exclude,
            min_elements=self.min_elements,
            sensitivity=self.sensitivity,
            max_layer_drop=self.max_layer_drop,
        )
