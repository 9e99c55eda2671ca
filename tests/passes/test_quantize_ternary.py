from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from compressor.errors import DataError, ModelError, OptionError
from compressor.fusion import kernels
from compressor.low_bit.coded_weights import CodedWeight, coded_weights
from compressor.low_bit.codes import Method
from compressor.low_bit.methods import encode
from compressor.opset import upgrade
from compressor.pipeline import Change, Context, Pipeline
from compressor.runtime import Session, Setup
from passes.quantize_int8 import QuantizeInt8
from passes.quantize_ternary import QuantizeTernary
from tests.conftest import build, drawn
from tests.low_bit.networks import cnn, mlp, samples

EIGHT = Method("uniform", 8)


def ternary(model: ir.Model, calibrated: bool = False, **options: Any) -> tuple[ir.Model, Change]:
    """The model in the form that passes see, and what the pass says; weights of any size are coded."""
    work = model.clone()
    context = Context(calibration=samples(model) if calibrated else None, threads=1)
    this = QuantizeTernary(**{"activations": "float", "min_elements": 1, **options}).resolved(context)
    assert upgrade(work, this.opset) is None
    return work, this.apply(work, context)


def methods(model: ir.Model) -> dict[str, Method]:
    return {coded.name: coded.method for coded in coded_weights(model)}


def coded(model: ir.Model, name: str) -> CodedWeight:
    return next(found for found in coded_weights(model) if found.name == name)


def outputs(model: ir.Model) -> np.ndarray:
    feeds = next(iter(samples(model).batches(64))).feeds
    return Session(model, Setup(threads=1, integers=False)).run(feeds)[0].astype(np.float64)


def error(original: ir.Model, changed: ir.Model) -> float:
    """|y - y'| / |y| over the samples."""
    expected = outputs(original)
    return float(np.linalg.norm(outputs(changed) - expected) / np.linalg.norm(expected))


def test_weights_are_minus_one_zero_or_one_times_the_scale_of_their_channel() -> None:
    work, change = ternary(cnn())
    for name in ("w2", "w3"):
        found = coded(work, name)
        assert set(np.unique(found.rows().codes)) == {-1, 0, 1}
        assert found.scale.shape == (24,)
    assert change.touched == ("w1", "wd", "w2", "w3", "w4")
    assert change.figures["layers"] == 5
    assert float(change.figures["relative error of the weights"]) < 0.5
    assert 0.2 < float(change.figures["share of zeros"]) < 0.6


@pytest.mark.parametrize("method", ["optimal", "twn", "ttq"])
def test_the_codes_are_those_of_the_method(method: str) -> None:
    model = cnn()
    work, _ = ternary(model, method=method)
    array = model.graph.initializers["w2"].const_value.numpy()  # type: ignore[union-attr]
    expected = encode(array.reshape(24, -1), Method(method))  # type: ignore[arg-type]
    found = coded(work, "w2")
    assert found.method == Method(method)  # type: ignore[arg-type]
    assert np.array_equal(found.rows().codes, expected.codes)
    assert np.array_equal(found.rows().scale, expected.scale)


def test_the_first_the_last_and_depthwise_layers_get_eight_bits() -> None:
    work, change = ternary(cnn())
    kept = {name for name, method in methods(work).items() if method == EIGHT}
    assert kept == {"w1", "wd", "w4"}
    said = str(change.figures["more bits"])
    assert "w1 8 bits: the first layer" in said
    assert "w4 8 bits: the last layer" in said
    assert "wd 8 bits: a depthwise convolution" in said


def test_layers_can_be_coded_wherever_they_are() -> None:
    work, change = ternary(cnn(), keep_first_last=False, include=("w*",))
    assert set(methods(work).values()) == {Method("optimal")}
    assert "more bits" not in change.figures


def test_the_floats_behind_the_codes_are_handed_on() -> None:
    model = cnn()
    _, change = ternary(model)
    array = model.graph.initializers["w2"].const_value.numpy()  # type: ignore[union-attr]
    assert np.array_equal(change.latents["w2_codes"].numpy(), array)


