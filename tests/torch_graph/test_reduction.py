"""Reductions, positions of extremes, running sums and the losses of training graphs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper

from compressor.runtime import Session
from compressor.torch_graph import table, to_torch
from compressor.torch_graph.values import to_array, to_value

X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
POSITIVE = np.abs(X) + 0.5
WHOLE = np.random.default_rng(1).integers(-4, 5, (2, 3, 4)).astype(np.int32)
REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]
LABELS = np.array([[0, 3], [2, 1], [4, 4]], np.int64)
SCORES = np.random.default_rng(2).standard_normal((3, 5, 2)).astype(np.float32)
WEIGHTS = np.array([0.5, 1, 2, 0.1, 3], np.float32)


def check(
    operator: str, inputs: list[np.ndarray | None], fed: int = 9, opset: int = 18, **attributes: Any
) -> None:
    """One node by torch and by onnxruntime: the first `fed` inputs are the graph's, the others its constants."""
    names = [f"x{at}" if array is not None else "" for at, array in enumerate(inputs)]
    given = [(name, array) for name, array in zip(names, inputs, strict=True) if array is not None]
    node = helper.make_node(operator, names, ["y"], **attributes)
    types = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given[:fed]
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in given[fed:]]
    result = [helper.make_empty_tensor_value_info("y")]
    graph = helper.make_graph([node], "one", types, result, constants)
    opsets = [helper.make_opsetid("", opset)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    with torch.no_grad():
        ours = to_array(to_torch(model)(*(to_value(array) for _, array in given[:fed])))
    (theirs,) = Session(model).run(dict(given[:fed]))
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)  # a few roundings of float32


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("axes", [None, [0], [1, 2], [-1, 0], [2, 0, 1]])
def test_reduces_as_onnxruntime(name: str, axes: list[int] | None) -> None:
    array = None if axes is None else np.array(axes, np.int64)
    before = 11 if name == "Sum" else 13
    attribute = {} if axes is None else {"axes": axes}
    check(f"Reduce{name}", [POSITIVE, array], fed=1, opset=18)
    check(f"Reduce{name}", [POSITIVE, array], fed=1, opset=18, keepdims=0)
    check(f"Reduce{name}", [POSITIVE], opset=before, **attribute)
    if axes is None or min(axes) >= 0:  # negative axes came with opset 11
        check(f"Reduce{name}", [POSITIVE], opset=7, keepdims=0, **attribute)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_an_empty_list_of_axes_reduces_everything_or_nothing(name: str) -> None:
    reduce, x = table.kernels()[f"Reduce{name}"], to_value(POSITIVE)
    assert torch.equal(reduce(x, []), reduce(x))
    assert reduce(x).shape == (1, 1, 1)
    assert torch.allclose(reduce(x, [], noop_with_empty_axes=1), reduce(x[..., None], [3], keepdims=0))
    assert reduce(torch.tensor(2.0)).shape == ()


@pytest.mark.parametrize("name", ["L1", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"])
def test_reduces_integers_in_their_own_type(name: str) -> None:
    check(f"Reduce{name}", [WHOLE, np.array([1], np.int64)], fed=1)


def test_the_norm_of_integers_is_truncated() -> None:
    assert table.kernels()["ReduceL2"](torch.tensor([3, -3], dtype=torch.int32)).tolist() == [4]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Sum", 0),
        ("SumSquare", 0),
        ("L1", 0),
        ("L2", 0),
        ("Prod", 1),
        ("Max", -np.inf),
        ("Min", np.inf),
        ("LogSum", -np.inf),
        ("LogSumExp", -np.inf),
    ],
)
def test_reducing_nothing_gives_the_neutral_element(name: str, value: float) -> None:
    result = table.kernels()[f"Reduce{name}"](torch.zeros(2, 0, 3), [1], keepdims=0)
    assert torch.equal(result, torch.full((2, 3), value))


def test_the_extremes_of_no_integers_are_the_ends_of_their_type() -> None:
    greatest, least = table.kernels()["ReduceMax"], table.kernels()["ReduceMin"]
    assert greatest(torch.zeros(0, dtype=torch.int8)).tolist() == [-128]
    assert least(torch.zeros(0, dtype=torch.int8)).tolist() == [127]
    assert greatest(torch.zeros(0, dtype=torch.bool)).tolist() == [False]


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("axes", [None, [1], [0, 2]])
def test_gradients_are_those_of_the_reduction(name: str, axes: list[int] | None) -> None:
    x = to_value(POSITIVE).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: table.kernels()[f"Reduce{name}"](x, axes), (x,))


