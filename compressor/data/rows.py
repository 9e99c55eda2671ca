"""Samples that can be read in any order: one column per input of the model, and the labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from compressor.data.arithmetic import Array
from compressor.data.inputs import Input
from compressor.errors import DataError, did_you_mean


class Column(Protocol):
    """The samples of one input: their number, the shape of one (the first, if they differ) and the dtype."""

    @property
    def row(self) -> tuple[int, ...]:
        """The shape of one sample."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the stored elements."""

    def __len__(self) -> int:
        """The number of samples."""

    def read(self, rows: npt.NDArray[np.intp]) -> Sequence[Array] | Array:
        """The samples with these numbers: an array [n, ...], or a list if their shapes may differ."""


class ArrayColumn:
    """Samples along the first axis of one array, which is loaded at the first reading and kept."""

    def __init__(
        self, name: str, shape: Sequence[int], dtype: np.dtype[Any], load: Callable[[], Array]
    ) -> None:
        self.name = name
        self.shape = tuple(shape)
        self.dtype = dtype
        self._load = load

    @classmethod
    def of(cls, name: str, array: Array) -> ArrayColumn:
        """The column of an array in memory."""
        return cls(name, array.shape, array.dtype, lambda: array)

    def usable(self) -> ArrayColumn:
        """This column; DataError when it holds Python objects or is a single number."""
        if self.dtype.hasobject:
            raise DataError(
                f"array {self.name!r} holds Python objects (pickled, in a file), which are never loaded. "
                "Save numbers, for example x.astype('float32')."
            )
        if not self.shape:
            raise DataError(
                f"array {self.name!r} is a single number. Give an array whose first axis counts the samples."
            )
        return self

    @cached_property
    def array(self) -> Array:
        """The whole array [samples, ...]; memory-mapped where the source allows it."""
        return self._load()

    @property
    def row(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return self.shape[1:]

    def __len__(self) -> int:
        """The number of samples."""
        return self.shape[0]

    def read(self, rows: npt.NDArray[np.intp]) -> Array:
        """The samples with these numbers; a view where they follow each other."""
        if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
            return self.array[rows[0] : rows[0] + len(rows)]
        return self.array[rows]


@dataclass(frozen=True)
class Rows:
    """Columns by input name, labels or None, and the number of samples.

    Args:
        count: the number of samples in each column.
        columns: input name -> its column, each `count` long.
        labels: the labels' column, `count` long.
        layout: the layout step that the source itself asks for (image files are height, width, channels).
        picked: the rows that may be used, in this order; None for all.
    """

    count: int
    columns: Mapping[str, Column]
    labels: ArrayColumn | None = None
    layout: str | None = None
    picked: npt.NDArray[np.intp] | None = None


def rows_of(
    columns: Mapping[str, Column],
    labels: ArrayColumn | None,
    names: Mapping[str, str],
    layout: str | None = None,
) -> Rows:
    """The Rows of these columns; DataError when their lengths differ or are 0.

    Args:
        columns: input name -> column.
        labels: the labels' column.
        names: input name, or 'labels', -> what the user calls it.
        layout: as in Rows.
    """
    lengths = {names[name]: len(column) for name, column in columns.items()}
    if labels is not None:
        lengths[names["labels"]] = len(labels)
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
        raise DataError(f"the arrays differ in their number of samples: {listed}. Give each as many rows.")
    count = next(iter(lengths.values()))
    if not count:
        raise DataError("there are no samples: the first axis has length 0. Give at least one.")
    return Rows(count, columns, labels, layout)


def match(available: Sequence[str], inputs: Sequence[Input], labels: str | None) -> dict[str, str]:
    """Input name, and 'labels' if there are any, -> the name of its array.

    With one input a single array of any name will do. Characters that a file name cannot hold may be '_'.
    DataError lists what is there when an input or the labels that were asked for are missing.
    """
    wanted = {i.name for i in inputs}
    label = label_name(inputs, labels)
    if labels is not None and labels not in available:
        raise DataError(f"labels={labels!r}: there is no array of that name. {_hint(labels, available)}")
    rest = [name for name in available if name != label or name in wanted]
    found: dict[str, str] = {}
    for i in inputs:
        safe = re.sub(r"[^\w.-]", "_", i.name)
        name = next((name for name in (i.name, safe) if name in rest), None)
        if name is None and len(inputs) == 1 and len(rest) == 1:
            name = rest[0]
        if name is None:
            raise DataError(f"there is no array for the model's input {i.name!r}. {_hint(i.name, rest)}")
        found[i.name] = name
    if label in available:
        found["labels"] = label
    return found


def label_name(inputs: Sequence[Input], labels: str | None) -> str:
    """The name of the labels; empty when 'labels' is an input of the model and no other name was given."""
    return labels or ("" if any(i.name == "labels" for i in inputs) else "labels")


def _hint(name: str, available: Sequence[str]) -> str:
    return did_you_mean(name, available) if available else "There are no arrays."


def from_columns(columns: Mapping[str, ArrayColumn], inputs: Sequence[Input], labels: str | None) -> Rows:
    """Rows from named arrays; DataError when an input has none or lengths differ."""
    names = match(list(columns), inputs, labels)
    label = names.get("labels") if label_name(inputs, labels) in columns else None
    return rows_of(
        {i.name: columns[names[i.name]].usable() for i in inputs},
        columns[label].usable() if label else None,
        names,
    )
