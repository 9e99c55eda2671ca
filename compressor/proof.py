"""Measuring a result against its original, into a report; and what must hold before that is worth while."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from compressor import metrics
from compressor.data import Samples, open_samples, synthetic
from compressor.errors import DataError, ModelError, OptionError
from compressor.gate import Limits
from compressor.load_cost import load_costs
from compressor.measurement import environment, latencies, outputs_on, size_of
from compressor.model_io import (
    PIPELINE_KEY,
    VERSION_KEY,
    as_written,
    load,
    tool_version,
)
from compressor.pipeline import Change, Compressed, Context, Pipeline
from compressor.report import Load, Report, Step
from compressor.runtime import Session, Setup, require_provider, short_name
from compressor.statistics import Interval
from compressor.training.options import Training
from compressor.training.splits import hold_out

if TYPE_CHECKING:
    from compressor.metrics import Comparison

ModelLike = str | os.PathLike[str] | ir.Model | onnx.ModelProto
DataLike = str | os.PathLike[str] | Samples | Mapping[str, np.ndarray] | np.ndarray
_SYNTHETIC = 16


@dataclass(frozen=True)
class Target:
    """Where the result is measured.

    Args:
        providers: names of onnxruntime's execution providers; passes work for the first.
        threads: intra-op threads of the latency measurement; 0 is onnxruntime's choice.
        batch: samples per run in the latency measurement; a fixed batch axis keeps its own.
        metric: name of a metric, or `file.py:function`; None chooses by the labels.
        seed: of made-up samples, resampling and the order of timing.
    """

    providers: tuple[str, ...] | str = ("cpu",)
    threads: int = 1
    batch: int = 1
    metric: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if isinstance(self.providers, str):
            object.__setattr__(self, "providers", (self.providers,))
        if not self.providers:
            raise OptionError("providers: at least one is needed.")
        if self.threads < 0 or self.batch < 1:
            raise OptionError(
                f"threads must be 0 or more and batch 1 or more, got {self.threads} and {self.batch}."
            )
        if self.seed < 0:
            raise OptionError(f"seed must be 0 or more, got {self.seed}.")
        for provider in self.providers:
            require_provider(provider)

    def setups(self) -> list[Setup]:
        """One runtime setup per provider."""
        return [Setup(provider=short_name(p), threads=self.threads) for p in self.providers]


def measured(
    source: ir.Model | Path, made: Compressed, context: Context, where: Target, notes: list[str]
) -> Report:
    """Size, accuracy and latency of the original and of the result."""
    original = context.original if context.original is not None else load(source)
    real = context.data if context.data is not None else context.calibration
    samples = made_up(original, where.seed) if real is None else real
    accuracy, agreement, on, alone = _accuracy(original, made, samples, context, where)
    notes = [*notes, *alone]
    if real is None:
        notes = [
            *notes,
            "Accuracy was NOT verified on real data: agreement is on made-up inputs. Give --data FILE.",
        ]
    elif context.data is None:
        notes = [
            *notes,
            "Accuracy was compared on the calibration samples, which flatters it. Give --data FILE.",
        ]
    if accuracy is not None and accuracy.verified == "agreement" and context.data is not None:
        notes = [
            *notes,
            "The evaluation samples have no labels: compared is the agreement with the original.",
        ]
    timed = latencies(
        [original, made.model], samples, where.setups(), where.batch, context.progress, where.seed
    )
    if any(latency.batch != where.batch for latency in timed):
        notes = [*notes, f"The model fixes its batch axis: timed with {timed[0].batch}, not {where.batch}."]
    written = as_written(made.model, metadata(str(made.pipeline)))
    loads, unmeasured = _load([source, written], context)
    return Report(
        model=str(source) if isinstance(source, Path) else str(original.graph.name or "model"),
        output=None,
        pipeline=str(made.pipeline),
        before=size_of(source),
        after=size_of(written),
        accuracy=accuracy,
        agreement=agreement,
        evaluated_on=on,
        made_up=real is None,
        latency=timed,
        load=loads,
        steps=tuple(_step(change) for change in made.changes),
        notes=(*notes, *unmeasured),
        environment=environment(),
    )


def made_up(model: ir.Model, seed: int) -> Samples:
    """Synthetic samples that the model accepts."""
    samples = synthetic(model, _SYNTHETIC, seed)
    try:
        outputs_on(model, samples.take(1), Setup())
    except ModelError as error:
        raise DataError(f"Made-up inputs do not run ({error}). Give real samples with --data.") from error
    return samples


def _accuracy(
    original: ir.Model, made: Compressed, samples: Samples, context: Context, where: Target
) -> tuple[Comparison | None, dict[str, Interval], str, list[str]]:
    """The comparison, the agreement, what was evaluated on, and notes; no comparison where outputs have new shapes."""
    setup = replace(where.setups()[0], threads=0, spin=False)
    before = outputs_on(original, samples, setup, context.progress, "evaluating the original")
    after = outputs_on(made.model, samples, setup, context.progress, "evaluating the result")
    labels = samples.labels if context.data is not None else None
    metric = where.metric if labels is not None else None
    on = f"{len(samples)} {'labelled samples' if labels is not None else 'samples without labels'} of {samples.source}"
    if any(p.reshapes for p in made.pipeline) and [o.shape for o in before] != [o.shape for o in after]:
        return None, {}, on, [_alone(before, after, labels, where)]
    compared = metrics.compare(metric, before, after, labels, where.seed)
    return compared, dict(metrics.agreement(before, after, where.seed)), on, []


def _load(models: Sequence[ir.Model | Path], context: Context) -> tuple[tuple[Load, ...], list[str]]:
    """What loading takes, or why that is unknown: both models have just run here, so the rest of the report stands."""
    try:
        return load_costs(models, context.progress), []
    except (ModelError, OSError) as error:
        return (), [f"Load time and memory were not measured: {error}"]


def _alone(
    before: Sequence[np.ndarray], after: Sequence[np.ndarray], labels: np.ndarray | None, where: Target
) -> str:
    """That outputs cannot be compared, and with labels the score of the result."""
    was, now = next((b, a) for b, a in zip(before, after, strict=True) if b.shape != a.shape)
    said = f"An output was {list(was.shape[1:])} per sample and is {list(now.shape[1:])}, so the two are not compared."
    if labels is None:
        return said
    name = where.metric or metrics.default_metric(after, labels)
    score = metrics.score(name, after, labels, where.seed)
    return f"{said} The result alone: {name} {score.value:.4f} [{score.low:.4f}, {score.high:.4f}]."


def comparable(pipeline: Pipeline, limits: Limits) -> bool:
    """Whether the result's outputs will have the shapes of the original's; OptionError when a limit needs that."""
    reshaping = next((p.name for p in pipeline if p.reshapes), None)
    if reshaping is not None and limits.max_drop is not None:
        raise OptionError(
            f"max-drop {limits.max_drop:g}: {reshaping} gives the outputs another shape, so that no drop from the "
            "original can be measured. Leave the limit out."
        )
    return reshaping is None


def require_data(data: DataLike | None, where: Target, limits: Limits) -> None:
    """Fail when what is asked for cannot be told without evaluation samples."""
    asked = "max-drop" if limits.max_drop is not None else "metric" if where.metric is not None else None
    if data is None and asked:
        raise DataError(f"{asked} needs evaluation samples. Give --data FILE.npz, or data=... in Python.")


def require_runs(model: ir.Model, where: Target) -> None:
    """Fail before any work when onnxruntime cannot load the model on a provider that will be measured."""
    for setup in where.setups():
        Session(model, setup)


def opened(data: DataLike | None, model: ir.Model, what: str) -> Samples | None:
    """The samples, their values checked before anything runs."""
    if data is None:
        return None
    samples = open_samples(data, model, what)
    len(samples)
    return samples


def held_out_share(pipeline: Pipeline) -> float:
    """The share of the training samples that the first pass that trains holds out; 0 when none does."""
    return next((float(p.holdout) for p in pipeline if isinstance(p, Training)), 0.0)


def held_out(samples: Samples, share: float, seed: int) -> tuple[Samples, Samples | None]:
    """(the samples to train on, those to evaluate on); a function's samples are all trained on."""
    if not samples.numbered:
        return samples, None
    rows, held = hold_out(samples.labels, len(samples), share, seed)
    return samples.subset(rows), samples.subset(held)


