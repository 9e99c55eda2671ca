"""The preparation that other passes start from, as a pass of its own."""

from __future__ import annotations

from typing import ClassVar, final

import onnx_ir as ir

from compressor.pipeline import Change, Context, Pass
from compressor.prepare import adopt, prepare


@final
class Optimize(Pass):
    """Simplify the graph without changing what it computes.

    Inlines functions, folds constants (never to a larger file), drops Identity and inference Dropout, folds
    BatchNormalization, writes full-window pooling as GlobalAveragePool. The result is compared on onnxruntime with
    the original, and a step that changes it is left out and listed.
    """

    name: ClassVar[str] = "optimize"
    prepared: ClassVar[bool] = False

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Replace the model by its prepared form."""
        before = {node.name or "": node.op_type for node in model.graph}
        found = prepare(model, context.samples)
        after = {node.name or "": node.op_type for node in found.model.graph}
        adopt(model, found.model)
        gone = tuple(name for name, kind in before.items() if name and after.get(name) != kind)
        return Change(gone, found.declined, {"nodes before": len(before), "nodes after": len(after)})
