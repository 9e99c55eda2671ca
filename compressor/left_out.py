"""Scores on samples that were left out of a cross-validation: of one fold, their mean, and of all folds together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compressor import metrics, statistics
from compressor.errors import DataError
from compressor.metrics.catalogue import find
from compressor.statistics import Array, Bounds, Interval


@dataclass(frozen=True)
class Answers:
    """What two models say to the same samples.

    Args:
        before: the original's outputs, each [samples, ...]; None where they cannot be compared.
        after: the result's, each [samples, ...].
        labels: [samples, ...], or None.
    """

    before: Sequence[Array] | None
    after: Sequence[Array]
    labels: Array | None


@dataclass(frozen=True)
class Scores:
    """The scores of the original (before) and of the result (after) on samples that were left out.

    Args:
        samples: how many.
        before: the original's; None where its outputs have another shape, and for agreement.
        after: the result's, or its agreement with the original.
        drop: how much worse, paired, in the metric's units; negative is better. None where the shapes differ.
        agrees_in: without labels, what agrees: "top1" or "cosine".
    """

    samples: int
    before: Interval | None
    after: Interval
    drop: Interval | None
    agrees_in: str = ""


def joined(answers: Sequence[Answers]) -> Answers:
    """The answers of several folds behind each other; DataError when their outputs have different shapes."""
    labels = [fold.labels for fold in answers if fold.labels is not None]
    return Answers(
        before=_together([fold.before for fold in answers if fold.before is not None]) or None,
        after=_together([fold.after for fold in answers]),
        labels=np.concatenate(labels) if labels else None,
    )


def compared(metric: str, answers: Answers, seed: int) -> Scores:
    """Both scores and the paired drop, each with its 95 % interval.

    Raises:
        DataError: NaN in the outputs, shapes that differ, or labels that do not fit.
        OptionError: a custom metric that does not work.
    """
    if answers.before is None:
        after = metrics.score(metric, answers.after, answers.labels, seed)
        return Scores(len(answers.after[0]), None, after, None)
    found = metrics.compare(metric, answers.before, answers.after, answers.labels, seed)
    if found.after is None:
        raise TypeError("a comparison without the result's score")
    return Scores(found.samples, found.before, found.after, found.drop, found.agrees_in)


def mean(metric: str, folds: Sequence[Scores]) -> Scores:
    """The mean over the folds, each counted alike, with Student's t interval over their values."""
    score, drop = _bounds(metric, folds[0].agrees_in)
    before = [fold.before for fold in folds if fold.before is not None]
    drops = [fold.drop for fold in folds if fold.drop is not None]
    return Scores(
        samples=sum(fold.samples for fold in folds),
        before=_mean(before, score) if before else None,
        after=_mean([fold.after for fold in folds], score),
        drop=_mean(drops, drop) if drops else None,
        agrees_in=folds[0].agrees_in,
    )


def _mean(folds: Sequence[Interval], bounds: Bounds) -> Interval:
    return statistics.mean(np.array([fold.value for fold in folds]), bounds)


def _bounds(metric: str, agrees_in: str) -> tuple[Bounds, Bounds]:
    """What a score can be, and what a drop can be."""
    if metric == "agreement":
        low = 0.0 if agrees_in == "top1" else -1.0
        return (low, 1.0), (0.0, 1.0 - low)
    low, high = find(metric).bounds
    return (low, high), (low - high, high - low)


def _together(folds: Sequence[Sequence[Array]]) -> list[Array]:
    """Each output over all folds."""
    for columns in zip(*folds, strict=True):
        shapes = sorted({column.shape[1:] for column in columns})
        if len(shapes) > 1:
            raise DataError(
                f"The folds' outputs have different shapes, {list(shapes[0])} and {list(shapes[1])} per sample, so "
                "that they cannot be scored together. Give samples of one shape, as by the option resize."
            )
    return [np.concatenate(columns) for columns in zip(*folds, strict=True)]
