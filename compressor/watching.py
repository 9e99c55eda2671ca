"""Running samples through a model and looking at the values inside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx_ir as ir

from compressor.graph import remove_dead
from compressor.runtime import Session, Setup

if TYPE_CHECKING:
    from compressor.data import Samples

_BATCH_BYTES = 8_000_000
"""Watched values of one run: what a processor cache holds."""


class Watched(NamedTuple):
    """The named values of one batch, without the rows that only fill it up, and how many samples it holds."""

    arrays: Mapping[str, np.ndarray]
    samples: int


def watch(model: ir.Model, names: Iterable[str], samples: Samples, threads: int = 0) -> Iterator[Watched]:
    """The named values of the main graph, inputs among them, batch by batch; `model` stays as it was.

    A batch is what keeps the watched values in a processor cache, at most 32 samples.
    """
    wanted = list(dict.fromkeys(names))
    inputs = {value.name for value in model.graph.inputs}
    inner = [name for name in wanted if name not in inputs]
    session = (
        Session(probe(model, inner), Setup(threads=threads, spin=False, integers=False)) if inner else None
    )
    for batch in samples.batches(_batch_size(session, samples)):
        values = dict(batch.feeds)
        if session is not None:
            values |= dict(zip(session.outputs, session.run(batch.feeds), strict=True))
        rows = samples.rows(batch.feeds)
        yield Watched({name: _real(values[name], rows, batch.count) for name in wanted}, batch.count)


def probe(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """A copy whose outputs are the named values of the main graph, so that only what leads to them is computed."""
    copy = model.clone()
    values = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs.clear()
    for name in names:
        if values[name].dtype is None:
            values[name].dtype = ir.DataType.FLOAT
        copy.graph.outputs.append(values[name])
    remove_dead(copy)
    return copy


def _real(array: np.ndarray, rows: int, count: int) -> np.ndarray:
    """The part of a value that belongs to real samples, where its first axis is the batch."""
    return array[:count] if array.ndim and array.shape[0] == rows else array


def _batch_size(session: Session | None, samples: Samples) -> int | None:
    if session is None:
        return None
    first = next(iter(samples.take(1).batches()))
    size = sum(array.nbytes for array in session.run(first.feeds)) / max(1, samples.rows(first.feeds))
    return int(np.clip(_BATCH_BYTES / max(size, 1.0), 1, 32))
