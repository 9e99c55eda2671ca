"""Resize and Upsample against onnxruntime over drawn attributes; when torch's own interpolation runs."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.errors import ModelError
from compressor.torch_graph.operators.resize import resize, upsample
from tests.conftest import drawn
from tests.torch_graph.one_node import agree

X = drawn(1, 2, 5, 6)
EMPTY = np.array([], np.float32)
MODES = ["nearest", "linear", "cubic"]
COORDINATES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
ROUNDINGS = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
FACTORS = [0.5, 0.6, 0.7, 1.0, 1.5, 2.0, 2.3, 3.0, 5.0, 7.0]


@st.composite
def attributes(draw: st.DrawFn) -> tuple[int, dict[str, Any]]:
    """An opset and what it may say, each left out at times."""
    opset, found = draw(st.sampled_from([11, 13, 18, 19])), {"mode": draw(st.sampled_from(MODES))}
    more = ["half_pixel_symmetric"] * (opset >= 19) + ["tf_half_pixel_for_nn"] * (opset < 13)
    for name, choices in (
        ("coordinate_transformation_mode", COORDINATES + more),
        ("nearest_mode", ROUNDINGS),
        ("cubic_coeff_a", [-0.5]),
        ("antialias", [1] * (opset >= 18 and found["mode"] != "nearest")),
        ("exclude_outside", [1] * (found["mode"] == "cubic")),
    ):
        if choices and draw(st.booleans()):
            found[name] = draw(st.sampled_from(choices))
    return opset, found


@settings(max_examples=60, deadline=None)
@given(attributes(), st.tuples(*[st.sampled_from(FACTORS)] * 2))
def test_resize_by_factors(drawn_: tuple[int, dict[str, Any]], factors: tuple[float, float]) -> None:
    opset, found = drawn_
    agree("Resize", [X, EMPTY, np.array([1, 1, *factors], np.float32)], at_opset=opset, **found)


@settings(max_examples=60, deadline=None)
@given(attributes(), st.tuples(*[st.sampled_from([1, 2, 3, 5, 8, 12])] * 2))
def test_resize_to_lengths(drawn_: tuple[int, dict[str, Any]], lengths: tuple[int, int]) -> None:
    opset, found = drawn_
    agree("Resize", [X, EMPTY, EMPTY, np.array([1, 2, *lengths])], at_opset=opset, **found)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("extrapolation", [{}, {"extrapolation_value": 7.0}])
def test_crop_and_resize(mode: str, extrapolation: dict[str, float]) -> None:
    crop, lengths = np.array([0, 0, 0.1, -0.2, 1, 1, 0.8, 1.3], np.float32), np.array([1, 2, 4, 9])
    named = {"mode": mode, "coordinate_transformation_mode": "tf_crop_and_resize"} | extrapolation
    agree("Resize", [X, crop, EMPTY, lengths], at_opset=11, **named)
    agree("Resize", [X, crop[[2, 3, 6, 7]], EMPTY, lengths[2:]], at_opset=18, axes=[2, 3], **named)
    agree("Resize", [X, crop, EMPTY, np.array([1, 2, 1, 1])], at_opset=13, **named)


@pytest.mark.parametrize("policy", ["stretch", "not_larger", "not_smaller"])
def test_the_aspect_ratio_is_kept(policy: str) -> None:
    named = {"keep_aspect_ratio_policy": policy, "mode": "linear", "axes": [-2, -1]}
    x, lengths = (
        torch.from_numpy(X),
        {"stretch": (9, 7), "not_larger": (6, 7), "not_smaller": (9, 11)}[policy],
    )
    assert resize(x, sizes=[9, 7], **named).shape[2:] == lengths
    agree("Resize", [X, EMPTY, EMPTY, np.array([9, 7])], at_opset=18, **named | {"axes": [2, 3]})


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("factors", [(2.0, 3.0), (1.5, 2.3), (1.0, 7.0)])
def test_before_opset_11_coordinates_are_asymmetric(mode: str, factors: tuple[float, float]) -> None:
    scales = np.array([1, 1, *factors], np.float32)
    agree("Upsample", [X], at_opset=7, mode=mode, scales=scales.tolist())
    agree("Upsample", [X, scales], at_opset=9, mode=mode)
    agree("Resize", [X, scales], at_opset=10, mode=mode)
    agree("Resize", [X, 1 / scales], at_opset=10, mode=mode)


def test_every_attribute_may_be_omitted() -> None:
    agree("Resize", [X, EMPTY, np.array([1, 1, 2, 1.5], np.float32)], at_opset=11)
    agree("Upsample", [X, np.array([1, 1, 2, 2], np.float32)], at_opset=9)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_other_ranks_and_channels_last(mode: str) -> None:
    scales = [1.0, 2.0, 1.7, 1.0]
    agree("Resize", [X, EMPTY, np.array(scales, np.float32)], at_opset=13, mode=mode)
    for shape in ((4, 5), (2, 4, 5), (1, 2, 3, 4, 5)):
        factors = np.array([1.0] * (len(shape) - 2) + [1.7, 2.0], np.float32)
        agree("Resize", [drawn(*shape), EMPTY, factors], at_opset=13, mode=mode)


@pytest.mark.parametrize(
    ("dtype", "mode"),
    [(np.int8, "linear"), (np.int32, "linear"), (np.uint8, "nearest"), (np.int32, "nearest")],
)
def test_integers_are_cut(dtype: Any, mode: str) -> None:
    agree(
        "Resize",
        [(X * 40).astype(dtype), EMPTY, np.array([1, 1, 2, 0.6], np.float32)],
        at_opset=13,
        mode=mode,
    )


@pytest.mark.parametrize(
    ("options", "native"),
    [
        (
            {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
            "nearest",
        ),
        ({"mode": "nearest"}, "nearest"),
        ({"mode": "linear"}, "bilinear"),
        ({"mode": "linear", "coordinate_transformation_mode": "align_corners"}, "bilinear"),
        ({"mode": "cubic", "coordinate_transformation_mode": "pytorch_half_pixel"}, "bicubic"),
        ({"mode": "linear", "coordinate_transformation_mode": "asymmetric"}, None),
        ({"mode": "nearest", "nearest_mode": "ceil"}, None),
        ({"mode": "cubic", "cubic_coeff_a": -0.5}, None),
        ({"mode": "linear", "antialias": 1}, None),
    ],
)
def test_torch_interpolates_where_it_is_the_same_function(
    options: dict[str, Any], native: str | None
) -> None:
    x = torch.from_numpy(X)
    with patch("compressor.torch_graph.operators.resize.F.interpolate", wraps=F.interpolate) as called:
        y = resize(x, scales=[1.0, 1.0, 2.0, 3.0], **options)
    assert [call.kwargs["mode"] for call in called.call_args_list] == ([native] if native else [])
    with patch("compressor.torch_graph.operators.resize._native_mode", return_value=None):
        torch.testing.assert_close(resize(x, scales=[1.0, 1.0, 2.0, 3.0], **options), y)


def test_nothing_to_resize_is_the_input_itself() -> None:
    x = torch.from_numpy(X)
    assert resize(x, scales=[1.0] * 4) is x
    assert upsample(x, [1.0] * 4) is x


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "nearest", "nearest_mode": "ceil"},
        {"mode": "linear", "antialias": 1},
        {"mode": "cubic", "exclude_outside": 1},
        {
            "mode": "linear",
            "coordinate_transformation_mode": "tf_crop_and_resize",
            "roi": [0, 0, -0.2, 0, 1, 1, 1, 1],
        },
    ],
)
def test_gradients(options: dict[str, Any]) -> None:
    x = torch.from_numpy(X[:, :1].astype(np.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: resize(t, sizes=[1, 1, 3, 8], **options), (x,))


def test_names_that_onnx_does_not_define() -> None:
    x = torch.from_numpy(X)
    with pytest.raises(ModelError, match="coordinate_transformation_mode 'half', which ONNX does not define"):
        resize(x, sizes=[1, 2, 3, 3], coordinate_transformation_mode="half")
    with pytest.raises(ModelError, match="nearest_mode 'up', which ONNX does not define"):
        resize(x, sizes=[1, 2, 3, 3], nearest_mode="up")
