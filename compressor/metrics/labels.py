"""Whether labels fit a metric and the outputs: one check per kind of metric, of (name, labels, outputs).

Labels are numbers [samples, ...] without NaN here; the message says which label in which row is wrong.
"""

from __future__ import annotations

import math
from typing import NoReturn

import numpy as np

from compressor.errors import DataError
from compressor.metrics.outputs import Outputs, alike
from compressor.statistics import Array

IGNORED = -100
"""The token id that perplexity leaves out."""


def check_nothing(name: str, labels: Array, outputs: Outputs) -> None:
    """A custom metric checks its own labels."""


def check_classes(name: str, labels: Array, outputs: Outputs) -> None:
    """DataError unless labels are class ids [n] of an output [n, C], [n, 1] or [n]."""
    output = outputs[0]
    wide = output.ndim == 2 and output.shape[1] >= 2
    if not wide and output.size != len(output):
        _refuse(name, "an output [samples, classes] or [samples]", output.shape)
    if labels.size != len(output):
        _refuse(name, "one class id per sample", labels.shape)
    _check_ids(name, labels, output.shape[1] if wide else math.inf if output.dtype.kind in "iu" else 2)


def check_top5(name: str, labels: Array, outputs: Outputs) -> None:
    """DataError unless labels are class ids [n] of an output [n, C], C > 5."""
    if outputs[0].ndim != 2 or outputs[0].shape[1] <= 5:
        _refuse(name, "an output [samples, classes] with more than 5 classes", outputs[0].shape)
    check_classes(name, labels, outputs)


def check_binary(name: str, labels: Array, outputs: Outputs) -> None:
    """DataError unless labels [n] are 0 and 1, both there, and the output has one or two columns."""
    if outputs[0].size not in (len(outputs[0]), 2 * len(outputs[0])):
        _refuse(name, "an output [samples], [samples, 1] or [samples, 2]", outputs[0].shape)
    if labels.size != len(outputs[0]):
        _refuse(name, "one label per sample, 0 or 1", labels.shape)
    _check_ids(name, labels, 2)
    if labels.min() == labels.max():
        raise DataError(f"Metric {name!r} needs samples of both classes; every label is {labels.flat[0]}.")


def check_values(name: str, labels: Array, outputs: Outputs) -> None:
    """DataError unless labels have the output's shape."""
    if not alike(labels.shape, outputs[0].shape):
        _refuse(name, f"labels of the output's shape {outputs[0].shape}", labels.shape)


def check_ranks(name: str, labels: Array, outputs: Outputs) -> None:
    """DataError unless labels [n] differ and the output is [n] or [n, 1]."""
    if outputs[0].size != len(outputs[0]):
        _refuse(name, "an output [samples] or [samples, 1]", outputs[0].shape)
    check_values(name, labels, outputs)
    if labels.min() == labels.max():
        raise DataError(f"Metric {name!r} needs labels that differ; every label is {labels.flat[0]}.")


def check_tokens(name: str, labels: Array, outputs: Outputs) -> None:
    """DataError unless labels are token ids [n, T] of logits [n, T, V], not all of them ignored."""
    if outputs[0].ndim != 3:
        _refuse(name, "logits [samples, tokens, vocabulary]", outputs[0].shape)
    if labels.shape != outputs[0].shape[:2]:
        _refuse(name, f"token ids {outputs[0].shape[:2]}", labels.shape)
    _check_ids(name, labels, outputs[0].shape[2], IGNORED)
    if bool(np.all(labels == IGNORED)):
        raise DataError(f"Metric {name!r}: every label is {IGNORED}, which is ignored. Give token ids.")


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


def _refuse(name: str, wanted: str, shape: tuple[int, ...]) -> NoReturn:
    raise DataError(f"Metric {name!r} needs {wanted}, got shape {shape}.")
