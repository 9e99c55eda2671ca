from __future__ import annotations

from typing import Any

import pytest
import torch

from compressor.errors import ModelError
from compressor.torch_graph.operators import sequences

A, B, C = torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([3.0])


def values(sequence: list[torch.Tensor]) -> list[Any]:
    return [tensor.tolist() for tensor in sequence]


@pytest.mark.parametrize(
    ("position", "order"),
    [(None, [1, 2, 3]), (0, [3, 1, 2]), (1, [1, 3, 2]), (2, [1, 2, 3]), (-1, [1, 3, 2]), ([-2], [3, 1, 2])],
)
def test_inserts_before_a_position(position: int | list[int] | None, order: list[int]) -> None:
    assert values(sequences.sequence_insert([A, B], C, position)) == [[value] for value in order]


@pytest.mark.parametrize(("position", "order"), [(None, [1, 2]), (0, [2, 3]), (-2, [1, 3]), ([2], [1, 2])])
def test_erases_at_a_position(position: int | list[int] | None, order: list[int]) -> None:
    assert values(sequences.sequence_erase([A, B, C], position)) == [[value] for value in order]


@pytest.mark.parametrize("position", [-1, [2]])
def test_reads_at_a_position(position: int | list[int]) -> None:
    assert sequences.sequence_at([A, B, C], position) is C


def test_inserting_and_erasing_leave_the_sequence_that_they_were_given() -> None:
    sequence = sequences.sequence_construct(A, B)
    sequences.sequence_insert(sequence, C)
    sequences.sequence_erase(sequence, 0)
    assert values(sequence) == [[1], [2]]
    assert sequences.sequence_length(sequence).item() == 2


def test_an_empty_sequence_fills() -> None:
    assert values(sequences.sequence_insert(sequences.sequence_empty(dtype=1), A)) == [[1]]


X = torch.arange(10.0).reshape(5, 2)


@pytest.mark.parametrize(
    ("split", "attributes", "shapes"),
    [
        (None, {}, [(1, 2)] * 5),
        (None, {"axis": 1, "keepdims": 0}, [(5,)] * 2),
        (2, {}, [(2, 2), (2, 2), (1, 2)]),
        (2, {"keepdims": 0}, [(2, 2), (2, 2), (1, 2)]),
        ([4, 1], {"axis": -2}, [(4, 2), (1, 2)]),
    ],
)
def test_splits_into_parts_that_join_to_the_input(
    split: Any, attributes: Any, shapes: list[tuple[int, ...]]
) -> None:
    parts = sequences.split_to_sequence(X, split, **attributes)
    assert [tuple(part.shape) for part in parts] == shapes
    stacked = len(shapes[0]) == 1
    joined = sequences.concat_from_sequence(parts, axis=attributes.get("axis", 0), new_axis=int(stacked))
    assert torch.equal(joined, X)


def test_gradients_pass_through_a_sequence() -> None:
    x = X.clone().requires_grad_()
    parts = sequences.split_to_sequence(x, [4, 1])
    kept = sequences.sequence_erase(sequences.sequence_insert(parts, parts[1], 0), 1)
    sequences.concat_from_sequence(kept, axis=0).sum().backward()
    assert torch.equal(x.grad, torch.tensor([[0.0, 0.0]] * 4 + [[2.0, 2.0]]))


@pytest.mark.parametrize("value", [A, [A, B]])
def test_an_optional_gives_back_what_it_holds(value: Any) -> None:
    held = sequences.optional(value)
    assert sequences.optional_has_element(held).item() is True
    assert sequences.optional_get_element(held) is value


def test_an_optional_of_nothing_has_no_element() -> None:
    empty = sequences.optional(type="tensor(float)")
    assert sequences.optional_has_element(empty).item() is False
    assert sequences.optional_has_element().item() is False
    with pytest.raises(
        ModelError, match="OptionalGetElement: the optional holds nothing; ask OptionalHasElement"
    ):
        sequences.optional_get_element(empty)