def test_blocks_of_inputs_have_a_scale_each() -> None:
    work, _ = ternary(cnn(), block=16)
    assert coded(work, "w2").scale.shape == (24 * 9,)
    assert not coded(work, "w2").in_place
    whole = ternary(cnn())[1].figures
    blocks = ternary(cnn(), block=16)[1].figures
    assert float(blocks["relative error of the weights"]) < float(whole["relative error of the weights"])


def test_a_row_shorter_than_a_block_has_one_scale() -> None:
    work, _ = ternary(mlp(), block=64, keep_first_last=False)
    assert {found.name: found.scale.shape for found in coded_weights(work)} == {
        "w1": (48,),
        "w2": (40,),
        "w3": (40,),
    }


def test_matched_outputs_keep_the_mean_of_each_channel_and_nearly_its_deviation() -> None:
    model = cnn()
    model.graph.outputs.append(next(v for n in model.graph for v in n.outputs if v.name == "d"))
    work, change = ternary(model, calibrated=True, keep_first_last=False)
    assert change.figures["outputs matched"] == 5
    feeds = next(iter(samples(model).batches(64))).feeds
    before, after = (Session(m, Setup(threads=1, integers=False)).run(feeds)[1] for m in (model, work))
    over = (0, 2, 3)
    spread = before.std(over)
    np.testing.assert_allclose(after.mean(over), before.mean(over), atol=0.02 * spread.max())
    assert (after.std(over) < 1.02 * spread).all()
    assert np.median(after.std(over) / spread) > 0.7


@pytest.mark.parametrize("make", [cnn, mlp])
def test_matching_outputs_brings_the_network_nearer_to_the_original(make: Any) -> None:
    model = make()
    plain, _ = ternary(model, calibrated=True, keep_first_last=False, match_outputs=False)
    matched, _ = ternary(model, calibrated=True, keep_first_last=False)
    assert error(model, matched) < error(model, plain)


def test_without_samples_outputs_are_not_matched_and_with_them_they_are() -> None:
    assert "outputs matched" not in ternary(cnn())[1].figures
    assert QuantizeTernary().resolved(Context()).match_outputs is False
    context = Context(calibration=samples(cnn()))
    assert QuantizeTernary().resolved(context).match_outputs is True


def test_floats_scaled_with_their_channels_still_give_the_codes() -> None:
    work, change = ternary(cnn(), calibrated=True)
    found = coded(work, "w2")
    again = encode(change.latents["w2_codes"].numpy().reshape(24, -1), found.method)
    assert np.array_equal(again.codes, found.rows().codes)
    np.testing.assert_allclose(again.scale, found.rows().scale, rtol=1e-6)


@pytest.mark.parametrize("make", [cnn, mlp])
def test_compensation_lowers_the_error_of_layers_and_of_the_network(make: Any) -> None:
    model = make()
    options = {"calibrated": True, "keep_first_last": False, "match_outputs": False}
    plain, _ = ternary(model, **options)
    solved, change = ternary(model, reconstruct="gptq", **options)
    assert float(change.figures["mean output error of a layer"]) < float(
        change.figures["that without compensation"]
    )
    assert error(model, solved) < error(model, plain)


def test_a_sensitive_layer_gets_the_fewest_bits_within_the_drop(tmp_path: Path) -> None:
    file = tmp_path / "sensitivity.json"
    drops = {"w2": {"bits": {"8": 0.0, "4": 0.01, "2": 0.5}}, "w3": {"bits": {"8": 0.0, "4": 0.3, "2": 0.0}}}
    file.write_text(json.dumps({"layers": drops}))
    work, change = ternary(cnn(), sensitivity=str(file), max_layer_drop=0.02)
    assert methods(work)["w2"] == Method("uniform", 4)
    assert methods(work)["w3"] == Method("optimal")
    assert "w2 4 bits: too sensitive" in str(change.figures["more bits"])


def test_a_sensitivity_file_of_another_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sensitivity.json"
    file.write_text(json.dumps({"layers": {"other": {"bits": {"2": 0.0}}}}))
    with pytest.raises(OptionError, match="has no curve for any weight to be coded here"):
        ternary(cnn(), sensitivity=str(file))


