"""Raising the operator set: proven equal, or kept with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, parser

from compressor.equivalence import difference
from compressor.graph import opset
from compressor.model_io import invalid_reason
from compressor.opset import NEWEST_IR, upgrade
from compressor.runtime import to_bytes

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def text(source: str, version: int, ir_version: int = 7, **arrays: Any) -> ir.Model:
    proto = parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {version}]> {source}')
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return ir.from_proto(proto)


NORM = "g (float[n,3,4,4] x) => (float[n,3,4,4] y) { y = BatchNormalization(x, a, b, c, d) }"
STATISTICS = {"a": floats(3), "b": floats(3), "c": floats(3), "d": np.ones(3, np.float32)}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Squeeze": ("g (float[n,1,3] x) => (float[n,3] y) { y = Squeeze<axes=[1]>(x) }", {}),
    "Softmax of a matrix": ("g (float[n,3] x) => (float[n,3] y) { y = Softmax<axis=1>(x) }", {}),
    "Softmax with its old default axis": ("g (float[n,2,3] x) => (float[n,2,3] y) { y = Softmax(x) }", {}),
    "BatchNormalization": (NORM, STATISTICS),
    "Dropout": ("g (float[n,3] x) => (float[n,3] y) { h = Dropout<ratio=0.4>(x) y = Relu(h) }", {}),
    "a weight above the converter's limit": (
        "g (float[n,40] x) => (float[n,50] y) { y = MatMul(x, w) }",
        {"w": floats(40, 50)},
    ),
}


@pytest.mark.parametrize(("start", "end"), [(7, 13), (9, 13), (11, 13), (11, 21)])
@pytest.mark.parametrize("name", MODELS)
def test_the_result_is_equal_or_the_model_is_kept(name: str, start: int, end: int) -> None:
    source, arrays = MODELS[name]
    model = text(source, start, **arrays)
    before, raw = model.clone(), to_bytes(model)
    reason = upgrade(model, end)
    if reason is None:
        assert opset(model) == end
        assert difference(before, model, None) is None
        assert invalid_reason(model) is None
        assert [v.name for v in model.graph.inputs] == ["x"]
        assert [v.name for v in model.graph.outputs] == ["y"]
    else:
        assert f"operator set {end} is needed, the model has {start}" in reason
        assert to_bytes(model) == raw


@pytest.mark.parametrize(
    "name", ["Squeeze", "Dropout", "BatchNormalization", "a weight above the converter's limit"]
)
def test_a_common_model_does_convert(name: str) -> None:
    source, arrays = MODELS[name]
    assert upgrade(text(source, 9, **arrays), 13) is None


def test_upsample_converts_or_is_kept() -> None:
    source = 'g (float[1,2,3,3] x) => (float[1,2,6,6] y) { y = Upsample<mode="nearest">(x, s) }'
    model = text(source, 9, s=np.array([1, 1, 2, 2], np.float32))
    before = model.clone()
    assert upgrade(model, 13) or difference(before, model, None) is None


@pytest.mark.parametrize("now", [13, 17])
def test_nothing_is_done_when_the_operator_set_suffices(now: int) -> None:
    model = text("g (float[n] x) => (float[n] y) { y = Relu(x) }", now)
    raw = to_bytes(model)
    assert upgrade(model, 13) is None
    assert to_bytes(model) == raw


def test_weights_keep_their_values_and_their_place() -> None:
    weight = floats(40, 50)
    model = text(MODELS["a weight above the converter's limit"][0], 11, w=weight)
    assert upgrade(model, 13) is None
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    assert np.array_equal(tensor.numpy(), weight)


def test_initializers_that_are_inputs_stay_initializers() -> None:
    source = "g (float[n,40] x, float[40,50] w) => (float[n,50] y) { y = MatMul(x, w) }"
    model = text(source, 9, ir_version=3, w=floats(40, 50))
    before = model.clone()
    assert upgrade(model, 13) is None
    assert "w" in model.graph.initializers
    assert difference(before, model, None) is None


@pytest.mark.parametrize("version", [13, 18, 21, 23])
def test_the_ir_version_fits_the_operator_set(version: int) -> None:
    model = text("g (float[n] x) => (float[n] y) { y = Relu(x) }", 11)
    assert upgrade(model, version) is None
    least = helper.find_min_ir_version_for([helper.make_opsetid("", version)])
    assert least <= model.ir_version <= NEWEST_IR


def test_metadata_survives() -> None:
    model = text("g (float[n] x) => (float[n] y) { y = Relu(x) }", 11)
    model.metadata_props["labels"] = "cat,dog"
    assert upgrade(model, 13) is None
    assert model.metadata_props["labels"] == "cat,dog"


def test_functions_still_run_or_the_model_is_kept() -> None:
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 11, "local" : 1]>
        g (float[n,1,3] x) => (float[n,3] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 11]> f (a) => (b) { b = Squeeze<axes=[1]>(a) }"""
    )
    model = ir.from_proto(proto)
    before = model.clone()
    reason = upgrade(model, 13)
    assert reason is not None or difference(before, model, None) is None


def test_a_conversion_that_changes_the_result_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
        made = onnx.ModelProto()
        made.CopyFrom(proto)
        made.opset_import[0].version = version
        made.graph.node[0].op_type = "Neg"
        return made

    monkeypatch.setattr("onnx.version_converter.convert_version", wrong)
    model = text("g (float[n] x) => (float[n] y) { y = Relu(x) }", 11)
    raw = to_bytes(model)
    reason = upgrade(model, 13)
    assert reason is not None
    assert (
        "operator set 13 is needed, the model has 11, and onnx's converter changes it: output 'y'" in reason
    )
    assert to_bytes(model) == raw


@pytest.mark.parametrize("error", [RuntimeError, ValueError, IndexError])
def test_a_model_that_cannot_be_converted_is_kept(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def refuse(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
        raise error("no adapter\nfor Thing")

    monkeypatch.setattr("onnx.version_converter.convert_version", refuse)
    model = text("g (float[n] x) => (float[n] y) { y = Relu(x) }", 11)
    raw = to_bytes(model)
    expected = "operator set 13 is needed, the model has 11, and onnx cannot convert it: no adapter for Thing"
    assert upgrade(model, 13) == expected
    assert to_bytes(model) == raw
