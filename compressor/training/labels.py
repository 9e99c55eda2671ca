"""Whether labels fit a loss, and which loss fits labels: looked at once, before the first step."""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from compressor.errors import DataError
from compressor.metrics.labels import IGNORED
from compressor.metrics.outputs import alike
from compressor.statistics import Array
from compressor.training.forms import Applied, channel_axis, class_axis

_SUM_TOLERANCE = 1e-3  # shares written as float16, or with three decimals


def auto_loss(labels: Array, output: tuple[int, ...], done: Applied = "") -> str:
    """The loss that labels [samples, ...] ask for, for an output of this shape.

    Class ids: cross-entropy. Of the output's own shape: rows that are shares of classes, cross-entropy, unless the
    graph ends in a sigmoid; only 0 and 1, bce; other numbers, mse. DataError when the shapes do not fit at all.
    """
    shape = (len(labels), *output[1:])
    axis = class_axis(shape, labels.shape)
    if alike(shape, labels.shape):
        if axis is not None and done != "sigmoid" and not _not_shares(labels.reshape(shape), axis).any():
            return "cross-entropy"
        return "bce" if bool(np.isin(labels, (0, 1)).all()) else "mse"
    if axis is None or not _whole(labels):
        raise DataError(
            f"No loss fits labels {list(labels.shape)} and an output {list(output)}: give class ids, or numbers of "
            "the output's shape, or your own loss='FILE.py:FUNCTION'."
        )
    return "cross-entropy"


def check_labels(loss: str, labels: Array, output: tuple[int, ...]) -> None:
    """Raise DataError unless labels [samples, ...] fit the loss and an output of this shape.

    Class ids lie in [0, classes); -100 is allowed where a sample has several (tokens, pixels). Shares of classes are
    not negative and sum to 1, labels of bce lie in [0, 1].
    """
    shape = (len(labels), *output[1:])
    same = alike(shape, labels.shape)
    axis = class_axis(shape, labels.shape)
    if loss == "cross-entropy" and axis is None:
        wide = len(output) > 1 and max(output[1:]) > 1
        hint = "class ids, or shares of that shape" if wide else "loss='bce' for one score per sample"
        _refuse(loss, hint, labels, output)
    if loss == "cross-entropy" and axis is not None and not same:
        _check_ids(loss, labels, shape[axis])
        return
    if not same:
        _refuse(loss, "numbers of that shape", labels, output)
    if loss == "cosine" and (len(output) < 2 or output[channel_axis(len(output))] < 2):
        _refuse(loss, "vectors of two numbers or more", labels, output)
    if loss == "bce":
        _check(loss, labels, ~((labels >= 0) & (labels <= 1)), "it must lie in [0, 1]")
    if loss in ("cross-entropy", "kl"):
        if axis is None:
            _refuse(loss, "two classes or more", labels, output)
        bad = _not_shares(labels.reshape(shape), axis)
        _check(loss, labels, bad, "its classes must not be negative and sum to 1")


def _check_ids(loss: str, labels: Array, classes: int) -> None:
    bad = (labels < 0) | (labels >= classes) | (labels != np.rint(labels))
    if labels.size > len(labels):
        bad &= labels != IGNORED
    _check(loss, labels, bad, f"the model has {classes} classes, 0 to {classes - 1}")


def _not_shares(labels: Array, axis: int) -> Array:
    """Where labels are no shares of classes: a mask without the class axis."""
    sums = labels.sum(axis=axis, dtype=np.float64)
    bad: Array = (np.abs(sums - 1) > _SUM_TOLERANCE) | (labels < 0).any(axis=axis)
    return bad


def _whole(labels: Array) -> bool:
    return labels.dtype.kind in "biu" or bool((labels == np.rint(labels)).all())


def _check(loss: str, labels: Array, bad: Array, wanted: str) -> None:
    """Raise DataError that names the first bad row."""
    if bad.any():
        where = np.unravel_index(int(bad.argmax()), bad.shape)
        shown = labels[where] if bad.shape == labels.shape else labels[where[0]]
        text = np.array2string(np.asarray(shown), threshold=6, edgeitems=2).replace("\n", "")
        raise DataError(f"loss {loss!r}: label {text} in row {where[0]}, but {wanted}.")


def _refuse(loss: str, wanted: str, labels: Array, output: tuple[int, ...]) -> NoReturn:
    raise DataError(
        f"loss {loss!r}: labels {list(labels.shape[1:])} per sample do not fit an output {list(output[1:])}; "
        f"give {wanted}."
    )
