"""Fold BatchNormalization, and constant per-channel Mul and Add, into the weights before them."""

from __future__ import annotations

from typing import ClassVar, final

import onnx_ir as ir

from compressor import batchnorm
from compressor.equivalence import difference
from compressor.graph import remove_dead
from compressor.pipeline import Change, Context, Pass
from compressor.prepare import adopt


@final
class FoldBatchnorm(Pass):
    """Fold BatchNormalization into the Conv, ConvTranspose or Gemm before it.

    Exact up to float rounding, and checked on onnxruntime. A BatchNormalization in training mode, or behind anything
    else, is left alone and listed. Source: Jacob et al. 2018 (arXiv:1712.05877), section 3.2.
    """

    name: ClassVar[str] = "fold-batchnorm"
    prepared: ClassVar[bool] = False

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Fold what can be folded; nothing when the result would differ."""
        trial = model.clone()
        folded, declined = batchnorm.fold(trial)
        remove_dead(trial)
        reason = difference(model, trial, context.samples, context.seed) if folded else None
        if reason:
            return Change(declined={**declined, "model": reason})
        adopt(model, trial)
        return Change(folded, declined, {"folded": len(folded)})
