"""Samples for calibration, evaluation and training: a DATA argument, checked against a model, as batches.

    PATH                     FILE.npz, .npy, .csv, .parquet, a folder of .npy, a folder of images,
    PATH{option=value ...}   or module_or_file.py:function; options as in DataOptions

Names, shapes and types are checked when the samples are opened; values are read in batches, anew each time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from compressor.data.arithmetic import Array
from compressor.data.check import check
from compressor.data.inputs import Input, fixed_batch, model_inputs, require_batch_first, require_same_sizes
from compressor.data.options import DataOptions, read_options, split_argument
from compressor.data.reading import Feeds, count_stream, packed, row_blocks, select, streamed
from compressor.data.rows import Rows, from_columns
from compressor.data.sources import array_columns, open_reader
from compressor.data.stream import Stream
from compressor.data.synthetic import synthetic_rows
from compressor.data.transform import preparations
from compressor.errors import DataError, OptionError

__all__ = ["Batch", "DataOptions", "Samples", "open_samples", "split_argument", "synthetic"]

DEFAULT_BATCH = 32


class Batch(NamedTuple):
    """What one run of the model takes.

    Args:
        feeds: input name -> array [n, ...] in the model's dtype; a new array that may be written to.
        count: how many leading samples are real; the rest repeats the last one to fill a fixed batch axis.
    """

    feeds: dict[str, Array]
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody wants here


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
        with _said_by(what):
            self._steps = preparations(specs, options.model_copy(update={"layout": layout}))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the model's inputs that get data, in graph order."""
        return tuple(spec.name for spec in self._specs)

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
        for feeds, count in self._blocks(fixed or size or self._options.batch or DEFAULT_BATCH):
            yield Batch({spec.name: _placed(spec, feeds[spec.name], fixed) for spec in self._specs}, count)

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
        for feeds, _ in self._blocks(DEFAULT_BATCH):
            for name, rows in feeds.items():
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
        with _said_by(self._what):
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
        with _said_by(self._what):
            return select(self._reader, self._steps, self._options)

    @cached_property
    def _counted(self) -> tuple[int, Array | None]:
        if isinstance(self._reader, Rows):
            return len(self._selected), None
        with _said_by(self._what):
            return count_stream(streamed(self._reader, self._steps, self._options))

    def _blocks(self, size: int) -> Iterator[tuple[Feeds, int]]:
        """(prepared rows with the batch axis first, how many), up to `size` of one shape."""
        if isinstance(self._reader, Stream):
            feeds = (feeds for feeds, _ in streamed(self._reader, self._steps, self._options))
            blocks = packed(feeds, size)
        else:
            blocks = row_blocks(self._reader, self._steps, self._selected, size)
        with _said_by(self._what):
            yield from blocks


@contextmanager
def _said_by(what: str) -> Iterator[None]:
    """Puts the name of the argument before the message of a DataError or OptionError."""
    try:
        yield
    except (DataError, OptionError) as error:
        raise type(error)(f"{what}: {error}") from error


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


Data = str | os.PathLike[str] | Samples | Mapping[str, Array] | Array


def open_samples(data: Data, model: ir.Model, what: str = "data") -> Samples:
    """The samples that `data` names, checked against the inputs of `model` before any value is used.

    Args:
        data: `PATH` or `PATH{option=value ...}`; or arrays in memory, [samples, ...] by input name (with
            `labels` if there are any), or one array if the model has one input; or Samples, given back as
            they are if they were opened for the same inputs.
        model: its inputs that are not initializers need data, with the batch axis first.
        what: the argument that the data was given as ("calibration", "data", "train"), for messages.

    Raises:
        DataError: the data cannot be read, or a name, rank, size or type does not fit; it says what would.
        OptionError: an option is unknown, out of range, or applies to no input.
        ModelError: an input is not a tensor.
    """
    specs = model_inputs(model)
    if isinstance(data, Samples):
        return data.fitted(specs, what)
    options = DataOptions()
    with _said_by(what):
        require_batch_first(specs)
        reader: Rows | Stream
        if isinstance(data, str | os.PathLike):
            source = os.fspath(data)
            path, given = split_argument(source)
            options = read_options(given)
            reader = open_reader(path, specs, options)
        else:
            arrays = data if isinstance(data, Mapping) else {"array": np.asarray(data)}
            source = f"arrays ({', '.join(arrays)})" if isinstance(data, Mapping) else "an array"
            reader = from_columns(array_columns(arrays), specs, None)
    samples = Samples(source, specs, reader, options, what)
    samples.check()
    return samples


def synthetic(
    model: ir.Model, count: int = 8, seed: int = 0, sizes: Mapping[str, int] | None = None
) -> Samples:
    """Made-up samples without labels: to run, time and compare a model, not to calibrate it.

    Floats are drawn from a standard normal, bools evenly; integers are ids from 0 to 99, or to the end of the
    table that they look up, but ones where the name holds 'mask' and zeros where it holds 'type' or
    'segment'. An input without a batch axis gets one value, the same for every batch.

    Args:
        model: the model to run.
        count: the number of samples, at least 1.
        seed: of the values; 0 or more.
        sizes: name of a dynamic size -> size. The default is 32; for rank-4 float inputs 64, and 3 channels.
            Given for the batch axis, it is the batch size.

    Raises:
        OptionError: a name in `sizes` is not a dynamic size of the model, or a number is below 1.
        DataError: an input has no shape.
    """
    specs = model_inputs(model)
    rows = synthetic_rows(model, specs, count, seed, sizes)
    names = [spec.dims[spec.axis] for spec in specs if spec.dims and spec.axis is not None]
    batch = next((size for name, size in (sizes or {}).items() if name in names), None)
    return Samples(f"synthetic (seed {seed})", specs, rows, DataOptions(batch=batch), "synthetic")
