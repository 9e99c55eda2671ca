"""Sessions: providers, errors, profile, bound runs, and what onnxruntime is given."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from compressor import runtime
from compressor.errors import ModelError, OptionError
from compressor.runtime import Session, Setup

X = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


@pytest.mark.parametrize("spelling", ["cuda", "CUDA", "CUDAExecutionProvider", "cudaexecutionprovider"])
def test_a_provider_is_known_by_short_and_long_name(spelling: str) -> None:
    assert runtime.provider_name(spelling) == "CUDAExecutionProvider"
    assert runtime.short_name(spelling) == "cuda"


@pytest.mark.parametrize("short", sorted(runtime._SHORT))
def test_every_short_name_goes_there_and_back(short: str) -> None:
    assert runtime.short_name(runtime.provider_name(short)) == short


def test_suggests_the_provider_that_was_meant() -> None:
    with pytest.raises(OptionError, match=r"^No provider named 'cudda'\. Did you mean 'cuda'\?$"):
        runtime.provider_name("cudda")
    with pytest.raises(OptionError, match=r"^No provider named 'zzz'\. Known: .*cpu.*openvino.*\.$"):
        Setup(provider=runtime.provider_name("zzz"))


def test_a_provider_that_is_not_built_in_is_refused_with_a_hint(
    tiny_mlp: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "available", lambda: ("cpu",))
    expected = r"^Provider 'openvino' is not in this onnxruntime \(cpu\)\. Install onnxruntime-openvino\.$"
    with pytest.raises(OptionError, match=expected):
        Session(tiny_mlp, Setup(provider="OpenVINOExecutionProvider"))
    with pytest.raises(
        OptionError, match=r"^Provider 'qnn' is not .* Install the onnxruntime package that carries it\.$"
    ):
        runtime.require_provider("qnn")


def test_a_provider_that_is_silently_replaced_is_refused(
    tiny_mlp: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runtime._ort()

    def falls_back(source: object, options: object, providers: list[str], **switches: object) -> Any:
        return real.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    fake = SimpleNamespace(
        InferenceSession=falls_back,
        SessionOptions=real.SessionOptions,
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    monkeypatch.setattr(runtime, "_ort", lambda: fake)
    with pytest.raises(
        OptionError, match=r"^Provider 'cuda' does not load on this machine\. Install onnxruntime-gpu"
    ):
        Session(tiny_mlp, Setup(provider="cuda"))


def test_runs_a_model_from_memory_bytes_and_file(tiny_mlp: ir.Model, tmp_path: Path) -> None:
    data = runtime.to_bytes(tiny_mlp)
    (tmp_path / "m.onnx").write_bytes(data)
    results = [Session(m).run({"x": X})[0] for m in (tiny_mlp, data, tmp_path / "m.onnx")]
    assert results[0].shape == (5, 3)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_knows_its_inputs_outputs_and_version(tiny_mlp: ir.Model) -> None:
    session = Session(tiny_mlp)
    assert (session.inputs, session.outputs) == (("x",), ("y",))
    assert re.match(r"\d+\.\d+", runtime.version())
    assert "cpu" in runtime.available()


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_uses_the_threads_that_were_asked_for(tiny_mlp: ir.Model, threads: int) -> None:
    options = Session(tiny_mlp, Setup(threads=threads))._session.get_session_options()
    assert options.intra_op_num_threads == threads


@pytest.mark.parametrize("bad", [b"", b"not a model", b"\x08\x08"])
def test_what_is_no_model_cannot_be_loaded(bad: bytes) -> None:
    with pytest.raises(ModelError, match=r"^onnxruntime cannot load the model: .+"):
        Session(bad)


def test_a_missing_file_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^onnxruntime cannot load the model: [^\n]*none\.onnx"):
        Session(tmp_path / "none.onnx")


def test_an_unknown_operator_is_named() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Frobnicate(x) }'
    with pytest.raises(ModelError, match=r"^onnxruntime cannot load the model: [^\n]*Frobnicate"):
        Session(ir.from_proto(parser.parse_model(text)))


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({"z": X}, "x"),
        ({"x": X, "z": X}, "z"),
        ({"x": X[:, :3]}, "x"),
        ({"x": X.astype(np.float64)}, "double"),
        ({"x": np.array(["a", "b"])}, "x"),
        ({"x": None}, "x"),
    ],
)
def test_a_run_that_cannot_work_names_the_problem(tiny_mlp: ir.Model, feeds: Any, said: str) -> None:
    with pytest.raises(ModelError, match=rf"^onnxruntime cannot run the model: [^\n]*{said}"):
        Session(tiny_mlp).run(feeds)


def test_an_error_is_one_line_of_bounded_length(tiny_mlp: ir.Model) -> None:
    assert runtime._first_line(ValueError("a\n b\t\tc")) == "a b c"
    assert len(runtime._first_line(ValueError("x" * 1000))) == 300


def bound_outputs(session: Session, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    call = session.bound(feeds)
    del feeds
    junk = [np.full((5, 4), 7.0, np.float32) for _ in range(50)]  # takes the place of arrays that were let go
    call()
    del junk
    names = (call.__closure__ or (), call.__code__.co_freevars)
    binding = dict(zip(names[1], names[0], strict=True))["binding"].cell_contents
    return list(binding.copy_outputs_to_cpu())


@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray], ids=["C", "Fortran"])
def test_a_bound_run_gives_the_same(tiny_mlp: ir.Model, layout: Callable[[np.ndarray], np.ndarray]) -> None:
    session = Session(tiny_mlp)
    expected = session.run({"x": X})
    np.testing.assert_array_equal(bound_outputs(session, {"x": layout(X.copy())})[0], expected[0])


def test_a_bound_run_takes_scalars() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x, float k) => (float[2] y) { y = Mul(x, k) }'
    )
    session = Session(ir.from_proto(parser.parse_model(text)))
    feeds = {"x": np.ones(2, np.float32), "k": np.array(3, np.float32)}
    np.testing.assert_array_equal(bound_outputs(session, feeds)[0], [3.0, 3.0])


def test_a_bound_run_quantizes_integer_stored_inputs() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (uint8[N, 4] x) => (float[N, 4] y)
      { y = Cast <to = 1> (x) }"""
    model = ir.from_proto(parser.parse_model(text))
    model.metadata_props[runtime.QUANTIZED_IO] = json.dumps({"x": [0.5, 3]})
    session = Session(model)
    expected = np.clip(np.rint(X / 0.5) + 3, 0, 255)
    np.testing.assert_array_equal(session.run({"x": X})[0], expected)
    for _ in range(20):
        np.testing.assert_array_equal(bound_outputs(session, {"x": X})[0], expected)


