"""Reading samples: which rows, in what order, prepared, and packed into blocks of one shape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from compressor.data.arithmetic import Array, finite_rows
from compressor.data.check import check
from compressor.data.inputs import is_float, is_integer
from compressor.data.options import DataOptions
from compressor.data.rows import ArrayColumn, Rows
from compressor.data.stream import Stream
from compressor.data.transform import Preparation
from compressor.errors import DataError

Steps = Mapping[str, Preparation]
Feeds = dict[str, Array]


class Block(NamedTuple):
    """Prepared rows of one shape, the batch axis first, their labels [count, ...] or None, and how many they are."""

    feeds: Feeds
    labels: Array | None
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody wants here


_SCAN = 256  # rows whose values are checked at a time
_NAMED = 8  # bad rows that a message names
_CURE = "Mend them, or give clean='drop' to leave such rows out, or clean='clip' for finite values instead."


def select(reader: Rows, steps: Steps, options: DataOptions) -> npt.NDArray[np.intp]:
    """The numbers of the rows that are used, in order: shuffled, cleaned, limited.

    Raises:
        DataError: rows hold NaN or infinities (unless they are dropped or clipped), or none are left.
    """
    order = np.arange(reader.count) if reader.picked is None else reader.picked
    if options.shuffle:
        order = np.random.default_rng(options.seed).permutation(order)
    limit = min(options.limit or len(order), len(order))
    drop = options.clean == "drop"
    candidates = order if drop else order[:limit]
    columns = [
        n for n, c in reader.columns.items() if isinstance(c, ArrayColumn) and _doubtful(c.dtype, steps[n])
    ]
    if not columns and (reader.labels is None or not is_float(reader.labels.dtype)):
        return candidates[:limit]
    kept: list[npt.NDArray[np.intp]] = []
    bad: dict[str, list[int]] = {}
    for start in range(0, len(candidates), _SCAN):
        rows = candidates[start : start + _SCAN]
        fine = np.ones(len(rows), bool)
        for name, finite in _finite(reader, steps, columns, rows):
            bad.setdefault(name, []).extend(rows[~finite].tolist())
            fine &= finite
        kept.append(rows[fine])
        if drop and sum(map(len, kept)) >= limit:
            break
    if not drop:
        _refuse(bad, len(candidates))
    chosen = np.concatenate(kept)[:limit]
    if not len(chosen):
        raise DataError(
            "no samples are left: every row holds NaN or infinite values. Give samples with finite values."
        )
    return chosen


def _doubtful(dtype: np.dtype[Any], step: Preparation) -> bool:
    """Whether prepared values of this stored type may be infinite, NaN or out of range."""
    wanted = step.input.dtype
    if is_integer(dtype):
        wide = is_float(wanted) and wanted.itemsize >= 4
        return not wide and not np.can_cast(dtype, wanted, "safe")
    return is_float(dtype) and not (step.clip and wanted.kind == "f")


def _finite(
    reader: Rows, steps: Steps, columns: Sequence[str], rows: npt.NDArray[np.intp]
) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """(input name or 'labels', whether each of the rows is finite there)."""
    for name in columns:
        yield name, finite_rows(steps[name].apply(np.asarray(reader.columns[name].read(rows))))
    if reader.labels is not None:
        yield "labels", finite_rows(reader.labels.read(rows))


def _refuse(bad: Mapping[str, Sequence[int]], count: int) -> None:
    for name, rows in bad.items():
        if not rows:
            continue
        first = sorted(rows)[:_NAMED]
        named = ", ".join(map(str, first)) + (", ..." if len(rows) > len(first) else "")
        raise DataError(
            f"{name!r} holds NaN or infinite values in {len(rows)} of {count} rows, counted from 0: "
            f"{named}. {_CURE}"
        )


def row_blocks(reader: Rows, steps: Steps, selected: npt.NDArray[np.intp], size: int) -> Iterator[Block]:
    """The selected rows, `size` at a time, fewer at the end or where the shape changes."""
    for start in range(0, len(selected), size):
        rows = selected[start : start + size]
        raw = {name: column.read(rows) for name, column in reader.columns.items()}
        labels = None if reader.labels is None else np.array(reader.labels.read(rows))
        if all(isinstance(x, np.ndarray) for x in raw.values()):
            feeds = {name: steps[name].apply(np.asarray(x)) for name, x in raw.items()}
            yield Block(feeds, labels, len(rows))
            continue
        singles = (
            (
                {n: _checked(steps[n], np.asarray(x[at])) for n, x in raw.items()},
                None if labels is None else labels[at],
            )
            for at in range(len(rows))
        )
        yield from packed(singles, size)


def _checked(step: Preparation, sample: Array) -> Array:
    check({step.input.name: step}, {step.input.name: (sample.shape, sample.dtype)})
    return step.apply(sample[None])


def streamed(stream: Stream, steps: Steps, options: DataOptions) -> Iterator[tuple[Feeds, Array | None]]:
    """(prepared sample [1, ...] per input, label) that the function yields, checked, cleaned and limited."""
    taken = 0
    for number, sample in enumerate(stream):
        try:
            feeds = {name: _checked(steps[name], array) for name, array in sample.feeds.items()}
        except DataError as error:
            raise DataError(f"{stream.address}: sample {number} (counted from 0): {error}") from error
        values = [*feeds.values(), *([] if sample.label is None else [sample.label[None]])]
        if not all(finite_rows(x).all() for x in values):
            if options.clean == "drop":
                continue
            raise DataError(
                f"{stream.address}: sample {number} (counted from 0) holds NaN or infinite values. {_CURE}"
            )
        yield feeds, sample.label
        taken += 1
        if taken == options.limit:
            return
    if not taken:
        raise DataError(f"{stream.address} yields no samples that can be used. Yield at least one.")


def count_stream(samples: Iterable[tuple[Feeds, Array | None]]) -> tuple[int, Array | None]:
    """(number of samples, their labels [samples, ...] or None), after a whole reading."""
    labels = [label for _, label in samples]
    some = [label for label in labels if label is not None]
    if not some:
        return len(labels), None
    if len(some) < len(labels) or len({label.shape for label in some}) > 1:
        raise DataError(
            f"{len(some)} of {len(labels)} samples have labels, of shapes "
            f"{sorted({label.shape for label in some})}. Give every sample a label of the same shape, "
            "or none."
        )
    return len(labels), np.stack(some)


def packed(samples: Iterable[tuple[Feeds, Array | None]], size: int) -> Iterator[Block]:
    """Neighbouring samples [1, ...] whose shapes and labels' shapes agree, joined to blocks of up to `size`."""
    pending: list[tuple[Feeds, Array | None]] = []
    for sample in samples:
        if pending and (len(pending) == size or _shapes(pending[-1]) != _shapes(sample)):
            yield _joined(pending)
            pending = []
        pending.append(sample)
    if pending:
        yield _joined(pending)


def _shapes(sample: tuple[Feeds, Array | None]) -> list[tuple[int, ...] | None]:
    feeds, label = sample
    return [None if label is None else label.shape, *(array.shape for array in feeds.values())]


def _joined(samples: Sequence[tuple[Feeds, Array | None]]) -> Block:
    names = samples[0][0]
    labels = [label for _, label in samples if label is not None]
    feeds = {name: np.concatenate([feeds[name] for feeds, _ in samples]) for name in names}
    return Block(feeds, np.stack(labels) if labels else None, len(samples))
