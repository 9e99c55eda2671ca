"""Pools against onnxruntime over drawn geometries, and gradients where torch has no such pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.torch_graph.operators.pooling import (
    average_pool,
    global_lp_pool,
    global_max_pool,
    lp_pool,
    max_pool,
    max_unpool,
)
from tests.conftest import drawn
from tests.torch_graph.one_node import agree

X = drawn(2, 3, 9, 8)
CEILED, DILATED = (
    {"MaxPool": 10, "AveragePool": 19, "LpPool": 18},
    {"MaxPool": 10, "AveragePool": 19, "LpPool": 18},
)


@st.composite
def geometries(draw: st.DrawFn, operator: str) -> tuple[int, dict[str, Any]]:
    """An opset and attributes that onnxruntime takes, each left out at times."""
    axes = draw(st.integers(1, 3))
    opset = draw(st.sampled_from([7, 9, 11, 18, 19, 22]))
    each = lambda low, high: st.lists(st.integers(low, high), min_size=axes, max_size=axes)  # noqa: E731
    kernel = draw(each(1, 3))
    found: dict[str, Any] = {"kernel_shape": kernel}
    # onnxruntime's own SAME pads go below zero for strides beyond the kernel, and forget dilations
    padding = draw(st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if draw(st.booleans()):
        found["strides"] = kernel if padding.startswith("SAME") else draw(each(1, 3))
    if padding != "NOTSET":
        found["auto_pad"] = padding
    elif draw(st.booleans()):
        found["pads"] = [draw(st.integers(0, k - 1)) for k in kernel * 2]
    if opset >= DILATED[operator] and not padding.startswith("SAME") and draw(st.booleans()):
        found["dilations"] = draw(each(1, 2))
    if opset >= CEILED[operator] and draw(st.booleans()):
        found["ceil_mode"] = 1
    return opset, found


@settings(max_examples=40, deadline=None)
@given(geometries("MaxPool"), st.integers(0, 2))
def test_max_pool_of_any_geometry(geometry: tuple[int, dict[str, Any]], form: int) -> None:
    opset, attributes = geometry
    x = drawn(2, 2, *[7, 9, 6][: len(attributes["kernel_shape"])])
    if form and opset > 7:
        agree("MaxPool", [x], at_opset=opset, outputs=2, storage_order=form - 1, **attributes)
    else:
        agree("MaxPool", [x], at_opset=opset, **attributes)


@settings(max_examples=40, deadline=None)
@given(geometries("AveragePool"), st.booleans())
def test_average_pool_of_any_geometry(geometry: tuple[int, dict[str, Any]], include: bool) -> None:
    opset, attributes = geometry
    x = drawn(2, 2, *[7, 9, 6][: len(attributes["kernel_shape"])])
    agree("AveragePool", [x], at_opset=opset, **attributes, **({"count_include_pad": 1} if include else {}))


@settings(max_examples=30, deadline=None)
@given(geometries("LpPool"), st.sampled_from([None, 1, 3]))
def test_lp_pool_of_any_geometry(geometry: tuple[int, dict[str, Any]], p: int | None) -> None:
    opset, attributes = geometry
    x = drawn(2, 2, *[7, 9, 6][: len(attributes["kernel_shape"])])
    agree("LpPool", [x], at_opset=opset, **attributes, **({} if p is None else {"p": p}))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("axes", [1, 2])
def test_max_pool_of_integers(dtype: Any, axes: int) -> None:
    x = (drawn(1, 2, *[6] * axes) * 20).astype(dtype)
    agree("MaxPool", [x], at_opset=12, kernel_shape=[3] * axes, pads=[1, 0] * axes, strides=[2] * axes)


@pytest.mark.parametrize("operator", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 5, 4), (2, 3, 5, 4, 2)])
def test_global_pools(operator: str, shape: tuple[int, ...]) -> None:
    agree(operator, [drawn(*shape)], at_opset=7)


def test_global_lp_pool_of_another_order() -> None:
    agree("GlobalLpPool", [X], at_opset=7, p=1)


def test_max_unpool_puts_the_values_back() -> None:
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    x = torch.from_numpy(X[:, :, :8])
    y, places = max_pool(x, outputs=2, **pool)
    agree("MaxUnpool", [y.numpy(), places.numpy()], fed=2, at_opset=11, **pool)
    agree("MaxUnpool", [y.numpy(), places.numpy(), np.array(x.shape)], fed=2, at_opset=11, **pool)
    back = max_unpool(y, places, **pool)
    assert torch.equal(back.flatten()[places.flatten()], y.flatten())
    assert torch.count_nonzero(back) == y.numel()


def test_max_unpool_of_a_larger_shape_leaves_zeros_behind() -> None:
    y = max_unpool(torch.ones(1, 1, 1, 1), torch.tensor([[[[3]]]]), [1, 1, 3, 4], kernel_shape=[2, 2])
    assert y[0, 0].nonzero().tolist() == [[1, 1]]
    assert y.shape == (1, 1, 3, 4)


def test_the_gradient_of_a_maximum_goes_to_one_place() -> None:
    x = torch.ones(1, 1, 3, 3, requires_grad=True)
    global_max_pool(x).sum().backward()
    assert x.grad is not None
    assert x.grad.flatten().tolist() == [1] + [0] * 8


def test_the_gradient_of_a_norm_of_zeros_is_zero() -> None:
    x = torch.zeros(1, 1, 4, requires_grad=True)
    (lp_pool(x, kernel_shape=[2]).sum() + global_lp_pool(x).sum()).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[[0.0] * 4]]


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: average_pool(x, kernel_shape=[2, 3], dilations=[2, 1], pads=[0, 1, 1, 0], strides=[2, 1]),
        lambda x: average_pool(x, kernel_shape=[2, 3], pads=[0, 1, 1, 0], ceil_mode=1, strides=[2, 2]),
        lambda x: lp_pool(x, kernel_shape=[2, 3], dilations=[2, 1], p=3, auto_pad="SAME_UPPER"),
        lambda x: max_pool(x, kernel_shape=[2, 3], dilations=[2, 1], pads=[0, 2, 1, 0]),
    ],
)
def test_gradients(pool: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = torch.from_numpy(X[:1, :1, :5, :6].astype(np.float64)).requires_grad_()
    assert torch.autograd.gradcheck(pool, (x,))
