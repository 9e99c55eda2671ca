"""The metrics by name: what each checks and measures, and which one fits outputs and labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from compressor.errors import DataError, OptionError, did_you_mean
from compressor.metrics import custom, scores
from compressor.metrics.labels import (
    check_binary,
    check_classes,
    check_nothing,
    check_ranks,
    check_tokens,
    check_top5,
    check_values,
)
from compressor.metrics.outputs import Outputs, alike, are_classes, require_usable
from compressor.statistics import Array, Bounds, Measured

_ANY: Bounds = (-math.inf, math.inf)


@dataclass(frozen=True)
class Metric:
    """How a metric checks its labels and measures (outputs, labels, the original's outputs)."""

    check: Callable[[str, Array, Outputs], None]
    measure: Callable[[Outputs, Any, Outputs], Measured]
    higher_is_better: bool = True
    bounds: Bounds = (0.0, 1.0)
    custom: bool = False


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "top1": Metric(check_classes, scores.top1),
        "top5": Metric(check_top5, scores.top5),
        "f1": Metric(check_classes, scores.f1),
        "auc": Metric(check_binary, scores.auc),
        "mse": Metric(check_values, scores.mse, False, (0.0, math.inf)),
        "mae": Metric(check_values, scores.mae, False, (0.0, math.inf)),
        "psnr": Metric(check_values, scores.psnr, True, _ANY),
        "cosine": Metric(check_values, scores.cosine, True, (-1.0, 1.0)),
        "spearman": Metric(check_ranks, scores.spearman, True, (-1.0, 1.0)),
        "perplexity": Metric(check_tokens, scores.perplexity, False, (1.0, math.inf)),
    }
)


def names() -> tuple[str, ...]:
    """The names of the built-in metrics."""
    return (*METRICS, "agreement")


def find(name: str) -> Metric:
    """The built-in metric of that name, or a custom one."""
    if name in METRICS:
        return METRICS[name]
    if ":" not in name:
        hint = did_you_mean(name, names())
        raise OptionError(f"No metric named {name!r}. {hint} A function of yours is file.py:function.")
    function = custom.load(name)
    return Metric(
        check_nothing,
        custom.measured_by(name, function),
        bool(getattr(function, "higher_is_better", True)),
        _ANY,
        True,
    )


def check_labels(metric: str, labels: Array | None, outputs: Outputs) -> None:
    """Raise DataError unless the labels fit the outputs and the metric; OptionError for an unknown metric.

    The message says what is missing, or which label in which row is out of range of how many classes.
    """
    if metric == "agreement":
        return
    found = find(metric)
    require_usable("", outputs, found.custom)
    require_labels(metric, found, labels, outputs)


def require_labels(name: str, metric: Metric, labels: Array | None, outputs: Outputs) -> None:
    """Raise DataError unless there are labels, one per sample, numbers, that pass the metric's check."""
    if labels is None:
        if metric.custom:
            return
        raise DataError(f"Metric {name!r} needs labels. Give them with the samples, or use 'agreement'.")
    samples = len(outputs[0])
    if not labels.ndim or len(labels) != samples:
        raise DataError(
            f"Metric {name!r}: labels of shape {labels.shape} for {samples} samples. Give one per sample."
        )
    if metric.custom:
        return
    if labels.dtype.kind not in "biuf":
        raise DataError(f"Metric {name!r}: labels are of type {labels.dtype}. Give numbers.")
    bad = np.isnan(labels).reshape(samples, -1).any(axis=1)
    if bad.any():
        raise DataError(
            f"Metric {name!r}: {int(bad.sum())} of {samples} labels are NaN, first in row {bad.argmax()}."
        )
    metric.check(name, labels, outputs)


def default_metric(outputs: Outputs, labels: Array | None) -> str:
    """The metric that fits: agreement, top1, auc, perplexity or mse, from the shapes and kinds alone.

    No labels: agreement. Two classes and one column: auc. Class ids and [n, C >= 2]: top1. Token ids [n, T]
    and [n, T, V]: perplexity. Numbers of the output's shape: mse.

    Raises:
        DataError: none of these fits.
    """
    if labels is None:
        return "agreement"
    require_usable("", outputs, False)
    labels, output = np.asarray(labels), outputs[0]
    whole = labels.dtype.kind in "biu" or (
        labels.dtype.kind == "f" and bool(np.all(labels == np.rint(labels)))
    )
    one = labels.size == len(output) == len(labels)
    if whole and one and are_classes(output):
        return "top1"
    if one and output.size == len(output) and set(np.unique(labels)) == {0, 1}:
        return "auc"
    if (
        one
        and output.size == len(output)
        and labels.dtype.kind in "biu"
        and labels.max() <= 1
        and labels.min() >= 0
    ):
        return "top1"
    if whole and labels.ndim == 2 and output.ndim == 3 and output.shape[:2] == labels.shape:
        return "perplexity"
    one_hot = labels.dtype.kind in "biu" and set(np.unique(labels)) <= {0, 1}
    if labels.dtype.kind in "iuf" and (one or not one_hot) and alike(labels.shape, output.shape):
        return "mse"
    raise DataError(
        f"No metric can be guessed for labels {labels.dtype} {labels.shape} and a first output "
        f"{output.dtype} {output.shape}. Name one of {', '.join(names())}, or give file.py:function."
    )