@pytest.mark.parametrize("make", [cnn, mlp])
def test_with_int8_activations_every_layer_is_an_integer_kernel(make: Any) -> None:
    model = make()
    done = Pipeline(QuantizeTernary(min_elements=1)).run(
        model, Context(calibration=samples(model), threads=1)
    )
    found = kernels(done.model)
    assert found.floating == ()
    assert found.integer == sum(node.op_type in ("Conv", "Gemm", "MatMul") for node in model.graph)


def test_int8_activations_leave_the_codes_as_they_are() -> None:
    model = cnn()
    floating, first = ternary(model, calibrated=True)
    integer, change = ternary(model, calibrated=True, activations="int8")
    for before in coded_weights(floating):
        after = coded(integer, before.name)
        assert np.array_equal(after.rows().codes, before.rows().codes)
        assert np.array_equal(after.rows().scale, before.rows().scale)
    assert change.figures["quantized"] == 5
    assert set(first.latents) < set(change.latents)


def test_quantize_int8_behind_it_does_the_same_in_two_steps() -> None:
    model = cnn()
    context = Context(calibration=samples(model), threads=1)
    one = Pipeline(QuantizeTernary(min_elements=1)).run(model, context).model
    two = (
        Pipeline(QuantizeTernary(min_elements=1, activations="float"), QuantizeInt8())
        .run(model, context)
        .model
    )
    assert np.array_equal(outputs(one), outputs(two))
    assert kernels(two).floating == ()


def test_a_file_that_was_written_can_be_taken_up_again() -> None:
    model = cnn()
    context = Context(calibration=samples(model), threads=1)
    stored = Pipeline(QuantizeTernary(min_elements=1, activations="float")).run(model, context).model
    assert not coded_weights(stored)
    again = Pipeline(QuantizeInt8()).run(stored, context).model
    assert kernels(again).floating == ()
    at_once = Pipeline(QuantizeTernary(min_elements=1)).run(model, context).model
    assert np.array_equal(outputs(again), outputs(at_once))


def test_quantized_twice_it_says_so() -> None:
    work, _ = ternary(cnn())
    again = work.clone()
    change = QuantizeTernary(activations="float", min_elements=1).apply(again, Context())
    assert change.declined["w2"] == "it is quantized already: optimal"
    assert change.declined["model"] == "no weight to code"
    assert methods(again) == methods(work)


def test_a_channel_of_zeros_stays_zero() -> None:
    model = cnn()
    array = model.graph.initializers["w2"].const_value.numpy().copy()  # type: ignore[union-attr]
    array[3] = 0
    model.graph.initializers["w2"].const_value = ir.tensor(array, name="w2")
    for calibrated in (False, True):
        work, _ = ternary(model, calibrated=calibrated, activations="int8" if calibrated else "float")
        assert not coded(work, "w2").decoded()[3].any()
        assert np.isfinite(outputs(work)).all()


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((24, 16, 3, 3), np.float32), "all its weights are zero"),
        (np.full((24, 16, 3, 3), 0.5, np.float32), "all its weights are equal"),
        (np.full((24, 16, 3, 3), np.nan, np.float32), "it contains NaN or infinity"),
    ],
)
def test_weights_that_codes_make_no_sense_of_are_declined(array: np.ndarray, reason: str) -> None:
    model = cnn()
    model.graph.initializers["w2"].const_value = ir.tensor(array, name="w2")
    _, change = ternary(model)
    assert change.declined["w2"] == reason
    assert "w3" in change.touched


def test_reports_what_it_declined_and_why() -> None:
    _, change = ternary(cnn(), exclude=("w2",), min_elements=500)
    assert change.declined == {
        "w1": "it has 432 elements, fewer than min_elements",
        "wd": "it has 144 elements, fewer than min_elements",
        "w2": "excluded",
        "w4": "it has 120 elements, fewer than min_elements",
    }
    assert ternary(cnn(), include=("w2",))[1].declined["w3"] == "no include pattern fits it"