def check_labels(samples: Samples | None, model: ir.Model, where: Target) -> None:
    """Fail on unusable labels or an unknown metric before any work is done, by running one sample."""
    if samples is None:
        return
    labels = samples.labels
    first = outputs_on(model, samples.take(1), Setup())
    name = where.metric or metrics.default_metric(first, None if labels is None else labels[:1])
    if labels is not None or where.metric is not None:
        shaped = [np.broadcast_to(o, (len(samples), *o.shape[1:])) for o in first]
        metrics.check_labels(name, labels, shaped)


def require_same_interface(old: ir.Model, new: ir.Model) -> None:
    """Raise ModelError unless both models have inputs and outputs of the same names."""
    for kind, a, b in (
        ("inputs", old.graph.inputs, new.graph.inputs),
        ("outputs", old.graph.outputs, new.graph.outputs),
    ):
        names = [
            [v.name for v in side if v.name not in g.graph.initializers] for side, g in ((a, old), (b, new))
        ]
        if names[0] != names[1]:
            raise ModelError(
                f"The candidate's {kind} {names[1]} are not the reference's {names[0]}; they cannot be compared."
            )


def metadata(recipe: str) -> dict[str, str]:
    """What is stored in the file: the recipe, and the tool's version."""
    return {PIPELINE_KEY: recipe, VERSION_KEY: tool_version()}


def _step(change: Change) -> Step:
    return Step(
        recipe=change.recipe,
        touched=len(change.touched),
        declined=dict(change.declined),
        figures=dict(change.figures),
        seconds=change.seconds,
    )