def test_the_norm_of_zeros_has_gradient_zero() -> None:
    x = torch.zeros(3, requires_grad=True)
    table.kernels()["ReduceL2"](x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 0]


@pytest.mark.parametrize("operator", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("attributes", [{}, {"axis": 1, "keepdims": 0}, {"axis": -1, "select_last_index": 1}])
def test_finds_the_first_or_the_last_extreme(operator: str, attributes: dict[str, int]) -> None:
    check(operator, [WHOLE], opset=13, **attributes)
    if "select_last_index" not in attributes:
        check(operator, [WHOLE.astype(np.float32)], opset=11, **attributes)


def test_the_last_of_equal_extremes_is_found_without_its_axis_kept() -> None:
    x = torch.tensor([[1, 5, 5], [2, 2, 0]]).to(torch.uint32)
    last = {"axis": 1, "keepdims": 0, "select_last_index": 1}
    assert table.kernels()["ArgMax"](x, **last).tolist() == [2, 1]
    assert table.kernels()["ArgMin"](x, **last).tolist() == [0, 2]


@pytest.mark.parametrize("attributes", [{}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}])
def test_running_sums_equal_onnxruntime(attributes: dict[str, int]) -> None:
    for axis in (0, 2, -2):
        check("CumSum", [X, np.array(axis, np.int64)], fed=1, opset=11, **attributes)
    check("CumSum", [WHOLE, np.array([1], np.int32)], fed=1, opset=14, **attributes)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, [1, 2, 6]),
        ({"exclusive": 1}, [1, 1, 2]),
        ({"reverse": 1}, [6, 6, 3]),
        ({"exclusive": 1, "reverse": 1}, [6, 3, 1]),
    ],
)
def test_running_products_may_leave_out_or_reverse(attributes: dict[str, int], expected: list[int]) -> None:
    assert table.kernels()["CumProd"](torch.tensor([1, 2, 3]), 0, **attributes).tolist() == expected


@pytest.mark.parametrize("operator", ["CumSum", "CumProd"])
@pytest.mark.parametrize("attributes", [{}, {"exclusive": 1, "reverse": 1}])
def test_running_results_have_gradients(operator: str, attributes: dict[str, int]) -> None:
    x = to_value(POSITIVE).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: table.kernels()[operator](x, 1, **attributes), (x,))
    assert table.kernels()[operator](torch.zeros(2, 0), 1, **attributes).shape == (2, 0)


@pytest.mark.parametrize("reduction", [{}, {"reduction": "sum"}, {"reduction": "none"}])
@pytest.mark.parametrize("ignored", [{}, {"ignore_index": 4}])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_losses_equal_onnxruntime(
    reduction: dict[str, str], ignored: dict[str, int], weights: np.ndarray | None
) -> None:
    given = [LABELS] if weights is None else [LABELS, weights]
    logarithms = SCORES - np.log(np.exp(SCORES).sum(1, keepdims=True))
    check("NegativeLogLikelihoodLoss", [logarithms, *given], opset=13, **reduction, **ignored)
    check("SoftmaxCrossEntropyLoss", [SCORES, *given], opset=13, **reduction, **ignored)


def test_cross_entropy_gives_its_log_softmax_when_two_outputs_are_wanted() -> None:
    entropy = table.kernels()["SoftmaxCrossEntropyLoss"]
    loss, logarithms = entropy(to_value(SCORES), to_value(LABELS), outputs=2)
    assert torch.equal(loss, entropy(to_value(SCORES), to_value(LABELS), outputs=1))
    assert torch.equal(logarithms, torch.log_softmax(to_value(SCORES), 1))


def test_an_ignored_label_may_lie_outside_the_classes() -> None:
    entropy = table.kernels()["SoftmaxCrossEntropyLoss"]
    labels = torch.tensor([1, -5], dtype=torch.int32)
    scores = torch.zeros(2, 4, requires_grad=True)
    entropy(scores, labels, outputs=1, ignore_index=-5).backward()
    assert scores.grad is not None
    assert scores.grad[1].tolist() == [0, 0, 0, 0]
    assert scores.grad[0].tolist() == pytest.approx([0.25, -0.75, 0.25, 0.25])
