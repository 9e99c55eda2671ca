"""Activations and softmax: values of onnxruntime, defaults of the schema, gradients of torch's own."""

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
X = (DRAW.standard_normal((2, 3, 4)) * 2).astype(np.float32)
BIAS = DRAW.standard_normal(4).astype(np.float32)


def check(
    operator: str, inputs: list[np.ndarray | None], fed: int = 9, opset: int = 18, **attributes: Any
) -> None:
    """One node by torch and by onnxruntime: the first `fed` inputs are the graph's, the others its constants."""
    domain, _, operator = operator.rpartition("::")
    names = [f"x{at}" if array is not None else "" for at, array in enumerate(inputs)]
    given = [(name, array) for name, array in zip(names, inputs, strict=True) if array is not None]
    node = helper.make_node(operator, names, ["y"], domain=domain, **attributes)
    types = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given[:fed]
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in given[fed:]]
    result = [helper.make_empty_tensor_value_info("y")]
    graph = helper.make_graph([node], "one", types, result, constants)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    with torch.no_grad():
        ours = to_array(to_torch(model)(*(to_value(array) for _, array in given[:fed])))
    (theirs,) = Session(model).run(dict(given[:fed]))
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)  # a few roundings of float32


@pytest.mark.parametrize(
    ("operator", "given"),
    [
        ("Celu", {"alpha": 0.7}),
        ("Elu", {"alpha": 0.7}),
        ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}),
        ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
        ("HardSwish", {}),
        ("LeakyRelu", {"alpha": 0.3}),
        ("Mish", {}),
        ("Relu", {}),
        ("Selu", {"alpha": 1.2, "gamma": 2.0}),
        ("Shrink", {"lambd": 0.3, "bias": 0.2}),
        ("Shrink", {"lambd": 0.3, "bias": 0.3}),
        ("Sigmoid", {}),
        ("Softplus", {}),
        ("Softsign", {}),
        ("Tanh", {}),
        ("ThresholdedRelu", {"alpha": 0.3}),
    ],
)
def test_equals_onnxruntime_with_and_without_its_attributes(operator: str, given: dict[str, float]) -> None:
    check(operator, [X], **given)
    check(operator, [X])


@pytest.mark.parametrize(
    "operator", ["Relu", "LeakyRelu", "Elu", "Selu", "HardSigmoid", "Sigmoid", "Tanh", "Softplus"]
)
def test_opset_7_knows_them_too(operator: str) -> None:
    check(operator, [X], opset=7)


@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 1), (1, 1, 4), (2, 3, 4)])
def test_prelu_broadcasts_its_slope_to_the_input(shape: tuple[int, ...]) -> None:
    slope = np.random.default_rng(1).random(shape).astype(np.float32)
    check("PRelu", [X, slope])
    check("PRelu", [X, slope], fed=1, opset=9)
    check("PRelu", [X[0, 0], slope.reshape(-1)[:1]], opset=7)


def test_prelu_of_integers_multiplies_what_is_below_zero() -> None:
    x = np.array([[-2, 3]], np.int32)
    assert table.kernels()["PRelu"](to_value(x), torch.tensor([[3, 5]], dtype=torch.int32)).tolist() == [
        [-6, 3]
    ]


def test_shrinks_integers_in_their_own_type() -> None:
    check("Shrink", [np.array([-2, 0, 1, 5], np.int32)], lambd=1.0, bias=1.0)


@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("opset", [7, 11, 13])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1, -2])
def test_softmax_takes_one_axis_from_opset_13_and_the_rest_of_them_before(
    operator: str, opset: int, axis: int | None
) -> None:
    if opset == 7 and axis is not None and axis < 0:
        return  # negative axes came with opset 11
    check(operator, [X], opset=opset, **({} if axis is None else {"axis": axis}))


@pytest.mark.parametrize("approximate", [{}, {"approximate": "tanh"}, {"approximate": "none"}])
def test_gelu_is_exact_unless_told_otherwise(approximate: dict[str, str]) -> None:
    check("Gelu", [X], opset=20, **approximate)


def test_the_gelus_of_onnxruntime_equal_its_own() -> None:
    check("com.microsoft::Gelu", [X])
    check("com.microsoft::BiasGelu", [X, BIAS])
    check("com.microsoft::FastGelu", [X])
    check("com.microsoft::FastGelu", [X, BIAS])
    check("com.microsoft::QuickGelu", [X])
    check("com.microsoft::QuickGelu", [X], alpha=1.3)


def test_swish_with_a_slope_of_one_is_silu() -> None:
    swish, swiglu = table.kernels()["Swish"], table.kernels()["SwiGLU"]
    x, gate = to_value(X), to_value(X[::-1].copy())
    assert torch.equal(swish(x), torch.nn.functional.silu(x))
    assert torch.allclose(swish(x, alpha=0.5), x * torch.sigmoid(0.5 * x))
    assert torch.equal(swiglu(gate, x), swish(gate) * x)


def test_binarizer_is_one_above_its_threshold() -> None:
    binarizer = table.kernels()["ai.onnx.ml::Binarizer"]
    assert binarizer(torch.tensor([-1.0, 0.0, 0.5])).tolist() == [0, 0, 1]
    assert binarizer(torch.tensor([-1.0, 0.0, 0.5]), threshold=-1.0).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("Celu", {}),
        ("Elu", {"alpha": 0.7}),
        ("Gelu", {}),
        ("HardSigmoid", {}),
        ("HardSwish", {}),
        ("LeakyRelu", {}),
        ("LogSoftmax", {"axis": 0, "version": 13}),
        ("Mish", {}),
        ("Relu", {}),
        ("Selu", {"alpha": 1.1, "gamma": 0.9}),
        ("Shrink", {"bias": 0.2}),
        ("Sigmoid", {}),
        ("Softmax", {"axis": 0, "version": 11}),
        ("Softplus", {}),
        ("Softsign", {}),
        ("Swish", {"alpha": 0.5}),
        ("Tanh", {}),
        ("ThresholdedRelu", {}),
    ],
)
def test_gradients_are_those_of_the_function(operator: str, attributes: dict[str, Any]) -> None:
    x = torch.tensor([[-2.2, -0.7], [0.3, 1.9]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: table.kernels()[operator](x, **attributes), (x,))


@pytest.mark.parametrize("shape", [(3, 1), (4,), (1,)])
def test_the_slope_of_prelu_gets_a_gradient(shape: tuple[int, ...]) -> None:
    x = to_value(X).double().requires_grad_()
    slope = torch.full(shape, 0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(table.kernels()["PRelu"], (x, slope))


def test_relu_has_no_gradient_at_zero() -> None:
    x = torch.zeros(1, requires_grad=True)
    table.kernels()["Relu"](x).backward()
    assert x.grad is not None
    assert x.grad.item() == 0
