"""Weights of the classes in the loss, for data in which some are rare. No torch here."""

from __future__ import annotations

from typing import Literal

import numpy as np

from compressor.data.arithmetic import Array
from compressor.errors import DataError, OptionError
from compressor.metrics.labels import IGNORED


def class_weights(
    labels: Array | None, classes: int, weights: Literal["none", "balanced"] | tuple[float, ...]
) -> Array | None:
    """The weight of each class in the loss, float32 [classes]; None when all count the same.

    'balanced' gives n / (classes * n_c) for n labels, n_c of them of class c: the mean weight of a label is 1, and
    each class has the same weight in all (King and Zeng, Logistic Regression in Rare Events Data, 2001). A class
    without samples has no such weight and is an error; with explicit weights it may have any. The label -100,
    which the losses ignore, is not counted.

    Args:
        labels: class numbers, [samples] or [samples, ...]; used by 'balanced' only.
        classes: the number of classes of the model.
        weights: as in the option `class_weights`.

    Raises:
        OptionError: there is not one weight per class.
        DataError: 'balanced' without labels, with labels that are no classes, or with a class without samples.
    """
    if weights == "none":
        return None
    if isinstance(weights, tuple):
        if len(weights) != classes:
            raise OptionError(
                f"class_weights={weights!r} has {len(weights)} numbers, and the model has {classes} classes. Give one "
                "weight per class."
            )
        return np.array(weights, np.float32)
    counts = np.bincount(_numbers(labels, classes), minlength=classes)
    if not counts.all():
        empty = ", ".join(map(str, np.flatnonzero(counts == 0)[:8]))
        raise DataError(
            f"class_weights='balanced': the training data has no samples of class {empty} (of {classes}). Give such "
            "samples, or the weights themselves, one per class."
        )
    balanced: Array = (counts.sum() / (classes * counts)).astype(np.float32)
    return balanced


def _numbers(labels: Array | None, classes: int) -> Array:
    if labels is None:
        raise DataError("class_weights='balanced' needs labels, and the training data has none.")
    flat = labels.ravel()
    flat = flat[flat != IGNORED]
    bad = flat[(flat < 0) | (flat >= classes) | (flat != np.rint(flat))]
    if len(bad):
        raise DataError(
            f"class_weights='balanced' needs labels from 0 to {classes - 1}, one per class of the model, got "
            f"{bad[0].item()!r}. Leave class_weights out for labels that are no classes."
        )
    numbers: Array = flat.astype(np.intp)
    return numbers
