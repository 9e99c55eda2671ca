"""Convolutions against onnxruntime over their attributes, and the gradients of what is not torch's own call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from compressor.errors import ModelError
from compressor.torch_graph.operators.convolution import conv, conv_transpose, fused_conv, nhwc_conv
from tests.conftest import drawn
from tests.torch_graph.one_node import agree

X, W, B = drawn(2, 4, 7, 8), drawn(6, 4, 3, 2, seed=1), drawn(6, seed=2)
T = drawn(4, 3, 3, 2, seed=3)
ONE, THREE = drawn(2, 3, 9), drawn(1, 2, 5, 6, 4)

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "nothing but weights": {},
    "symmetric pads": {"pads": [1, 1, 1, 1], "kernel_shape": [3, 2]},
    "asymmetric pads": {"pads": [0, 1, 2, 0]},
    "strides": {"strides": [2, 3]},
    "dilations": {"dilations": [2, 3]},
    "SAME_UPPER": {"auto_pad": "SAME_UPPER", "strides": [2, 3]},
    "SAME_LOWER": {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    "VALID": {"auto_pad": "VALID", "strides": [1, 2]},
    "NOTSET": {"auto_pad": "NOTSET", "pads": [1, 0, 1, 0]},
}
TRANSPOSED: dict[str, dict[str, Any]] = {
    "nothing but weights": {},
    "symmetric pads": {"pads": [1, 1, 1, 1], "strides": [2, 2]},
    "asymmetric pads": {"pads": [0, 1, 2, 0], "strides": [2, 3]},
    "output padding": {"output_padding": [1, 2], "strides": [2, 3], "pads": [1, 0, 1, 0]},
    "output padding, asymmetric pads": {"output_padding": [1, 2], "strides": [2, 3], "pads": [0, 1, 1, 0]},
    "dilations": {"dilations": [2, 3]},
    "SAME_UPPER": {"auto_pad": "SAME_UPPER", "strides": [2, 1]},
    "SAME_LOWER": {"auto_pad": "SAME_LOWER", "strides": [2, 1]},
    "a stride beyond the kernel": {"auto_pad": "SAME_UPPER", "strides": [4, 3]},
    "VALID": {"auto_pad": "VALID", "strides": [1, 2]},
    "output shape": {"output_shape": [13, 14], "strides": [2, 2]},
    "output shape, SAME_UPPER": {"output_shape": [12, 13], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    "output shape beyond the natural one": {"output_shape": [16, 17], "strides": [2, 2]},
}


@pytest.mark.parametrize("opset", [7, 11, 22])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_conv_as_onnxruntime(name: str, opset: int) -> None:
    agree("Conv", [X, W], at_opset=opset, **CONVOLUTIONS[name])
    agree("Conv", [X, W[:, :2], B], at_opset=opset, group=2, **CONVOLUTIONS[name])


@pytest.mark.parametrize("opset", [7, 11, 22])
@pytest.mark.parametrize("name", TRANSPOSED)
def test_conv_transpose_as_onnxruntime(name: str, opset: int) -> None:
    agree("ConvTranspose", [X, T], at_opset=opset, **TRANSPOSED[name])
    agree("ConvTranspose", [X, T, B], at_opset=opset, group=2, **TRANSPOSED[name])


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_one_and_three_spatial_axes(auto_pad: str) -> None:
    agree("Conv", [ONE, drawn(4, 3, 2)], auto_pad=auto_pad, strides=[2])
    agree("Conv", [THREE, drawn(4, 2, 2, 3, 2)], auto_pad=auto_pad)
    agree("ConvTranspose", [ONE, drawn(3, 4, 3)], auto_pad=auto_pad, strides=[2])
    agree("ConvTranspose", [THREE, drawn(2, 4, 2, 3, 2)], auto_pad=auto_pad)


def test_four_spatial_axes_are_declined() -> None:
    with pytest.raises(ModelError, match="4 spatial axes; 1 to 3 can be trained"):
        conv(torch.ones(1, 1, 2, 2, 2, 2), torch.ones(1, 1, 1, 1, 1, 1))


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"activation": "Relu"},
        {"activation": "Tanh"},
        {"activation": "Sigmoid"},
        {"activation": "LeakyRelu", "activation_params": [0.3]},
        {"activation": "Clip", "activation_params": [-0.2, 0.4]},
        {"activation": "HardSigmoid", "activation_params": [0.3, 0.4]},
    ],
)
def test_fused_conv_as_onnxruntime(attributes: dict[str, Any]) -> None:
    x, w = drawn(2, 2, 5, 5), drawn(4, 2, 3, 3)
    agree("com.microsoft::FusedConv", [x, w], pads=[1, 1, 1, 1], **attributes)
    agree("com.microsoft::FusedConv", [x, w, drawn(4), drawn(2, 4, 3, 3, seed=1)], **attributes)


def test_fused_conv_clips_only_at_the_ends_that_are_given() -> None:
    x, w = torch.tensor([[[-3.0, 3.0]]]), torch.ones(1, 1, 1)
    assert fused_conv(x, w, activation="Clip", activation_params=[0.0]).tolist() == [[[0.0, 3.0]]]
    assert fused_conv(x, w, activation="Clip").tolist() == x.tolist()


def test_nhwc_conv_is_conv_with_the_channels_last() -> None:
    x, w, b = torch.from_numpy(X), torch.from_numpy(W), torch.from_numpy(B)
    last = nhwc_conv(x.permute(0, 2, 3, 1), w.permute(0, 2, 3, 1), b, pads=[1, 0, 2, 0], strides=[2, 1])
    torch.testing.assert_close(last.permute(0, 3, 1, 2), conv(x, w, b, pads=[1, 0, 2, 0], strides=[2, 1]))


@pytest.mark.parametrize("name", ["asymmetric pads", "SAME_LOWER"])
def test_the_gradient_of_a_padded_conv(name: str) -> None:
    x, w, b = (
        torch.from_numpy(a.astype(np.float64)).requires_grad_() for a in (X[:1, :2, :4, :5], W[:2, :2], B[:2])
    )
    assert torch.autograd.gradcheck(lambda *t: conv(*t, **CONVOLUTIONS[name]), (x, w, b))


@pytest.mark.parametrize("name", ["asymmetric pads", "SAME_LOWER", "output shape beyond the natural one"])
def test_the_gradient_of_a_cut_transposed_conv(name: str) -> None:
    x, w, b = (
        torch.from_numpy(a.astype(np.float64)).requires_grad_() for a in (X[:1, :2, :3, :3], T[:2], B[:3])
    )
    attributes = TRANSPOSED[name] | ({"output_shape": [8, 9]} if "output_shape" in TRANSPOSED[name] else {})
    assert torch.autograd.gradcheck(lambda *t: conv_transpose(*t, **attributes), (x, w, b))
