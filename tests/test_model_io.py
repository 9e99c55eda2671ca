"""Reading models of every make, and refusing each kind of bad one with a clear line."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from compressor import model_io
from compressor.errors import CompressorError, ModelError, OptionError
from compressor.graph import constant
from compressor.model_io import check_target, files_of, invalid_reason, load, save, tool_version
from compressor.runtime import Session

X = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


@pytest.fixture
def mlp_file(mlp_proto: onnx.ModelProto, tmp_path: Path) -> Path:
    """The small MLP in a file of its own."""
    path = tmp_path / "mlp.onnx"
    onnx.save(mlp_proto, path)
    return path


@pytest.fixture
def outside(mlp_proto: onnx.ModelProto, tmp_path: Path) -> Path:
    """The small MLP with every weight in the file w.bin beside it."""
    path = tmp_path / "in" / "mlp.onnx"
    path.parent.mkdir()
    onnx.save(mlp_proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    return path


def refused(source: Any, said: str) -> None:
    with pytest.raises(ModelError, match=re.escape(said)) as caught:
        load(source)
    assert "\n" not in str(caught.value)


def changed(path: Path, **entries: str | None) -> Path:
    """The same model with other external-data entries of its first weight; None removes one."""
    proto = onnx.load(path, load_external_data=False)
    held = proto.graph.initializer[0].external_data
    kept = {e.key: e.value for e in held} | entries
    del held[:]
    held.extend(onnx.StringStringEntryProto(key=k, value=v) for k, v in kept.items() if v is not None)
    path.write_bytes(proto.SerializeToString())
    return path


def test_takes_a_path_a_proto_or_a_model(mlp_file: Path, mlp_proto: onnx.ModelProto) -> None:
    loaded = [load(str(mlp_file)), load(mlp_file), load(mlp_proto)]
    assert load(loaded[0]) is loaded[0]
    outputs = [Session(model).run({"x": X})[0] for model in loaded]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[2])


def test_refuses_what_is_no_model_file(tmp_path: Path) -> None:
    refused(tmp_path / "none.onnx", f"No file '{tmp_path / 'none.onnx'}'.")
    refused(tmp_path, f"'{tmp_path}' is a folder; give the .onnx file in it.")
    for name, content, said in [
        ("text.onnx", b"hello, world", "is not an ONNX file."),
        ("empty.onnx", b"", "is not an ONNX model: it contains no graph."),
        ("zip.onnx", b"PK\x03\x04" + bytes(100), "is not an ONNX"),
    ]:
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, f"'{tmp_path / name}' {said}")


def test_refuses_a_file_that_cannot_be_read(mlp_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", fail)
    refused(mlp_file, f"'{mlp_file}' cannot be read: Permission denied.")


def test_refuses_a_truncated_file_wherever_it_is_cut(mlp_file: Path) -> None:
    whole = mlp_file.read_bytes()
    for length in range(2, len(whole)):
        mlp_file.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"truncated or damaged|contains no graph") as caught:
            load(mlp_file)
        assert "\n" not in str(caught.value)


def test_a_damaged_file_is_loaded_or_refused_but_never_crashes(mlp_file: Path) -> None:
    whole, draw = mlp_file.read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        mlp_file.write_bytes(damaged)
        with contextlib.suppress(CompressorError):
            model = load(mlp_file)
            invalid_reason(model)
            save(model, mlp_file.with_name("out.onnx"))


def test_a_name_that_is_no_text_is_refused_when_the_model_runs(mlp_file: Path) -> None:
    mlp_file.write_bytes(mlp_file.read_bytes().replace(b"Relu", b"Rel\xff"))
    model = load(mlp_file)
    assert invalid_reason(model) is not None
    with pytest.raises(ModelError, match=r"^The model is damaged and cannot be written: [^\n]+"):
        Session(model)
    for external in (False, True):
        with pytest.raises(ModelError, match=r"^The model is damaged and cannot be written: [^\n]+"):
            save(model, mlp_file.with_name("out.onnx"), external=external)
    assert list(mlp_file.parent.iterdir()) == [mlp_file]


def test_refuses_an_operator_set_before_7(mlp_proto: onnx.ModelProto) -> None:
    for domain in ("", "ai.onnx"):
        mlp_proto.opset_import[0].CopyFrom(helper.make_opsetid(domain, 6))
        refused(
            mlp_proto, "The model uses operator set 6; 7 is the oldest that is supported. Export it again."
        )
        mlp_proto.opset_import[0].version = 7
        load(mlp_proto)
    mlp_proto.opset_import[0].domain = "com.other"
    refused(mlp_proto, "The model uses operator set 1; 7 is the oldest")


def test_refuses_a_sparse_model_in_one_line(mlp_proto: onnx.ModelProto) -> None:
    values = helper.make_tensor("v", TensorProto.FLOAT, [1], [3.0])
    sparse = helper.make_sparse_tensor(values, helper.make_tensor("i", TensorProto.INT64, [1], [1]), [4])
    mlp_proto.graph.node.append(helper.make_node("Constant", [], ["k"], sparse_value=sparse))
    refused(mlp_proto, "The model cannot be read: ")


def test_refuses_an_initializer_without_an_element_type(mlp_proto: onnx.ModelProto) -> None:
    mlp_proto.graph.initializer[0].data_type = TensorProto.UNDEFINED
    refused(mlp_proto, "The model is damaged: the initializer 'w1' has no element type. Export it again.")
    mlp_proto.graph.initializer[0].data_type = TensorProto.FLOAT
    mlp_proto.graph.initializer[0].raw_data = bytes(8)
    refused(mlp_proto, "The model is damaged: the initializer 'w1' does not fit its shape: ")


@pytest.mark.parametrize("place", ["node", "output", "function"])
def test_refuses_a_value_that_comes_from_nowhere(place: str, mlp_proto: onnx.ModelProto) -> None:
    proto = parser.parse_model(KINDS["function"]) if place == "function" else mlp_proto
    if place == "output":
        proto.graph.output[0].name = "lost"
    else:
        node = proto.functions[0].node[0] if place == "function" else proto.graph.node[1]
        node.input[0] = "lost"
    refused(proto, "The model is not valid: no node and no input gives the value 'lost'. Export it again.")


def test_refuses_a_node_that_reads_a_later_one(mlp_proto: onnx.ModelProto) -> None:
    mlp_proto.graph.node[0].input[0] = "y"
    with pytest.raises(
        ModelError, match=r"^(The model is not valid|onnxruntime cannot load the model): [^\n]+"
    ):
        Session(load(mlp_proto))


def test_maps_external_data(outside: Path, mlp_proto: onnx.ModelProto) -> None:
    model = load(outside)
    for tensor in mlp_proto.graph.initializer:
        value = model.graph.initializers[tensor.name]
        assert isinstance(value.const_value, ir.ExternalTensor)
        assert constant(value).nbytes == np.prod(tensor.dims) * 4
    np.testing.assert_array_equal(Session(model).run({"x": X})[0], Session(outside).run({"x": X})[0])
    assert invalid_reason(model) is None
    assert files_of(outside) == (outside, outside.parent / "w.bin")


def test_a_relative_path_is_found_from_the_working_folder(
    outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(outside.parent)
    model = load("mlp.onnx")
    monkeypatch.chdir("/")
    assert constant(model.graph.initializers["w1"]) is not None


def test_names_external_data_that_is_missing_or_truncated(outside: Path) -> None:
    data = outside.parent / "w.bin"
    with data.open("r+b") as file:
        file.truncate(20)
    refused(outside, f"{outside}: external data file 'w.bin' is truncated: 20 bytes, 128 needed. Copy")
    changed(outside, length=None)
    refused(outside, f"{outside}: external data file 'w.bin' is truncated: 20 bytes, 128 needed. Copy")
    data.unlink()
    refused(outside, f"{outside}: external data file 'w.bin' is missing. Put it beside the model.")


@pytest.mark.parametrize("place", ["../secret.bin", "/etc/passwd", "", "a/../../secret.bin"])
def test_refuses_external_data_outside_the_folder(outside: Path, place: str) -> None:
    (outside.parent.parent / "secret.bin").write_bytes(bytes(1000))
    refused(
        changed(outside, location=place), f"external data {place!r} of 'w1' points outside the model's folder"
    )


def test_refuses_a_link_that_leads_outside_the_folder(outside: Path) -> None:
    (outside.parent.parent / "secret.bin").write_bytes(bytes(1000))
    (outside.parent / "link.bin").symlink_to("../secret.bin")
    refused(changed(outside, location="link.bin"), "external data 'link.bin' of 'w1' points outside")


def test_follows_links_when_the_model_is_a_link_into_the_same_folder(outside: Path, tmp_path: Path) -> None:
    view = tmp_path / "view"
    view.mkdir()
    for name in ("mlp.onnx", "w.bin"):
        (view / name).symlink_to(f"../in/{name}")
    assert constant(load(view / "mlp.onnx").graph.initializers["w1"]) is not None


def test_reads_data_in_a_subfolder_and_with_hard_links(outside: Path) -> None:
    (outside.parent / "sub").mkdir()
    os.link(outside.parent / "w.bin", outside.parent / "sub" / "w.bin")
    assert constant(load(changed(outside, location="sub/w.bin")).graph.initializers["w1"]) is not None


@pytest.mark.parametrize(("key", "value"), [("offset", "-4"), ("offset", "abc"), ("length", "1e3")])
def test_refuses_a_place_in_the_data_that_is_no_number(outside: Path, key: str, value: str) -> None:
    refused(
        changed(outside, **{key: value}),
        f"external data of 'w1' has {key} '{value}', which is not a size in bytes",
    )


def test_refuses_an_external_tensor_of_no_known_type(outside: Path) -> None:
    proto = onnx.load(outside, load_external_data=False)
    proto.graph.initializer[0].data_type = TensorProto.STRING
    outside.write_bytes(proto.SerializeToString())
    refused(outside, "External data of 'w1' has element type 8, which cannot lie in a file.")


def test_a_proto_without_its_folder_is_refused(outside: Path) -> None:
    proto = onnx.load(outside, load_external_data=False)
    refused(
        proto,
        "The ModelProto keeps 'w1' in the file 'w.bin', in a folder that it does not name. Give the path",
    )


NESTED = """
<ir_version: 9, opset_import: ["" : 17, "local" : 1]>
nested (float[N, 2] x, bool c) => (float[N, 2] y) {
  f = local.shift(x)
  y = If(c) <
    then_branch = t () => (float[N, 2] a) <float[2] inner = {5, 6}> { k = Constant <value = float[2] {1, 2}> ()
      m = Add(f, inner)
      a = Add(m, k) },
    else_branch = e () => (float[N, 2] b) { b = Identity(f) }
  >
}
<domain: "local", opset_import: ["" : 17]>
shift (v) => (w) { s = Constant <value = float[2] {10, 20}> () w = Add(v, s) }
"""


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """External data in a subgraph, in a Constant node of a subgraph, and in one of a function."""
    proto = parser.parse_model(NESTED)
    branch = proto.graph.node[1].attribute[0].g
    held = [branch.initializer[0], branch.node[0].attribute[0].t, proto.functions[0].node[0].attribute[0].t]
    data = b""
    for tensor in held:
        array = numpy_helper.to_array(tensor)
        for field in ("float_data", "raw_data"):
            tensor.ClearField(field)
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": "n.bin", "offset": str(len(data)), "length": str(array.nbytes)}
        tensor.external_data.extend(onnx.StringStringEntryProto(key=k, value=v) for k, v in place.items())
        data += array.tobytes()
    (tmp_path / "nested").mkdir()
    path = tmp_path / "nested" / "n.onnx"
    path.write_bytes(proto.SerializeToString())
    (path.parent / "n.bin").write_bytes(data)
    return path


@pytest.mark.parametrize("external", [False, True])
def test_external_data_of_subgraphs_and_functions_survives_a_save(
    nested: Path, tmp_path: Path, external: bool
) -> None:
    model = load(nested)
    assert invalid_reason(model) is None
    written = save(model, tmp_path / "out.onnx", external=external, must_be_valid=True)
    (nested.parent / "n.bin").unlink()
    feeds = {"x": np.zeros((1, 2), np.float32), "c": np.array(True)}
    np.testing.assert_array_equal(Session(written[0]).run(feeds)[0], [[16, 28]])
    np.testing.assert_array_equal(Session(load(written[0])).run(feeds)[0], [[16, 28]])


def test_a_cut_data_file_of_a_function_is_named(nested: Path) -> None:
    (nested.parent / "n.bin").write_bytes(bytes(20))
    refused(nested, "external data file 'n.bin' is truncated: 20 bytes, 24 needed.")


KINDS = {
    "initializer that is an input": """<ir_version: 3, opset_import: ["" : 8]>
        g (float[N, 2] x, float[2] w) => (float[N, 2] y) <float[2] w = {1, 2}> { y = Add(x, w) }""",
    "oldest operator set": """<ir_version: 3, opset_import: ["" : 7]>
        g (float[N, 2] x, float[2] w) => (float[N, 2] y) <float[2] w = {1, 2}> { y = Add(x, w) }""",
    "tied weight": """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { a = MatMul(x, w) y = MatMul(a, w) }""",
    "zero-element tensor": """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 2] x) => (float[N, 2] y) <float[0, 2] w = {}> { y = Concat <axis = 0> (x, w) }""",
    "quantized": """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 2] x) => (float[N, 2] y) <float s = {0.5}, uint8 z = {9}> {
        q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }""",
    "function": """<ir_version: 9, opset_import: ["" : 17, "local" : 1]>
        g (float[N, 2] x) => (float[N, 2] y) { y = local.twice(x) }
        <domain: "local", opset_import: ["" : 17]> twice (v) => (w) { w = Add(v, v) }""",
    "loop": """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 2] x) => (float[N, 2] y) <int64 n = {3}, bool go = {1}> { y = Loop(n, go, x) <
        body = b (int64 i, bool c, float[N, 2] v) => (bool d, float[N, 2] w) { d = Identity(c) w = Add(v, v) } > }""",
}


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_make_of_model_survives_load_and_save(kind: str, external: bool, tmp_path: Path) -> None:
    proto = parser.parse_model(KINDS[kind])
    onnx.checker.check_model(proto)
    (tmp_path / "in.onnx").write_bytes(proto.SerializeToString())
    model = load(tmp_path / "in.onnx")
    assert invalid_reason(model) is None
    out, *_ = save(model, tmp_path / "out.onnx", must_be_valid=True, external=external, metadata={"k": "v"})
    onnx.checker.check_model(str(out))
    assert {p.key: p.value for p in onnx.load(out).metadata_props} == {"k": "v"}
    feeds = {"x": np.array([[1, -2], [0.5, 3]], np.float32)}
    expected = Session(tmp_path / "in.onnx").run(feeds)[0]
    np.testing.assert_array_equal(Session(out).run(feeds)[0], expected)
    assert [(v.name, v.dtype) for v in load(out).graph.inputs] == [
        (v.name, v.dtype) for v in model.graph.inputs
    ]


def test_an_invalid_model_has_a_reason(mlp_proto: onnx.ModelProto, tmp_path: Path) -> None:
    mlp_proto.graph.node[0].attribute.append(helper.make_attribute("no_such_attribute", 3))
    model = load(mlp_proto)
    reason = invalid_reason(model)
    assert reason is not None
    assert "no_such_attribute" in reason
    assert "\n" not in reason
    with pytest.raises(
        ModelError, match=r"^The result does not pass the ONNX checker, so it was not written: .*no_such"
    ):
        save(model, tmp_path / "out.onnx", must_be_valid=True)
    assert list(tmp_path.iterdir()) == []


def test_the_output_folder_must_exist_and_be_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "none" / "m.onnx"
    with pytest.raises(
        OptionError, match=r"^Output folder '.*none' does not exist\. Create it, or give another -o\.$"
    ):
        check_target(missing, (), False)
    with pytest.raises(
        OptionError, match=r"^Output '.*' is a folder\. Give a file name, such as .*model\.onnx\.$"
    ):
        check_target(tmp_path, (), True)

    def fail(**options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(model_io.tempfile, "TemporaryFile", fail)
    with pytest.raises(OptionError, match=r"^Output folder '.*' cannot be written: Read-only file system\.$"):
        check_target(tmp_path / "m.onnx", (), False)


def test_an_existing_output_needs_force(mlp_file: Path) -> None:
    with pytest.raises(
        OptionError, match=r"^Output '.*mlp\.onnx' exists\. Give another -o, or --force to replace it\.$"
    ):
        check_target(mlp_file, (), False)
    check_target(mlp_file, (), True)
    check_target(mlp_file.with_name("new.onnx"), (), False)


@pytest.mark.parametrize("make", ["same", "symlink", "hard link", "dots"])
def test_the_output_is_never_the_input(mlp_file: Path, make: str) -> None:
    target = mlp_file.with_name("alias.onnx")
    if make == "same":
        target = mlp_file
    elif make == "symlink":
        target.symlink_to(mlp_file)
    elif make == "hard link":
        os.link(mlp_file, target)
    else:
        (mlp_file.parent / "d").mkdir()
        target = mlp_file.parent / "d" / ".." / mlp_file.name
    with pytest.raises(
        OptionError, match=r"is the input\. The input is never overwritten: give another -o\.$"
    ):
        check_target(target, (mlp_file,), True)


def test_the_output_is_not_the_inputs_data(outside: Path) -> None:
    with pytest.raises(OptionError, match=r"w\.bin' is the input\."):
        check_target(outside.parent / "w.bin", files_of(outside), True)


def test_the_output_does_not_sweep_away_the_inputs_data(tmp_path: Path, wide_mlp: ir.Model) -> None:
    target, copy = tmp_path / "m.onnx", tmp_path / "copy.onnx"
    save(wide_mlp, target, external=True)
    target.rename(copy)
    with pytest.raises(
        OptionError, match=r"would replace 'm\.onnx\..*\.data', which holds the input's weights\. Give"
    ):
        check_target(target, files_of(copy), True)


def test_the_version_is_known_or_says_that_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.match(r"\d", tool_version())

    def missing(name: str) -> str:
        raise model_io.PackageNotFoundError(name)

    monkeypatch.setattr(model_io, "installed", missing)
    assert tool_version() == "0+source"


MEASURE = """
import resource, sys
from pathlib import Path
import numpy, onnxruntime, onnx_ir.passes.common
from compressor.model_io import load, save
from compressor.runtime import Session
path, peak = Path(sys.argv[1]), lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
save(load(path.with_name("small.onnx")), path.with_name("small_out.onnx"))
start = peak()
model = load(path)
loaded = peak()
save(model, path.with_name("out.onnx"), external=True)
print(loaded - start, peak() - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
def test_big_weights_are_never_copied(mlp_file: Path) -> None:
    megabytes = 192
    rows = megabytes * 2**20 // 4 // 1024
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (int64[N] i) => (float[N, 1024] y) { y = Gather(w, i) }'
    )
    proto = parser.parse_model(text)
    tensor = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[rows, 1024], data_location=TensorProto.EXTERNAL
    )
    place = {"location": "big.bin", "offset": "0", "length": str(megabytes * 2**20)}
    tensor.external_data.extend(onnx.StringStringEntryProto(key=k, value=v) for k, v in place.items())
    proto.graph.initializer.append(tensor)
    path = mlp_file.with_name("big.onnx")
    path.write_bytes(proto.SerializeToString())
    with path.with_name("big.bin").open("wb") as file:
        file.truncate(megabytes * 2**20)
    mlp_file.rename(mlp_file.with_name("small.onnx"))
    made = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    loading, saving = map(int, made.stdout.split())
    assert loading < megabytes / 4, "loading maps the file"
    assert saving < megabytes * 1.5, "saving holds the weights at most once, in onnxruntime"