def test_an_embedding_table_is_coded_only_by_name() -> None:
    text = """<ir_version: 8, opset_import: ["" : 13]>
    g (int64[N] i) => (float[N, 8] y) { e = Gather(table, i) h = MatMul(e, w1) r = Relu(h) y = MatMul(r, w2) }"""
    arrays = {"table": drawn(20, 16), "w1": drawn(16, 16, seed=1), "w2": drawn(16, 8, seed=2)}
    model = ir.from_proto(build(text, **arrays))
    work, change = ternary(model)
    assert change.declined == {"table": "an embedding table: name it in include to code it"}
    assert methods(work) == {"w1": Method("optimal"), "w2": EIGHT}
    named, _ = ternary(model, include=("table",), keep_first_last=False)
    assert methods(named) == {"table": Method("optimal")}


def test_a_weight_that_is_read_in_two_layouts_stays() -> None:
    text = """<ir_version: 8, opset_import: ["" : 13]>
    g (float[N, 8] x) => (float[N, 8] y) { a = Gemm(x, w) y = Gemm <transB = 1> (a, w) }"""
    _, change = ternary(ir.from_proto(build(text, w=drawn(8, 8))))
    assert change.declined["w"] == "its readers need different layouts"


def test_other_floats_stay() -> None:
    text = """<ir_version: 8, opset_import: ["" : 13]>
    g (float16[N, 8] x) => (float16[N, 8] y) { y = MatMul(x, w) }"""
    _, change = ternary(ir.from_proto(build(text, w=drawn(8, 8).astype(np.float16))))
    assert change.declined == {"model": "no weight to code", "w": "it is float16, not float32"}


def test_a_network_of_first_and_last_layers_is_left_to_a_reason() -> None:
    text = """<ir_version: 8, opset_import: ["" : 13]>
    g (float[N, 8] x) => (float[N, 4] y) { h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }"""
    model = ir.from_proto(build(text, w1=drawn(8, 8), w2=drawn(8, 4)))
    work, change = ternary(model)
    assert "give keep_first_last=False" in change.declined["model"]
    assert change.touched == ()
    assert not coded_weights(work)


def test_an_operator_set_that_is_too_old_is_raised_first() -> None:
    model = cnn()
    model.graph.opset_imports[""] = 11
    done = Pipeline(QuantizeTernary(min_elements=1)).run(
        model, Context(calibration=samples(model), threads=1)
    )
    assert "w2" in done.changes[1].touched
    assert kernels(done.model).floating == ()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "activations='int8' needs calibration samples.*Or give activations='float'"),
        ({"activations": "float", "reconstruct": "gptq"}, "reconstruct='gptq' needs calibration samples"),
        ({"activations": "float", "match_outputs": True}, "match_outputs=True needs calibration samples"),
    ],
)
def test_samples_are_asked_for_before_anything_is_done(options: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=f"quantize-ternary: {said}"):
        Pipeline(QuantizeTernary(**options)).run(cnn(), Context())


def test_options_are_refused_by_name_and_survive_the_text_form() -> None:
    with pytest.raises(
        OptionError, match="block=32 gives an output channel several scales, which no int8 kernel"
    ):
        QuantizeTernary(block=32)
    with pytest.raises(
        OptionError, match="option 'method' must be one of 'optimal', 'twn' or 'ttq', got 'best'"
    ):
        QuantizeTernary(method="best")
    held = Pipeline(QuantizeTernary(method="twn", block=32, activations="float", exclude=("a*",)))
    assert Pipeline.parse(str(held)) == held


def test_samples_on_which_a_value_becomes_infinite_are_refused() -> None:
    model = cnn()
    huge = np.full((16, 3, 3, 3), 3e38, np.float32)
    model.graph.initializers["w1"].const_value = ir.tensor(huge, name="w1")
    for options in ({"match_outputs": True}, {"match_outputs": False, "reconstruct": "gptq"}):
        with pytest.raises(
            ModelError, match="becomes NaN or infinite on the samples; mend them or the model"
        ):
            ternary(model, calibrated=True, exclude=("w1",), **options)
