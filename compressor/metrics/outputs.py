"""What a model gave: whether it can be scored, its values as floats, and the classes that it says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compressor.errors import DataError
from compressor.statistics import Array, Floats

Outputs = Sequence[Array]
"""The outputs of a model in order, each [samples, ...]."""

LARGEST = float(np.finfo(np.float32).max)
"""The largest finite float32; an infinite output counts as it."""


def require_usable(who: str, outputs: Outputs, everything: bool) -> None:
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


def require_matching(before: Outputs, after: Outputs, everything: bool) -> None:
    """Raise DataError unless both are usable and their first outputs are of one shape."""
    require_usable("before", before, everything)
    require_usable("after", after, everything)
    if before[0].shape != after[0].shape:
        raise DataError(
            f"The first outputs differ in shape: {before[0].shape} before, {after[0].shape} after. "
            "Run both models on the same samples."
        )


def finite(output: Array) -> Floats:
    """The output as float64 [samples, values], infinities cut to the largest float32. Always a copy."""
    return np.clip(output.reshape(len(output), -1).astype(np.float64), -LARGEST, LARGEST)


def are_classes(output: Array) -> bool:
    """Whether an output says classes: [samples, C >= 2], or one whole number per sample."""
    wide = output.ndim == 2 and output.shape[1] >= 2
    return wide or (output.dtype.kind in "biu" and output.size == len(output))


def are_embeddings(output: Array) -> bool:
    """Whether the rows of a float output [samples, C] look like unit vectors, which class scores do not."""
    if output.ndim != 2 or output.dtype.kind != "f" or not output.size or output.min() >= 0:
        return False
    lengths = np.linalg.norm(output.astype(np.float64), axis=1)
    return bool(np.all(np.abs(lengths - 1) < 1e-2))


def predictions(output: Array, original: Array) -> Array:
    """The class of every sample [n]; the threshold of one column is decided by the original's range."""
    if output.ndim == 2 and output.shape[1] >= 2:
        return np.asarray(output.argmax(axis=1))
    if output.dtype.kind in "biu":
        return output.ravel().astype(np.int64)
    threshold = 0.5 if original.min() >= 0 and original.max() <= 1 else 0.0
    return (output.ravel() > threshold).astype(np.int64)


def alike(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether two shapes [samples, ...] are equal but for axes of length 1."""
    return a[0] == b[0] and [d for d in a[1:] if d != 1] == [d for d in b[1:] if d != 1]
