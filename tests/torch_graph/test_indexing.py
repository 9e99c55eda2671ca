from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compressor.torch_graph.operators import indexing, selecting
from tests.torch_graph.one_node import assert_same, by_kernel, by_onnxruntime

KERNELS = indexing.KERNELS | selecting.KERNELS


def counted(*shape: int, kind: type = np.float32) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(kind)


def numbers(*values: Any, kind: type = np.int64) -> np.ndarray:
    return np.array(values, kind)


X = counted(3, 4, 5)
TABLE = counted(6, 2)
TIES = np.array([[2, 1, 2, 0, 1], [0, 0, 0, 0, 0]], np.float32)
BOXES = np.array(
    [[0, 0, 1, 1], [0, 0.1, 1, 1.1], [0, -0.1, 1, 0.9], [0, 10, 1, 11], [1, 11.1, 0, 10.1]], np.float32
)
SCORES = np.array([[0.9, 0.75, 0.6, 0.95, 0.5], [0.1, 0.9, 0.9, 0.0, 0.3]], np.float32)
UNITS = counted(2, 3) + 2

# operator, inputs, attributes, opset, number of outputs
CASES: list[tuple[str, list[Any], dict[str, Any], int, int]] = [
    ("Gather", [TABLE, numbers([0, -1], [3, 3])], {}, 21, 1),
    ("Gather", [X, numbers(-1, 0, kind=np.int32)], {"axis": -2}, 11, 1),
    ("Gather", [X, np.array(-2)], {"axis": 1}, 7, 1),
    ("Gather", [TABLE, np.array(1)], {}, 13, 1),
    ("GatherElements", [X, numbers([[0, -1]])], {}, 21, 1),
    ("GatherElements", [X, numbers([[0, -1, 2]], kind=np.int32)], {"axis": 2}, 11, 1),
    ("GatherND", [X, numbers([0, -1], [2, 1])], {}, 21, 1),
    ("GatherND", [X, numbers([[1]], [[-1]], [[0]])], {"batch_dims": 1}, 12, 1),
    ("GatherND", [X, numbers([0, -1, 3])], {}, 11, 1),
    ("Scatter", [X, numbers([[1, -1]]), numbers([[-1, -2]], kind=np.float32)], {}, 9, 1),
    ("ScatterElements", [X, numbers([[1, -1]]), numbers([[-1, -2]], kind=np.float32)], {"axis": 1}, 11, 1),
    *(
        (
            "ScatterElements",
            [UNITS, numbers([1, 1, -1]), numbers([5, 1, 2], kind=np.float32)],
            {"axis": 1, "reduction": reduction},
            18,
            1,
        )
        for reduction in ("add", "mul", "max", "min")
    ),
    ("ScatterND", [X, numbers([0, 1], [-1, 0]), -counted(2, 5)], {}, 11, 1),
    *(
        (
            "ScatterND",
            [UNITS, numbers([1], [1], [-2]), numbers([5, 1, 2], [1, 1, 1], [3, 3, 3], kind=np.float32)],
            {"reduction": reduction},
            18,
            1,
        )
        for reduction in ("add", "mul", "max", "min")
    ),
    ("OneHot", [numbers(0, -1, 3, 7, -9), np.array(4), numbers(2, 5, kind=np.float32)], {}, 21, 1),
    ("OneHot", [numbers([1, 2]), numbers(3), numbers(0, 1)], {"axis": 0}, 9, 1),
    (
        "OneHot",
        [numbers(1.0, 2.0, kind=np.float32), np.array(3.0, np.float32), numbers(0.0, 1.0, kind=np.float32)],
        {},
        11,
        1,
    ),
    ("NonZero", [X % 2], {}, 21, 1),
    ("Compress", [X, numbers(True, False, True, kind=np.bool_)], {}, 21, 1),
    ("Compress", [X, numbers(False, True, kind=np.bool_)], {"axis": -1}, 9, 1),
    ("TopK", [TIES, numbers(3)], {}, 21, 2),
    ("TopK", [TIES, numbers(4)], {"largest": 0}, 11, 2),
    ("TopK", [TIES, numbers(2)], {"axis": 0}, 10, 2),
    ("TopK", [TIES], {"k": 2}, 9, 2),
    ("Unique", [TIES], {}, 21, 4),
    ("Unique", [TIES], {"sorted": 0}, 11, 4),
    ("Unique", [TIES], {}, 11, 1),
    ("Unique", [TIES], {"axis": 1}, 11, 3),
    ("NonMaxSuppression", [BOXES[None], SCORES[None]], {}, 21, 1),
    ("NonMaxSuppression", [BOXES[None], SCORES[None], numbers(3)], {}, 11, 1),
    (
        "NonMaxSuppression",
        [
            np.stack([BOXES, BOXES]),
            np.stack([SCORES, SCORES]),
            np.array(4),
            np.array(0.5, np.float32),
            np.array(0.2, np.float32),
        ],
        {},
        10,
        1,
    ),
    (
        "NonMaxSuppression",
        [np.abs(BOXES[None]), SCORES[None], numbers(4), numbers(0.3, kind=np.float32)],
        {"center_point_box": 1},
        11,
        1,
    ),
]


