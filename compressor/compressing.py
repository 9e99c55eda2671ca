"""The main job: a model in, a smaller and faster one out, with proof. And the gate, which is its second half."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from compressor import metrics
from compressor.data import Samples, open_samples, synthetic
from compressor.defaults import FALLBACK, choose
from compressor.errors import DataError, ModelError, OptionError
from compressor.gate import Limits, judge, raise_for_limits
from compressor.measurement import environment, latencies, outputs_on, size_of
from compressor.model_io import (
    PIPELINE_KEY,
    VERSION_KEY,
    as_written,
    check_target,
    files_of,
    invalid_reason,
    load,
    save,
    tool_version,
)
from compressor.pipeline import Change, Compressed, Context, Pass, Pipeline, Progress, silent
from compressor.report import Report, Step
from compressor.runtime import Session, Setup, require_provider, short_name
from compressor.statistics import Interval

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
        seed: for everything that is drawn.
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
        for provider in self.providers:
            require_provider(provider)

    def setups(self) -> list[Setup]:
        """One runtime setup per provider."""
        return [Setup(provider=short_name(p), threads=self.threads) for p in self.providers]


@dataclass(frozen=True)
class Result:
    """A compressed model and its proof."""

    model: ir.Model
    report: Report
    valid: bool = field(repr=False)
    external: bool = field(repr=False)
    sources: tuple[Path, ...] = field(repr=False)

    def save(self, path: str | os.PathLike[str], force: bool = False) -> tuple[Path, ...]:
        """Write the model atomically, with its recipe and the tool's version in the metadata.

        Raises:
            OptionError: the path exists (without force), is the input, or its folder is missing.
            ModelError: the disk is full, or the file does not load.
        """
        target = Path(path)
        check_target(target, self.sources, force)
        return save(
            self.model, target, metadata=self.metadata(), must_be_valid=self.valid, external=self.external
        )

    def metadata(self) -> dict[str, str]:
        """What is stored in the file."""
        return _metadata(self.report.pipeline)

    def raise_for_limits(self) -> None:
        """Raise GateError when a limit was broken."""
        raise_for_limits(self.report)


def compress(
    model: ModelLike,
    pipeline: Pipeline | Pass | Sequence[Pass] | str | None = None,
    *,
    calibration: DataLike | None = None,
    data: DataLike | None = None,
    target: Target | None = None,
    limits: Limits | None = None,
    progress: Progress = silent,
) -> Result:
    """Run a pipeline on a model and measure the result against the original.

    Args:
        model: a path, an onnx_ir.Model or a ModelProto; stays as it was.
        pipeline: a pipeline, a pass, several, or their text form; None chooses by model and data, and then the
            result must not be slower.
        calibration: samples that activation ranges are taken from; no labels needed.
        data: evaluation samples; with labels the metric is computed, without it is agreement with the original.
        target: providers, threads, batch and metric of the measurement.
        limits: judged into the report; a broken one does not raise here, `Result.raise_for_limits` does.
        progress: called with (what, done, total).

    Raises:
        ModelError, DataError, OptionError: before any pass has run, when something does not fit.
    """
    where = target or Target()
    wanted = limits or Limits()
    _require_data(data, where, wanted)
    original = load(model)
    _require_runs(original, where)
    calibrating = _opened(calibration, original, "calibration")
    evaluating = _opened(data, original, "data")
    _check_labels(evaluating, original, where)
    asked = pipeline is not None
    notes: list[str] = []
    if pipeline is None:
        choice = choose(original, calibrating is not None)
        pipeline = choice.recipe
        notes.append(f"Default pipeline {choice.recipe}: {choice.reason}.")
    if calibrating is None and evaluating is None:
        _made_up(original, where.seed)
    chosen = as_pipeline(pipeline)
    context = Context(
        calibration=calibrating,
        data=evaluating,
        original=original,
        provider=short_name(where.providers[0]),
        seed=where.seed,
        progress=progress,
    )
    made = chosen.run(original, context)
    if not asked and not _changed(made):
        chosen = Pipeline.parse(FALLBACK.recipe)
        notes.append(f"Nothing for it to do; {FALLBACK.recipe} instead: {FALLBACK.reason}.")
        made = chosen.run(original, context)
    if not _changed(made):
        if not asked:
            raise ModelError(_why_not(made))
        notes.append("The pipeline changed nothing in this model.")
    if not asked and wanted.min_speedup is None:
        wanted = replace(wanted, not_slower=True)
    path = Path(model) if isinstance(model, (str, os.PathLike)) else None
    report = _measured(path or original, made, context, where, notes)
    report = report.model_copy(update={"verdicts": judge(report, wanted)})
    return Result(
        model=made.model,
        report=report,
        valid=invalid_reason(original) is None,
        external=path is not None and len(files_of(path)) > 1,
        sources=files_of(path) if path is not None else (),
    )


def check(
    candidate: ModelLike,
    reference: ModelLike,
    *,
    data: DataLike | None = None,
    target: Target | None = None,
    limits: Limits | None = None,
    progress: Progress = silent,
) -> Report:
    """Measure a candidate against a reference and judge it; the gate of a CI job. `raise_for_limits` raises."""
    where = target or Target()
    wanted = limits or Limits()
    _require_data(data, where, wanted)
    old, new = load(reference), load(candidate)
    samples = _opened(data, old, "data")
    require_same_interface(old, new)
    _check_labels(samples, old, where)
    context = Context(data=samples, original=old, seed=where.seed, progress=progress)
    recipe = new.metadata_props.get(PIPELINE_KEY, "")
    source = Path(reference) if isinstance(reference, (str, os.PathLike)) else old
    made = Compressed(new, Pipeline(), ())
    report = _measured(source, made, context, where, [])
    update: dict[str, object] = {"verdicts": judge(report, wanted), "pipeline": recipe}
    if isinstance(candidate, (str, os.PathLike)):
        update["after"] = size_of(Path(candidate))
    return report.model_copy(update=update)


def _measured(
    source: ir.Model | Path, made: Compressed, context: Context, where: Target, notes: list[str]
) -> Report:
    """Size, accuracy and latency of the original and of the result."""
    original = context.original if context.original is not None else load(source)
    real = context.data if context.data is not None else context.calibration
    samples = _made_up(original, where.seed) if real is None else real
    accuracy, agreement, on = _accuracy(original, made.model, samples, context, where)
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
    if accuracy.verified == "agreement" and context.data is not None:
        notes = [
            *notes,
            "The evaluation samples have no labels: compared is the agreement with the original.",
        ]
    timed = latencies(
        [original, made.model], samples, where.setups(), where.batch, context.progress, where.seed
    )
    if any(latency.batch != where.batch for latency in timed):
        notes = [*notes, f"The model fixes its batch axis: timed with {timed[0].batch}, not {where.batch}."]
    return Report(
        model=str(source) if isinstance(source, Path) else str(original.graph.name or "model"),
        output=None,
        pipeline=str(made.pipeline),
        before=size_of(source),
        after=size_of(as_written(made.model, _metadata(str(made.pipeline)))),
        accuracy=accuracy,
        agreement=agreement,
        evaluated_on=on,
        made_up=real is None,
        latency=timed,
        steps=tuple(_step(change) for change in made.changes),
        notes=tuple(notes),
        environment=environment(),
    )


def _made_up(model: ir.Model, seed: int) -> Samples:
    """Synthetic samples that the model accepts."""
    samples = synthetic(model, _SYNTHETIC, seed)
    try:
        outputs_on(model, samples.take(1), Setup())
    except ModelError as error:
        raise DataError(f"Made-up inputs do not run ({error}). Give real samples with --data.") from error
    return samples


def _accuracy(
    original: ir.Model, result: ir.Model, samples: Samples, context: Context, where: Target
) -> tuple[Comparison, dict[str, Interval], str]:
    setup = replace(where.setups()[0], threads=0, spin=False)
    before = outputs_on(original, samples, setup, context.progress, "evaluating the original")
    after = outputs_on(result, samples, setup, context.progress, "evaluating the result")
    labels = samples.labels if context.data is not None else None
    metric = where.metric if labels is not None else None
    compared = metrics.compare(metric, before, after, labels, where.seed)
    kind = "labelled samples" if labels is not None else "samples without labels"
    return (
        compared,
        dict(metrics.agreement(before, after, where.seed)),
        f"{len(samples)} {kind} of {samples.source}",
    )


def _opened(data: DataLike | None, model: ir.Model, what: str) -> Samples | None:
    """The samples, their values checked before anything runs."""
    if data is None:
        return None
    samples = open_samples(data, model, what)
    len(samples)
    return samples


def as_pipeline(given: Pipeline | Pass | Sequence[Pass] | str) -> Pipeline:
    """A pipeline from whatever describes one; OptionError when it has no pass."""
    if isinstance(given, str):
        found = Pipeline.parse(given)
    elif isinstance(given, Pipeline):
        found = given
    else:
        passes = (given,) if isinstance(given, Pass) else tuple(given)
        if wrong := next((p for p in passes if not isinstance(p, Pass)), None):
            raise OptionError(f"A pipeline is made of passes or is a text, got {wrong!r} in it.")
        found = Pipeline(*passes)
    if not len(found):
        raise OptionError("The pipeline is empty. `compress passes` lists the passes.")
    return found


def _require_data(data: DataLike | None, where: Target, limits: Limits) -> None:
    """Fail when what is asked for cannot be told without evaluation samples."""
    asked = "max-drop" if limits.max_drop is not None else "metric" if where.metric is not None else None
    if data is None and asked:
        raise DataError(f"{asked} needs evaluation samples. Give --data FILE.npz, or data=... in Python.")


def _require_runs(model: ir.Model, where: Target) -> None:
    """Fail before any work when onnxruntime cannot load the model on a provider that will be measured."""
    for setup in where.setups():
        Session(model, setup)


def _check_labels(samples: Samples | None, model: ir.Model, where: Target) -> None:
    """Fail on unusable labels or an unknown metric before any work is done, by running one sample."""
    if samples is None:
        return
    labels = samples.labels
    first = outputs_on(model, samples.take(1), Setup())
    name = where.metric or metrics.default_metric(first, None if labels is None else labels[:1])
    if labels is not None or where.metric is not None:
        shaped = [np.broadcast_to(o, (len(samples), *o.shape[1:])) for o in first]
        metrics.check_labels(name, labels, shaped)


def _changed(made: Compressed) -> bool:
    return any(change.touched for change in made.changes)


def _why_not(made: Compressed) -> str:
    """That nothing was compressed, with the first reasons."""
    reasons = [f"{name}: {why}" for change in made.changes for name, why in change.declined.items()]
    because = f" {'; '.join(reasons[:2])}." if reasons else ""
    return f"Nothing in this model could be compressed.{because} `compress inspect` shows what is in it."


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


def _metadata(recipe: str) -> dict[str, str]:
    return {PIPELINE_KEY: recipe, VERSION_KEY: tool_version()}


def _step(change: Change) -> Step:
    return Step(
        recipe=change.recipe,
        touched=len(change.touched),
        declined=dict(change.declined),
        figures=dict(change.figures),
        seconds=change.seconds,
    )
