"""Inputs of two levels: where they start, how they stand in a graph, that integer kernels run them, and training."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from compressor.errors import DataError, ModelError, OptionError
from compressor.fusion import kernels
from compressor.graph import constant
from compressor.low_bit.binary_activations import start
from compressor.low_bit.coded_weights import coded_weights
from compressor.low_bit.signs import SIGN, Sign, add_sign, sign_by, sign_of, signs
from compressor.packing import Inserter, names_of
from compressor.pipeline import Change, Compressed, Context, Pipeline
from compressor.prepare import prepare
from compressor.runtime import Session
from compressor.summary import summarize
from compressor.torch_graph import to_torch
from compressor.watching import watch
from passes.quantize_binary import QuantizeBinary
from tests.conftest import build, drawn
from tests.low_bit.networks import cnn, mlp, samples

HEAD = '<ir_version: 8, opset_import: ["" : 13]>\ng '
ALL = {"keep_first_last": False, "min_elements": 1}


def signed(model: ir.Model, **options: object) -> tuple[ir.Model, Change]:
    """A copy with binary weights and inputs, not packed."""
    work = prepare(model).model
    context = Context(calibration=samples(model), original=model, threads=1)
    wanted = QuantizeBinary(activations="binary", **options)
    return work, wanted.apply(work, context)


def run(model: ir.Model, recipe: str) -> Compressed:
    """The recipe with normal samples."""
    given = samples(model)
    context = Context(calibration=given, train=given, original=model, threads=1)
    return Pipeline.parse(recipe).run(model, context)


def outputs(model: ir.Model) -> list[np.ndarray]:
    """The outputs on normal samples."""
    given = samples(model)
    session = Session(model)
    return [
        np.concatenate(parts)
        for parts in zip(*(session.run(b.feeds) for b in given.batches(16)), strict=True)
    ]


def a_sign(x: np.ndarray, threshold: np.ndarray, scale: float) -> tuple[ir.Model, Sign]:
    """x -> Neg -> sign -> y."""
    shape = ",".join(map(str, x.shape))
    model = ir.from_proto(
        build(f"{HEAD}(float[{shape}] x) => (float[{shape}] y) {{ n = Neg(x) y = Neg(n) }}")
    )
    last = model.graph[1]
    place = Inserter(model, model.graph, last, names_of(model))
    made = add_sign(place, last.inputs[0], threshold, np.asarray(scale, np.float32), "straight")  # type: ignore[arg-type]
    last.replace_input_with(0, made.value)
    return model, made


def test_starts_at_the_mean_of_each_channel_and_the_mean_distance_from_it() -> None:
    batches = [drawn(5, 3, 4, 4) + np.arange(3, dtype=np.float32).reshape(3, 1, 1), drawn(2, 3, 4, 4, seed=1)]
    found = start("x", batches, axis=1)
    whole = np.concatenate(batches)
    assert found is not None
    assert found.threshold.shape == (3, 1, 1)
    np.testing.assert_allclose(found.threshold[:, 0, 0], whole.mean(axis=(0, 2, 3)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.scale, np.abs(whole - found.threshold).mean(), rtol=1e-6)


def test_starts_with_the_scale_of_the_least_squared_error() -> None:
    x = np.abs(drawn(40, 6))
    threshold, scale = start("x", [x], axis=1)  # type: ignore[misc]

    def error(tried: float) -> float:
        return float(np.square(np.where(x >= threshold, tried, -tried) - (x - threshold)).sum())

    assert error(float(scale)) < min(error(0.99 * float(scale)), error(1.01 * float(scale)))


def test_has_no_start_for_what_is_the_same_for_all_samples() -> None:
    assert start("x", [np.ones((4, 3), np.float32)], axis=1) is None


def test_refuses_values_that_are_not_numbers() -> None:
    with pytest.raises(ModelError, match="Value 'relu' becomes NaN or infinite on the samples"):
        start("relu", [np.array([[1.0, np.nan]], np.float32)], axis=1)


@pytest.mark.parametrize("threshold", [drawn(3, 1, 1), drawn(5)], ids=["of channels", "of the last axis"])
def test_onnxruntime_computes_what_a_sign_says(threshold: np.ndarray) -> None:
    x = drawn(2, 3, 4, 5, seed=1)
    model, made = a_sign(-x, threshold, 0.3)
    (y,) = Session(model).run({"x": -x})
    np.testing.assert_array_equal(y, -made.applied(x))
    np.testing.assert_allclose(np.abs(y), 0.3, rtol=1e-6)


def test_what_equals_its_threshold_is_above() -> None:
    half = np.float32(0.5)
    _, made = a_sign(np.zeros((1, 2), np.float32), np.array([half, half]), 2.0)
    assert np.sign(made.applied(np.array([[half, np.nextafter(half, np.float32(0))]]))).tolist() == [[1, -1]]


def test_a_sign_is_known_again_by_its_last_node() -> None:
    model, made = a_sign(drawn(1, 3), drawn(3), 0.5)
    assert signs(model) == [made]
    assert sign_of(made.value) == made
    assert sign_of(made.source) is None
    assert made.gradient == "straight"
    assert constant(made.zero_point) == 127


def test_a_sign_that_was_taken_apart_is_none() -> None:
    model, made = a_sign(drawn(1, 3), drawn(3), 0.5)
    chosen = model.graph[2]
    chosen.replace_input_with(2, chosen.inputs[1])
    assert sign_by(made.node) is None
    _, other = a_sign(drawn(1, 3), drawn(3), 0.5)
    other.node.metadata_props[SIGN] = "sideways"
    assert sign_by(other.node) is None


def test_every_layer_runs_in_integers_on_two_codes() -> None:
    work, change = signed(cnn(), **ALL)
    found = kernels(work)
    assert not found.floating
    assert change.figures["inputs of two levels"] == len(signs(work)) == 4
    inner = [use.node.inputs[0] for sign in signs(work) for use in sign.value.uses()]
    assert {value.producer().op_type for value in inner if value is not None} == {"DequantizeLinear"}  # type: ignore[union-attr]
    codes = [str(sign.node.inputs[0].name) for sign in signs(work)]  # type: ignore[union-attr]
    seen = next(watch(work, codes, samples(work))).arrays
    assert all(set(np.unique(array)) == {0, 254} for array in seen.values())


def test_only_layers_of_binary_weights_read_two_levels() -> None:
    work, _ = signed(cnn(), min_elements=1)
    reading = {use.node for sign in signs(work) for use in sign.value.uses()}
    binary = {
        use.node for coded in coded_weights(work) if coded.method.name == "xnor" for use in coded.layers
    }
    assert reading == binary
    assert 0 < len(binary) < len(coded_weights(work))


def test_padding_adds_nothing() -> None:
    text = f"{HEAD}(float[N,2,3,3] x) => (float[N,2,3,3] y) {{ y = Conv <pads = [1,1,1,1]> (x, w, b) }}"
    model = ir.from_proto(build(text, w=drawn(2, 2, 3, 3), b=drawn(2)))
    work, _ = signed(model, **ALL, match_outputs=False)
    (sign,) = signs(work)
    (coded,) = coded_weights(work)
    x = next(iter(samples(model).batches(8))).feeds["x"]
    padded = np.pad(sign.applied(x), ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    exact = np.einsum("nchwij,ocij->nohw", rows, coded.decoded()) + drawn(2).reshape(2, 1, 1)
    (y,) = Session(work).run({"x": x})
    step = max(float(constant(n.inputs[1])) for n in work.graph if n.op_type == "QuantizeLinear")  # type: ignore[arg-type]
    inside = np.abs(exact) < 100 * step  # not clipped by the calibrated range
    np.testing.assert_allclose(y[inside], exact[inside], atol=0.51 * step)


def test_layers_with_one_input_share_its_sign() -> None:
    text = f"{HEAD}(float[N,8] x) => (float[N,4] y) {{ a = MatMul(x, u) b = MatMul(x, v) y = Add(a, b) }}"
    model = ir.from_proto(build(text, u=drawn(8, 4), v=drawn(8, 4, seed=1)))
    work, change = signed(model, **ALL)
    (sign,) = signs(work)
    assert len(list(sign.value.uses())) == 2
    assert change.figures["inputs of two levels"] == 1


def test_says_whose_input_stays_as_it_is_and_why() -> None:
    text = f"""{HEAD}(float[8, 8] x) => (float[8, 4] y) {{
      a = MatMul(x, u)
      zero = Mul(x, o)
      b = MatMul(zero, v)
      c = Gemm <transA = 1> (x, w)
      d = Add(a, b)
      y = Add(c, d)
    }}"""
    weights = {name: drawn(8, 4, seed=seed) for seed, name in enumerate("uvw")}
    model = ir.from_proto(build(text, **weights, o=np.zeros(8, np.float32)))
    for node in model.graph:
        node.name = f"of_{node.outputs[0].name}"
    work, change = signed(model, **ALL)
    assert change.declined["of_b"] == "its input stays as it is: it is the same for all samples"
    assert change.declined["of_c"] == "its input stays as it is: it is transposed"
    assert [use.node.name for sign in signs(work) for use in sign.value.uses()] == ["of_a"]


def test_a_product_over_more_axes_stays_on_the_grid_of_its_sign() -> None:
    text = f"{HEAD}(float[N,6,8] x) => (float[N,6,4] y) {{ r = Relu(x) a = MatMul(r, u) y = Add(a, b) }}"
    model = ir.from_proto(build(text, u=drawn(8, 4), b=drawn(4)))
    work, _ = signed(model, **ALL)
    (sign,) = signs(work)
    assert not kernels(work).floating
    steps = [node for node in work.graph if node.op_type == "QuantizeLinear" and node.inputs[1] is sign.step]
    assert [constant(node.inputs[2]).item() for node in steps] == [127]  # type: ignore[union-attr]


def test_errors_are_made_up_for_with_the_inputs_that_the_layer_will_read() -> None:
    def lost(**options: object) -> float:
        work, _ = signed(mlp(), **options)
        return float(np.square(outputs(work)[0] - outputs(mlp())[0]).mean())

    assert lost(reconstruct="gptq") < lost()


def test_matched_outputs_keep_their_means() -> None:
    model = mlp()
    mean = outputs(model)[0].mean()
    work, _ = signed(model, include=("w2",), exclude=())
    plain, _ = signed(model, include=("w2",), match_outputs=False)
    means = [outputs(made)[0].mean() for made in (work, plain)]
    assert abs(means[0] - mean) < abs(means[1] - mean)


def test_survives_being_packed_and_prepared_again_to_the_bit() -> None:
    made = run(cnn(), "quantize-binary{activations=binary min_elements=1}").model
    again = run(made, "fold-batchnorm").model
    first, second = signs(made), signs(again)
    assert len(first) == len(second) == 2
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(constant(one.threshold), constant(other.threshold))
        np.testing.assert_array_equal(constant(one.step), constant(other.step))
        assert one.gradient == other.gradient == "approximate"
    np.testing.assert_array_equal(outputs(made)[0], outputs(again)[0])


def test_is_counted_like_any_quantized_model() -> None:
    work, _ = signed(cnn(), **ALL)
    counted = summarize(work)
    assert counted.quantized == "static"
    assert counted.macs == summarize(prepare(cnn()).model).macs


@pytest.mark.parametrize("network", [cnn, mlp])
def test_torch_computes_what_onnxruntime_does(network: object) -> None:
    work, _ = signed(network(), **ALL)  # type: ignore[operator]
    given = next(iter(samples(work).batches(16))).feeds
    torched = to_torch(work)(*(torch.from_numpy(array) for array in given.values()))
    (ours,) = Session(work).run(given)
    np.testing.assert_allclose(torched.detach().numpy(), ours, atol=1e-5 * np.abs(ours).max())


def test_thresholds_and_scales_are_trained_and_scales_stay_above_zero() -> None:
    plain, _ = signed(mlp())
    made = run(mlp(), "quantize-binary{activations=binary},finetune{epochs=2 batch=16 lr=0.1 keep=last}")
    ((before,), (after,)) = signs(plain), signs(made.model)
    assert not np.array_equal(constant(before.threshold), constant(after.threshold))  # type: ignore[arg-type]
    assert 0 < float(constant(after.step)) != float(constant(before.step))  # type: ignore[arg-type]
    assert not kernels(made.model).floating
    assert np.isfinite(outputs(made.model)[0]).all()


def test_the_gradient_is_what_the_pass_was_given() -> None:
    work, _ = signed(mlp(), gradient="straight")
    assert {sign.gradient for sign in signs(work)} == {"straight"}


def test_needs_samples() -> None:
    text = r"quantize-binary: activations='binary' needs calibration samples.*Or give activations='float'"
    with pytest.raises(DataError, match=text):
        QuantizeBinary(activations="binary").check(Context())


def test_refuses_blocks() -> None:
    with pytest.raises(OptionError, match="block=32 gives an output channel several scales"):
        QuantizeBinary(activations="binary", block=32)
