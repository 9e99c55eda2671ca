"""Inputs and outputs stored as integers speak float through a Session."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser

from compressor.integer_io import store
from compressor.model_io import invalid_reason
from compressor.runtime import QUANTIZED_IO, Session

SIMPLE = """
<ir_version: 8, opset_import: ["" : 17]>
quantized (float[N, 2] x) => (float[N, 2] y)
<float s = {0.5}, %(kind)s z = {%(zero)d}, float t = {0.25}> {
  xq = QuantizeLinear(x, s, z)
  xd = DequantizeLinear(xq, s, z)
  r = Add(xd, xd)
  yq = QuantizeLinear(r, t, z)
  y = DequantizeLinear(yq, t, z)
}
"""
KINDS = {"uint8": 128, "int8": 3, "uint16": 40000, "int16": -7}


def model(text: str) -> ir.Model:
    return ir.from_proto(parser.parse_model(text))


def simple(kind: str = "uint8", version: int = 17) -> ir.Model:
    text = SIMPLE % {"kind": kind, "zero": KINDS[kind]}
    return model(text.replace('"" : 17', f'"" : {version}').replace("ir_version: 8", "ir_version: 10"))


@pytest.mark.parametrize("kind", KINDS)
def test_computes_the_same_through_a_session(kind: str) -> None:
    quantized = simple(kind, 21)
    feeds = {"x": np.array([[0.2, -1.3], [3.75, 1e9], [-1e9, 0.25]], np.float32)}
    expected = Session(quantized).run(feeds)
    stored = quantized.clone()
    assert store(stored) == ("x", "y")
    assert [str(v.dtype) for v in (stored.graph.inputs[0], stored.graph.outputs[0])] == [kind.upper()] * 2
    assert invalid_reason(stored) is None
    session = Session(stored)
    assert (session.inputs, session.outputs) == (("x",), ("y",))
    (got,) = session.run(feeds)
    np.testing.assert_array_equal(got, expected[0])
    assert got.dtype == np.float32


def test_writes_scale_and_zero_point_into_the_metadata() -> None:
    stored = simple()
    store(stored)
    assert json.loads(stored.metadata_props[QUANTIZED_IO]) == {"x": [0.5, 128], "y": [0.25, 128]}
    assert [node.op_type for node in stored.graph] == ["DequantizeLinear", "Add", "QuantizeLinear"]


def test_an_absent_zero_point_is_zero_of_uint8() -> None:
    text = SIMPLE.replace(", z)", ")").replace(", %(kind)s z = {%(zero)d}", "")
    stored = model(text)
    feeds = {"x": np.array([[0.4, 7.0]], np.float32)}
    (expected,) = Session(stored).run(feeds)
    assert store(stored) == ("x", "y")
    assert str(stored.graph.inputs[0].dtype) == "UINT8"
    np.testing.assert_array_equal(Session(stored).run(feeds)[0], expected)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        pytest.param("y = Add(x, x)", "x y", id="a float model"),
        pytest.param(
            "a = QuantizeLinear(x, s)\n b = Cast <to = 1> (a)\n y = Add(b, x)", "x y", id="input read twice"
        ),
        pytest.param(
            "a = QuantizeLinear <axis = 1> (x, c, d)\n y = Cast <to = 1> (a)", "x y", id="scale per channel"
        ),
        pytest.param(
            "m = ReduceMax <keepdims = 0> (x)\n a = QuantizeLinear(x, m)\n y = Cast <to = 1> (a)",
            "x y",
            id="computed",
        ),
        pytest.param(
            "a = Cast <to = 2> (x)\n y = DequantizeLinear(a, s)\n", "x", id="output alone becomes integer"
        ),
    ],
)
def test_leaves_as_float(body: str, left: str) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]>\ng (float[N, 2] x) => (float[N, 2] y)\n'
    stored = model(f"{text}<float s = {{0.5}}, float[2] c = {{0.5, 1}}, uint8[2] d = {{0, 0}}> {{ {body} }}")
    assert set(left.split()) == {"x", "y"} - set(store(stored))
    Session(stored)


def test_an_input_with_a_default_stays_float() -> None:
    stored = simple()
    x = stored.graph.inputs[0]
    x.const_value = ir.tensor(np.zeros((1, 2), np.float32), name="x")
    stored.graph.register_initializer(x)
    assert store(stored) == ("y",)
    Session(stored)


def test_two_outputs_of_one_integer_value_get_one_integer_output() -> None:
    text = SIMPLE % {"kind": "uint8", "zero": 128}
    twice = text.replace("float[N, 2] y)", "float[N, 2] y, float[N, 2] w)").replace(
        "y = Deq", "w = DequantizeLinear(yq, s, z)\n  y = Deq"
    )
    original = model(twice)
    feeds = {"x": np.array([[1.0, -2.0]], np.float32)}
    expected = Session(original).run(feeds)
    stored = original.clone()
    assert store(stored) == ("x", "y")
    for got, wanted in zip(Session(stored).run(feeds), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_damaged_metadata_is_named() -> None:
    from compressor.errors import ModelError

    broken = simple()
    broken.metadata_props[QUANTIZED_IO] = "[1"
    with pytest.raises(
        ModelError, match=r"^The model's metadata 'compressor\.quantized_io' is damaged: '\[1'\.$"
    ):
        Session(broken)
