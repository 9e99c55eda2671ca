"""k-fold cross-validation: what a pipeline that trains makes of small data, on samples that it has not seen.

The samples are dealt into k folds. The pipeline runs once per fold, on the samples of all the others, and its result
is scored on the fold that was left out; so every sample is scored once, by a model that never saw it. Samples that
belong together (frames of one film, images of one patient) are not kept together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
from pydantic_core import to_json

from compressor import metrics
from compressor.compressing import as_pipeline
from compressor.data import Samples
from compressor.errors import CompressorError, DataError, OptionError
from compressor.left_out import Answers, Scores, compared, joined, mean
from compressor.measurement import outputs_on
from compressor.metrics.catalogue import find
from compressor.model_io import load
from compressor.pipeline import Change, Context, Pass, Pipeline, Progress, Run, silent
from compressor.proof import DataLike, ModelLike, Target, opened, require_runs
from compressor.runtime import short_name
from compressor.statistics import Array
from compressor.training import splits


@dataclass(frozen=True)
class Fold:
    """One run of the pipeline.

    Args:
        trained_on: the number of samples that the pipeline got.
        scores: on the fold that was left out.
        changes: what each pass did.
    """

    trained_on: int
    scores: Scores
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class CrossValidation:
    """What a pipeline makes of the data.

    Args:
        metric: its name.
        higher_is_better: False for errors such as mse.
        pipeline: the text form, every option written.
        folds: one run each.
        mean: over the folds, with Student's t interval. The runs share most of their samples, so that it is too
            narrow (of width zero where all folds agree): Bengio and Grandvalet, "No Unbiased Estimator of the
            Variance of K-Fold Cross-Validation", JMLR 5 (2004).
        pooled: on the left-out outputs of all folds together, as if one model had made them: the number to go by.
            For auc and spearman that ranks the outputs of one fold's model against another's, and the mean is
            fairer: Forman and Scholz, "Apples-to-Apples in Cross-Validation Studies", SIGKDD Explorations 12 (2010).
    """

    metric: str
    higher_is_better: bool
    pipeline: str
    folds: tuple[Fold, ...]
    mean: Scores
    pooled: Scores

    def to_json(self) -> str:
        """The fields as JSON; an infinite end of an interval is null."""
        return to_json(self, indent=2, inf_nan_mode="null").decode()


def crossval(
    model: ModelLike,
    pipeline: Pipeline | Pass | Sequence[Pass] | str,
    train: DataLike,
    *,
    folds: int = 5,
    old: DataLike | None = None,
    target: Target | None = None,
    run: Run | None = None,
    progress: Progress = silent,
) -> CrossValidation:
    """Run a pipeline that learns from data once per fold, and score each result on the samples left out.

    The pipeline gets the other folds as `train` and as `calibration`, and no evaluation samples: a training holds out
    a part of what it gets. If the original itself was made from these samples, `before` flatters it.

    Args:
        model: a path, an onnx_ir.Model or a ModelProto; stays as it was.
        pipeline: a pipeline, a pass, several, or their text form; one pass must train or calibrate.
        train: samples that can be read in any order; without labels the score is agreement with the original.
        folds: from 2 to the number of samples. Classes, or numbers by their size, are spread evenly over them.
        old: samples of the task that the model was trained for before, for continual learning.
        target: the metric, the provider (the first) and the seed, which also deals equal labels.
        run: `log` and `checkpoint` get a folder fold-1, fold-2, ... each; every fold has callbacks of its own, copies.
        progress: called with (what, done, total).

    Raises:
        DataError: fewer samples than folds, samples of a function, or labels that the metric cannot use in a fold.
        OptionError: no pass trains or calibrates, or an option does not fit.
        ModelError: the model cannot be run or trained.
    """
    where, steps = target or Target(), as_pipeline(pipeline)
    original = load(model)
    samples = _checked(original, steps, train, where)
    context = Context(
        old=opened(old, original, "old"),
        original=original,
        provider=short_name(where.providers[0]),
        seed=where.seed,
        metric=where.metric,
        progress=progress,
    )
    steps.check(replace(context, train=samples, calibration=samples))
    parts = splits.folds(samples.labels, len(samples), folds, where.seed)
    held = [samples.subset(rows) for _, rows in parts]
    before = None if _reshaping(steps) else _originals(original, held, where, progress)
    answers: list[Answers] = []
    changes: list[tuple[Change, ...]] = []
    for index, (rows, _) in enumerate(parts):
        with _named(index, folds):
            given = _for_fold(replace(context, train=samples.subset(rows)), run or Run(), index, folds)
            made = steps.run(original, given)
            after = _outputs(made.model, held[index], where, given.progress, "evaluating the result")
        answers.append(Answers(before[index] if before else None, after, held[index].labels))
        changes.append(made.changes)
    metric, scores, pooled = _scored(answers, where)
    trained_on = [len(rows) for rows, _ in parts]
    return CrossValidation(
        metric=metric,
        higher_is_better=metric == "agreement" or find(metric).higher_is_better,
        pipeline=str(made.pipeline),
        folds=tuple(map(Fold, trained_on, scores, changes)),
        mean=mean(metric, scores),
        pooled=pooled,
    )


def _learns(p: Pass) -> bool:
    """True for a pass that takes something from samples, by its nature or with these options."""
    if {"train", "calibration"} & set(p.needs):
        return True
    try:
        p.check(Context())
    except DataError:
        return True
    return False


def _checked(original: ir.Model, steps: Pipeline, train: DataLike, where: Target) -> Samples:
    """The samples, once it is sure that there is something to validate, and that it can be scored."""
    if not any(_learns(p) for p in steps):
        raise OptionError(
            f"crossval: no pass of {', '.join(p.name for p in steps)} trains or calibrates, so there is nothing to "
            "validate by folds. Add one, as in -p finetune, or use compress and --data."
        )
    require_runs(original, where)
    samples = opened(train, original, "train")
    if samples is None:
        raise DataError("crossval needs samples. Give --train FILE.npz, or train=... in Python.")
    if where.metric not in (None, "agreement"):
        find(str(where.metric))
    if (name := _reshaping(steps)) and (samples.labels is None or where.metric == "agreement"):
        raise DataError(
            f"crossval: {name} gives the outputs another shape, so that only labels can tell how good they are. Give "
            "labels, and a metric that uses them."
        )
    return samples


def _reshaping(steps: Pipeline) -> str:
    """The pass that gives the outputs another shape, if there is one."""
    return next((p.name for p in steps if p.reshapes), "")


def _originals(
    original: ir.Model, held: Sequence[Samples], where: Target, progress: Progress
) -> list[list[Array]]:
    """The original's outputs on each fold; DataError where the labels of one do not do for the metric."""
    made = [_outputs(original, part, where, progress, "evaluating the original") for part in held]
    metric = _metric([Answers(None, o, part.labels) for o, part in zip(made, held, strict=True)], where)
    for index, (outputs, part) in enumerate(zip(made, held, strict=True)):
        with _named(index, len(held)):
            metrics.check_labels(metric, part.labels, outputs)
    return made


