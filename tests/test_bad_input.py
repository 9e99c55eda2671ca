"""Every bad input gets one clear line and exit code 1, and nothing is written or lost."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from compressor import measurement
from compressor.cli import main
from compressor.latency import Protocol

SAMPLES = Path(__file__).resolve().parent.parent / "sample_models"
MLP = SAMPLES / "breast_cancer_mlp.onnx"
TEST = SAMPLES / "breast_cancer_test.npz"
COMPRESS = [sys.executable, "-c", "from compressor.cli import main; main()"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "PROTOCOL", Protocol(visits=5, visit_ms=0.2, sessions=1, warmup=1))


def features(rows: int) -> np.ndarray:
    with np.load(TEST) as arrays:
        return arrays["features"][:rows]


def arrays(folder: Path, **given: np.ndarray) -> Path:
    path = folder / "data.npz"
    np.savez(path, **given)
    return path


def nan_rows() -> np.ndarray:
    made = features(8)
    made[3, 2] = np.nan
    return made


def model_file(folder: Path, content: bytes) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(content)
    return path


def with_external(folder: Path, location: str, held: int | None) -> Path:
    """y = x + w with the weight in an external file of `held` bytes (None: no file)."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in "xy"]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", value[:1], value[1:], [tensor]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    if held is not None:
        (folder / location).write_bytes(b"\0" * held)
    return model_file(folder, proto.SerializeToString())


def unloadable(folder: Path) -> Path:
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("NoSuchOp", ["x"], ["y"])], "g", value[:1], value[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model_file(folder, proto.SerializeToString())


def ancient(folder: Path) -> Path:
    proto = onnx.load(MLP)
    proto.opset_import[0].version = 6
    return model_file(folder, proto.SerializeToString())


def nothing_to_do(folder: Path) -> Path:
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model_file(folder, proto.SerializeToString())


def empty_graph(folder: Path) -> Path:
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "w")
    proto = onnx.ModelProto(ir_version=8)
    proto.metadata_props.add(key="w", value=str(tensor.name))
    return model_file(folder, proto.SerializeToString())


Build = Callable[[Path], list[str | Path]]
CASES: dict[str, tuple[Build, str]] = {
    "missing file": (lambda d: [d / "none.onnx"], "No file "),
    "a folder": (lambda d: [d], "is a folder"),
    "not onnx": (lambda d: [model_file(d, b"PK\3\4 certainly not protobuf")], "is not an ONNX file"),
    "truncated": (lambda d: [model_file(d, MLP.read_bytes()[:5000])], "is truncated or damaged"),
    "empty file": (lambda d: [model_file(d, b"")], "contains no graph"),
    "no graph": (lambda d: [empty_graph(d)], "contains no graph"),
    "external missing": (lambda d: [with_external(d, "w.bin", None)], "'w.bin' is missing"),
    "external short": (lambda d: [with_external(d, "w.bin", 8)], "'w.bin' is truncated"),
    "external outside": (
        lambda d: [with_external(d, "../w.bin", None)],
        "outside the model's folder; refused",
    ),
    "external absolute": (
        lambda d: [with_external(d, "/etc/passwd", None)],
        "outside the model's folder; refused",
    ),
    "unknown operator": (lambda d: [unloadable(d)], "onnxruntime cannot load the model"),
    "operator set 6": (lambda d: [ancient(d)], "uses operator set 6"),
    "nothing to compress": (lambda d: [nothing_to_do(d)], "Nothing in this model could be compressed"),
    "empty data": (lambda d: [MLP, "--data", arrays(d, features=features(0))], "no samples"),
    "nan": (lambda d: [MLP, "--data", arrays(d, features=nan_rows())], "row"),
    "wrong dtype": (lambda d: [MLP, "--data", arrays(d, features=features(4).astype(complex))], "complex"),
    "wrong shape": (lambda d: [MLP, "--data", arrays(d, features=features(4)[:, :7])], "7"),
    "wrong name": (lambda d: [MLP, "--data", arrays(d, a=features(4), b=features(4))], "features"),
    "missing data": (lambda d: [MLP, "--data", d / "none.npz"], "none.npz"),
    "labels out of range": (
        lambda d: [MLP, "--data", arrays(d, features=features(4), labels=np.array([0, 1, 7, 0]))],
        "7",
    ),
    "labels too few": (
        lambda d: [MLP, "--data", arrays(d, features=features(4), labels=np.array([0, 1]))],
        "labels",
    ),
    "unknown pass": (lambda d: [MLP, "-p", "quantise-int8"], "Did you mean 'quantize-int8'?"),
    "unknown option": (lambda d: [MLP, "-p", "quantize-int8{calibrate=1}"], "Did you mean 'calibration'?"),
    "bad option": (
        lambda d: [MLP, "-p", "quantize-int8{granularity=row}"],
        "must be one of 'channel' or 'tensor'",
    ),
    "bad recipe": (lambda d: [MLP, "-p", "quantize-int8{"], "at the end of"),
    "no recipe file": (lambda d: [MLP, "-p", f"@{d}/none.txt"], "cannot be read"),
    "no calibration": (
        lambda d: [MLP, "-p", "quantize-int8"],
        "needs calibration samples. Give --calibration",
    ),
    "no provider": (lambda d: [MLP, "--provider", "cudaa"], "Did you mean 'cuda'?"),
    "absent provider": (lambda d: [MLP, "--provider", "qnn"], "is not in this onnxruntime"),
    "drop without data": (lambda d: [MLP, "--max-drop", "-1"], "max-drop must be a number from 0 on"),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_exit_1_and_nothing_written(name: str, tmp_path: Path) -> None:
    given, place = tmp_path / "given", tmp_path / "place"
    given.mkdir()
    place.mkdir()
    build, said = CASES[name]
    words = [str(word) for word in build(given)]
    before = {p: p.read_bytes() for p in given.iterdir()}
    done = CliRunner().invoke(main, [*words, "-o", str(place / "out.onnx")])
    assert done.exit_code == 1, done.output
    assert said in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert done.output.startswith("Error: ")
    assert list(place.iterdir()) == []
    assert {p: p.read_bytes() for p in given.iterdir()} == before


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("none/out.onnx", "does not exist"),
        (".", "is a folder"),
        ("model.onnx", "is the input"),
        ("there.onnx", "exists"),
    ],
)
def test_an_output_that_cannot_be_meant_is_refused_before_any_work(
    tmp_path: Path, output: str, said: str
) -> None:
    model = model_file(tmp_path, MLP.read_bytes())
    (tmp_path / "there.onnx").write_bytes(b"precious")
    done = CliRunner().invoke(main, [str(model), "-o", str(tmp_path / output)])
    assert (done.exit_code, said in done.output) == (1, True), done.output
    assert (tmp_path / "there.onnx").read_bytes() == b"precious"
    assert model.read_bytes() == MLP.read_bytes()


