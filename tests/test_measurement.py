"""Outputs on samples, latency feeds, sizes; and the gate on what was measured."""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, parser

import compressor
from compressor import load_cost, measurement, model_io, proof, report, runtime
from compressor.data import open_samples, synthetic
from compressor.gate import Limits, judge
from compressor.latency import Latency, Protocol, Ratio, Timing
from compressor.load_cost import load_costs
from compressor.measurement import latencies, outputs_on, size_of
from compressor.prepare import infer_shapes
from compressor.report import Load, markdown, rows
from compressor.runtime import Setup
from compressor.summary import summarize
from tests.conftest import build, drawn

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "PROTOCOL", Protocol(visits=5, visit_ms=0.2, sessions=1, warmup=1))
    monkeypatch.setattr(load_cost, "ROUNDS", 1)


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


def test_a_load_takes_time_and_a_larger_model_more_memory(tmp_path: Path) -> None:
    small = text_model("m (float[n, 3] x) => (float[n, 3] y) { y = Relu(x) }")
    text = '<ir_version: 8, opset_import: ["" : 13]> m (float[n, 2000] x) => (float[n, 2000] y) { y = MatMul(x, w) }'
    large = tmp_path / "large.onnx"
    onnx.save(build(text, w=drawn(2000, 2000)), large)
    first, second = load_costs([small, large])
    assert min(first.wall_ms, first.cpu_ms, second.wall_ms, second.cpu_ms) > 0
    if sys.platform in ("linux", "darwin"):
        assert first.peak_bytes is not None
        assert second.peak_bytes is not None
        assert second.peak_bytes - first.peak_bytes > 2000 * 2000 * 4


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is inherited on Linux")
def test_the_peak_of_a_load_is_not_hidden_by_what_this_process_holds() -> None:
    """ru_maxrss of a new process starts at the memory of its parent."""
    held = np.ones(2**25)  # 256 MB, several times what onnxruntime takes
    (found,) = load_costs([SAMPLES / "breast_cancer_mlp.onnx"])
    assert held.nbytes > (found.peak_bytes or 0) > 0


def test_every_figure_of_a_load_is_the_median_of_interleaved_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    times = iter([5.0, 1.0, 9.0, 2.0, 6.0, 3.0])

    def loaded(file: Path) -> Load:
        seen.append(file.stem)
        time = next(times)
        return Load(wall_ms=time, cpu_ms=10 - time, peak_bytes=int(time))

    monkeypatch.setattr(load_cost, "_loaded", loaded)
    monkeypatch.setattr(load_cost, "ROUNDS", 3)
    found = load_costs([Path("a.onnx"), Path("b.onnx")])
    assert seen == ["a", "b"] * 3
    assert found == (Load(wall_ms=6, cpu_ms=4, peak_bytes=6), Load(wall_ms=2, cpu_ms=8, peak_bytes=2))


def test_models_that_load_slowly_are_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def loaded(file: Path) -> Load:
        seen.append(file)
        return Load(wall_ms=1, cpu_ms=1, peak_bytes=None)

    monkeypatch.setattr(load_cost, "_loaded", loaded)
    monkeypatch.setattr(load_cost, "ROUNDS", 3)
    monkeypatch.setattr(load_cost, "_LONG_SECONDS", -1.0)
    (found,) = load_costs([Path("a.onnx")])
    assert len(seen) == 1
    assert found.peak_bytes is None


def test_a_load_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(compressor.ModelError, match=r"does not load in a process of its own: .*broken\.onnx"):
        load_costs([broken])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(
        compressor.ModelError, match=r"A process that loads the model cannot be run: .*no-python"
    ):
        load_costs([broken])


@pytest.mark.parametrize("error", [compressor.ModelError("It does not load."), OSError(28, "disk full")])
def test_a_report_without_the_load_says_why(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(models: object, progress: object) -> None:
        raise error

    monkeypatch.setattr(proof, "load_costs", refuse)
    path = SAMPLES / "breast_cancer_mlp.onnx"
    made = compressor.check(path, path)
    assert made.load == ()
    assert f"Load time and memory were not measured: {error}" in made.notes
    assert not any("load" in row[0] for row in rows(made))


def test_a_report_tells_bits_per_weight_and_what_loading_takes() -> None:
    path = SAMPLES / "breast_cancer_mlp.onnx"
    made = compressor.compress(path, "quantize-weights").report
    assert made.before.bits_per_weight == 32
    assert 8 < (made.after.bits_per_weight or 0) < 10
    assert len(made.load) == 2
    table = markdown(made)
    for words in ("| bits per weight on disk | 32.00 | 8.", "| load ms (cpu, 1 thread) |"):
        assert words in table


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        ((), []),
        (((8, 6, 2_000_000), (5, 3, 1_000_000)), ["2.00x cpu time", "2.00x smaller"]),
        (((8, 6, None), (5, 3, None)), ["2.00x cpu time"]),
        (((8, 6, 1_000_000), (5, 12, 2_000_000)), ["0.50x cpu time", "2.00x larger"]),
    ],
    ids=["not measured", "better", "without peaks", "worse"],
)
def test_the_rows_of_the_load_are_those_that_are_known(
    load: tuple[tuple[float, float, int | None], ...], expected: list[str]
) -> None:
    made = tuple(Load(wall_ms=w, cpu_ms=c, peak_bytes=p) for w, c, p in load)
    assert [row[3] for row in report._load_rows(made)] == expected


def test_a_model_without_weights_has_no_bits_per_weight() -> None:
    size = size_of(text_model("m (float[n, 3] x) => (float[n, 3] y) { y = Relu(x) }"))
    assert (size.bits_per_weight, size.weight_bytes) == (None, 0)
    assert report._bits(size) == ""
