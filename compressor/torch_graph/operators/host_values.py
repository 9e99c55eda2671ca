"""Host values: what tensors of rank 0, 1 and 2 hold, as Python numbers and lists, for shape arithmetic.

Under torch.compile and torch.export the numbers may be symbols, so nothing asks for a number's value unless the
operator needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch

from compressor.errors import ModelError

Host: TypeAlias = Any
"""A number (bool, int, float or a torch symbol), a list of numbers, or a list of such lists."""

_ARRAYS = (torch.Tensor, np.ndarray)
_SPLIT = 2.0**29 + 1.0
_LARGEST = 2.0**128


def rank(value: Host) -> int:
    """How deep the lists are: 0 for a number."""
    return len(sizes(value))


def sizes(value: torch.Tensor | np.ndarray | Host) -> list[int]:
    """The shape of a host value or of a tensor, whose symbols stay symbols."""
    if isinstance(value, list):
        return [len(value), *(sizes(value[0]) if value else [])]
    return list(value.shape) if isinstance(value, _ARRAYS) else []


def listed(value: int | list[int]) -> list[int]:
    """Axes as a list, where a file may give a single number."""
    return value if isinstance(value, list) else [value]


def integer(number: Any) -> Any:
    """The number cut towards zero; a symbol stays one."""
    return torch.sym_int(number)  # type: ignore[no-untyped-call]


def real(number: Any) -> Any:
    """The number as a float; a symbol stays one."""
    return torch.sym_float(number)  # type: ignore[no-untyped-call]


def broadcast(function: Callable[..., Any], *operands: Host) -> Host:
    """The function of every element, the operands broadcast to one shape as tensors are.

    Floats are rounded to float32, as onnxruntime computes them: a size is often the floor of a product that is an
    integer only in float32.

    Raises:
        ValueError: lists of different lengths, neither of them 1.
    """
    depth = max([rank(operand) for operand in operands])
    if depth == 0:
        return _single(function(*operands))
    rows = [operand if rank(operand) == depth else [operand] for operand in operands]
    lengths = [len(row) for row in rows if len(row) != 1]
    length = lengths[0] if lengths else 1
    rows = [row * length if len(row) == 1 else row for row in rows]
    return [broadcast(function, *elements) for elements in zip(*rows, strict=True)]


def along(value: Host, axis: int, function: Callable[[Any], Host]) -> Host:
    """The function of every list (or number) that lies `axis` levels deep."""
    return function(value) if axis == 0 else [along(row, axis - 1, function) for row in value]


def flat(value: Host) -> list[Any]:
    """The elements in row-major order."""
    return [item for row in value for item in flat(row)] if isinstance(value, list) else [value]


def nested(elements: list[Any], shape: Sequence[int]) -> Host:
    """Elements in row-major order as lists of the given shape; the inverse of `flat`.

    Raises:
        ModelError: there are more or fewer elements.
    """
    if len(elements) != prod(shape):
        raise ModelError(
            f"A shape computation puts {len(elements)} elements into the shape {list(shape)!r}; "
            "give the model inputs of the shapes that it was made for."
        )
    if not shape:
        return elements[0]
    step = prod(shape[1:])
    return [nested(elements[at * step : (at + 1) * step], shape[1:]) for at in range(shape[0])]


def _single(value: Any) -> Any:
    """A float rounded to float32 by sums and products alone (Veltkamp's splitting; Dekker 1971, section 5)."""
    if not isinstance(value, float) or not abs(value) < _LARGEST:
        return value
    scaled = value * _SPLIT
    return scaled - (scaled - value)
