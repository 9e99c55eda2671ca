"""The score of one model, and of two models with their paired drop, each with a 95 % interval."""

from __future__ import annotations

from dataclasses import dataclass

from compressor import statistics as st
from compressor.errors import OptionError
from compressor.metrics.catalogue import default_metric, find, require_labels
from compressor.metrics.outputs import Outputs, require_matching, require_usable
from compressor.metrics.unlabelled import agreement
from compressor.statistics import Array, Interval


@dataclass(frozen=True)
class Comparison:
    """The scores of the original (before) and the new model (after) on the same samples.

    Args:
        metric: its name.
        higher_is_better: False for errors such as mse.
        before: the original's score; None for agreement, where the original is the truth.
        after: the new model's score, or its agreement with the original.
        drop: how much worse, paired, in the metric's units; negative is better. Of agreement: 1 - agreement.
        samples: how many.
        verified: "labels", or "agreement" where there were none.
        agrees_in: without labels, what agrees: "top1" or "cosine".
    """

    metric: str
    higher_is_better: bool
    before: Interval | None
    after: Interval | None
    drop: Interval
    samples: int
    verified: str
    agrees_in: str = ""


def score(metric: str, outputs: Outputs, labels: Array | None, seed: int = 0) -> Interval:
    """The score of one model with its 95 % interval.

    Args:
        metric: one of `names()` but agreement, or `file.py:function` or `package.module:function`: a function
            of (list of outputs, labels) that returns a float; its attribute `higher_is_better` is True if
            absent. It is also called on resamples, and may return NaN where it is undefined on one.
        outputs: each [samples, ...].
        labels: [samples, ...]; None only for a custom metric.
        seed: of the bootstrap.

    Raises:
        DataError: NaN in the outputs, or labels that do not fit.
        OptionError: no such metric, or a custom one that does not work.
    """
    if metric == "agreement":
        raise OptionError(
            "Metric 'agreement' compares two models and scores none. Name another, with labels."
        )
    found = find(metric)
    require_usable("", outputs, found.custom)
    require_labels(metric, found, labels, outputs)
    return st.interval(found.measure(outputs, labels, outputs), found.bounds, seed)


def compare(
    metric: str | None, before: Outputs, after: Outputs, labels: Array | None, seed: int = 0
) -> Comparison:
    """Both scores and the paired drop from the original (before) to the new model (after).

    Args:
        metric: as in `score`, or "agreement"; None stands for `default_metric(before, labels)`.
        before: the original's outputs, each [samples, ...].
        after: the new model's, of the same shapes.
        labels: [samples, ...], or None for agreement and custom metrics.
        seed: of the bootstrap.

    Raises:
        DataError: NaN in the outputs, shapes that differ, or labels that do not fit.
        OptionError: no such metric, or a custom one that does not work.
    """
    metric = default_metric(before, labels) if metric is None else metric
    if metric == "agreement":
        return _unlabelled(before, after, seed)
    found = find(metric)
    require_matching(before, after, found.custom)
    require_labels(metric, found, labels, before)
    pair = [found.measure(outputs, labels, before) for outputs in (before, after)]
    was, now, lost = st.paired(pair[0], pair[1], found.bounds, seed)
    drop = lost if found.higher_is_better else Interval(-lost.value + 0.0, -lost.high + 0.0, -lost.low + 0.0)
    verified = "agreement" if labels is None else "labels"
    return Comparison(metric, found.higher_is_better, was, now, drop, len(before[0]), verified)


def _unlabelled(before: Outputs, after: Outputs, seed: int) -> Comparison:
    found = agreement(before, after, seed)
    kept = found.get("top1", found["cosine"])
    drop = Interval(1 - kept.value, 1 - kept.high, 1 - kept.low)
    what = "top1" if "top1" in found else "cosine"
    return Comparison("agreement", True, None, kept, drop, len(before[0]), "agreement", what)