def _metric(answers: Sequence[Answers], where: Target) -> str:
    """The metric that was named, or the one that fits all folds together."""
    if where.metric is not None:
        return where.metric
    whole = joined(answers)
    return metrics.default_metric(whole.before or whole.after, whole.labels)


def _scored(answers: Sequence[Answers], where: Target) -> tuple[str, list[Scores], Scores]:
    """The metric, and the scores of each fold and of all together."""
    metric, scores = _metric(answers, where), []
    for index, each in enumerate(answers):
        with _named(index, len(answers)):
            scores.append(compared(metric, each, where.seed))
    return metric, scores, compared(metric, joined(answers), where.seed)


def _for_fold(context: Context, run: Run, index: int, folds: int) -> Context:
    """What the pipeline gets for one fold."""
    tell, name = context.progress, f"fold-{index + 1}"

    def progress(what: str, done: int, total: int) -> None:
        tell(f"fold {index + 1} of {folds}, {what}", done, total)

    try:
        callbacks = deepcopy(tuple(run.callbacks))
    except TypeError as error:
        raise OptionError(f"A callback cannot be copied, and each fold needs its own: {error}.") from error
    return replace(
        context,
        calibration=context.train,
        progress=progress,
        callbacks=callbacks,
        log=None if run.log is None else Path(run.log) / name,
        workspace=None if run.checkpoint is None else Path(run.checkpoint) / name,
        resume=run.resume,
    )


def _outputs(model: ir.Model, samples: Samples, where: Target, progress: Progress, what: str) -> list[Array]:
    return outputs_on(model, samples, replace(where.setups()[0], threads=0, spin=False), progress, what)


@contextmanager
def _named(index: int, folds: int) -> Iterator[None]:
    """Say in which fold, counted from 1, an error came up."""
    try:
        yield
    except CompressorError as error:
        raise type(error)(f"Fold {index + 1} of {folds}: {error}") from error
