"""Arithmetic, mathematics, comparison and logic: values of onnxruntime, gradients that training expects."""

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

DRAW = np.random.default_rng(0)
X = DRAW.standard_normal((2, 3, 4)).astype(np.float32)
ROW = DRAW.standard_normal(4).astype(np.float32)
POSITIVE = np.abs(X) + 0.5
INSIDE = np.tanh(X) * 0.9
WHOLE = DRAW.integers(-9, 9, (3, 4)).astype(np.int32)
DIVISOR = np.array([-3, -2, 2, 5], np.int32)
ODD = np.array([np.nan, np.inf, -np.inf, 0, 1], np.float32)
FLAGS, FLAG = X > 0, ROW > 0
BITS = np.array([0, 1, 37, 200], np.uint8)
PLACES = np.array([1, 3, 0, 7], np.uint8)


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


@pytest.mark.parametrize("opset", [7, 9, 13, 18, 21])
@pytest.mark.parametrize(
    "operator", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "Greater", "Less"]
)
def test_broadcasts_as_onnxruntime_in_every_opset(operator: str, opset: int) -> None:
    if opset == 7 and operator in ("Max", "Min", "Sum", "Mean"):
        check(operator, [X, X * 2, -X], opset=opset)  # broadcast since opset 8
    else:
        check(operator, [X, ROW], opset=opset)
        check(operator, [ROW, X], opset=opset)


@pytest.mark.parametrize(
    ("operator", "x"),
    [
        ("Abs", X),
        ("Acos", INSIDE),
        ("Acosh", POSITIVE + 1),
        ("Asin", INSIDE),
        ("Asinh", X),
        ("Atan", X),
        ("Atanh", INSIDE),
        ("Ceil", X),
        ("Cos", X),
        ("Cosh", X),
        ("Det", X[:, :, :3]),
        ("Erf", X),
        ("Exp", X),
        ("Floor", X),
        ("Log", POSITIVE),
        ("Neg", X),
        ("Neg", WHOLE),
        ("Reciprocal", POSITIVE),
        ("Round", np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.4], np.float32)),
        ("Round", ODD),
        ("Sign", np.array([-2, -0.0, 0, 3], np.float32)),
        ("Sign", WHOLE),
        ("Sin", X),
        ("Sinh", X),
        ("Sqrt", POSITIVE),
        ("Tan", X),
        ("IsNaN", ODD),
        ("IsInf", ODD),
        ("Not", FLAGS),
        ("BitwiseNot", WHOLE),
        ("BitwiseNot", BITS.astype(np.uint16)),
        ("Max", X),
        ("Mean", X),
    ],
)
def test_one_input_gives_what_onnxruntime_gives(operator: str, x: np.ndarray) -> None:
    check(operator, [x])


@pytest.mark.parametrize(
    ("operator", "a", "b"),
    [
        ("Div", WHOLE, DIVISOR),
        ("Mod", WHOLE, DIVISOR),
        ("Mod", BITS.astype(np.uint32), np.array([7], np.uint32)),
        ("Pow", POSITIVE, ROW),
        ("Pow", X, np.array(2, np.int64)),
        ("Pow", np.abs(WHOLE), np.array(1.5, np.float32)),
        ("Max", BITS.astype(np.uint32), PLACES.astype(np.uint32)),
        ("Min", BITS.astype(np.uint64), PLACES.astype(np.uint64)),
        ("Max", ODD, np.zeros(5, np.float32)),
        ("Equal", WHOLE, WHOLE[::-1].copy()),
        ("Equal", ODD, ODD),
        ("GreaterOrEqual", WHOLE, DIVISOR),
        ("LessOrEqual", WHOLE, DIVISOR),
        ("And", FLAGS, FLAG),
        ("Or", FLAGS, FLAG),
        ("Xor", FLAGS, FLAG),
        ("BitwiseAnd", WHOLE, DIVISOR),
        ("BitwiseOr", WHOLE, DIVISOR),
        ("BitwiseXor", BITS.astype(np.uint64), PLACES.astype(np.uint64)),
    ],
)
def test_two_inputs_give_what_onnxruntime_gives(operator: str, a: np.ndarray, b: np.ndarray) -> None:
    check(operator, [a, b])
    check(operator, [a, b], fed=1)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_shifts_bits_of_every_unsigned_type(kind: type[np.unsignedinteger], direction: str) -> None:
    top = np.array([np.iinfo(kind).max, 1, 0, np.iinfo(kind).max // 2 + 1], kind)
    if kind is np.uint16:  # onnxruntime has no kernel for it
        shift = np.left_shift if direction == "LEFT" else np.right_shift
        ours = table.kernels()["BitShift"](*map(to_value, (top, PLACES.astype(kind))), direction=direction)
        np.testing.assert_array_equal(to_array(ours), shift(top, PLACES.astype(kind)))
    else:
        check("BitShift", [top, PLACES.astype(kind)], direction=direction)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.uint32, torch.int32, torch.uint64])
