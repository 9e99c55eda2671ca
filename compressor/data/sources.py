"""Readers of a DATA argument: which form it has, and the files of arrays (.npz, .npy, a folder of .npy)."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from compressor.data.arithmetic import Array
from compressor.data.images import read_images
from compressor.data.inputs import Input
from compressor.data.options import DataOptions
from compressor.data.rows import ArrayColumn, Rows, from_columns
from compressor.data.stream import Stream, open_stream
from compressor.data.tables import read_table
from compressor.errors import DataError
from compressor.user_code import ADDRESS

FORMS = (
    "FILE.npz, FILE.npy, FILE.csv, FILE.parquet, a folder of .npy files, a folder of images with one "
    "sub-folder per class, or module_or_file.py:function"
)


def open_reader(path: str, inputs: Sequence[Input], options: DataOptions) -> Rows | Stream:
    """The samples at `path`. Only names, shapes and types are read now; arrays at their first use.

    Raises:
        DataError: there is no such file, it is of no known form, damaged, or lacks an input of the model.
    """
    place = Path(path)
    if not place.exists():
        if ADDRESS.fullmatch(path):
            return open_stream(path, inputs, options.labels)
        raise DataError(f"there is no file or folder {path!r}. Give {FORMS}.")
    try:
        return _open_path(place, inputs, options)
    except DataError as error:
        raise DataError(f"{path!r}: {error}") from error


def _open_path(place: Path, inputs: Sequence[Input], options: DataOptions) -> Rows:
    if place.is_dir():
        files = sorted(place.glob("*.npy"))
        if files:
            return from_columns({file.stem: npy_column(file) for file in files}, inputs, options.labels)
        if options.labels is not None:
            raise DataError(
                "the labels of an image folder are its sub-folders. Leave the option 'labels' out."
            )
        channels_last = options.layout.endswith("c") if options.layout else None
        return read_images(place, inputs, channels_last)
    suffix = place.suffix.lower()
    if suffix == ".npz":
        return from_columns(npz_columns(place), inputs, options.labels)
    if suffix == ".npy":
        return from_columns({place.stem: npy_column(place)}, inputs, options.labels)
    if suffix in (".csv", ".tsv", ".parquet"):
        return read_table(place, inputs, options.labels)
    raise DataError(f"files ending in {suffix!r} are not known. Give {FORMS}.")


def array_columns(arrays: Mapping[str, Array]) -> dict[str, ArrayColumn]:
    """Columns of arrays in memory; anything that numpy takes for an array of numbers will do."""
    return {name: ArrayColumn.of(name, np.asarray(array)) for name, array in arrays.items()}


def npz_columns(path: Path) -> dict[str, ArrayColumn]:
    """Array name -> column; the arrays of an .npz stay on disk until they are read."""
    columns: dict[str, ArrayColumn] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
            headers = {}
            for member in members:
                with archive.open(member) as file:
                    headers[member.removesuffix(".npy")] = _header(file)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise DataError(
            f"the file is not a readable .npz: {error}. Save it again with numpy.savez."
        ) from error
    for name, (shape, dtype) in headers.items():
        columns[name] = ArrayColumn(name, shape, dtype, partial(_npz_member, path, name))
    return columns


def _npz_member(path: Path, name: str) -> Array:
    try:
        with np.load(path, allow_pickle=False) as archive:
            array: Array = archive[name]
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, OSError, ValueError) as error:
        raise DataError(
            f"{str(path)!r}: array {name!r} cannot be read: {error}. The file is damaged."
        ) from error
    return array


def npy_column(path: Path) -> ArrayColumn:
    """The column of an .npy file, memory-mapped at its first reading."""
    try:
        with path.open("rb") as file:
            shape, dtype = _header(file)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path.name!r} is not a readable .npy: {error}. Save it again with numpy.save."
        ) from error
    return ArrayColumn(path.stem, shape, dtype, lambda: _mapped(path))


def _mapped(path: Path) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {error}. The file is damaged.") from error
    return array


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """(shape, dtype) of the .npy that starts here."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return tuple(shape), dtype
