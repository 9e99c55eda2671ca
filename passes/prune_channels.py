"""Structured pruning: whole channels, heads and hidden units are cut out of the graph."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal, Self, final

import onnx_ir as ir
from pydantic import Field, PositiveInt, model_validator

from compressor.errors import DataError, OptionError
from compressor.pipeline import Change, Context, Pass, Pipeline
from compressor.prepare import adopt
from compressor.pruning.allocation import curves
from compressor.pruning.channel_importance import Importance, Normalization
from compressor.pruning.channel_pruning import Plan, prune
from compressor.pruning.channel_scores import FROM_SAMPLES
from compressor.pruning.channel_selection import Heads, Wanted
from compressor.pruning.channel_targets import Goal
from compressor.shortcuts import shortcuts_to_convolutions
from compressor.summary import summarize

if TYPE_CHECKING:
    from compressor.data import Samples

_TARGETS: tuple[Goal, ...] = ("ratio", "macs", "params", "latency")
_DEFAULT = 0.5
_BETWEEN = "finetune{epochs=1}"
_COUNTED = {"macs": "MACs", "params": "parameters"}
_MET = 1.02
"""What may be left of these with shortcuts as convolutions, as a multiple of what was to be left."""


@final
class PruneChannels(Pass):
    """Cut whole channels, attention heads and hidden units out of the graph.

    What must go together is found in the graph (`compressor.channels`), so that a cut is exact: the model computes
    what it would with these channels masked. One target says how much goes, always as the share that is cut: `ratio`
    of the channels of every group, or `macs`, `params` or `latency` of the whole model; without any, half of the MACs.
    For these three the cut that loses the least importance per unit saved is made next, until the target is reached.
    For `latency` layers are timed at several widths on the target provider, and the result is measured and corrected.

    importance='l1' and 'l2' are norms of the weights that make a channel (arXiv:1608.08710), 'fpgm' its distance to
    the others (arXiv:1811.00250), 'bn-gamma' the scale of a normalization that is not folded (arXiv:1708.06519),
    'taylor' the first-order change of the loss (arXiv:1906.10771), 'hessian' optimal brain damage with the Fisher
    information, 'activation' |w| * ||x|| of what reads it (arXiv:2306.11695). normalize='sum' makes scores shares of
    their layer, 'mean' makes the mean channel of every layer worth the same (arXiv:2301.12900, section 3.3).

    reconstruct='least-squares' then solves the layers behind the cut again on calibration samples, which wins most of
    a moderate cut back without training (arXiv:1707.06168, section 3.1). 'auto' is that and 'activation' where there
    are samples, else 'l2' and nothing. round_to='auto' keeps widths that run fast: multiples of 16 on the CPU, of 8
    for dense int8 convolutions and on GPUs. Channels under a normalization stay unless residual_stream=True: without
    them its statistics are others. sensitivity=FILE lets the measured drops of the score say what a cut costs where,
    and no group goes further than was measured; the importance then only says which of its channels go. In the end, on
    the CPU, shortcuts that skip rows and pad channels with zeros become convolutions of the same results, which run
    faster there (`compressor.shortcuts`); not for `latency`.
    """

    name: ClassVar[str] = "prune-channels"

    ratio: float | None = Field(None, ge=0, lt=1, description="share of each group's channels that goes")
    macs: float | None = Field(None, ge=0, lt=1, description="share of the multiply-accumulates that goes")
    params: float | None = Field(None, ge=0, lt=1, description="share of the parameters that goes")
    latency: float | None = Field(None, ge=0, lt=1, description="share of the measured latency that goes")
    importance: Literal["auto"] | Importance = Field("auto", description="what a channel is worth")
    normalize: Normalization = Field("sum", description="what brings the importances of layers to one scale")
    reconstruct: Literal["auto", "none", "least-squares"] = Field(
        "auto", description="how the layers behind a cut make up for it, on calibration samples"
    )
    round_to: Literal["auto"] | PositiveInt = Field(
        "auto", description="what widths are multiples of; 1 allows odd widths, which run slowly"
    )
    max_ratio: float = Field(0.75, gt=0, lt=1, description="largest share of a group's channels that may go")
    heads: Heads = Field("whole", description="of attention heads, or groups of a convolution, what goes")
    residual_stream: bool = Field(
        False, description="cut channels that a normalization takes statistics over"
    )
    include: tuple[str, ...] = Field((), description="globs over names of groups and weights; empty: all")
    exclude: tuple[str, ...] = Field((), description="globs over names of groups and weights")
    sensitivity: str = Field("", description="file of `compress sensitivity` that says what cuts cost where")
    iterative: int = Field(1, ge=1, description="number of steps that the cut is made in")
    between: str = Field(_BETWEEN, description="the recipe that runs between two steps")

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        given = [name for name in _TARGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"one target at a time, got {' and '.join(given)}")
        if self.iterative == 1 and self.between != _BETWEEN:
            raise ValueError(
                f"between={self.between!r} runs between steps, and there is one: give iterative=2"
            )
        if self.sensitivity and self.iterative > 1:
            raise ValueError(
                "sensitivity was measured on the uncut model; it does not go with iterative above 1"
            )
        return self

    def resolved(self, context: Context) -> PruneChannels:
        """The same pass with a target, and with the options that fit the samples of the context."""
        sampled = self._samples(context) is not None
        chosen: dict[str, object] = {
            "importance": "activation" if sampled else "l2",
            "reconstruct": "least-squares" if sampled else "none",
        }
        update = {key: value for key, value in chosen.items() if getattr(self, key) == "auto"}
        if all(getattr(self, name) is None for name in _TARGETS):
            update["macs"] = _DEFAULT
        return self.model_copy(update=update)

    def apply(self, model: ir.Model, context: Context) -> Change:
        """Choose channels, cut them, solve the layers behind them again, and write shortcuts as convolutions."""
        this = self.resolved(context)
        goal = next(name for name in _TARGETS if getattr(this, name) is not None)
        if getattr(this, goal) == 0:
            return Change(declined={"model": f"{goal}=0 asks for no cut"})
        change = prune(model, this._plan(goal, context), context)
        # The widths that reach a latency were timed with the shortcuts as they are.
        faster = bool(change.touched) and context.provider == "cpu" and goal != "latency"
        return this._write_shortcuts(model, change, goal) if faster else change

    def _write_shortcuts(self, model: ir.Model, change: Change, goal: Goal) -> Change:
        """The change with shortcuts as convolutions, unless what these add leads away from the target."""
        trial = model.clone()
        made = shortcuts_to_convolutions(trial)
        if not made:
            return change
        after = summarize(trial)
        figures = {**change.figures, "parameters after": after.parameters}
        if after.macs:
            figures["MACs after"] = after.macs
        if said := _COUNTED.get(goal):
            left = float(figures[f"{said} after"]) / float(figures[f"{said} before"])
            if left > (1 - getattr(self, goal)) * _MET:
                why = f"as convolutions they would leave {left:.1%} of the {said}"
                return replace(change, declined={**change.declined, "shortcuts": why})
            figures[f"{said} left"] = left
        adopt(model, trial)
        return replace(change, figures={**figures, "shortcuts as convolutions": len(made)})

    def _samples(self, context: Context) -> Samples | None:
        return context.calibration if context.calibration is not None else context.train

    def check(self, context: Context) -> None:
        """Raise when an option needs samples that there are not, or the recipe between the steps cannot run."""
        if self.iterative > 1:
            self._check_between(context)
        if self.sensitivity:
            curves(self.sensitivity, "channels")
        asking = {
            "importance": self.importance in FROM_SAMPLES,
            "reconstruct": self.reconstruct == "least-squares",
        }
        for option, asks in asking.items():
            if asks and self._samples(context) is None:
                raise DataError(
                    f"{self.name}: {option}={getattr(self, option)!r} needs calibration samples. "
                    "Give --calibration FILE.npz, or calibration=... in Python."
                )

    def _check_between(self, context: Context) -> None:
        try:
            Pipeline.parse(self.between).check(context)
        except (OptionError, DataError) as error:
            raise type(error)(f"{self.name}: between={self.between!r} cannot run. {error}") from None

    def _plan(self, goal: Goal, context: Context) -> Plan:
        wanted = Wanted(
            round_to=self.round_to,
            max_ratio=self.max_ratio,
            heads=self.heads,
            residual_stream=self.residual_stream,
            include=self.include,
            exclude=self.exclude,
            sizes={},
            curves=curves(self.sensitivity, "channels") if self.sensitivity else None,
        )
        return Plan(
            goal=goal,
            share=getattr(self, goal),
            steps=self.iterative,
            between=Pipeline.parse(self.between) if self.iterative > 1 else Pipeline(),
            wanted=wanted,
            importance="l2" if self.importance == "auto" else self.importance,
            normalize=self.normalize,
            solve=self.reconstruct == "least-squares",
            samples=self._samples(context),
        )
