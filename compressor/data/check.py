"""Whether samples fit the inputs of a model, and what to do when they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from compressor.data.inputs import is_float, is_integer, shape_text
from compressor.data.options import LAYOUTS
from compressor.data.transform import Preparation
from compressor.errors import DataError


def check(steps: Mapping[str, Preparation], raw: Mapping[str, tuple[Sequence[int], np.dtype[Any]]]) -> None:
    """DataError when the samples do not fit the inputs; `raw` is input name -> (shape of a sample, dtype)."""
    for name, step in steps.items():
        row, dtype = raw[name]
        try:
            shape = step.shape(row)
        except DataError as error:
            layout = _layout(step, row)
            raise DataError(f"{error}{f' Or give layout={layout!r}.' if layout else ''}") from None
        if not step.input.fits(shape):
            given = shape_text(row) + ("" if tuple(row) == shape else f", which become {shape_text(shape)}")
            raise DataError(
                f"input {name!r} wants {step.input}, got {dtype} arrays of {given}. "
                f"{_advice(step, row, shape)}"
            )
        _check_dtype(step, row, dtype)
        step.check_channels(shape)


def _check_dtype(step: Preparation, row: Sequence[int], dtype: np.dtype[Any]) -> None:
    wanted, name = step.input.dtype, step.input.name
    if dtype == wanted or (wanted.kind == "O" and dtype.kind in "US"):
        return
    if is_float(wanted) and is_integer(dtype) and dtype.kind != "b" and not step.arithmetic:
        if dtype == np.uint8 or len(row) > 1:
            kind = "images" if len(row) > 1 else "values"
            raise DataError(
                f"input {name!r} wants {wanted}, got {dtype} {kind} without scale. Give "
                "scale='1/255' if the model takes 0 to 1 (with mean and std if it was trained with them), or "
                "scale=1 if it takes the numbers as they are."
            )
        return
    if (is_float(wanted) and (is_float(dtype) or is_integer(dtype))) or (
        is_integer(wanted) and is_integer(dtype)
    ):
        return
    if is_integer(wanted) and is_float(dtype):
        raise DataError(
            f"input {name!r} wants {wanted}, got {dtype}. Give whole numbers, for example "
            f"x.astype('{wanted}')."
        )
    text = "string" if wanted.kind == "O" else str(wanted)
    raise DataError(f"input {name!r} wants {text}, got {dtype}. Give arrays of type {text}.")


def _layout(step: Preparation, row: Sequence[int]) -> str | None:
    """The layout that would make samples of shape `row` fit."""
    for layout in LAYOUTS:
        if not step.input.image or step.layout or len(row) + 1 != layout.index("-"):
            continue
        try:
            if step.input.fits(replace(step, layout=layout).shape(row)):
                return layout
        except DataError:
            continue
    return None


def _advice(step: Preparation, row: Sequence[int], shape: Sequence[int]) -> str:
    """What to do about samples of shape `row` that become `shape` and do not fit."""
    layout = _layout(step, row)
    if layout:
        return f"Give layout={layout!r}."
    dims = step.input.row or ()
    if len(shape) == len(dims) - 1:
        return "A sample is one dimension short: if this is one sample, add the batch axis with x[None]."
    if len(shape) != len(dims):
        return f"Give arrays of rank {len(dims) + 1}, the first axis counts the samples."
    at, channel = (0, 2) if step.input.channels_last else (1, 0)
    sizes = dims[at : at + 2]
    if (
        step.input.image
        and dims[channel] in (None, shape[channel])
        and all(isinstance(d, int) for d in sizes)
    ):
        return f"Give resize=({sizes[0]},{sizes[1]})."
    return "Give arrays with the sizes that the model fixes."
