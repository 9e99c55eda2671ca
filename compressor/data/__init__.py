"""Samples for calibration, evaluation and training: a DATA argument, checked against a model, as batches.

    PATH                     FILE.npz, .npy, .csv, .parquet, a folder of .npy, a folder of images,
    PATH{option=value ...}   or module_or_file.py:function; options as in DataOptions

Names, shapes and types are checked when the samples are opened; values are read in batches, anew each time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from compressor.data.arithmetic import Array
from compressor.data.inputs import model_inputs, require_batch_first
from compressor.data.options import DataOptions, read_options, split_argument
from compressor.data.rows import Rows, from_columns
from compressor.data.samples import Batch, Samples, said_by
from compressor.data.sources import array_columns, open_reader
from compressor.data.stream import Stream
from compressor.data.synthetic import synthetic_rows

__all__ = ["Batch", "DataOptions", "Samples", "open_samples", "split_argument", "synthetic"]

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
    with said_by(what):
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
