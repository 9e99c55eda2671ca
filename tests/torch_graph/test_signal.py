"""Fourier transforms, windows, mel weights, ranges and random draws."""

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

X = np.random.default_rng(0).standard_normal((2, 12, 1)).astype(np.float32)
COMPLEX = np.random.default_rng(1).standard_normal((2, 12, 3, 2)).astype(np.float32)
WINDOW = np.hanning(6).astype(np.float32)


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
    np.testing.assert_allclose(
        ours, theirs, rtol=1e-5, atol=2e-5
    )  # onnxruntime sums term by term: measured, 7e-6


@pytest.mark.parametrize("length", [None, 12, 9, 16])
@pytest.mark.parametrize("attributes", [{}, {"onesided": 1}])
def test_transforms_real_signals_as_onnxruntime(length: int | None, attributes: dict[str, int]) -> None:
    size = None if length is None else np.array(length, np.int64)
    check("DFT", [X, size], fed=1, opset=17, **attributes)
    check("DFT", [X, size, np.array(-2, np.int64)], fed=1, opset=20, **attributes)


@pytest.mark.parametrize("attributes", [{}, {"inverse": 1}])
def test_transforms_complex_signals_along_any_axis(attributes: dict[str, int]) -> None:
    check("DFT", [COMPLEX], opset=17, axis=1, **attributes)
    check("DFT", [COMPLEX, None, np.array(1, np.int64)], fed=1, opset=20, **attributes)
    check("DFT", [COMPLEX], opset=20, **attributes)


def test_the_inverse_of_a_one_sided_spectrum_is_the_signal() -> None:
    dft = table.kernels()["DFT"]
    half = dft(to_value(X), None, 1, onesided=1)
    assert half.shape == (2, 7, 2)
    torch.testing.assert_close(dft(half, None, 1, inverse=1, onesided=1), to_value(X))


def test_half_precision_is_transformed_in_single() -> None:
    dft = table.kernels()["DFT"]
    half = dft(to_value(X).half(), None, 1)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), dft(to_value(X), None, 1), atol=0.02, rtol=0.01)


@pytest.mark.parametrize("attributes", [{}, {"onesided": 0}])
@pytest.mark.parametrize("window", [None, WINDOW])
def test_frames_are_transformed_as_onnxruntime(window: np.ndarray | None, attributes: dict[str, int]) -> None:
    sizes = np.array(4, np.int64), np.array(6, np.int64)
    check("STFT", [X, sizes[0], window, sizes[1]], fed=1, opset=17, **attributes)


def test_a_frame_is_as_long_as_its_window_or_the_signal() -> None:
    stft = table.kernels()["STFT"]
    assert stft(to_value(X), 4, to_value(WINDOW)).shape == (2, 2, 4, 2)
    assert stft(to_value(X), 4).shape == (2, 1, 7, 2)
    both = stft(to_value(np.concatenate([X, 0 * X], -1)), 4, to_value(WINDOW), onesided=0)
    torch.testing.assert_close(both, stft(to_value(X), 4, to_value(WINDOW), onesided=0))
    first_half = stft(to_value(np.concatenate([X, 0 * X], -1)), 4, to_value(WINDOW))
    torch.testing.assert_close(first_half, both[:, :, :4])


def test_transforms_have_gradients() -> None:
    x = to_value(X[:1]).double().requires_grad_()
    window = to_value(WINDOW).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: table.kernels()["DFT"](x, None, 1, onesided=1), (x,))
    assert torch.autograd.gradcheck(lambda x, w: table.kernels()["STFT"](x, 4, w), (x, window))


@pytest.mark.parametrize("name", ["Hann", "Hamming", "Blackman"])
@pytest.mark.parametrize("attributes", [{}, {"periodic": 0}, {"output_datatype": int(ir.DataType.DOUBLE)}])
def test_windows_equal_onnxruntime(name: str, attributes: dict[str, int]) -> None:
    check(f"{name}Window", [np.array(10, np.int64)], opset=17, **attributes)


