"""Depth pruning: whole residual branches or transformer blocks are left out."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, ClassVar, Literal, final

import numpy as np
import onnx_ir as ir
from pydantic import Field

from compressor.errors import DataError, ModelError
from compressor.graph import matches
from compressor.measurement import outputs_on
from compressor.pipeline import Change, Context, Pass
from compressor.prepare import infer_shapes
from compressor.pruning.blocks import Block, Unit, blocks, influence, leave_out, unequal
from compressor.runtime import Setup

if TYPE_CHECKING:
    from compressor.data import Samples


@final
class PruneLayers(Pass):
    """Leave out the residual branches, or transformer blocks, that change least what flows through them.

    The skip stands for the result, so all shapes stay, and every node of the branch goes: unlike zeros, this is faster
    on any runtime. A branch is what lies between x and x + f(x); a block is a branch with attention and those behind
    it. importance='influence' takes the block with the smallest 1 - mean cos(x, x + f(x)) over the positions of the
    calibration samples, importance='output' the one without which the outputs change least, by the sum of squares.
    Either is measured again after each block that goes. Fine-tune afterwards.

    Sources: Men et al. 2024, "ShortGPT" (arXiv:2403.03853), section 3; for branches of ResNets, Huang et al. 2016,
    "Deep Networks with Stochastic Depth" (arXiv:1603.09382).
    """

    name: ClassVar[str] = "prune-layers"
    needs = ("calibration",)

    count: int = Field(0, ge=0, description="how many to leave out; 0: as `ratio` says")
    ratio: float = Field(
        0.25, ge=0, lt=1, description="share of all that were found to leave out; at least one"
    )
    unit: Unit = Field("block", description="what goes: a residual branch, or a whole transformer block")
    importance: Literal["influence", "output"] = Field("influence", description="what decides which go")
    include: tuple[str, ...] = Field((), description="globs over names of nodes in the branch; empty: all")
    exclude: tuple[str, ...] = Field((), description="globs over names of nodes in the branch")

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Leave blocks out one by one, the least important first."""
        found, declined = blocks(model, self.unit)
        if context.calibration is not None:
            unfit = unequal(model, found, context.calibration)
            declined |= {block.name: reason for block, reason in unfit.items()}
            found = [block for block in found if block not in unfit]
        chosen = [block for block in found if self._may_go(block)]
        declined |= {block.name: "excluded" for block in found if block not in chosen}
        if not found:
            return Change(declined={"model": "no residual branch: nothing goes round a layer", **declined})
        if not chosen:
            return Change(declined={"model": f"every {self.unit} is excluded", **declined})
        wanted = self.count or (max(1, round(self.ratio * len(found))) if self.ratio else 0)
        if not wanted:
            return Change(declined={"model": "ratio and count are 0: nothing to leave out", **declined})
        allowed = min(wanted, len(chosen), len(found) - 1)
        gone: list[str] = []
        figures: dict[str, float | str] = {"blocks found": len(found)}
        saved = 0
        for _ in range(allowed):
            block, cost = self._cheapest(model, context, gone)
            context.progress(self.name, len(gone), allowed)
            figures[f"{self.importance} of {block.name}"] = round(cost, 6)
            saved += block.parameters
            gone.append(block.name)
            leave_out(model, block)
        if allowed < wanted:
            figures["not reached"] = f"{wanted} asked for; {allowed} of {len(found)} may go, one always stays"
        figures |= {"blocks left out": len(gone), "parameters left out": saved}
        infer_shapes(model)
        return Change(tuple(gone), declined, figures)

    def _cheapest(self, model: ir.Model, context: Context, gone: list[str]) -> tuple[Block, float]:
        """The block that is missed least in the model as it is now, and how much."""
        samples = context.calibration
        if samples is None:
            raise DataError(f"{self.name} needs calibration samples.")
        chosen = [
            block for block in blocks(model, self.unit)[0] if self._may_go(block) and block.name not in gone
        ]
        if self.importance == "influence":
            costs = influence(model, chosen, samples, context.threads)
        else:
            costs = output_errors(model, chosen, self.unit, samples, context.threads)
        for block, cost in costs.items():
            if not isfinite(cost):
                raise ModelError(
                    f"{self.name}: what flows round block {block.name!r} becomes NaN or infinite on the samples; mend "
                    "them or the model."
                )
        return min(costs.items(), key=lambda item: item[1])

    def _may_go(self, block: Block) -> bool:
        names = (block.name, *(node.name for node in block.nodes))
        wanted = not self.include or matches(names, self.include)
        return wanted and not matches(names, self.exclude)


def output_errors(
    model: ir.Model, found: Sequence[Block], unit: Unit, samples: Samples, threads: int = 0
) -> dict[Block, float]:
    """For each block, the error of the outputs without it: sum of squared differences over the sum of squares."""
    before = outputs_on(model, samples, Setup(threads=threads))
    scale = sum(float(np.square(array, dtype=np.float64).sum()) for array in before)
    costs: dict[Block, float] = {}
    for block in found:
        trial = model.clone()
        leave_out(trial, next(twin for twin in blocks(trial, unit)[0] if twin.name == block.name))
        after = outputs_on(trial, samples, Setup(threads=threads))
        with np.errstate(invalid="ignore"):
            lost = sum(
                float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(before, after, strict=True)
            )
        costs[block] = lost / scale if scale else lost
    return costs
