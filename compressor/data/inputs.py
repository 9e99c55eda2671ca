"""What a model asks of its samples: names, element types, shapes and the batch axis of its inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from compressor.errors import DataError, ModelError
from compressor.runtime import QUANTIZED_IO

Dim = int | str | None
"""A fixed size, the name of a dynamic size, or None for a dynamic size without a name."""


@dataclass(frozen=True)
class Input:
    """One input of a model that needs data.

    Args:
        name: as in the graph.
        dtype: numpy's type of its elements; `object` for strings.
        dims: all dimensions, the batch axis among them; None when the rank is unknown.
        axis: where the batch axis is; None when there is none, so that one value serves a whole batch.
    """

    name: str
    dtype: np.dtype[Any]
    dims: tuple[Dim, ...] | None
    axis: int | None = 0

    @property
    def row(self) -> tuple[Dim, ...] | None:
        """The dimensions of one sample, without the batch axis."""
        if self.dims is None or self.axis is None:
            return self.dims
        return self.dims[: self.axis] + self.dims[self.axis + 1 :]

    @property
    def floating(self) -> bool:
        """Whether the elements are floating-point numbers."""
        return is_float(self.dtype)

    @property
    def image(self) -> bool:
        """Whether the input is taken for images: rank 4."""
        return self.dims is not None and len(self.dims) == 4

    @property
    def channels_last(self) -> bool:
        """Whether the channels of an image input come last: its last size is 1 to 4 and the second is not."""
        dims = self.dims or ()
        return len(dims) == 4 and dims[3] in (1, 2, 3, 4) and dims[1] not in (1, 2, 3, 4)

    def fits(self, row: Sequence[int]) -> bool:
        """Whether samples of shape `row` fit the rank and the fixed sizes."""
        if self.row is None:
            return True
        return len(row) == len(self.row) and all(
            not isinstance(wanted, int) or wanted == got for wanted, got in zip(self.row, row, strict=True)
        )

    def __str__(self) -> str:
        """For messages: float32[batch,3,?,?]."""
        shape = "?" if self.dims is None else ",".join("?" if d is None else str(d) for d in self.dims)
        return f"{'string' if self.dtype.kind == 'O' else self.dtype}[{shape}]"


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is a floating type, bfloat16 and the 8-bit floats included."""
    return dtype.kind == "f" or (dtype.kind == "V" and "float" in dtype.name)


def is_integer(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is an integer type or bool, the 4-bit integers included."""
    return dtype.kind in "iub" or (dtype.kind == "V" and "int" in dtype.name)


def model_inputs(model: ir.Model) -> tuple[Input, ...]:
    """The inputs that need data, in graph order: those that are not also initializers.

    Inputs that quantize-int8{float_io=False} stores as integers are given as floats; the session quantizes them.

    Raises:
        ModelError: an input is not a tensor, or has no element type.
    """
    found: list[Input] = []
    stored = model.metadata_props.get(QUANTIZED_IO, "{}")
    for value in model.graph.inputs:
        name = value.name or ""
        if name in model.graph.initializers:
            continue
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            raise ModelError(
                f"Input {name!r} is a {type(value.type).__name__}; only tensors can be given data."
            )
        if value.dtype is None or value.dtype == ir.DataType.UNDEFINED:
            raise ModelError(f"Input {name!r} has no element type. Declare it in the model.")
        dims = None if value.shape is None else tuple(_dim(d) for d in value.shape)
        kind = np.dtype(np.float32) if f'"{name}"' in stored else np.dtype(value.dtype.numpy())
        found.append(Input(name, kind, dims))
    return _with_axes(found)


def _dim(dim: int | ir.SymbolicDim) -> Dim:
    if isinstance(dim, int):
        return dim if dim > 0 else None  # old exporters write -1 or 0 for a dynamic size
    return dim.value or None


def _with_axes(inputs: Sequence[Input]) -> tuple[Input, ...]:
    """The inputs with their batch axes: the first axis, unless it cannot be the one that the others share."""
    first = [i.dims[0] for i in inputs if i.dims]
    names = Counter(d for d in first if isinstance(d, str))
    shared = next(iter(first), None)
    if not isinstance(shared, int) or any(not isinstance(d, int) for d in first):
        shared = next(iter(names), None)
    dynamic = any(not isinstance(d, int) for d in first)
    return tuple(Input(i.name, i.dtype, i.dims, _axis(i.dims, shared, dynamic)) for i in inputs)


def _axis(dims: tuple[Dim, ...] | None, shared: Dim, dynamic: bool) -> int | None:
    if dims is None:
        return 0
    if not dims:
        return None
    if dims[0] == shared or (dynamic and not isinstance(dims[0], int) and shared not in dims):
        return 0
    if isinstance(shared, str) and shared in dims:
        return dims.index(shared)
    return 0 if dynamic and dims[0] is None else None


def fixed_batch(inputs: Sequence[Input]) -> int | None:
    """The number of samples that every batch must have; None when it is free."""
    sizes = [i.dims[0] for i in inputs if i.dims and i.axis == 0]
    return sizes[0] if sizes and isinstance(sizes[0], int) else None


def require_batch_first(inputs: Sequence[Input]) -> None:
    """DataError when an input cannot be given one row per sample, naming it and its shape."""
    if not inputs:
        raise DataError("the model has no inputs that need data, so there is nothing to give it.")
    for i in inputs:
        if i.axis == 0:
            continue
        where = "has no batch axis" if i.axis is None else f"has its batch axis at position {i.axis}"
        raise DataError(
            f"input {i.name!r} {where} ({i}), so it cannot be given one row per sample. "
            f"Make {i.name!r} an initializer of the model, or export the model with the batch axis first in "
            "every input."
        )


def require_same_sizes(rows: Mapping[str, Sequence[int]], inputs: Sequence[Input]) -> None:
    """DataError when two sizes that the model calls by one name differ between the samples' shapes."""
    seen: dict[str, tuple[str, int]] = {}
    for i in inputs:
        for dim, size in zip(i.row or (), rows[i.name], strict=False):
            if not isinstance(dim, str):
                continue
            other, known = seen.setdefault(dim, (i.name, size))
            if known != size:
                raise DataError(
                    f"input {other!r} has size {known} where {i.name!r} has {size}, but the model "
                    f"calls both {dim!r}. Give them one size."
                )


def shape_text(row: Sequence[int]) -> str:
    """The shape of an array of samples, for a message.

    >>> shape_text((3, 4))
    'shape [n,3,4]'
    """
    return f"shape [{','.join(['n', *map(str, row)])}]"
