"""Fine-tuning, distillation and quantization-aware training of the graph itself."""

from __future__ import annotations

from typing import final

import onnx_ir as ir

from compressor.pipeline import Change, Context
from compressor.training.options import Training


@final
class Finetune(Training):
    """Train the weights on labels, on the original model's answers, or on both.

    The graph runs in torch with its initializers as parameters, and the trained values are written back; nothing of
    the model's source is needed. What earlier passes fixed stays fixed: zeros stay zero, quantizers keep quantizing
    (quantize-int8 before this pass makes it quantization-aware training, with straight-through gradients). Without
    labels the original model is the teacher. Scored are the evaluation samples, or a part of the training samples
    that is held out, and the best epoch's weights are kept, so that training never makes the score worse.

    Hooks are Lightning callbacks: `Context(callbacks=[...])`, or `--callback MODULE:CLASS`.
    """

    name = "finetune"
    needs = ("train",)
    prepared = False
    trains = True

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Train, and put the trained values into `model`."""
        from compressor.training.fitting import fit

        return fit(model, self, context)
