"""The main job: a model in, a smaller and faster one out, with proof. And the gate, which is its second half."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from compressor.defaults import FALLBACK, choose
from compressor.errors import ModelError, OptionError
from compressor.gate import Limits, judge, raise_for_limits
from compressor.measurement import size_of
from compressor.model_io import (
    PIPELINE_KEY,
    check_target,
    files_of,
    invalid_reason,
    load,
    save,
)
from compressor.pipeline import Compressed, Context, Pass, Pipeline, Progress, Run, silent
from compressor.report import Report
from compressor.runtime import short_name

if TYPE_CHECKING:
    pass

from compressor.proof import (
    DataLike,
    ModelLike,
    Target,
    check_labels,
    comparable,
    held_out,
    held_out_share,
    made_up,
    measured,
    metadata,
    opened,
    require_data,
    require_runs,
    require_same_interface,
)


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
        return metadata(self.report.pipeline)

    def raise_for_limits(self) -> None:
        """Raise GateError when a limit was broken."""
        raise_for_limits(self.report)


def compress(
    model: ModelLike,
    pipeline: Pipeline | Pass | Sequence[Pass] | str | None = None,
    *,
    calibration: DataLike | None = None,
    data: DataLike | None = None,
    train: DataLike | None = None,
    old: DataLike | None = None,
    target: Target | None = None,
    limits: Limits | None = None,
    run: Run | None = None,
    progress: Progress = silent,
) -> Result:
    """Run a pipeline on a model and measure the result against the original.

    Args:
        model: a path, an onnx_ir.Model or a ModelProto; stays as it was.
        pipeline: a pipeline, a pass, several, or their text form; None chooses by model and data, and then the
            result must not be slower.
        calibration: samples that activation ranges are taken from; no labels needed.
        data: evaluation samples; with labels the metric is computed, without it is agreement with the original.
        train: samples that passes train on; labels where the loss needs them.
        old: samples of the task that the model was trained for before, for continual learning.
        target: providers, threads, batch and metric of the measurement.
        limits: judged into the report; a broken one does not raise here, `Result.raise_for_limits` does.
        run: callbacks, log and checkpoints of a training.
        progress: called with (what, done, total).

    Raises:
        ModelError, DataError, OptionError: before any pass has run, when something does not fit.
    """
    where = target or Target()
    wanted = limits or Limits()
    steps = None if pipeline is None else as_pipeline(pipeline)
    share = 0.0 if steps is None or data is not None else held_out_share(steps)
    require_data(train if share else data, where, wanted)
    original = load(model)
    require_runs(original, where)
    calibrating = opened(calibration, original, "calibration")
    evaluating, training = opened(data, original, "data"), opened(train, original, "train")
    notes: list[str] = []
    if training is not None and share:
        training, evaluating = held_out(training, share, where.seed)
        notes.append(
            f"Evaluated on {share:g} of the training samples, held out; the best epoch was chosen on them."
        )
    if steps is None or comparable(steps, wanted):
        check_labels(evaluating, original, where)
    how = run or Run()
    context = Context(
        calibration=calibrating,
        data=evaluating,
        train=training,
        old=opened(old, original, "old"),
        original=original,
        provider=short_name(where.providers[0]),
        seed=where.seed,
        metric=where.metric,
        progress=progress,
        callbacks=tuple(how.callbacks),
        log=how.log,
        workspace=how.checkpoint,
        resume=how.resume,
    )
    if calibrating is None and evaluating is None:
        made_up(original, where.seed)
    if steps is None:
        made = _by_default(original, context, notes)
        wanted = replace(wanted, not_slower=wanted.min_speedup is None)
    else:
        made = steps.run(original, context)
        notes += [] if _changed(made) else ["The pipeline changed nothing in this model."]
    path = Path(model) if isinstance(model, (str, os.PathLike)) else None
    report = measured(path or original, made, context, where, notes)
    return Result(
        model=made.model,
        report=report.model_copy(update={"verdicts": judge(report, wanted)}),
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
    require_data(data, where, wanted)
    old, new = load(reference), load(candidate)
    samples = opened(data, old, "data")
    require_same_interface(old, new)
    check_labels(samples, old, where)
    context = Context(data=samples, original=old, seed=where.seed, progress=progress)
    recipe = new.metadata_props.get(PIPELINE_KEY, "")
    source = Path(reference) if isinstance(reference, (str, os.PathLike)) else old
    made = Compressed(new, Pipeline(), ())
    report = measured(source, made, context, where, [])
    if isinstance(candidate, (str, os.PathLike)):
        report = report.model_copy(update={"after": size_of(Path(candidate))})
    return report.model_copy(update={"verdicts": judge(report, wanted), "pipeline": recipe})


def _by_default(original: ir.Model, context: Context, notes: list[str]) -> Compressed:
    """The result of the pipeline that suits model and data, or of the fallback where that finds nothing to do."""
    choice = choose(original, context.calibration is not None)
    notes.append(f"Default pipeline {choice.recipe}: {choice.reason}.")
    made = Pipeline.parse(choice.recipe).run(original, context)
    if _changed(made):
        return made
    notes.append(f"Nothing for it to do; {FALLBACK.recipe} instead: {FALLBACK.reason}.")
    made = Pipeline.parse(FALLBACK.recipe).run(original, context)
    if not _changed(made):
        raise ModelError(_why_not(made))
    return made


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


def _changed(made: Compressed) -> bool:
    return any(change.touched for change in made.changes)


def _why_not(made: Compressed) -> str:
    """That nothing was compressed, with the first reasons."""
    reasons = [f"{name}: {why}" for change in made.changes for name, why in change.declined.items()]
    because = f" {'; '.join(reasons[:2])}." if reasons else ""
    return f"Nothing in this model could be compressed.{because} `compress inspect` shows what is in it."
