"""Unstructured pruning: single weights, n:m groups or blocks set to zero, at once or during the next training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self, final

import numpy as np
import onnx_ir as ir
from pydantic import Field, model_validator

from compressor.errors import DataError, OptionError
from compressor.pipeline import Change, Context, Pass
from compressor.pruning.allocation import cheapest, curves, lamp, share_out
from compressor.pruning.masks import Pattern, units
from compressor.pruning.prunable import Selection, Weight, select
from compressor.pruning.sparsity import Gradual, Importance, Schedule, Scope
from compressor.pruning.weight_importance import (
    magnitude,
    require_torch,
    taylor_scores,
    unwatched,
    wanda_scores,
)
from compressor.pruning.weights import Scores, cut, reconstruct

if TYPE_CHECKING:
    from compressor.data import Samples

_NO_SAMPLES = (
    "prune-magnitude: {} needs calibration samples. Give --calibration FILE.npz, or calibration=FILE."
)
_NEAR = 0.005
"""How far from the wanted sparsity is worth a word."""


@final
class PruneMagnitude(Pass):
    """Set the weights that matter least to zero.

    `sparsity` counts the weights that are not declined. scope='layer' gives each layer that share. scope='global'
    takes the lowest of all: magnitudes and wanda scores are made comparable by LAMP, w^2 over the sum of the squares
    in the layer that are not smaller, far better than raw magnitudes; Taylor scores are changes of the loss, and
    comparable as they are. A layer keeps at least 1 % of its weights then. sensitivity=FILE shares the total out by
    measured curves instead, at the least summed drop.

    importance: 'magnitude' |w|; 'wanda' |w| ||x||, x what the weight multiplies on calibration samples, compared
    within a row (an output); 'taylor' the mean of (w g)^2, g the gradient of the loss; 'movement' -w g summed over a
    training. reconstruct='obs' chooses by w^2 / [H^-1]_jj in a layer, H = X X^T over what the layers before,
    already pruned, make of the calibration samples, and solves the weights that stay for the output that the layer
    had in the original.

    pattern='2:4' keeps 2 of each 4 neighbours along the inputs of a row, at each position of a kernel.

    With a schedule other than 'one-shot' nothing is cut here: the next finetune prunes in `steps` while it trains.
    onnxruntime does not run zeros faster; storage='auto' makes the file smaller by what they take.

    Sources: Han et al. 2015 (arXiv:1506.02626); Lee et al. 2021 (arXiv:2010.07611), eq. 3; Sun et al. 2023
    (arXiv:2306.11695), eq. 1; Molchanov et al. 2019 (arXiv:1906.10771), eq. 8; Sanh et al. 2020 (arXiv:2005.07683);
    Frantar and Alistarh 2023 (arXiv:2301.00774), section 3; Li et al. 2025 (arXiv:2504.02692); Zhu
    and Gupta 2017 (arXiv:1710.01878), eq. 1.
    """

    name: ClassVar[str] = "prune-magnitude"

    sparsity: Literal["auto"] | Annotated[float, Field(ge=0, lt=1)] = Field(
        "auto", description="share of zeros, from 0 to below 1; auto: 1 - n/m for pattern='n:m', else 0.5"
    )
    scope: Scope = Field("global", description="compare weights over all layers, or within each")
    pattern: str = Field("element", description="'element', 'block', or n of m as '2:4'")
    block: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = Field(
        (4, 4), description="for pattern='block': its outputs and inputs"
    )
    importance: Importance = Field("magnitude", description="what decides which weights go")
    reconstruct: Literal["none", "obs"] = Field(
        "none", description="solve the weights that stay for the layer's output on calibration samples"
    )
    sensitivity: str = Field("", description="file of `compress sensitivity` that shares sparsity out")
    schedule: Schedule = Field("one-shot", description="how sparsity grows during the next training")
    steps: int = Field(10, ge=1, description="for a schedule: how many times weights go")
    rewind: bool = Field(False, description="for a schedule: put the weights that stay back after each step")
    include: tuple[str, ...] = Field((), description="globs over node and weight names; empty: all layers")
    exclude: tuple[str, ...] = Field((), description="globs over node and weight names")
    min_elements: int = Field(1024, ge=1, description="smaller weights stay as they are")
    storage: Literal["auto", "dense"] = Field("auto", description="store zeros as bits where that is smaller")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if reason := self._conflict():
            raise ValueError(reason)
        return self

    def _conflict(self) -> str | None:
        """Why the options do not go together, or None."""
        try:
            pattern = Pattern.parse(self.pattern, self.block)
        except OptionError as error:
            return str(error).removesuffix(".")
        if pattern.of and self.sparsity not in ("auto", pattern.limit):
            fixed = f"pattern {self.pattern!r} is a sparsity of {pattern.limit:g}"
            return f"{fixed}; leave sparsity out, got {self.sparsity!r}"
        if self.sensitivity and pattern.of:
            return f"sensitivity shares sparsity out, and pattern {self.pattern!r} fixes it; leave one of them out"
        if self.schedule != "one-shot":
            at_once = ["importance='wanda'"] * (self.importance == "wanda")
            at_once += ["reconstruct='obs'"] * (self.reconstruct == "obs")
            return f"{at_once[0]} prunes at once, got schedule={self.schedule!r}" if at_once else None
        training = ["importance='movement'"] * (self.importance == "movement") + ["rewind=True"] * self.rewind
        if training:
            return f"{training[0]} needs a training; give schedule='iterative' and put finetune behind it"
        return None

    @property
    def defers(self) -> bool:
        """True with a schedule, which a training carries out."""
        return self.schedule != "one-shot"

    @property
    def packs(self) -> bool:
        """True unless zeros are to be stored as numbers."""
        return self.storage == "auto"

    def resolved(self, context: Context) -> PruneMagnitude:
        """The same pass with the sparsity of its pattern, or 0.5."""
        if self.sparsity != "auto":
            return self
        pattern = Pattern.parse(self.pattern, self.block)
        return self.model_copy(update={"sparsity": pattern.limit if pattern.of else 0.5})

    def check(self, context: Context) -> None:
        """Refuse when samples, torch or the file of curves are missing."""
        if self.reconstruct == "obs":
            self._samples(context, "reconstruct")
        if self.importance in ("wanda", "taylor"):
            self._samples(context, "importance")
        if self.importance == "taylor":
            require_torch()
        if self.sensitivity:
            curves(self.sensitivity)

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Prune, or say in the Change what the next training is to prune."""
        self.check(context)
        this, pattern = self.resolved(context), Pattern.parse(self.pattern, self.block)
        chosen, declined = select(model, Selection(self.include, self.exclude, self.min_elements, pattern))
        if not this.sparsity:
            return Change(declined={"model": "sparsity=0 takes nothing away"})
        if not chosen:
            return Change(declined={"model": "no weight to prune", **declined})
        scores = this._scores(model, chosen, context)
        targets = this._targets(chosen, scores, pattern)
        declined |= {name: this._spared(name, targets) for name in chosen if not targets.get(name)}
        active = {name: weight for name, weight in chosen.items() if name not in declined}
        if not active:
            return Change(declined={"model": this._spare(), **declined})
        if this.defers:
            return Change(
                (), declined, {"weights": len(active)}, gradual=(this._later(active, targets, pattern),)
            )
        if this.reconstruct == "obs":
            outcome = reconstruct(model, active, targets, pattern, context)
        else:
            by_row = this.importance == "wanda"
            outcome = cut(active, targets, scores, pattern, by_row)
            outcome.alone += unwatched(model, active) if by_row else []
        enough = {
            name: f"{share:.1%} of it is zero already" if share else this._spare()
            for name, share in outcome.sated().items()
        }
        if not outcome.taken:
            some = any(outcome.zeros.values())
            enough["model"] = "it has that many zeros already" if some else this._spare()
        figures = outcome.figures(chosen)
        if abs(float(figures["sparsity"]) - float(this.sparsity)) > _NEAR:
            figures["sparsity wanted"] = f"{this.sparsity:g}; {this._limit()}"
        return Change(tuple(outcome.taken), {**declined, **enough}, figures)

    def _scores(self, model: ir.Model, chosen: Mapping[str, Weight], context: Context) -> Scores:
        """What decides, by name of a weight."""
        if self.importance in ("magnitude", "movement"):
            return lambda name: magnitude(chosen[name].view)
        samples = self._samples(context, "importance")
        if self.importance == "taylor":
            return taylor_scores(model, chosen, samples, context).__getitem__
        return wanda_scores(model, chosen, samples, context.threads).__getitem__

    def _samples(self, context: Context, option: Literal["importance", "reconstruct"]) -> Samples:
        """What an option measures on: gradients on the training samples where there are any."""
        gradients = option == "importance" and self.importance == "taylor"
        samples = context.train if gradients and context.train is not None else context.calibration
        if samples is None:
            raise DataError(_NO_SAMPLES.format(f"{option}={getattr(self, option)!r}"))
        return samples

    def _targets(self, chosen: Mapping[str, Weight], scores: Scores, pattern: Pattern) -> dict[str, float]:
        """The sparsity of each weight; missing or 0 for those that are spared."""
        total = float(self.sparsity)
        if self.sensitivity:
            known = {name: curve for name, curve in curves(self.sensitivity).items() if name in chosen}
            if not known:
                raise OptionError(
                    f"sensitivity: {self.sensitivity!r} has no curve for any weight to be pruned here: it is of "
                    "another model, or of other layers. `compress sensitivity` writes one for this model."
                )
            return cheapest(known, {name: chosen[name].array.size for name in known}, total)
        if self.scope == "layer" or pattern.of:
            return dict.fromkeys(chosen, total)
        ordered = {name: np.sort(units(scores(name), pattern), axis=None) for name in chosen}
        if self.importance != "taylor":
            ordered = {name: lamp(each) for name, each in ordered.items()}
        return share_out(ordered, total)

    def _spared(self, name: str, targets: Mapping[str, float]) -> str:
        """Why a weight has no share in the total."""
        if not self.sensitivity:
            return "all of its weights matter more than those that go elsewhere"
        if name in targets:
            return f"too sensitive, by {self.sensitivity}"
        return f"{self.sensitivity} has no curve for it"

    def _spare(self) -> str:
        """Why nothing goes that was not zero before."""
        unit = "block" if self.pattern == "block" else "weight"
        return f"its share of what is to go is less than one {unit}, or all that it has"

    def _limit(self) -> str:
        """Why the total can be missed."""
        if self.sensitivity:
            return "no layer goes beyond what was measured for it"
        if self.pattern == "block":
            return "blocks go whole"
        return "a layer keeps its last weight, and zeros that it had"

    def _later(self, active: Mapping[str, Weight], targets: Mapping[str, float], pattern: Pattern) -> Gradual:
        return Gradual(
            targets={name: targets[name] for name in active},
            layouts={name: weight.layout for name, weight in active.items()},
            pattern=pattern,
            schedule=self.schedule,
            steps=self.steps,
            importance=self.importance,
            rewind=self.rewind,
            scope="layer" if self.sensitivity or pattern.of else self.scope,
        )
