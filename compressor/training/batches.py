"""What one training step takes, and how it is made of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from compressor.data import Batch, Samples
from compressor.data.arithmetic import Array
from compressor.data.inputs import is_float
from compressor.errors import DataError
from compressor.torch_graph.values import to_value


class TrainingBatch(NamedTuple):
    """What one training step takes.

    Args:
        inputs: one tensor [n, ...] per input of the model, in graph order, of the model's types.
        labels: [n, ...], int64 or float32; None when there are none.
        rows: [n] int64, the numbers of the samples in their source.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor | None
    rows: Tensor


def joined(batches: Sequence[TrainingBatch]) -> TrainingBatch:
    """Batches of the same shapes as one; DataError when their shapes or types differ."""
    first, kind = batches[0], _kind(batches[0])
    for batch in batches[1:]:
        if _kind(batch) != kind:
            raise DataError(
                f"Samples {int(first.rows[0])} and {int(batch.rows[0])} do not share a batch: {kind} and "
                f"{_kind(batch)}. Give samples of one shape and type; a function must yield the same samples at each "
                "call."
            )
    labels = [batch.labels for batch in batches if batch.labels is not None]
    inputs = tuple(torch.cat(parts) for parts in zip(*(batch.inputs for batch in batches), strict=True))
    return TrainingBatch(inputs, torch.cat(labels) if labels else None, torch.cat([b.rows for b in batches]))


def _kind(batch: TrainingBatch) -> str:
    """The type and shape of a sample and of its label, for comparison and messages."""
    tensors = [*batch.inputs, *([] if batch.labels is None else [batch.labels])]
    parts = [f"{str(x.dtype).removeprefix('torch.')}{list(x.shape[1:])}" for x in tensors]
    return ", ".join(parts) + (" without labels" if batch.labels is None else "")


def to_tensors(samples: Samples, batch: Batch) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """The real rows of a batch, in graph order, and their labels as int64 or float32.

    DataError when an input is of a type that torch does not compute with, or the labels are no numbers.
    """
    inputs: list[Tensor] = []
    for spec in samples.specs:
        value = to_value(batch.feeds[spec.name][: batch.count])
        if not isinstance(value, Tensor):
            raise DataError(f"Input {spec.name!r} is {spec}, which torch cannot train on.")
        inputs.append(value)
    return tuple(inputs), None if batch.labels is None else _labels(samples, batch.labels)


def _labels(samples: Samples, labels: Array) -> Tensor:
    if labels.dtype.kind in "iub":
        return torch.from_numpy(labels.astype(np.int64))
    if is_float(labels.dtype):
        return torch.from_numpy(labels.astype(np.float32))
    raise DataError(
        f"The labels of {samples.source} are {labels.dtype}, not numbers. Give the numbers of the model's classes, "
        "0, 1, ..., or values to predict."
    )
