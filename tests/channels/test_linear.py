"""Gemm and MatMul in all their forms."""

from __future__ import annotations

import numpy as np
import pytest

from tests.channels.law import assert_law, groups, reasons
from tests.conftest import build, drawn

HEAD = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'


def graph(inputs: str, outputs: str, body: str, **weights: np.ndarray):
    return build(f"{HEAD} g ({inputs}) => ({outputs}) {{ {body} }}", **weights)


BIASES = {
    "none": ("", {}),
    "1-D": (", b", {"b": drawn(6)}),
    "2-D": (", b", {"b": drawn(1, 6)}),
    "scalar zero": (", b", {"b": np.zeros((), np.float32)}),
    "scalar": (", b", {"b": np.ones((), np.float32)}),
    "one element": (", b", {"b": np.ones((1, 1), np.float32)}),
}


@pytest.mark.parametrize(("bias", "weights"), BIASES.values(), ids=BIASES)
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_hidden_channels_are_cut_with_any_bias(bias, weights, transposed):
    w = drawn(6, 4) if transposed else drawn(4, 6)
    proto = graph(
        "float[N, 4] x",
        "float[N, 3] y",
        f"h = Gemm <transB = {transposed}, alpha = 0.5, beta = 2.0> (x, w{bias}) r = Relu(h) y = MatMul(r, v)",
        w=w,
        v=drawn(6, 3),
        **weights,
    )
    assert groups(proto) == {"w": 6}
    assert_law(proto)


def test_gemm_with_the_weight_on_the_left():
    proto = graph(
        "float[4, 5] x",
        "float[3, 5] y",
        "h = Gemm <transA = 1> (w, x) r = Relu(h) y = Gemm(v, r)",
        w=drawn(4, 6),
        v=drawn(3, 6),
    )
    assert groups(proto) == {"w": 6}
    assert_law(proto)


@pytest.mark.parametrize(
    ("body", "shapes"),
    [
        ("h = MatMul(x, w) r = Relu(h) y = MatMul(r, v)", ((4, 6), (6, 4))),
        ("h = MatMul(w, x) r = Relu(h) y = MatMul(v, r)", ((6, 5), (5, 6))),
        ("h = MatMul(x, w) a = Add(h, b) r = Relu(a) y = MatMul(r, v)", ((4, 6), (6, 4))),
        ("h = MatMul(x, w) r = Relu(h) y = MatMul(r, v)", ((2, 4, 6), (2, 6, 4))),
    ],
    ids=["right", "left", "bias behind", "a matrix per batch"],
)
def test_matmul_weights_on_either_side(body, shapes):
    weights = {"w": drawn(*shapes[0]), "v": drawn(*shapes[1])}
    if "b)" in body:
        weights["b"] = drawn(6)
    proto = graph("float[N, 2, 5, 4] x", "float[N, 2, 5, 4] y", body, **weights)
    assert groups(proto)["w"] == 6
    assert_law(proto)


def test_a_vector_weight_consumes_channels():
    proto = graph(
        "float[N, 4] x",
        "float[N] y",
        "h = MatMul(x, w) r = Relu(h) y = MatMul(r, v)",
        w=drawn(4, 6),
        v=drawn(6),
    )
    assert groups(proto) == {"w": 6}
    assert_law(proto)


def test_two_activations_meet_where_one_is_zero():
    proto = graph(
        "float[N, 5, 4] x",
        "float[N, 5, 5] y",
        "q = MatMul(x, w) k = MatMul(x, v) s = Sigmoid(k) t = Transpose <perm = [0, 2, 1]> (s) y = MatMul(q, t)",
        w=drawn(4, 6),
        v=drawn(4, 6),
    )
    assert groups(proto) == {"w": 6}
    assert_law(proto)


def test_two_activations_meet_where_neither_is_zero_and_stay():
    proto = graph(
        "float[N, 5, 4] x",
        "float[N, 5, 5] y",
        "q = MatMul(x, w) o = Sigmoid(q) k = MatMul(x, v) s = Sigmoid(k)"
        "t = Transpose <perm = [0, 2, 1]> (s) y = MatMul(o, t)",
        w=drawn(4, 6),
        v=drawn(4, 6),
    )
    assert "not zero when masked" in reasons(proto)["w"]


@pytest.mark.parametrize("chain", ["Transpose(v)", "Transpose(DequantizeLinear(q, s, z))"])
def test_a_weight_behind_a_chain_consumes_channels(chain):
    weights = {"v": drawn(3, 6)}
    body = "t = Transpose(v)"
    if "Dequantize" in chain:
        weights = {"q": np.arange(18, dtype=np.int8).reshape(3, 6), "s": np.float32([0.1]), "z": np.int8([0])}
        body = "d = DequantizeLinear(q, s, z) t = Transpose(d)"
    proto = graph(
        "float[N, 4] x",
        "float[N, 3] y",
        f"{body} h = MatMul(x, w) r = Relu(h) y = MatMul(r, t)",
        w=drawn(4, 6),
        **weights,
    )
    assert groups(proto) == {"w": 6}
    assert_law(proto)


def test_fused_forms_are_cut_like_what_they_fuse():
    proto = graph(
        "float[N, 4] x",
        "float[N, 3] y",
        'g = com.microsoft.FusedGemm <activation = "Relu", transB = 1> (x, w, b)'
        "m = com.microsoft.FusedMatMul <transB = 1, alpha = 0.5> (g, v) f = com.microsoft.BiasGelu(m, c)"
        "y = MatMul(f, u)",
        **{"w": drawn(6, 4), "b": drawn(6), "v": drawn(8, 6), "c": drawn(8), "u": drawn(8, 3)},
    )
    assert groups(proto) == {"w": 6, "v": 8}
    assert_law(proto)
