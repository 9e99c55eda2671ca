"""Tables of features: .csv and .parquet, for models whose inputs are numbers or vectors."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compressor.data.arithmetic import Array
from compressor.data.inputs import Input
from compressor.data.rows import ArrayColumn, Rows, from_columns, label_name, rows_of
from compressor.errors import DataError, did_you_mean


def read_table(path: Path, inputs: Sequence[Input], labels: str | None) -> Rows:
    """The samples of a table, one per row.

    With one vector input [N,F] all columns but the labels, in their order, are the features. Inputs [N] and
    [N,1] take the column of their name. Labels must be numbers: which class a text stands for only the model knows.

    Raises:
        DataError: the file cannot be read, a cell is no number, or an input is neither number nor vector.
    """
    table = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    for i in inputs:
        if i.row is not None and len(i.row) > 1:
            raise DataError(
                f"a table holds numbers or vectors, but input {i.name!r} is {i}. Give an .npz instead."
            )
    label = label_name(inputs, labels)
    if labels is not None and labels not in table:
        raise DataError(f"labels={labels!r}: there is no column of that name. {did_you_mean(labels, table)}")
    named = {name: ArrayColumn.of(name, _number(name, a)) for name, a in table.items() if name != label}
    if label in table:
        codes = table[label]
        if codes.dtype.kind not in "iufb":
            found = ", ".join(repr(str(text)) for text in np.unique(codes)[:4])
            raise DataError(
                f"the labels are text ({found}). Give the numbers of the model's classes, 0, 1, ..."
            )
        named[label] = ArrayColumn.of(label, codes)
    return _assign(named, inputs, label, labels)


def _assign(
    named: Mapping[str, ArrayColumn], inputs: Sequence[Input], label: str, labels: str | None
) -> Rows:
    """The columns of a table as samples of the inputs."""
    vector = inputs[0]
    if len(inputs) > 1 or vector.row == () or (vector.row == (1,) and vector.name in named):
        by_name = {
            name: ArrayColumn.of(name, c.array.reshape(-1, 1))
            if name != label and _single(name, inputs)
            else c
            for name, c in named.items()
        }
        return from_columns(by_name, inputs, labels)
    features = [column.array for name, column in named.items() if name != label]
    if not features:
        raise DataError("there are no feature columns.")
    wanted = vector.row[0] if vector.row else None
    if isinstance(wanted, int) and wanted != len(features):
        listed = ", ".join(name for name in list(named)[:20] if name != label)
        hint = "" if label in named else " Name the column of labels with labels='...'."
        raise DataError(
            f"input {vector.name!r} wants {wanted} features, and there are {len(features)} columns: "
            f"{listed}.{hint}"
        )
    columns = {vector.name: ArrayColumn.of(vector.name, np.stack(features, axis=1))}
    return rows_of(columns, named.get(label), {vector.name: "features", "labels": label})


def _single(name: str, inputs: Sequence[Input]) -> bool:
    """Whether the input of this name (or the only input) is [N,1] rather than [N]."""
    return any(i.row is not None and len(i.row) == 1 for i in inputs if i.name == name or len(inputs) == 1)


def _number(name: str, column: Array) -> Array:
    if column.dtype.kind in "iufb":
        return column
    for at, cell in enumerate(column):
        try:
            float(cell)
        except (TypeError, ValueError):
            raise DataError(
                f"column {name!r} holds {str(cell)!r} in row {at} (counted from 0), which is no "
                "number. Encode "
                "the column as numbers, leave it out of the file, or name it with labels='...' if it "
                "holds the "
                "labels."
            ) from None
    return column.astype(np.float64)


def _csv(path: Path) -> dict[str, Array]:
    """Column name -> its values: int64, float64 (an empty cell is NaN), or text."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            lines = [line for line in csv.reader(file, delimiter=max(",;\t", key=first.count)) if line]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError(f"cannot be read as .csv: {error}.") from error
    if not lines:
        raise DataError("the file is empty. Give a line of column names and one line per sample.")
    header = [name.strip() for name in lines[0]]
    if any(_is_number(name) for name in header) or len(set(header)) < len(header):
        raise DataError(
            f"the first line must hold one name per column, each once, got {', '.join(header[:8])!r}."
        )
    for at, line in enumerate(lines[1:]):
        if len(line) != len(header):
            raise DataError(
                f"row {at} (counted from 0) has {len(line)} cells, and the first line names "
                f"{len(header)} columns."
            )
    return {name: _parsed([line[at] for line in lines[1:]]) for at, name in enumerate(header)}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parsed(cells: Sequence[str]) -> Array:
    try:
        return np.array([int(cell) for cell in cells], np.int64)
    except (ValueError, OverflowError):
        pass
    try:
        return np.array([float(cell) if cell.strip() else np.nan for cell in cells])
    except ValueError:
        return np.array(cells, dtype=np.str_)


def _parquet(path: Path) -> dict[str, Array]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError("reading .parquet needs pyarrow: pip install 'onnx-compressor[tables]'.") from None
    try:
        table: Any = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"cannot be read as .parquet: {error}") from error
    columns = {name: np.asarray(table.column(name).to_numpy()) for name in table.column_names}
    if not columns:
        raise DataError("the table has no columns.")
    return columns
