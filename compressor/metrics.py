"""Scores of a model and the drop between two models on the same samples, each with a 95 % interval.

Outputs are the model's outputs in order, each [samples, ...]; the built-in metrics look at the first one.

| metric | first output | labels | interval of the drop |
| --- | --- | --- | --- |
| top1, f1 (macro) | [n, C]; binary [n] or [n, 1]; integer ids [n] | class ids [n] | Tango; bootstrap |
| top5 | [n, C], C > 5 | class ids [n] | Tango |
| auc | [n], [n, 1], or [n, 2] | 0 or 1 [n] | bootstrap |
| mse, mae, cosine | any shape | the same shape | t, of the differences |
| psnr | any shape | the same shape | bootstrap |
| spearman | [n] or [n, 1] | numbers [n] | bootstrap |
| perplexity | logits [n, T, V] | token ids [n, T], -100 is ignored | bootstrap |
| agreement | any shape | none: the original's outputs are the truth | Wilson; t |
| file.py:function | all outputs | as given | bootstrap, 200 resamples |

A binary model with one column says class 1 above 0.5 when the original's outputs lie within [0, 1], above 0
otherwise. The bootstrap draws 1,000 resamples, the same for both models: about a second for 10,000 samples.
Infinite outputs count as the largest float32. One sample gives the widest interval that the metric has, which
may be infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from numbers import Real
from pathlib import Path
from runpy import run_path
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np

from compressor import statistics as st
from compressor.errors import DataError, OptionError, did_you_mean
from compressor.statistics import Array, Floats, Interval, Measured, Resampled

Outputs = Sequence[Array]
_LARGEST = float(np.finfo(np.float32).max)
_IGNORED = -100
_ANY: st.Bounds = (-math.inf, math.inf)


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
    """

    metric: str
    higher_is_better: bool
    before: Interval | None
    after: Interval | None
    drop: Interval
    samples: int
    verified: str


@dataclass(frozen=True)
class _Metric:
    """How a metric checks its labels and measures (outputs, labels, the original's outputs)."""

    check: Callable[[str, Array, Outputs], None]
    measure: Callable[[Outputs, Any, Outputs], Measured]
    higher_is_better: bool = True
    bounds: st.Bounds = (0.0, 1.0)
    custom: bool = False


def names() -> tuple[str, ...]:
    """The names of the built-in metrics."""
    return (*_METRICS, "agreement")


def check_labels(metric: str, labels: Array | None, outputs: Outputs) -> None:
    """Raise DataError unless the labels fit the outputs and the metric; OptionError for an unknown metric.

    The message says what is missing, or which label in which row is out of range of how many classes.
    """
    if metric == "agreement":
        return
    found = _find(metric)
    _usable("", outputs, found.custom)
    _check(metric, found, labels, outputs)


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
    found = _find(metric)
    _usable("", outputs, found.custom)
    _check(metric, found, labels, outputs)
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
        return _agreement(before, after, seed)
    found = _find(metric)
    _matching(before, after, found.custom)
    _check(metric, found, labels, before)
    pair = [found.measure(outputs, labels, before) for outputs in (before, after)]
    was, now, lost = st.paired(pair[0], pair[1], found.bounds, seed)
    drop = lost if found.higher_is_better else Interval(-lost.value + 0.0, -lost.high + 0.0, -lost.low + 0.0)
    verified = "agreement" if labels is None else "labels"
    return Comparison(metric, found.higher_is_better, was, now, drop, len(before[0]), verified)