@pytest.mark.parametrize(("operator", "inputs", "attributes", "opset", "outputs"), CASES)
def test_equals_onnxruntime(
    operator: str, inputs: list[Any], attributes: dict[str, Any], opset: int, outputs: int
) -> None:
    ours = by_kernel(KERNELS, operator, inputs, opset, outputs, **attributes)
    assert_same(ours, by_onnxruntime(operator, inputs, opset, outputs, **attributes))


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.booleans(), st.data())
def test_top_k_takes_the_first_of_equal_elements(
    values: list[int], largest: bool, data: st.DataObject
) -> None:
    k = data.draw(st.integers(0, len(values)))
    _, indices = selecting.top_k(torch.tensor(values), k, largest=int(largest))
    order = sorted(range(len(values)), key=lambda at: (-values[at] if largest else values[at], at))
    assert indices.tolist() == order[:k]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.integers(0, 1))
def test_unique_elements_and_their_inverse_give_the_tensor_back(values: list[int], order: int) -> None:
    x = torch.tensor(values)
    distinct, first, inverse, counts = selecting.unique(x, sorted=order)
    assert torch.equal(distinct[inverse], x)
    assert torch.equal(x[first], distinct)
    assert counts.tolist() == [values.count(value) for value in distinct.tolist()]
    assert first.tolist() == [values.index(value) for value in distinct.tolist()]


def test_refuses_an_index_outside_the_table() -> None:
    with pytest.raises(IndexError, match="index out of range"):
        indexing.gather(torch.ones(3, 2), torch.tensor([3]))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_single_slice_by_number_is_a_view(axis: int) -> None:
    x = torch.from_numpy(X)
    found = indexing.gather(x, -2, axis=axis)
    assert found.data_ptr() != x.data_ptr()
    assert found.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert torch.equal(found, indexing.gather(x, torch.tensor(-2), axis=axis))


def test_a_circular_cache_goes_on_at_its_beginning() -> None:
    cache, update = torch.zeros(2, 3, 1), torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    result = indexing.tensor_scatter(cache, update, torch.tensor([2, 0]), mode="circular")
    assert result.flatten().tolist() == [2, 0, 1, 3, 4, 0]


def test_a_cache_without_indices_is_written_from_its_beginning() -> None:
    result = indexing.tensor_scatter(torch.zeros(1, 3, 1), torch.ones(1, 2, 1))
    assert result.flatten().tolist() == [1, 1, 0]


def test_extracts_features_of_a_vector_as_one_row() -> None:
    result = indexing.array_feature_extractor(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[2, 0]]))
    assert result.tolist() == [[3.0, 1.0]]


def test_a_scalar_has_no_indices() -> None:
    assert selecting.nonzero(torch.tensor(5)).shape == (0, 1)


INDEX = torch.tensor([[0, -1], [1, 0]])
ROWS = torch.tensor([[2], [0]])
UPDATE = torch.full((2, 3), 0.3, dtype=torch.float64)
GRADIENTS: dict[str, Any] = {
    "gather rows": lambda x: indexing.gather(x, INDEX),
    "gather a column": lambda x: indexing.gather(x, 1, axis=1),
    "gather columns": lambda x: indexing.gather(x, INDEX, axis=1),
    "gather elements": lambda x: indexing.gather_elements(x, INDEX, axis=1),
    "gather tuples": lambda x: indexing.gather_nd(x, INDEX),
    "gather tuples of a batch": lambda x: indexing.gather_nd(
        x, torch.tensor([[1], [0], [-1], [1]]), batch_dims=1
    ),
    "scatter elements": lambda x: indexing.scatter_elements(x, INDEX, x[2:, :2] * 2, axis=1),
    "multiply elements": lambda x: indexing.scatter_elements(x, INDEX, x[2:, :2], axis=1, reduction="mul"),
    "scatter tuples": lambda x: indexing.scatter_nd(x, ROWS, x[:2] * 2),
    "add tuples": lambda x: indexing.scatter_nd(x, ROWS, x[:2], reduction="add"),
    "greatest of tuples": lambda x: indexing.scatter_nd(x, ROWS, UPDATE, reduction="max"),
    "cache": lambda x: indexing.tensor_scatter(x[None], x[None, :2] * 2, torch.tensor([1])),
    "one hot": lambda x: indexing.one_hot(INDEX, 3, x[0, :2]),
    "compress": lambda x: indexing.compress(x, torch.tensor([True, False, True]), axis=0),
    "top k": lambda x: selecting.top_k(x, 2, axis=0)[0],
    "unique": lambda x: selecting.unique(x, outputs=1),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_has_the_gradient_of_its_differences(name: str) -> None:
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(GRADIENTS[name], (x,))


def test_compiles_for_every_length_without_a_break() -> None:
    table = torch.randn(7, 4)

    def body(tokens: torch.Tensor) -> torch.Tensor:
        found = indexing.gather(table, tokens)
        last = indexing.gather(found, torch.tensor(-1), axis=1)
        marked = indexing.scatter_nd(found, torch.tensor([[0, -1]]), torch.ones(1, 4))
        return (
            indexing.gather_nd(marked, torch.tensor([[0, 0]]))
            + last
            + indexing.one_hot(tokens[:, 0], 4, table[0, :2])
        )

    compiled = torch.compile(body, backend="eager", fullgraph=True, dynamic=True)
    for length in (3, 5):
        tokens = torch.arange(2 * length).reshape(2, length) % 7
        assert torch.equal(compiled(tokens), body(tokens))