@pytest.mark.parametrize("ends", [(0.0, 4000.0), (300.0, 3000.0)])
def test_mel_weights_equal_onnxruntime(ends: tuple[float, float]) -> None:
    sizes = [np.array(size, np.int64) for size in (8, 64, 8000)]
    edges = [np.array(end, np.float32) for end in ends]
    check("MelWeightMatrix", [*sizes, *edges], opset=17)
    check("MelWeightMatrix", [*sizes, *edges], fed=0, opset=17, output_datatype=int(ir.DataType.DOUBLE))


@pytest.mark.parametrize(
    ("numbers", "kind"),
    [
        ((0, 5, 2), np.int64),
        ((5, 0, -2), np.int32),
        ((1, 2, 0.1), np.float32),
        ((3, 1, 1), np.int64),
        ((2, 2, -1), np.int64),
    ],
)
def test_ranges_of_computed_ends_equal_onnxruntime(
    numbers: tuple[float, ...], kind: type[np.generic]
) -> None:
    check("Range", [np.array(number, kind) for number in numbers])


@pytest.mark.parametrize("attributes", [{}, {"k": 1}, {"k": -2}, {"dtype": int(ir.DataType.INT32)}])
def test_ones_lie_on_the_diagonal(attributes: dict[str, int]) -> None:
    check("EyeLike", [np.zeros((3, 5), np.float32)], **attributes)


def test_draws_have_the_mean_and_the_deviation_that_are_asked_for() -> None:
    normal, uniform = table.kernels()["RandomNormal"], table.kernels()["RandomUniform"]
    x = normal(shape=[200, 200], mean=3.0, scale=2.0, seed=1.0)
    assert x.mean().item() == pytest.approx(3, abs=5 * 2 / 200)  # five standard errors
    assert x.std().item() == pytest.approx(2, abs=5 * 2 / 200)
    y = uniform(shape=[200, 200], low=-1.0, high=3.0, dtype=int(ir.DataType.DOUBLE), seed=1.0)
    assert y.dtype == torch.float64
    assert -1 <= y.min().item() < y.max().item() < 3
    assert y.mean().item() == pytest.approx(1, abs=5 * 1.2 / 200)


@pytest.mark.parametrize("operator", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_draws_like_a_tensor_take_its_shape_and_type_unless_told(operator: str) -> None:
    draw, like = table.kernels()[operator], torch.full((2, 3), 0.5, dtype=torch.float16)
    assert draw(like).shape == (2, 3)
    assert draw(like).dtype == torch.float16
    assert draw(like, dtype=int(ir.DataType.DOUBLE)).dtype == torch.float64


def test_a_seed_repeats_the_draw_and_none_follows_torch() -> None:
    for operator in ("RandomNormal", "RandomUniform"):
        draw = table.kernels()[operator]
        assert torch.equal(draw(shape=[8], seed=3.0), draw(shape=[8], seed=3.0))
        assert not torch.equal(draw(shape=[8], seed=3.0), draw(shape=[8], seed=4.0))
        assert not torch.equal(draw(shape=[8]), draw(shape=[8]))


def test_bernoulli_is_one_as_often_as_it_is_told() -> None:
    x = table.kernels()["Bernoulli"](torch.tensor([[0.0, 1.0, 0.3]]).expand(10000, 3), seed=1.0)
    assert x[:, 0].sum() == 0
    assert x[:, 1].sum() == 10000
    assert x[:, 2].mean().item() == pytest.approx(0.3, abs=5 * 0.46 / 100)  # five standard errors


def test_classes_are_drawn_by_their_log_probabilities() -> None:
    logarithms = torch.log(torch.tensor([[0.1, 0.9], [1.0, 1e-30]]))
    x = table.kernels()["Multinomial"](logarithms, sample_size=10000, seed=1.0)
    assert (x.shape, x.dtype) == ((2, 10000), torch.int32)
    assert x[0].double().mean().item() == pytest.approx(0.9, abs=5 * 0.3 / 100)  # five standard errors
    assert x[1].sum() == 0
    assert table.kernels()["Multinomial"](logarithms, dtype=int(ir.DataType.INT64)).dtype == torch.int64
