"""A new classifier at the end of the graph, for a task with other classes."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import onnx_ir as ir
import onnx_ir.passes.common as common
from pydantic import Field

from compressor.graph import remove_dead
from compressor.pipeline import Change, Context, Pass
from compressor.prepare import adopt


@final
class ReplaceHead(Pass):
    """Replace the classifier of the first output by a new one with another number of classes.

    The classifier is the last Gemm, MatMul with its Add, or 1x1 Conv before the output; a Softmax behind it stays, and
    so do the names of the output and of the weights. The new weights are drawn from the seed, the bias is zero, so the
    model must be trained afterwards: replace-head{classes=10},finetune. Its outputs cannot be compared with the
    original's. Quantize after this, not before.
    """

    name: ClassVar[str] = "replace-head"
    prepared: ClassVar[bool] = False
    reshapes: ClassVar[bool] = True

    classes: int = Field(2, ge=1, description="number of outputs of the new classifier")
    init: Literal["he", "xavier", "orthogonal", "uniform", "normal", "zero"] = Field(
        "xavier", description="distribution of the new weights, as in finetune's `initialize`"
    )

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Put the new classifier in; nothing when the last layer is none, or the graph behind it wants its classes."""
        from compressor.training import classifier

        trial = model.clone()
        if trial.functions:
            common.InlinePass()(trial)
        found = classifier.find(trial)
        if isinstance(found, str):
            return Change(declined={"model": found})
        touched = classifier.replace(found, self.classes, self.init, context.seed)
        remove_dead(trial)
        sizes = (found.classes, self.classes)
        if reason := classifier.declare(model, trial, sizes, context.samples, context.seed):
            return Change(declined={"model": reason})
        adopt(model, trial)
        return Change(touched, figures={"classes before": found.classes, "classes after": self.classes})
