"""Samples: what a DATA argument names, checked against a model, read as batches, by number, or in parts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from compressor.data.arithmetic import Array
from compressor.data.check import check
from compressor.data.inputs import Input, fixed_batch, require_same_sizes
from compressor.data.options import DataOptions
from compressor.data.reading import Block, count_stream, packed, row_blocks, select, streamed
from compressor.data.rows import ArrayColumn, Rows
from compressor.data.stream import Stream
from compressor.data.transform import preparations
from compressor.errors import DataError, OptionError

DEFAULT_BATCH = 32


class Batch(NamedTuple):
    """What one run of the model takes.

    Args:
        feeds: input name -> array [n, ...] in the model's dtype; a new array that may be written to.
        count: how many leading samples are real; the rest repeats the last one to fill a fixed batch axis.
        labels: of the real samples, [count, ...], as stored; None when there are none.
    """

    feeds: dict[str, Array]
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody wants here
    labels: Array | None = None


class Samples:
    """Samples that fit a model: immutable, read lazily, as often as wanted, in the same order each time.

    Made by `open_samples` and `synthetic`. `len`, `labels` and `batches` check all float values at first use
    (unless clean='clip'), so `len(samples)` is the way to find NaN before anything runs.

    Args:
        source: how the samples were given, for messages and the report.
        specs: the inputs of the model.
        reader: where the samples come from.
        options: how they are chosen and prepared.
        what: the argument that they were given as, for messages.
    """

    def __init__(
        self,
        source: str,
        specs: tuple[Input, ...],
        reader: Rows | Stream,
        options: DataOptions,
        what: str = "data",
    ) -> None:
        self.source = source
        self._specs = specs
        self._reader = reader
        self._options = options
        self._what = what
        layout = reader.layout if isinstance(reader, Rows) and options.layout is None else options.layout
        with said_by(what):
            self._steps = preparations(specs, options.model_copy(update={"layout": layout}))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the model's inputs that get data, in graph order."""
        return tuple(spec.name for spec in self._specs)

    @property
    def specs(self) -> tuple[Input, ...]:
        """The inputs that get data, in graph order, as the model declares them."""
        return self._specs

    @property
    def numbered(self) -> bool:
        """Whether samples can be read by their number, in any order; those of a function cannot."""
        return isinstance(self._reader, Rows)

    @property
    def uniform(self) -> bool:
        """Whether all samples are known to have the same shapes before any is read."""
        if isinstance(self._reader, Stream):
            return all(_fixed(spec) for spec in self._specs)
        sized = self._options.crop is not None or isinstance(self._options.resize, tuple)
        return all(
            isinstance(column, ArrayColumn) or sized or _fixed(self._steps[name].input)
            for name, column in self._reader.columns.items()
        )

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the model fixes, or None."""
        return fixed_batch(self._specs)

    def rows(self, feeds: Mapping[str, Array]) -> int:
        """How many samples are in the feeds of one batch, padding included; 1 when no input has a batch axis."""
        return next((len(feeds[spec.name]) for spec in self._specs if spec.axis == 0), 1)

    @property
    def labels(self) -> Array | None:
        """The labels [samples, ...], aligned with the rows; None when there are none."""
        if isinstance(self._reader, Stream):
            return self._counted[1]
        return None if self._reader.labels is None else np.array(self._reader.labels.read(self._selected))

    def __len__(self) -> int:
        """The number of samples; of a function only known after one whole reading."""
        return self._counted[0] if isinstance(self._reader, Stream) else len(self._selected)

    def __repr__(self) -> str:
        """The source and the inputs; reads nothing."""
        return f"Samples({self.source!r}, inputs={self.inputs})"

    def batches(self, size: int | None = None) -> Iterator[Batch]:
        """The samples in order, `size` at a time; the last batch may be smaller.

        Args:
            size: None for the `batch` option, else 32. A batch axis that the model fixes always wins; then
                every batch has that many rows. Samples of different shapes do not share a batch.

        Raises:
            DataError: a value is not finite (see `clean`), an image cannot be decoded, a function fails.
        """
        if size is not None and size < 1:
            raise OptionError(f"{self._what}: the batch size must be at least 1, got {size!r}.")
        fixed = fixed_batch(self._specs)
        for block in self._blocks(fixed or size or self._options.batch or DEFAULT_BATCH):
            feeds = {spec.name: _placed(spec, block.feeds[spec.name], fixed) for spec in self._specs}
            yield Batch(feeds, block.count, block.labels)

    def at(self, rows: npt.NDArray[np.intp]) -> Batch:
        """The samples with these numbers, 0 to len - 1, in this order, as one batch of just so many rows.

        A batch axis that the model fixes is not filled up.

        Raises:
            DataError: the samples come from a function, have different shapes, or cannot be read.
            IndexError: there is no such sample.
        """
        reader = self._rows("read in another order")
        with said_by(self._what):
            blocks = list(row_blocks(reader, self._steps, self._selected[rows], max(len(rows), 1)))
            if len(blocks) != 1:
                raise DataError(
                    f"{len(rows)} samples of {self.source} have {len(blocks)} different shapes, so they do not "
                    "make one batch. Give a resize or crop, or read them with a batch of 1."
                )
        feeds, labels, count = blocks[0]
        return Batch(
            {spec.name: _placed(spec, feeds[spec.name], None) for spec in self._specs}, count, labels
        )

    def subset(self, rows: npt.NDArray[np.intp]) -> Samples:
        """The samples with these numbers, 0 to len - 1, in this order; nothing is copied.

        Raises:
            DataError: the samples come from a function, or no number is given.
            IndexError: there is no such sample.
        """
        reader = self._rows("divided")
        if not len(rows):
            raise DataError(
                f"{self._what}: a part of {self.source} would have no samples. Give more samples."
            )
        chosen = replace(reader, picked=self._selected[rows])
        # The rows are shuffled and limited already; to do so again would choose among them.
        options = self._options.model_copy(update={"shuffle": False, "limit": None})
        return Samples(self.source, self._specs, chosen, options, self._what)

    def take(self, count: int) -> Samples:
        """The first `count` samples, or all when there are fewer; OptionError when `count` is below 1."""
        if count < 1:
            raise OptionError(
                f"{self._what}: the number of samples to take must be at least 1, got {count!r}."
            )
        limit = min(count, self._options.limit or count)
        options = self._options.model_copy(update={"limit": limit})
        return Samples(self.source, self._specs, self._reader, options, self._what)

    def fingerprint(self) -> str:
        """SHA-256, in hex, over names, types, shapes and values of all feeds and labels; read in a stream.

        It does not depend on the batch size, nor on how the same samples were given.
        """
        digests = {spec.name: hashlib.sha256(f"{spec.name}:{spec.dtype}".encode()) for spec in self._specs}
        shapes: dict[str, tuple[int, ...]] = {}
        for block in self._blocks(DEFAULT_BATCH):
            for name, rows in block.feeds.items():
                if shapes.get(name) != rows.shape[1:]:
                    shapes[name] = rows.shape[1:]
                    digests[name].update(str(rows.shape[1:]).encode())
                digests[name].update(_bytes(rows))
        whole = hashlib.sha256(b"".join(digest.digest() for digest in digests.values()))
        labels = self.labels
        if labels is not None:
            whole.update(f"labels:{labels.dtype}:{labels.shape}".encode() + _bytes(labels))
        return whole.hexdigest()

    def fitted(self, specs: tuple[Input, ...], what: str) -> Samples:
        """These samples for a model with these inputs, itself when they are the same. DataError if unfit."""
        if specs == self._specs:
            return self
        if tuple(spec.name for spec in specs) != self.inputs:
            names = ", ".join(spec.name for spec in specs) or "none"
            raise DataError(
                f"{what}: the samples of {self.source} were opened for the inputs "
                f"{', '.join(self.inputs)}, and this "
                f"model has {names}. Open them again for this model."
            )
        other = Samples(self.source, specs, self._reader, self._options, what)
        other.check()
        return other

    def check(self) -> None:
        """DataError or OptionError when shapes, types or options do not fit the model; reads no values."""
        with said_by(self._what):
            if isinstance(self._reader, Rows):
                raw = {name: (column.row, column.dtype) for name, column in self._reader.columns.items()}
            elif self._options.shuffle:
                raise OptionError(
                    "option 'shuffle' needs samples that can be read in any order, and a function "
                    "gives them in its "
                    "own. Shuffle in the function."
                )
            else:
                raw = {name: (array.shape, array.dtype) for name, array in self._reader.first().feeds.items()}
            check(self._steps, raw)
            shapes = {name: step.shape(raw[name][0]) for name, step in self._steps.items()}
            require_same_sizes(shapes, self._specs)

    @cached_property
    def _selected(self) -> npt.NDArray[np.intp]:
        if isinstance(self._reader, Stream):
            return np.arange(self._counted[0])
        with said_by(self._what):
            return select(self._reader, self._steps, self._options)

    @cached_property
    def _counted(self) -> tuple[int, Array | None]:
        if isinstance(self._reader, Rows):
            return len(self._selected), None
        with said_by(self._what):
            return count_stream(streamed(self._reader, self._steps, self._options))

    def _rows(self, done: str) -> Rows:
        """The reader of samples that have numbers; DataError, saying what cannot be done, for a function."""
        if isinstance(self._reader, Stream):
            raise DataError(
                f"{self._what}: the samples of {self.source} come from a function, in its own order, and cannot be "
                f"{done}. Save them as .npz, or give the parts as data of their own."
            )
        return self._reader

    def _blocks(self, size: int) -> Iterator[Block]:
        """Prepared rows with the batch axis first, up to `size` of one shape."""
        if isinstance(self._reader, Stream):
            blocks = packed(streamed(self._reader, self._steps, self._options), size)
        else:
            blocks = row_blocks(self._reader, self._steps, self._selected, size)
        with said_by(self._what):
            yield from blocks


@contextmanager
def said_by(what: str) -> Iterator[None]:
    """Puts the name of the argument before the message of a DataError or OptionError."""
    try:
        yield
    except (DataError, OptionError) as error:
        raise type(error)(f"{what}: {error}") from error


def _fixed(spec: Input) -> bool:
    """Whether the model fixes every size of a sample."""
    return spec.row is not None and all(isinstance(size, int) for size in spec.row)


def _placed(spec: Input, rows: Array, fixed: int | None) -> Array:
    """The rows [n, ...] with the batch axis where the input has it, filled up to a fixed batch."""
    if spec.axis is None:
        return np.asarray(rows[0])
    if fixed and len(rows) < fixed:
        rows = np.concatenate([rows, np.repeat(rows[-1:], fixed - len(rows), axis=0)])
    placed: Array = np.ascontiguousarray(np.moveaxis(rows, 0, spec.axis))
    return placed


def _bytes(rows: Array) -> bytes:
    return str(rows.tolist()).encode() if rows.dtype.hasobject else np.ascontiguousarray(rows).tobytes()