def test_a_shift_by_all_bits_leaves_only_the_sign(kind: torch.dtype) -> None:
    shift = table.kernels()["BitShift"]
    x, width = torch.tensor([100, 1]).to(kind), torch.tensor(8 * kind.itemsize).to(kind)
    for direction in ("LEFT", "RIGHT"):
        assert shift(x, width, direction=direction).tolist() == [0, 0]
    if kind.is_signed:
        assert shift(torch.neg(x), width, direction="RIGHT").tolist() == [-1, -1]


@pytest.mark.parametrize("signs", [{}, {"detect_negative": 0}, {"detect_positive": 0}])
def test_finds_infinities_of_the_sign_that_is_asked_for(signs: dict[str, int]) -> None:
    check("IsInf", [ODD], opset=10, **signs)


def test_finds_no_infinity_when_no_sign_is_asked_for() -> None:
    assert not table.kernels()["IsInf"](torch.tensor([np.inf]), detect_negative=0, detect_positive=0).any()


def test_a_float_remainder_keeps_the_sign_that_the_attribute_names() -> None:
    check("Mod", [X, ROW], fmod=1)
    ours = table.kernels()["Mod"](to_value(X), to_value(ROW))
    np.testing.assert_allclose(ours.numpy(), np.mod(X, ROW), atol=1e-6)


def test_unsigned_sums_wrap_at_the_width_of_their_type() -> None:
    add = table.kernels()["Add"]
    for kind in (torch.uint16, torch.uint32, torch.uint64):
        top = torch.tensor([-1]).to(kind)
        assert add(top, torch.tensor([2]).to(kind)).tolist() == [1]


def test_an_exponent_may_be_a_number_or_a_tensor() -> None:
    power, x = table.kernels()["Pow"], to_value(POSITIVE)
    assert torch.allclose(power(x, 3.0), power(x, torch.tensor(3.0)))
    assert power(torch.tensor([2, 3]), torch.tensor(2).to(torch.uint32)).tolist() == [4, 9]


def test_where_chooses_with_broadcast() -> None:
    check("Where", [FLAG, X, ROW])
    check("Where", [FLAGS, ROW.astype(np.float64), X.astype(np.float64)])


@pytest.mark.parametrize(
    "bounds", [{}, {"min": -0.5}, {"max": 0.5}, {"min": -0.5, "max": 0.5}, {"min": 1.0, "max": -1.0}]
)
def test_clips_by_bounds_that_may_be_missing(bounds: dict[str, float]) -> None:
    low, high = (np.array(bounds[end], np.float32) if end in bounds else None for end in ("min", "max"))
    check("Clip", [X, low, high], fed=1)
    check("Clip", [X, low, high], fed=1, opset=11)
    if bounds.get("min", -1) < bounds.get("max", 1):  # before, crossing bounds were not defined
        check("Clip", [X], opset=7, **bounds)


def test_clips_integers_and_computed_bounds() -> None:
    check("Clip", [WHOLE, np.array(-2, np.int32), np.array(5, np.int32)])
    check("Clip", [BITS.astype(np.uint32), None, np.array(50, np.uint32)], fed=1)


def test_bounds_beyond_float16_bound_nothing() -> None:
    half = torch.tensor([1.0, -np.inf], dtype=torch.float16)
    greatest = float(np.finfo(np.float32).max)
    assert torch.equal(table.kernels()["Clip"](half, min=-greatest, max=greatest), half)


def test_clip_passes_the_gradient_from_bound_to_bound() -> None:
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], requires_grad=True)
    table.kernels()["Clip"](x, -1.0, 1.0).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_round_passes_every_gradient() -> None:
    x = torch.tensor([-2.5, 0.2, np.inf], requires_grad=True)
    (table.kernels()["Round"](x) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 2, 3]


def test_sign_passes_the_gradient_within_one() -> None:
    x = torch.tensor([-1.5, -1.0, 0.0, 0.5, 3.0], requires_grad=True)
    (2 * table.kernels()["Sign"](x)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 2, 2, 2, 0]


SMOOTH = ["Acos", "Asin", "Asinh", "Atan", "Atanh", "Cos", "Cosh", "Erf", "Exp", "Log", "Neg", "Reciprocal"]
SMOOTH += ["Sin", "Sinh", "Sqrt", "Tan", "Abs"]


@pytest.mark.parametrize("operator", SMOOTH)
def test_gradients_are_those_of_the_function(operator: str) -> None:
    x = torch.tensor([0.2, 0.4, 0.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(table.kernels()[operator], (x,))


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "Mod"])
def test_gradients_reach_both_inputs(operator: str) -> None:
    a = torch.tensor([[0.7], [1.2]], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([0.9, 0.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(table.kernels()[operator], (a, b))


def test_gradients_follow_the_choice_of_where() -> None:
    x, y = (torch.ones(2, requires_grad=True) for _ in range(2))
    table.kernels()["Where"](torch.tensor([True, False]), x, y).sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert (x.grad.tolist(), y.grad.tolist()) == ([1, 0], [0, 1])


def test_the_determinant_has_a_gradient() -> None:
    x = torch.tensor([[2.0, 1.0], [0.5, 3.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(table.kernels()["Det"], (x,))
