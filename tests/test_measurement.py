"""Outputs on samples, latency feeds, sizes; and the gate on what was measured."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, parser

import compressor
from compressor import measurement, model_io, runtime
from compressor.data import open_samples, synthetic
from compressor.gate import Limits, judge
from compressor.latency import Latency, Protocol, Ratio, Timing
from compressor.measurement import latencies, outputs_on, size_of
from compressor.prepare import infer_shapes
from compressor.runtime import Setup
from compressor.summary import summarize
from tests.conftest import build, drawn

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "PROTOCOL", Protocol(visits=5, visit_ms=0.2, sessions=1, warmup=1))


def text_model(text: str) -> ir.Model:
    return ir.from_proto(parser.parse_model(f'<ir_version: 8, opset_import: ["": 13]> {text}'))


def test_outputs_whose_size_varies_are_padded_with_zeros() -> None:
    model = text_model("m (float[n, 3] x) => (int64[2, k] y) { y = NonZero(x) }")
    samples = open_samples({"x": np.eye(3, dtype=np.float32)[[0, 0, 1]] + np.eye(3, dtype=np.float32)}, model)
    (made,) = outputs_on(model, samples, Setup())
    assert made.shape[0] == 1  # one batch: the output has no batch axis
    parts = [np.ones((1, 2)), np.ones((1, 3))]
    np.testing.assert_array_equal(measurement._joined(parts), [[1, 1, 0], [1, 1, 1]])


def test_an_input_without_a_batch_axis_is_fed_as_it_is() -> None:
    model = text_model("m (float[n, 3] x, float s) => (float[n, 3] y) { y = Mul(x, s) }")
    (made,) = outputs_on(model, synthetic(model, 5), Setup())
    assert made.shape == (5, 3)
    assert latencies([model, model], synthetic(model, 2), [Setup(threads=1)], 4)[0].batch == 4


def test_a_fixed_batch_axis_keeps_its_size_whatever_batch_is_asked() -> None:
    model = text_model("m (float[1, 3] x) => (float[1, 3] y) { y = Relu(x) }")
    assert latencies([model, model], synthetic(model, 2), [Setup(threads=1)], 8)[0].batch == 1


@pytest.mark.parametrize("recipe", ["quantize-int8", "quantize-weights", "optimize,quantize-int8"])
def test_beyond_the_protobuf_limit_everything_goes_through_files(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_PROTOBUF_LIMIT", 10_000)
    monkeypatch.setattr(model_io, "_EXTERNAL_FROM", 10_000)
    data = SAMPLES / "digits32_calibration.npz{limit=16}"
    result = compressor.compress(SAMPLES / "digits_cnn.onnx", recipe, calibration=str(data))
    written = result.save(tmp_path / "o.onnx")
    assert len(written) == 2
    assert compressor.check(written[0], SAMPLES / "digits_cnn.onnx").after.bytes == sum(
        file.stat().st_size for file in written
    )


def test_integer_stored_inputs_are_evaluated_with_float_samples_and_with_codes(tmp_path: Path) -> None:
    model, test = SAMPLES / "breast_cancer_mlp.onnx", SAMPLES / "breast_cancer_test.npz"
    recipe = "quantize-int8{float_io=False}"
    result = compressor.compress(
        model, recipe, calibration=SAMPLES / "breast_cancer_calibration.npz", data=test
    )
    (written,) = result.save(tmp_path / "o.onnx")
    found = compressor.evaluate(written, test)
    assert result.report.accuracy is not None
    assert found.score == result.report.accuracy.after
    session = compressor.Session(written)
    with np.load(test) as arrays:
        rows = arrays["features"][:4]
    codes = session._encoded({"features": rows})
    assert codes["features"].dtype == np.uint8
    np.testing.assert_array_equal(session.run(codes)[0], session.run({"features": rows})[0])


def test_the_size_of_a_file_is_its_bytes_and_of_a_model_those_it_would_have() -> None:
    path = SAMPLES / "breast_cancer_mlp.onnx"
    assert size_of(path).bytes == path.stat().st_size
    assert size_of(model_io.load(path)).parameters == size_of(path).parameters


def with_ratio(ratio: Ratio) -> compressor.Report:
    report = compressor.check(SAMPLES / "breast_cancer_mlp.onnx", SAMPLES / "breast_cancer_mlp.onnx")
    timing = Timing(1.0, 1.0, 1.0)
    return report.model_copy(update={"latency": (Latency("cpu", 1, 1, 5, (timing, timing), (ratio,)),)})


def test_a_speed_limit_of_1_is_not_softer_than_one_of_0_99() -> None:
    report = with_ratio(Ratio(0.9, 0.5, 1.4, 0.1, "cpu"))
    for wanted in (0.99, 1.0, 1.01):
        assert not judge(report, Limits(min_speedup=wanted))[0].held
    assert judge(report, Limits(not_slower=True))[0].held
    assert not judge(with_ratio(Ratio(0.9, 0.85, 0.95, 0.01, "cpu")), Limits(not_slower=True))[0].held


def test_a_verdict_says_when_the_interval_straddles_the_limit() -> None:
    report = with_ratio(Ratio(1.5, 1.2, 1.8, 0.1, "cpu"))
    assert judge(report, Limits(min_speedup=1.1))[0].certain
    assert not judge(report, Limits(min_speedup=1.3))[0].certain


def test_limits_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(compressor.OptionError, match="min-ratio must be a number from 0 on, got -1"):
        Limits(min_ratio=-1)


def test_a_target_that_cannot_be_measured_is_refused() -> None:
    with pytest.raises(compressor.OptionError, match="at least one is needed"):
        compressor.Target(providers=())
    with pytest.raises(compressor.OptionError, match="batch 1 or more, got 1 and 0"):
        compressor.Target(batch=0)
    with pytest.raises(compressor.OptionError, match="seed must be 0 or more, got -1"):
        compressor.Target(seed=-1)


def test_models_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(compressor.ModelError, match="they cannot be compared"):
        compressor.check(SAMPLES / "digits_cnn.onnx", SAMPLES / "breast_cancer_mlp.onnx")


def test_raise_for_limits_raises_with_the_limit_and_the_measurement() -> None:
    path = SAMPLES / "breast_cancer_mlp.onnx"
    report = compressor.check(path, path, limits=Limits(min_ratio=2))
    with pytest.raises(compressor.GateError, match=r"min-ratio 1\.00\d\d, limit 2: BROKEN"):
        compressor.raise_for_limits(report)


def test_models_in_memory_are_taken_too() -> None:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 64]) for n in "xy"]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [64, 64], np.random.default_rng(0).normal(size=4096))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weight]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    result = compressor.compress(proto, "quantize-weights")
    assert result.report.ratio > 2
    assert result.report.evaluated_on.startswith("16 samples without labels")


def test_a_pass_and_a_list_of_passes_are_pipelines_too() -> None:
    from passes.optimize import Optimize
    from passes.quantize_weights import QuantizeWeights

    path = SAMPLES / "breast_cancer_mlp.onnx"
    one = compressor.compress(path, QuantizeWeights())
    two = compressor.compress(path, [Optimize(), QuantizeWeights()])
    assert two.report.pipeline == f"optimize,{one.report.pipeline}"
    with pytest.raises(compressor.OptionError, match="made of passes or is a text, got 'optimize'"):
        compressor.compress(path, ["optimize"])  # type: ignore[list-item]


def test_what_is_no_model_is_said() -> None:
    with pytest.raises(compressor.ModelError, match="a ModelProto, got bytes"):
        compressor.compress(b"model")  # type: ignore[arg-type]
    with pytest.raises(compressor.OptionError, match="bench needs a list of models"):
        compressor.bench("model.onnx")


def test_a_matrix_product_behind_a_reshape_counts_every_row() -> None:
    """Gemm has two axes only: [N, 5, 4] is read as [N * 5, 4], also as int8 behind QuantizeLinear and back."""
    header = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 5, 4] x) => (float[M, 3] y) '
    plain = "{ r = Reshape(x, s) y = Gemm(r, w) }"
    coded = "{ r = Reshape(x, s) q = QuantizeLinear(r, a) d = DequantizeLinear(q, a) y = Gemm(d, w) }"
    weights = {"s": np.array([-1, 4]), "w": drawn(4, 3)}
    for text, scale in ((plain, {}), (coded, {"a": np.array(0.1, np.float32)})):
        model = ir.from_proto(build(header + text, **weights, **scale))
        infer_shapes(model)
        assert summarize(model).macs == 5 * 4 * 3
