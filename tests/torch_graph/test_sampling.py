"""Reading between elements, and pools over regions, against onnxruntime."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from compressor.errors import ModelError
from compressor.torch_graph.operators.convolution import conv
from compressor.torch_graph.operators.sampling import deform_conv, grid_sample
from compressor.torch_graph.operators.vision import max_roi_pool, roi_align
from tests.conftest import drawn
from tests.torch_graph.one_node import agree

X = drawn(2, 3, 8, 9)
CORNERS = np.array([[-2.0, 1.2, 6.0, 5.1], [3.0, 4.0, 3.2, 4.1], [0.5, 0.0, 12.0, 7.9]], np.float32)
BATCH = np.array([0, 1, 1])
OLD_NAMES = {"linear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}
CASES = [*product(OLD_NAMES, ["zeros", "border", "reflection"], [0, 1])]


@pytest.mark.parametrize(("mode", "padding", "corners"), CASES)
def test_grid_sample(mode: str, padding: str, corners: int) -> None:
    grid = np.random.default_rng(0).uniform(-1.3, 1.3, (2, 3, 4, 2)).astype(np.float32)
    named = {"padding_mode": padding, "align_corners": corners}
    agree("GridSample", [X, grid], fed=2, at_opset=16, mode=OLD_NAMES[mode], **named)
    agree("GridSample", [X, grid], fed=2, at_opset=20, mode=mode, **named)


def test_grid_sample_without_attributes() -> None:
    grid = np.random.default_rng(0).uniform(-1.3, 1.3, (2, 3, 4, 2)).astype(np.float32)
    for opset in (16, 20):
        agree("GridSample", [X, grid], fed=2, at_opset=opset)
    agree("com.microsoft::GridSample", [X, grid], fed=2)
    volume = np.random.default_rng(0).uniform(-1.3, 1.3, (2, 3, 4, 2, 3)).astype(np.float32)
    agree("GridSample", [drawn(2, 2, 3, 4, 5), volume], fed=2, at_opset=20)


@pytest.mark.parametrize("attributes", [{}, {"align_corners": 1}])
def test_affine_grid(attributes: dict[str, int]) -> None:
    agree("AffineGrid", [drawn(2, 2, 3), np.array([2, 3, 4, 5])], at_opset=20, **attributes)
    agree("AffineGrid", [drawn(2, 3, 4), np.array([2, 3, 4, 5, 3])], at_opset=20, **attributes)


def test_deform_conv_as_onnxruntime() -> None:
    x, w, offset = drawn(2, 4, 5, 6), drawn(6, 2, 3, 3), drawn(2, 36, 5, 6)
    mask = np.abs(drawn(2, 18, 5, 6))
    agree("DeformConv", [x, w, offset, drawn(6), mask], at_opset=19, pads=[1] * 4, offset_group=2, group=2)
    agree("DeformConv", [x, drawn(6, 4, 3, 2), drawn(2, 12, 3, 5)], at_opset=19)


@pytest.mark.parametrize("shape", [(2, 4, 5, 6), (2, 4, 1, 6)])
def test_deform_conv_without_offsets_is_conv(shape: tuple[int, ...]) -> None:
    x, w = torch.from_numpy(drawn(*shape)), torch.from_numpy(drawn(6, 4, 3, 3))
    geometry: dict[str, Any] = {"pads": [2, 1, 2, 3], "strides": [1, 2], "dilations": [2, 1]}
    want = conv(x, w, **geometry)
    torch.testing.assert_close(deform_conv(x, w, torch.zeros(2, 18, *want.shape[2:]), **geometry), want)


def test_deform_conv_of_a_volume_is_declined() -> None:
    with pytest.raises(ModelError, match="DeformConv has 3 spatial axes; only 2 can be trained"):
        deform_conv(torch.ones(1, 1, 2, 2, 2), torch.ones(1, 1, 1, 1, 1), torch.zeros(1, 3, 2, 2, 2))


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [0, 1, 2])
def test_roi_align(mode: str, ratio: int) -> None:
    named = {
        "mode": mode,
        "output_height": 2,
        "output_width": 3,
        "sampling_ratio": ratio,
        "spatial_scale": 0.8,
    }
    agree("RoiAlign", [X, CORNERS, BATCH], fed=3, at_opset=10, **named)
    for coordinates in ("half_pixel", "output_half_pixel"):
        agree(
            "RoiAlign",
            [X, CORNERS, BATCH],
            fed=3,
            at_opset=16,
            coordinate_transformation_mode=coordinates,
            **named,
        )


def test_roi_align_without_attributes_and_without_regions() -> None:
    agree("RoiAlign", [X, CORNERS, BATCH], fed=3, at_opset=10)
    agree("RoiAlign", [X, CORNERS, BATCH], fed=3, at_opset=16)
    none = roi_align(
        torch.from_numpy(X), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), output_width=2
    )
    assert none.shape == (0, 3, 1, 2)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_a_region_without_extent_has_no_samples(mode: str) -> None:
    point = np.array([[3.0, 4.0, 3.0, 4.0], [1.0, 1.0, 5.0, 5.0]], np.float32)
    agree("RoiAlign", [X, point, BATCH[:2]], fed=3, at_opset=16, mode=mode, output_height=2)


@pytest.mark.parametrize("attributes", [{}, {"spatial_scale": 0.5}])
def test_max_roi_pool(attributes: dict[str, float]) -> None:
    rois = np.concatenate([BATCH[:, None].astype(np.float32), CORNERS], 1)
    agree("MaxRoiPool", [X, rois], fed=2, at_opset=7, pooled_shape=[2, 3], **attributes)


def test_gradients() -> None:
    x = torch.from_numpy(X[:, :2, :4, :5].astype(np.float64)).requires_grad_()
    rois = torch.from_numpy(CORNERS / 2).double().requires_grad_()
    batch = torch.from_numpy(BATCH)
    size: dict[str, Any] = {"output_height": 2, "output_width": 2, "sampling_ratio": 2}
    assert torch.autograd.gradcheck(lambda t, r: roi_align(t, r, batch, **size), (x, rois))
    assert torch.autograd.gradcheck(lambda t: roi_align(t, rois.detach(), batch, mode="max", **size), (x,))
    boxes = torch.cat([batch[:, None].double(), rois.detach()], 1)
    assert torch.autograd.gradcheck(
        lambda t: max_roi_pool(t, boxes, pooled_shape=[2, 2], spatial_scale=1.0), (x,)
    )
    grid = torch.from_numpy(drawn(2, 2, 3, 2) * 0.4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda t, g: grid_sample(t, g, mode="linear"), (x, grid))


def test_the_gradient_of_deform_conv() -> None:
    x, w, b = (
        torch.from_numpy(drawn(*s)).double().requires_grad_() for s in ((1, 2, 4, 5), (2, 2, 2, 2), (2,))
    )
    offset, mask = (torch.from_numpy(drawn(1, c, 3, 4) * 0.3).double().requires_grad_() for c in (8, 4))
    assert torch.autograd.gradcheck(deform_conv, (x, w, offset, b, mask))