@pytest.mark.parametrize("feeds", [{"z": X}, {"x": X.astype(np.float64)}, {"x": X[:, :3]}])
def test_a_bound_run_that_cannot_work_names_the_problem(tiny_mlp: ir.Model, feeds: Any) -> None:
    with pytest.raises(ModelError, match=r"^onnxruntime cannot (take the inputs|run the model): [^\n]+"):
        Session(tiny_mlp).bound(feeds)()


def test_the_profile_tells_where_each_node_ran(tiny_cnn: ir.Model, tmp_path: Path) -> None:
    session = Session(tiny_cnn, Setup(optimize=False, profile=tmp_path / "p"))
    for _ in range(3):
        session.run({"x": np.zeros((1, 2, 6, 6), np.float32)})
    times = session.node_times()
    assert sorted(t.operator for t in times) == ["Conv", "Flatten", "Gemm", "GlobalAveragePool", "Relu"]
    assert {t.provider for t in times} == {"CPUExecutionProvider"}
    assert all(t.microseconds >= 0 for t in times)
    assert list(tmp_path.iterdir()) == [], "the profile file is removed"


def test_node_times_need_a_profile(tiny_mlp: ir.Model) -> None:
    with pytest.raises(
        OptionError, match=r"^node_times needs a Session made with Setup\(profile=\.\.\.\)\.$"
    ):
        Session(tiny_mlp).node_times()


def test_the_optimized_graph_is_what_is_executed(tiny_mlp: ir.Model) -> None:
    assert [node.op_type for node in runtime.optimized_graph(tiny_mlp).graph] == ["FusedGemm", "Gemm"]


def test_beyond_the_limit_of_protobuf_a_session_reads_from_files(
    tiny_mlp: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Session(tiny_mlp).run({"x": X})[0]
    monkeypatch.setattr(runtime, "_PROTOBUF_LIMIT", 10)
    source, folder = runtime.runnable(tiny_mlp)
    assert folder is not None
    assert Path(str(source)).parent == Path(folder.name)
    folder.cleanup()
    np.testing.assert_array_equal(Session(tiny_mlp).run({"x": X})[0], expected)


def test_to_bytes_takes_external_data_in_and_leaves_the_model_alone(
    tiny_mlp: ir.Model, tmp_path: Path
) -> None:
    ir.save(tiny_mlp, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    outside = ir.load(tmp_path / "m.onnx")
    proto = onnx.load_model_from_string(runtime.to_bytes(outside))
    assert all(t.data_location != onnx.TensorProto.EXTERNAL for t in proto.graph.initializer)
    tensors = {name: value.const_value for name, value in outside.graph.initializers.items()}
    assert all(isinstance(tensor, ir.ExternalTensor) for tensor in tensors.values())
    for inside in proto.graph.initializer:
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(inside), tensors[inside.name])


def test_to_bytes_keeps_packed_and_narrow_types(tiny_mlp: ir.Model, tmp_path: Path) -> None:
    kinds = (ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.BFLOAT16, ir.DataType.FLOAT8E4M3FN)
    for kind in kinds:
        array = np.array([1, 2, 3]).astype(kind.numpy())
        tensor = ir.tensor(array, dtype=kind, name=kind.name)
        value = ir.Value(name=kind.name, type=ir.TensorType(kind), shape=ir.Shape([3]), const_value=tensor)
        tiny_mlp.graph.register_initializer(value)
    ir.save(tiny_mlp, tmp_path / "m.onnx", external_data="m.data", size_threshold_bytes=0)
    back = ir.from_proto(onnx.load_model_from_string(runtime.to_bytes(ir.load(tmp_path / "m.onnx"))))
    for kind in kinds:
        tensor = back.graph.initializers[kind.name].const_value
        assert tensor is not None
        assert tensor.dtype == kind
        np.testing.assert_array_equal(tensor.numpy().astype(np.float32), [1, 2, 3])