def agreement(before: Outputs, after: Outputs, seed: int = 0) -> dict[str, Interval]:
    """How far the first outputs of two models agree, without labels.

    - top1: the share of samples with the same class; only for class outputs, [n, C >= 2] or integer ids.
    - cosine: the mean over samples of the cosine between both outputs; 1 where both are zero.
    - sqnr: 10 log10(sum x^2 / sum (x - y)^2) in dB over all samples, x the original; infinite without noise.

    Where both outputs are infinite with one sign, they agree and count as zero.
    """
    _matching(before, after, False)
    shape = before[0].shape
    x, y = _finite(before[0]), _finite(after[0])
    alike = (x == y) & (np.abs(x) == _LARGEST)
    x[alike] = y[alike] = 0.0
    sqnr = _sqnr(np.einsum("ij,ij->i", x, x), np.einsum("ij,ij->i", x - y, x - y))
    found = {"cosine": st.mean(_cosines(x, y), (-1.0, 1.0)), "sqnr": st.interval(sqnr, _ANY, seed)}
    if not _are_classes(before[0]):
        return found
    same = _predictions(before[0], before[0]) == _predictions(after[0], before[0])
    return {"top1": st.proportion(int(same.sum()), shape[0]), **found}


def default_metric(outputs: Outputs, labels: Array | None) -> str:
    """The metric that fits: agreement, top1, auc, perplexity or mse, from the shapes and kinds alone.

    No labels: agreement. Two classes and one column: auc. Class ids and [n, C >= 2]: top1. Token ids [n, T]
    and [n, T, V]: perplexity. Numbers of the output's shape: mse.

    Raises:
        DataError: none of these fits.
    """
    if labels is None:
        return "agreement"
    _usable("", outputs, False)
    labels, output = np.asarray(labels), outputs[0]
    whole = labels.dtype.kind in "biu" or (
        labels.dtype.kind == "f" and bool(np.all(labels == np.rint(labels)))
    )
    one = labels.size == len(output) == len(labels)
    if whole and one and _are_classes(output):
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
    if labels.dtype.kind in "iuf" and (one or not one_hot) and _alike(labels.shape, output.shape):
        return "mse"
    raise DataError(
        f"No metric can be guessed for labels {labels.dtype} {labels.shape} and a first output "
        f"{output.dtype} {output.shape}. Name one of {', '.join(names())}, or give file.py:function."
    )


def _agreement(before: Outputs, after: Outputs, seed: int) -> Comparison:
    found = agreement(before, after, seed)
    kept = found.get("top1", found["cosine"])
    drop = Interval(1 - kept.value, 1 - kept.high, 1 - kept.low)
    return Comparison("agreement", True, None, kept, drop, len(before[0]), "agreement")


def _finite(output: Array) -> Floats:
    """The output as float64 [samples, values], infinities cut to the largest float32. Always a copy."""
    return np.clip(output.reshape(len(output), -1).astype(np.float64), -_LARGEST, _LARGEST)


def _are_classes(output: Array) -> bool:
    wide = output.ndim == 2 and output.shape[1] >= 2
    return wide or (output.dtype.kind in "biu" and output.size == len(output))


def _predictions(output: Array, original: Array) -> Array:
    """The class of every sample [n]; the threshold of one column is decided by the original's range."""
    if output.ndim == 2 and output.shape[1] >= 2:
        return np.asarray(output.argmax(axis=1))
    if output.dtype.kind in "biu":
        return output.ravel().astype(np.int64)
    threshold = 0.5 if original.min() >= 0 and original.max() <= 1 else 0.0
    return (output.ravel() > threshold).astype(np.int64)


def _top1(outputs: Outputs, labels: Array, original: Outputs) -> Measured:
    return np.asarray(_predictions(outputs[0], original[0]) == labels.ravel())


def _top5(outputs: Outputs, labels: Array, original: Outputs) -> Measured:
    """Right where fewer than five classes come before the label's; of equal ones the lower id comes first."""
    wanted = labels.reshape(-1, 1).astype(np.int64)
    own = np.take_along_axis(outputs[0], wanted, axis=1)
    earlier = np.arange(outputs[0].shape[1]) < wanted
    ahead = (outputs[0] > own) | ((outputs[0] == own) & earlier)
    return np.asarray(ahead.sum(axis=1) < 5)


def _f1(outputs: Outputs, labels: Array, original: Outputs) -> Measured:
    from sklearn.metrics import f1_score

    truth, guess = labels.ravel().astype(np.int64), _predictions(outputs[0], original[0])
    value = float(f1_score(truth, guess, average="macro"))
    return Resampled(value, st.f1_statistic(truth, guess), len(truth), len(truth))


