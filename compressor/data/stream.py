"""Samples from a function of the user, `module_or_file.py:function`, called anew for each reading."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.data.arithmetic import Array
from compressor.data.inputs import Input
from compressor.data.rows import label_name, match
from compressor.errors import DataError
from compressor.user_code import FOREIGN, load_object


@dataclass(frozen=True)
class Sample:
    """One sample: input name -> array without the batch axis, and its label or None."""

    feeds: Mapping[str, Array]
    label: Array | None


@dataclass(frozen=True)
class Stream:
    """The samples that `function` yields.

    Args:
        address: how the function was given, for messages.
        function: takes nothing and returns an iterable of samples: a dict of input name -> array without the
            batch axis (and, under `labels`, the label), a tuple (array, label), or an array.
        inputs: of the model.
        labels: the key of the label; None for 'labels'.
    """

    address: str
    function: Callable[[], Any]
    inputs: tuple[Input, ...]
    labels: str | None

    def __iter__(self) -> Iterator[Sample]:
        """The samples, from a new call; DataError when the function fails or yields something else."""
        with _named(self.address):
            source = iter(self.function())
        number = 0
        while True:
            with _named(self.address):
                item = next(source, _END)
            if item is _END:
                return
            try:
                yield self._sample(item)
            except DataError as error:
                raise DataError(f"{self.address}: sample {number} (counted from 0): {error}") from error
            number += 1

    def first(self) -> Sample:
        """The first sample; DataError when there is none."""
        for sample in self:
            return sample
        raise DataError(f"{self.address} yields no samples. Yield at least one.")

    def _sample(self, item: object) -> Sample:
        label: object = None
        if isinstance(item, tuple):
            if len(item) != 2:
                raise DataError(f"a tuple must be (array, label), got {len(item)} values.")
            item, label = item
        fields = self._fields(item)
        names = match(list(fields), self.inputs, self.labels if label is None else None)
        if label is None and label_name(self.inputs, self.labels) in fields:
            label = fields[names["labels"]]
        feeds = {i.name: _array(names[i.name], fields[names[i.name]]) for i in self.inputs}
        return Sample(feeds, None if label is None else _array("label", label))

    def _fields(self, item: object) -> Mapping[str, object]:
        if isinstance(item, Mapping):
            return item
        if len(self.inputs) == 1:
            return {self.inputs[0].name: item}
        names = ", ".join(i.name for i in self.inputs)
        raise DataError(f"the model has several inputs, so a sample must be a dict with the keys {names}.")


_END = object()


def _array(name: str, value: object) -> Array:
    try:
        array: Array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name!r} is not an array: {error}.") from error
    if array.dtype.hasobject:
        raise DataError(f"{name!r} is not an array of numbers, got {type(value).__name__}.")
    return array


@contextmanager
def _named(address: str) -> Iterator[None]:
    """Turns what the user's code raises into a DataError that says where."""
    try:
        yield
    except FOREIGN as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        raise DataError(f"{address} raised {type(error).__name__}: {error}{where}.") from error


def open_stream(address: str, inputs: Sequence[Input], labels: str | None) -> Stream:
    """The Stream of `module_or_file.py:function`; DataError when the module or the function is missing."""
    function = load_object(address, address, refusal=DataError)
    return Stream(address, function, tuple(inputs), labels)
