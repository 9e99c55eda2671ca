"""Normalizations against onnxruntime, and what BatchNormalization and Dropout do while training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressor.errors import DataError
from compressor.torch_graph import to_torch
from compressor.torch_graph.operators.fused_normalization import (
    bias_add,
    bias_split_gelu,
    group_norm,
    skip_group_norm,
)
from compressor.torch_graph.operators.normalization import (
    layer_normalization,
    lp_normalization,
    lrn,
    mean_variance_normalization,
    rms_normalization,
)
from compressor.torch_graph.operators.train_or_eval import batch_normalization, dropout
from tests.conftest import build, drawn
from tests.torch_graph.one_node import agree

X = drawn(3, 6, 4, 5)
SCALE, BIAS, MEAN, VAR = drawn(6, seed=1), drawn(6, seed=2), drawn(6, seed=3), np.abs(drawn(6, seed=4)) + 0.5
HALF = 5e-3
"""A few roundings of float16 at values up to 4."""


@pytest.mark.parametrize("opset", [7, 9, 14, 15])
@pytest.mark.parametrize("attributes", [{}, {"epsilon": 0.1, "momentum": 0.3}])
def test_batch_normalization_uses_the_given_statistics(opset: int, attributes: dict[str, float]) -> None:
    for shape in [(3, 6), (3, 6, 4), (3, 6, 4, 5)]:
        agree("BatchNormalization", [drawn(*shape), SCALE, BIAS, MEAN, VAR], at_opset=opset, **attributes)


def test_batch_normalization_of_each_element_and_of_one_channel() -> None:
    each = [drawn(6, 2, seed=seed) for seed in range(3)]
    agree("BatchNormalization", [X[:, :, 0, :2], *each, np.abs(drawn(6, 2)) + 0.5], at_opset=7, spatial=0)
    agree("BatchNormalization", [drawn(6), SCALE[:1], BIAS[:1], MEAN[:1], VAR[:1]], at_opset=9)


@pytest.mark.parametrize("opset", [14, 15])
def test_training_mode_of_the_file_returns_the_moved_statistics(opset: int) -> None:
    inputs = [X, SCALE, BIAS, MEAN, VAR]
    agree("BatchNormalization", inputs, at_opset=opset, outputs=3, training_mode=1, momentum=0.7)
    mean = torch.from_numpy(MEAN.copy())
    operands = [torch.from_numpy(a) for a in (X, SCALE, BIAS)]
    attributes: dict[str, Any] = {"epsilon": 1e-5, "momentum": 0.7, "training_mode": 1}
    y = batch_normalization(*operands, mean, torch.from_numpy(VAR), **attributes)
    torch.testing.assert_close(y, F.batch_norm(operands[0], None, None, *operands[1:], training=True))
    assert torch.equal(mean, torch.from_numpy(MEAN))


def batch_norm_module() -> torch.fx.GraphModule:
    text = """<ir_version: 8, opset_import: ["" : 15]>
    g (float[N, 6, 4, 5] x) => (float[N, 6, 4, 5] y) {
      y = BatchNormalization <momentum = 0.8> (x, scale, bias, mean, var)
    }"""
    return to_torch(ir.from_proto(build(text, scale=SCALE, bias=BIAS, mean=MEAN, var=VAR)))


def test_batch_normalization_trains_as_torch_does() -> None:
    ours, native = batch_norm_module().train(), nn.BatchNorm2d(6, momentum=1 - 0.8)
    values = zip(("weight", "bias", "running_mean", "running_var"), (SCALE, BIAS, MEAN, VAR), strict=True)
    native.load_state_dict({n: torch.from_numpy(a) for n, a in values}, strict=False)
    for seed in range(2):
        x = torch.from_numpy(drawn(3, 6, 4, 5, seed=seed))
        torch.testing.assert_close(ours(x), native(x))
    state = ours.state_dict()
    torch.testing.assert_close(state["mean"], native.running_mean)
    torch.testing.assert_close(state["var"], native.running_var)
    before = state["mean"].clone()
    ours.eval()(x)
    assert torch.equal(ours.state_dict()["mean"], before)


def test_a_batch_with_one_value_per_channel_cannot_train() -> None:
    one = [torch.ones(2)] * 4
    with pytest.raises(DataError, match=r"one value per channel \(shape \[1, 2\]\): give batches of two"):
        batch_normalization(torch.ones(1, 2), *one, epsilon=1e-5, momentum=0.9, training=True)


@pytest.mark.parametrize("opset", [7, 10, 12, 13])
def test_dropout_passes_everything_in_inference(opset: int) -> None:
    agree("Dropout", [X], at_opset=opset)
    if opset >= 12:
        agree("Dropout", [X, np.array(0.3, np.float32), np.array(False)], at_opset=opset, outputs=2)
        agree("Dropout", [X], at_opset=opset, outputs=2)


def test_dropout_drops_the_ratio_while_training_and_scales_the_rest() -> None:
    x = torch.ones(10_000)
    for ratio, share in ((None, 0.5), (0.2, 0.2)):
        y, mask = dropout(x, ratio, training=True, outputs=2)
        assert abs((y == 0).float().mean() - share) < 0.03  # six standard deviations at 10,000 draws
        torch.testing.assert_close(y[mask], torch.full_like(y[mask], 1 / (1 - share)))
        assert torch.equal(mask, y != 0)
    assert dropout(x, 0.5, True).count_nonzero() < 10_000  # the file's own training_mode
    assert dropout(x, 0.0, training=True).equal(x)
    assert dropout(x, 1.0, training=True).count_nonzero() == 0


def test_the_mask_of_old_dropout_has_the_type_of_the_data() -> None:
    _, mask = dropout(torch.ones(3), 0.5, outputs=2, version=7)
    assert mask.dtype == torch.float32
    _, mask = dropout(torch.ones(3), 0.5, outputs=2, version=10)
    assert mask.dtype == torch.bool


@pytest.mark.parametrize("axis", [None, -1, 1, 2, -2])
@pytest.mark.parametrize("outputs", [1, 3])
def test_layer_normalization_as_onnxruntime(axis: int | None, outputs: int) -> None:
    shape, attributes = X.shape[-1 if axis is None else axis :], {} if axis is None else {"axis": axis}
    agree("LayerNormalization", [X, drawn(*shape), drawn(*shape, seed=1)], outputs=outputs, **attributes)
    agree("LayerNormalization", [X, drawn(*shape)], outputs=outputs, epsilon=0.1, **attributes)
    agree("SimplifiedLayerNormalization", [X, drawn(*shape)], outputs=min(outputs, 2), **attributes)
    agree("RMSNormalization", [X, drawn(*shape)], at_opset=23, **attributes)


def test_a_scale_that_broadcasts() -> None:
    x, scale, bias = drawn(2, 3, 4), drawn(4), drawn(1, 4)
    agree("LayerNormalization", [x, scale, bias], axis=1)
    whole = torch.from_numpy(scale).expand(3, 4)
    wide = rms_normalization(torch.from_numpy(x), whole.contiguous(), axis=1)
    torch.testing.assert_close(rms_normalization(torch.from_numpy(x), torch.from_numpy(scale), axis=1), wide)


def test_sixteen_bits_are_normalized_in_float32() -> None:
    x, scale = drawn(2, 3, 8).astype(np.float16), drawn(8).astype(np.float16)
    agree("LayerNormalization", [x, scale, scale], outputs=3, tolerance=HALF)
    large = torch.full((1, 8), 300.0, dtype=torch.float16)  # its square is beyond float16
    torch.testing.assert_close(rms_normalization(large, torch.ones(8).half()), torch.ones(1, 8).half())
    assert (
        layer_normalization(large, torch.ones(8)).dtype == torch.float32
    )  # the scale's type, as in onnxruntime


@pytest.mark.parametrize("shape", [(2, 6, 5), (2, 6, 5, 4), (2, 6, 3, 2, 2)])
def test_instance_and_group_normalization(shape: tuple[int, ...]) -> None:
    agree("InstanceNormalization", [drawn(*shape), SCALE, BIAS], at_opset=7)
    agree("InstanceNormalization", [drawn(*shape), SCALE, BIAS], at_opset=22, epsilon=0.1)
    agree("GroupNormalization", [drawn(*shape), SCALE[:3], BIAS[:3]], at_opset=18, num_groups=3)
    agree("GroupNormalization", [drawn(*shape), SCALE, BIAS], at_opset=21, num_groups=3, epsilon=0.1)


@pytest.mark.parametrize("attributes", [{}, {"p": 1}, {"axis": 1}, {"axis": 0, "p": 2}])
def test_lp_normalization(attributes: dict[str, int]) -> None:
    x = X.copy()
    x[0, 0] = 0
    agree("LpNormalization", [x], at_opset=7, **attributes)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_local_response_normalization(size: int) -> None:
    agree("LRN", [X], at_opset=7, size=size)
    agree("LRN", [X], at_opset=13, size=size, alpha=0.5, beta=0.6, bias=2.0)


def test_an_even_window_of_channels_is_longer_behind() -> None:
    x = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1)
    y = lrn(x, alpha=2.0, beta=1.0, bias=0.0, size=2)
    torch.testing.assert_close(y.flatten(), torch.tensor([1 / 5, 2 / 13, 3 / 9]))


@pytest.mark.parametrize("attributes", [{}, {"axes": [0, 1, 2, 3]}, {"axes": [1]}])
def test_mean_variance_normalization(attributes: dict[str, list[int]]) -> None:
    agree("MeanVarianceNormalization", [X], at_opset=9, **attributes)


@pytest.mark.parametrize("bias", [[], [drawn(8, seed=7)]])
@pytest.mark.parametrize("outputs", [1, 4])
def test_skip_layer_normalization(bias: list[np.ndarray], outputs: int) -> None:
    x, skip, gamma, beta = drawn(2, 3, 8), drawn(2, 3, 8, seed=1), drawn(8, seed=2), drawn(8, seed=3)
    agree("com.microsoft::SkipLayerNormalization", [x, skip, gamma, beta, *bias], outputs=outputs)
    agree("com.microsoft::SkipLayerNormalization", [x, skip[0], gamma], outputs=outputs, epsilon=0.1)
    agree("com.microsoft::SkipSimplifiedLayerNormalization", [x, skip[:1], gamma, *bias], outputs=outputs)


@pytest.mark.parametrize("outputs", [2, 3])
def test_embed_layer_normalization(outputs: int) -> None:
    draw = np.random.default_rng(0)
    ids, segments, places = (draw.integers(0, high, (2, 4)).astype(np.int32) for high in (9, 2, 6))
    words, positions, kinds = drawn(9, 8), drawn(6, 8, seed=1), drawn(2, 8, seed=2)
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1]], np.int32)
    operator, affine = "com.microsoft::EmbedLayerNormalization", [drawn(8, seed=3), drawn(8, seed=4)]
    agree(operator, [ids, segments, words, positions, kinds, *affine], outputs=outputs)
    agree(operator, [ids, segments, words, positions, kinds, *affine, mask], outputs=outputs)
    agree(operator, [ids, None, words, positions, None, *affine, None, places], outputs=outputs, epsilon=0.1)


def test_group_norm_of_onnxruntime_is_torchs_with_the_channels_last() -> None:
    x, scale, bias = (torch.from_numpy(a) for a in (X, SCALE, BIAS))
    want = F.group_norm(x, 3, scale, bias, 1e-5)
    last = x.permute(0, 2, 3, 1)
    torch.testing.assert_close(
        group_norm(last, scale, bias, activation=0, groups=3).permute(0, 3, 1, 2), want
    )
    first = group_norm(x, scale, bias, activation=1, groups=3, channels_last=0)
    torch.testing.assert_close(first, F.silu(want))


@pytest.mark.parametrize("channels_last", [0, 1])
def test_skip_group_norm_normalizes_the_sum(channels_last: int) -> None:
    x, scale, beta = (torch.from_numpy(a) for a in (X, SCALE, BIAS))
    skip, bias = torch.from_numpy(drawn(3, 6, seed=5)), torch.from_numpy(drawn(6, seed=6))
    total = x + (skip + bias)[:, :, None, None]
    moved = (lambda t: t.permute(0, 2, 3, 1)) if channels_last else (lambda t: t)
    options: dict[str, int] = {"activation": 0, "groups": 2, "channels_last": channels_last}
    y, added = skip_group_norm(moved(x), scale, beta, skip, bias, outputs=2, **options)
    torch.testing.assert_close(added, moved(total))
    torch.testing.assert_close(y, moved(F.group_norm(total, 2, scale, beta)))


def test_bias_add_and_bias_split_gelu() -> None:
    x, bias, skip = (torch.from_numpy(a) for a in (drawn(2, 3, 8), drawn(8), drawn(2, 3, 8, seed=1)))
    torch.testing.assert_close(bias_add(x, bias, skip), x + bias + skip)
    total = x + bias
    torch.testing.assert_close(bias_split_gelu(x, bias), total[..., :4] * F.gelu(total[..., 4:]))


@pytest.mark.parametrize("normalize", [lp_normalization, mean_variance_normalization])
def test_a_constant_input_has_a_finite_gradient(normalize: Callable[..., Tensor]) -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    normalize(
        x, **({"axis": -1, "p": 2} if normalize is lp_normalization else {"axes": [0, 1]})
    ).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    "normalize",
    [
        lambda x, w: batch_normalization(x, w, w, w, w, epsilon=0.1, momentum=0.9, training_mode=1),
        lambda x, w: layer_normalization(x, w[:, None], w[:, None], axis=1),
        lambda x, w: rms_normalization(x, w[:, None], axis=1),
        lambda x, w: lrn(x, alpha=0.5, beta=0.6, bias=2.0, size=3),
        lambda x, w: lp_normalization(x, axis=1, p=2),
        lambda x, w: mean_variance_normalization(x, axes=[0, 2]),
    ],
)
def test_gradients(normalize: Callable[[Tensor, Tensor], Any]) -> None:
    x = torch.from_numpy(drawn(2, 3, 4).astype(np.float64)).requires_grad_()
    assert torch.autograd.gradcheck(normalize, (x, torch.tensor([0.5, 1.0, 2.0]).double().requires_grad_()))