def _auc(outputs: Outputs, labels: Array, original: Outputs) -> Measured:
    from sklearn.metrics import roc_auc_score

    columns, positive = _finite(outputs[0]), labels.ravel() == 1
    scores = columns[:, -1] - columns[:, 0] if columns.shape[1] == 2 else columns[:, 0]
    rarer = min(int(positive.sum()), int((~positive).sum()))
    value = float(roc_auc_score(positive, scores))
    return Resampled(value, st.auc_statistic(positive, scores), len(positive), rarer)


def _spearman(outputs: Outputs, labels: Array, original: Outputs) -> Measured:
    from scipy.stats import spearmanr

    a, b = _finite(outputs[0])[:, 0], labels.ravel().astype(np.float64)
    value = float(spearmanr(a, b).statistic) if np.any(a != a[0]) else 0.0
    return Resampled(value, st.spearman_statistic(a, b), len(a), len(a))


def _mse(outputs: Outputs, labels: Array, original: Outputs) -> Floats:
    return np.asarray(((_finite(outputs[0]) - _finite(labels)) ** 2).mean(axis=1), dtype=np.float64)


def _mae(outputs: Outputs, labels: Array, original: Outputs) -> Measured:
    return np.asarray(np.abs(_finite(outputs[0]) - _finite(labels)).mean(axis=1), dtype=np.float64)


def _cosine(outputs: Outputs, labels: Array, original: Outputs) -> Measured:
    return _cosines(_finite(outputs[0]), _finite(labels))


def _cosines(x: Floats, y: Floats) -> Floats:
    """The cosine of each pair of rows: 1 where both are zero, 0 where one is; exactly 1 for equal rows."""
    xx, yy, xy = (np.einsum("ij,ij->i", p, q) for p, q in ((x, x), (y, y), (x, y)))
    length = np.sqrt(xx) * np.sqrt(yy)
    found = np.divide(xy, length, out=np.where(xx == yy, 1.0, 0.0), where=length > 0)
    return np.where((x == y).all(axis=1), 1.0, found)


def _psnr(outputs: Outputs, labels: Array, original: Outputs) -> Measured:
    """10 log10(peak^2 / mse) over all samples; peak is 1, 2 or 255 if the labels fit, else their range."""
    low, high = float(labels.min()), float(labels.max())
    usual = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
    peak = next((b - a for a, b in usual if a <= low and high <= b), high - low)
    errors = _mse(outputs, labels, original)
    return _sqnr(np.full(len(errors), peak * peak), errors)


def _sqnr(signal: Floats, noise: Floats) -> Resampled:
    """10 log10(sum of signal / sum of noise) in dB over samples; infinite without noise."""

    def statistic(counts: Floats) -> Floats:
        above, below = counts @ signal, counts @ noise
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(below == 0, np.inf, 10 * (np.log10(above) - np.log10(below)))

    value = float(statistic(np.ones((1, len(signal))))[0])
    return Resampled(value, statistic, len(signal), len(signal))


