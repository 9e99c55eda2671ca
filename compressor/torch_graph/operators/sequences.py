"""Sequences, which are Python lists, and optionals, which are their value or None."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compressor.errors import ModelError
from compressor.torch_graph.values import Kernel


def sequence_construct(*inputs: Tensor) -> list[Tensor]:
    """A sequence of the inputs."""
    return list(inputs)


def sequence_empty(*, dtype: int | None = None) -> list[Tensor]:
    """A sequence of nothing; its element type is known by what is inserted."""
    return []


def sequence_insert(
    input_sequence: list[Tensor], tensor: Tensor, position: int | list[int] | None = None
) -> list[Tensor]:
    """A sequence with one more tensor before `position`, at the end when omitted."""
    at = len(input_sequence) if position is None else _number(position)
    before = input_sequence[:at]
    return [*before, tensor, *input_sequence[len(before) :]]


def sequence_erase(input_sequence: list[Tensor], position: int | list[int] | None = None) -> list[Tensor]:
    """A sequence without the tensor at `position`, the last when omitted."""
    at = (-1 if position is None else _number(position)) % len(input_sequence)
    return input_sequence[:at] + input_sequence[at + 1 :]


def sequence_at(input_sequence: list[Tensor], position: int | list[int]) -> Tensor:
    """The tensor at `position`."""
    return input_sequence[_number(position)]


def sequence_length(input_sequence: list[Tensor]) -> Tensor:
    """The number of tensors."""
    return torch.tensor(len(input_sequence))


def split_to_sequence(
    input: Tensor, split: int | list[int] | None = None, *, axis: int = 0, keepdims: int = 1
) -> list[Tensor]:
    """The parts of the given sizes; for a number, parts of that size, the last perhaps smaller; when omitted, the
    single slices, without the axis if not `keepdims`.
    """
    if split is None and not keepdims:
        return list(input.unbind(axis))
    return list(input.split(1 if split is None else split, axis))  # type: ignore[no-untyped-call]


def concat_from_sequence(input_sequence: list[Tensor], *, axis: int, new_axis: int = 0) -> Tensor:
    """The tensors of a sequence joined along an axis, or stacked along a new one."""
    return torch.stack(input_sequence, axis) if new_axis else torch.cat(input_sequence, axis)


def optional(input: Tensor | list[Tensor] | None = None, *, type: Any = None) -> Tensor | list[Tensor] | None:
    """An optional that holds the input, or nothing."""
    return input


def optional_get_element(input: Tensor | list[Tensor] | None = None) -> Tensor | list[Tensor]:
    """What an optional holds.

    Raises:
        ModelError: it holds nothing.
    """
    if input is None:
        raise ModelError(
            "OptionalGetElement: the optional holds nothing; ask OptionalHasElement first, or give the input a value."
        )
    return input


def optional_has_element(input: Tensor | list[Tensor] | None = None) -> Tensor:
    """Whether an optional holds something."""
    return torch.tensor(input is not None)


def _number(value: int | list[int]) -> int:
    return value[0] if isinstance(value, list) else value


KERNELS: dict[str, Kernel] = {
    "ConcatFromSequence": concat_from_sequence,
    "Optional": optional,
    "OptionalGetElement": optional_get_element,
    "OptionalHasElement": optional_has_element,
    "SequenceAt": sequence_at,
    "SequenceConstruct": sequence_construct,
    "SequenceEmpty": sequence_empty,
    "SequenceErase": sequence_erase,
    "SequenceInsert": sequence_insert,
    "SequenceLength": sequence_length,
    "SplitToSequence": split_to_sequence,
}
