"""Where training batches are read from: memory when the samples fit, else the files, else a function in its order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import torch

from compressor.data import Batch, Samples
from compressor.data.inputs import require_batch_first
from compressor.errors import DataError
from compressor.training.batches import TrainingBatch, joined, to_tensors
from compressor.training.order import Numbers

KEEP_MB = 1024.0
_AT_ONCE = 64

T = TypeVar("T")


class Source(Protocol):
    """Samples to train on.

    Args:
        shapes: [samples], equal numbers where samples have the same shapes.
        fixed_batch: the batch size that the model fixes, or None.
        window: how many samples can be held at a time; None when any can be read at any time.
    """

    shapes: Numbers
    fixed_batch: int | None
    window: int | None

    def read(self, plan: Sequence[Numbers]) -> Iterator[TrainingBatch]:
        """The batches with these sample numbers, in this order."""


def open_source(samples: Samples, keep_mb: float = KEEP_MB) -> Source:
    """The samples as a source of training batches.

    Samples that fit in `keep_mb` are read once and kept as the model takes them, so that an epoch decodes
    nothing. Others are read anew in each epoch, the next batch while the step runs. A function whose samples do
    not fit is shuffled within as many as do; it must yield the same samples in the same order at each call.

    Args:
        samples: to train on, opened for the model.
        keep_mb: memory for the samples, in 2^20 bytes.

    Raises:
        DataError: samples cannot be read, an input or the labels cannot be trained on, some labels are missing.
    """
    require_batch_first(samples.specs)
    limit = int(keep_mb * 2**20)
    if samples.numbered and samples.uniform:
        first = samples.at(np.arange(1))
        to_tensors(samples, first)
        if _size(first) * len(samples) > limit:
            return _Numbered(samples, np.zeros(len(samples), np.intp))
    found = _survey(samples, limit)
    if found.size <= limit:
        return _Kept(samples, found)
    if samples.numbered:
        return _Numbered(samples, np.array(found.shapes))
    return _InOrder(samples, np.array(found.shapes), max(1, limit * len(found.shapes) // found.size))


@dataclass
class _Survey:
    """What one reading of all samples found: the shape number of each, their size, and the samples if they fit."""

    shapes: list[int] = field(default_factory=list)
    size: int = 0
    kept: list[list[TrainingBatch]] = field(default_factory=list)


def _survey(samples: Samples, limit: int) -> _Survey:
    found = _Survey()
    known: dict[tuple[torch.Size, ...], int] = {}
    labelled: set[bool] = set()
    for batch in samples.batches(_AT_ONCE):
        inputs, labels = to_tensors(samples, batch)
        labelled.add(labels is not None)
        if len(labelled) > 1:
            raise DataError(
                f"Some samples of {samples.source} have labels and some have none. Give every sample a label, or none."
            )
        key = tuple(x.shape[1:] for x in inputs) + (() if labels is None else (labels.shape[1:],))
        shape = known.setdefault(key, len(known))
        start = len(found.shapes)
        found.shapes += [shape] * batch.count
        found.size += sum(x.nbytes for x in inputs) + (0 if labels is None else labels.nbytes)
        if found.size > limit:
            found.kept = []
            continue
        found.kept += [[] for _ in range(len(known) - len(found.kept))]
        found.kept[shape].append(TrainingBatch(inputs, labels, torch.arange(start, len(found.shapes))))
    return found


class _Kept:
    """Samples in memory: of each shape one tensor per input."""

    window: int | None = None

    def __init__(self, samples: Samples, found: _Survey) -> None:
        self.fixed_batch = samples.fixed_batch
        self.shapes: Numbers = np.array(found.shapes)
        self._whole = [joined(batches) for batches in found.kept]
        found.kept = []
        self._places = np.empty(len(self.shapes), np.intp)
        for batch in self._whole:
            self._places[batch.rows.numpy()] = np.arange(len(batch.rows))

    def read(self, plan: Sequence[Numbers]) -> Iterator[TrainingBatch]:
        """The batches with these sample numbers, in this order."""
        for rows in plan:
            whole = self._whole[self.shapes[rows[0]]]
            places = torch.from_numpy(self._places[rows])
            labels = None if whole.labels is None else whole.labels.index_select(0, places)
            inputs = tuple(x.index_select(0, places) for x in whole.inputs)
            yield TrainingBatch(inputs, labels, torch.from_numpy(rows))


class _Numbered:
    """Samples that are read from their files by number, one batch ahead of the step."""

    window: int | None = None

    def __init__(self, samples: Samples, shapes: Numbers) -> None:
        self.fixed_batch = samples.fixed_batch
        self.shapes = shapes
        self._samples = samples

    def read(self, plan: Sequence[Numbers]) -> Iterator[TrainingBatch]:
        """The batches with these sample numbers, in this order."""
        return ahead(self._batch(rows) for rows in plan)

    def _batch(self, rows: Numbers) -> TrainingBatch:
        inputs, labels = to_tensors(self._samples, self._samples.at(rows))
        return TrainingBatch(inputs, labels, torch.from_numpy(rows))


class _InOrder:
    """Samples that a function gives in its own order: held until the batch that they belong to is complete."""

    def __init__(self, samples: Samples, shapes: Numbers, window: int) -> None:
        self.fixed_batch = samples.fixed_batch
        self.shapes = shapes
        self.window: int | None = window
        self._samples = samples

    def read(self, plan: Sequence[Numbers]) -> Iterator[TrainingBatch]:
        """The batches with these sample numbers, in this order; samples of no batch are passed over."""
        return ahead(self._batches(plan))

    def _batches(self, plan: Sequence[Numbers]) -> Iterator[TrainingBatch]:
        wanted = {int(row) for rows in plan for row in rows}
        held: dict[int, TrainingBatch] = {}
        singles = self._singles()
        for rows in plan:
            missing = set(rows.tolist()) - held.keys()
            while missing:
                sample = next(singles, None)
                if sample is None:
                    raise DataError(
                        f"{self._samples.source} gave {len(self.shapes)} samples at first and fewer later. Yield "
                        "the same samples at each call."
                    )
                number = int(sample.rows[0])
                if number in wanted:
                    held[number] = sample
                missing.discard(number)
            yield joined([held.pop(row) for row in rows.tolist()])

    def _singles(self) -> Iterator[TrainingBatch]:
        number = 0
        for batch in self._samples.batches(_AT_ONCE):
            inputs, labels = to_tensors(self._samples, batch)
            for at in range(batch.count):
                label = None if labels is None else labels[at : at + 1]
                yield TrainingBatch(tuple(x[at : at + 1] for x in inputs), label, torch.tensor([number]))
                number += 1


def _size(batch: Batch) -> int:
    return sum(x.nbytes for x in batch.feeds.values()) + (0 if batch.labels is None else batch.labels.nbytes)


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, each made in another thread while its predecessor is in use."""
    end = object()
    with ThreadPoolExecutor(1) as beside:
        coming = beside.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = beside.submit(next, items, end)
            yield item  # type: ignore[misc]  # not `end`, as compared above