def test_one_sample_is_enough(tmp_path: Path) -> None:
    data = arrays(tmp_path, features=features(1), labels=np.array([0]))
    words = [
        str(MLP),
        "-o",
        str(tmp_path / "o.onnx"),
        "-p",
        "quantize-int8",
        "--calibration",
        str(data),
        "--data",
        str(data),
    ]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "n=1)" in done.output


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compressor import model_io

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model_io.os, "fsync", full)
    done = CliRunner().invoke(main, [str(MLP), "-o", str(tmp_path / "o.onnx"), "-p", "quantize-weights"])
    assert (done.exit_code, "The disk is full" in done.output) == (1, True), done.output
    assert list(tmp_path.iterdir()) == []


def started(folder: Path) -> subprocess.Popen[str]:
    words = [str(SAMPLES / "digits_cnn.onnx"), "-o", str(folder / "o.onnx"), "--force", "--quiet"]
    words += [
        "--calibration",
        str(SAMPLES / "digits32_calibration.npz"),
        "--data",
        str(SAMPLES / "digits32_test.npz"),
    ]
    return subprocess.Popen([*COMPRESS, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("seconds", [0.4, 0.8, 1.2, 1.6, 2.4, 3.2])
def test_kill_9_in_any_phase_leaves_the_old_output_or_the_new_one(tmp_path: Path, seconds: float) -> None:
    out = tmp_path / "o.onnx"
    out.write_bytes(MLP.read_bytes())
    running = started(tmp_path)
    time.sleep(seconds)
    running.kill()
    running.communicate()
    assert out.read_bytes() == MLP.read_bytes() or onnx.load(out).metadata_props
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".o.onnx.")] == ["o.onnx"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send to another process")
@pytest.mark.parametrize("seconds", [1.0, 1.6, 2.6])
def test_ctrl_c_is_one_line_and_leaves_nothing(tmp_path: Path, seconds: float) -> None:
    running = started(tmp_path)
    time.sleep(seconds)
    if running.poll() is not None:
        pytest.skip("this machine was done before it could be interrupted")
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    if running.returncode == 0:
        pytest.skip("this machine was done before it could be interrupted")
    assert running.returncode == 1
    assert said.strip().splitlines()[-1].startswith(("Interrupted", "Aborted"))
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