def _perplexity(outputs: Outputs, labels: Array, original: Outputs) -> Measured:
    """exp of the mean negative log-likelihood of all tokens that are not ignored; at most exp(709)."""
    rows = [_token_losses(logits, tokens) for logits, tokens in zip(outputs[0], labels, strict=True)]
    losses, tokens = np.array([r.sum() for r in rows]), np.array([float(r.size) for r in rows])

    def statistic(counts: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            return np.asarray(np.exp(np.minimum(counts @ losses / (counts @ tokens), 709.0)))

    value = float(statistic(np.ones((1, len(rows))))[0])
    return Resampled(value, statistic, len(rows), int(np.count_nonzero(tokens)))


def _token_losses(logits: Array, tokens: Array) -> Floats:
    """The negative log-likelihood of each token that is not ignored, from logits [T, V] and ids [T]."""
    from scipy.special import logsumexp

    used = np.flatnonzero(tokens != _IGNORED)
    x = _finite(logits[used])
    return np.asarray(logsumexp(x, axis=1) - x[np.arange(len(used)), tokens[used].astype(np.int64)])


def _find(name: str) -> _Metric:
    """The built-in metric of that name, or a custom one."""
    if name in _METRICS:
        return _METRICS[name]
    if ":" not in name:
        hint = did_you_mean(name, names())
        raise OptionError(f"No metric named {name!r}. {hint} A function of yours is file.py:function.")
    function = _function(name)

    def measure(outputs: Outputs, labels: Array | None, original: Outputs) -> Measured:
        samples = len(outputs[0])

        def statistic(counts: Floats) -> Floats:
            drawn = (np.repeat(np.arange(samples), row.astype(np.int64)) for row in counts)
            return np.array([value(rows) for rows in drawn])

        def value(rows: Array) -> float:
            return _number(
                name, function([o[rows] for o in outputs], None if labels is None else labels[rows])
            )

        whole = value(np.arange(samples))
        if math.isnan(whole):
            raise OptionError(
                f"Metric {name!r} gives NaN on all {samples} samples. It must return a number there."
            )
        return Resampled(whole, statistic, samples, samples, 200)

    return _Metric(_check_nothing, measure, bool(getattr(function, "higher_is_better", True)), _ANY, True)


def _function(name: str) -> Callable[..., object]:
    """The function that `file.py:function` or `package.module:function` names."""
    place, _, wanted = name.rpartition(":")
    if place.endswith(".py") and not Path(place).is_file():
        raise OptionError(f"Metric {name!r}: there is no file {place!r}.")
    try:
        found = run_path(place) if place.endswith(".py") else vars(import_module(place))
    except (ImportError, SyntaxError, TypeError, ValueError) as error:
        raise OptionError(f"Metric {name!r}: {place!r} cannot be imported: {error}.") from error
    function: Callable[..., object] | None = found.get(wanted)
    if function is None or not callable(function):
        functions = [key for key, value in found.items() if callable(value) and not key.startswith("_")]
        hint = did_you_mean(wanted, functions) if functions else "It has none."
        raise OptionError(f"Metric {name!r}: no function {wanted!r} in {place!r}. {hint}")
    return function


def _number(name: str, result: object) -> float:
    if isinstance(result, np.ndarray) and result.ndim == 0:
        result = result.item()
    if isinstance(result, Real) and not isinstance(result, bool):
        return float(result)
    raise OptionError(f"Metric {name!r} must return a float, got {type(result).__name__} {result!r:.60}.")


def _usable(who: str, outputs: Outputs, everything: bool) -> None:
    """Raise DataError unless there are samples and the outputs that count are numbers without NaN."""
    model = f"The {who!r} model" if who else "The model"
    if not len(outputs) or not outputs[0].ndim or not len(outputs[0]):
        raise DataError(f"{model} gave no outputs to score. Give at least one sample.")
    for index, output in enumerate(outputs if everything else outputs[:1]):
        if output.dtype.kind not in "biuf":
            raise DataError(f"{model}: output {index} is of type {output.dtype}; a metric needs numbers.")
        bad = np.isnan(output).reshape(len(output), -1).any(axis=1)
        if bad.any():
            raise DataError(
                f"{model} gives NaN in {int(bad.sum())} of {len(output)} rows of output {index}, first in "
                f"row {int(bad.argmax())}. Look for an overflow, or for NaN in the samples."
            )


def _matching(before: Outputs, after: Outputs, everything: bool) -> None:
    _usable("before", before, everything)
    _usable("after", after, everything)
    if before[0].shape != after[0].shape:
        raise DataError(
            f"The first outputs differ in shape: {before[0].shape} before, {after[0].shape} after. "
            "Run both models on the same samples."
        )


def _check(name: str, metric: _Metric, labels: Array | None, outputs: Outputs) -> None:
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


def _check_nothing(name: str, labels: Array, outputs: Outputs) -> None:
    """A custom metric checks its own labels."""


def _check_ids(name: str, labels: Array, classes: float, ignored: int | None = None) -> None:
    """Raise DataError unless labels [samples, ...] are whole numbers in [0, classes), or the ignored one."""
    bad = (labels < 0) | (labels >= classes) | (labels != np.rint(labels))
    if ignored is not None:
        bad &= labels != ignored
    if bad.any():
        where = np.unravel_index(int(bad.argmax()), bad.shape)
        known = f"{classes} classes, 0 to {classes - 1}" if math.isfinite(classes) else "class ids from 0 on"
        raise DataError(
            f"Metric {name!r}: label {labels[where]} in row {where[0]}, but the model has {known}."
        )


def _check_classes(name: str, labels: Array, outputs: Outputs) -> None:
    output = outputs[0]
    wide = output.ndim == 2 and output.shape[1] >= 2
    if not wide and output.size != len(output):
        _refuse(name, "an output [samples, classes] or [samples]", output.shape)
    if labels.size != len(output):
        _refuse(name, "one class id per sample", labels.shape)
    _check_ids(name, labels, output.shape[1] if wide else math.inf if output.dtype.kind in "iu" else 2)


def _check_top5(name: str, labels: Array, outputs: Outputs) -> None:
    if outputs[0].ndim != 2 or outputs[0].shape[1] <= 5:
        _refuse(name, "an output [samples, classes] with more than 5 classes", outputs[0].shape)
    _check_classes(name, labels, outputs)


def _check_binary(name: str, labels: Array, outputs: Outputs) -> None:
    if outputs[0].size not in (len(outputs[0]), 2 * len(outputs[0])):
        _refuse(name, "an output [samples], [samples, 1] or [samples, 2]", outputs[0].shape)
    if labels.size != len(outputs[0]):
        _refuse(name, "one label per sample, 0 or 1", labels.shape)
    _check_ids(name, labels, 2)
    if labels.min() == labels.max():
        raise DataError(f"Metric {name!r} needs samples of both classes; every label is {labels.flat[0]}.")


def _check_values(name: str, labels: Array, outputs: Outputs) -> None:
    if not _alike(labels.shape, outputs[0].shape):
        _refuse(name, f"labels of the output's shape {outputs[0].shape}", labels.shape)


def _check_ranks(name: str, labels: Array, outputs: Outputs) -> None:
    if outputs[0].size != len(outputs[0]):
        _refuse(name, "an output [samples] or [samples, 1]", outputs[0].shape)
    _check_values(name, labels, outputs)
    if labels.min() == labels.max():
        raise DataError(f"Metric {name!r} needs labels that differ; every label is {labels.flat[0]}.")


def _check_tokens(name: str, labels: Array, outputs: Outputs) -> None:
    if outputs[0].ndim != 3:
        _refuse(name, "logits [samples, tokens, vocabulary]", outputs[0].shape)
    if labels.shape != outputs[0].shape[:2]:
        _refuse(name, f"token ids {outputs[0].shape[:2]}", labels.shape)
    _check_ids(name, labels, outputs[0].shape[2], _IGNORED)
    if bool(np.all(labels == _IGNORED)):
        raise DataError(f"Metric {name!r}: every label is {_IGNORED}, which is ignored. Give token ids.")


def _refuse(name: str, wanted: str, shape: tuple[int, ...]) -> NoReturn:
    raise DataError(f"Metric {name!r} needs {wanted}, got shape {shape}.")


def _alike(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether two shapes [samples, ...] are equal but for axes of length 1."""
    return a[0] == b[0] and [d for d in a[1:] if d != 1] == [d for d in b[1:] if d != 1]


_METRICS: Mapping[str, _Metric] = MappingProxyType(
    {
        "top1": _Metric(_check_classes, _top1),
        "top5": _Metric(_check_top5, _top5),
        "f1": _Metric(_check_classes, _f1),
        "auc": _Metric(_check_binary, _auc),
        "mse": _Metric(_check_values, _mse, False, (0.0, math.inf)),
        "mae": _Metric(_check_values, _mae, False, (0.0, math.inf)),
        "psnr": _Metric(_check_values, _psnr, True, _ANY),
        "cosine": _Metric(_check_values, _cosine, True, (-1.0, 1.0)),
        "spearman": _Metric(_check_ranks, _spearman, True, (-1.0, 1.0)),
        "perplexity": _Metric(_check_tokens, _perplexity, False, (1.0, math.inf)),
    }
)
