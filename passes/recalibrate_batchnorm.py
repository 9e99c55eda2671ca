"""New running statistics for BatchNormalization, from training data."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import onnx_ir as ir
from pydantic import Field

from compressor.pipeline import Change, Context, Pass
from compressor.prepare import adopt


@final
class RecalibrateBatchnorm(Pass):
    """Measure the statistics of BatchNormalization anew on training data.

    Mean and variance are the averages over batches, each normalization seeing what the ones before it give with the
    batch's own statistics. It needs no labels and no gradients, and repairs models whose weights were changed behind
    their statistics, or that meet other data than they were trained on. Put it before passes that fold
    BatchNormalization, which is nearly all. Source: Izmailov et al. 2018 (arXiv:1803.05407), section 3.2.
    """

    name: ClassVar[str] = "recalibrate-batchnorm"
    needs: ClassVar[tuple[Literal["calibration", "data", "train"], ...]] = ("train",)
    packages = ("torch",)
    prepared: ClassVar[bool] = False

    samples: int = Field(
        1024, ge=1, description="training samples that are looked at; all where there are fewer"
    )
    batch: int = Field(64, ge=2, description="samples per batch, whose statistics are averaged")

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Replace the statistics; nothing where there are none."""
        if not any(node.op_type == "BatchNormalization" for node in model.graph):
            return Change(
                declined={
                    "model": "it has no BatchNormalization of its own; one that an export or a pass folded is gone"
                }
            )
        if context.train is None:
            raise ValueError("the pipeline checks `needs`")
        from compressor.training.recalibration import recalibrated

        found = recalibrated(model, context.train, self.samples, self.batch, context.seed)
        adopt(model, found.model)
        figures = {"samples": found.samples, "largest shift of a mean, in deviations": found.shift}
        return Change(found.nodes, found.declined, figures)
