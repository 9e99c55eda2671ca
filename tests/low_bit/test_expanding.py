"""Stored weights come back as plain codes, whatever they were stored as."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest

from compressor import Context
from compressor.graph import constant
from compressor.low_bit.coded_weights import KEY, coded_weights
from compressor.low_bit.codes import Method
from compressor.low_bit.expanding import expand
from compressor.low_bit.kernel_form import LAYER, matrix
from compressor.low_bit.kernel_form import store as store_for_kernel
from compressor.low_bit.storage import store
from compressor.packing import Inserter, drop_unread, names_of
from compressor.prepare import infer_shapes
from compressor.runtime import Session, Setup, to_bytes
from tests.conftest import build, drawn
from tests.low_bit.test_storage import HEADER, METHODS, assert_same_codes, coded, net, outputs, quantized

PRODUCTS = (
    HEADER
    + """(float[2, 192] x) => (float[2, 48] y, float[2, 48] z) {
  h = Gemm <transB = %d> (x, w, b)
  y = Relu(h)
  m = MatMul(x, v)
  z = Add(m, b)
}"""
)


def products(method: Method, block: int, turned: bool) -> ir.Model:
    """Two matrix products with coded weights, one with a bias of its own."""
    w = drawn(*((48, 192) if turned else (192, 48)))
    model = ir.from_proto(build(PRODUCTS % turned, w=w, v=drawn(192, 48, seed=1), b=drawn(48)))
    return coded(model, method, block)


def for_kernel(model: ir.Model) -> ir.Model:
    """The model with its weights inside MatMulNBits, whatever is faster."""
    stored, names = model.clone(), names_of(model)
    for weight in coded_weights(stored):
        data = matrix(weight)
        assert not isinstance(data, str)
        store_for_kernel(Inserter(stored, stored.graph, weight.node, names), weight, data)
    drop_unread(stored)
    return stored


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("block", [0, 16, 32, 64])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_kernel_with_codes_of_its_own_becomes_the_same_layer_again(
    method: Method, block: int, turned: bool
) -> None:
    model = products(method, block, turned)
    stored = for_kernel(model)
    assert [node.op_type for node in stored.graph if node.op_type in ("MatMulNBits", "Gemm", "MatMul")] == [
        *("MatMulNBits", "MatMulNBits")
    ]
    assert expand(stored)
    assert_same_codes(stored, model)
    assert [(n.op_type, n.name) for n in stored.graph if n.op_type in ("Gemm", "MatMul", "Add")] == [
        (n.op_type, n.name) for n in model.graph if n.op_type in ("Gemm", "MatMul", "Add")
    ]
    assert np.array_equal(outputs(stored, optimize=False)[0], outputs(model, optimize=False)[0])


def test_a_kernel_multiplies_by_the_same_weights() -> None:
    model = products(Method("uniform", 4), 0, True)
    exact, rounded = (outputs(m, optimize=False) for m in (model, for_kernel(model)))
    # activations are rounded to 1/254 of the largest of a block; 192 of these errors add up like a random walk
    scale = np.abs(drawn(2, 192)).max() / 254 * np.abs(coded_weights(model)[0].decoded()).max() * np.sqrt(192)
    for a, b in zip(exact, rounded, strict=True):
        assert np.abs(a - b).max() < 4 * scale
        assert np.abs(a - b).max() > 0


def test_a_weight_that_two_layers_share_stays_one() -> None:
    text = HEADER + "(float[2, 64] x) => (float[2, 64] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, w) }"
    model = ir.from_proto(build(text, w=drawn(64, 64)))
    infer_shapes(model)
    coded(model, Method("twn"))
    stored = for_kernel(model)
    expand(stored)
    assert_same_codes(stored, model)
    assert len(coded_weights(stored)[0].layers) == 2


@pytest.mark.parametrize(
    ("method", "block", "reason"),
    [
        (Method("twn"), 96, "its blocks have 96 inputs; the kernel takes 16, 32, 64, 128, 256"),
        (Method("twn"), 20, "its last block is filled up"),
    ],
)
def test_says_why_a_weight_does_not_fit_the_kernel(method: Method, block: int, reason: str) -> None:
    text = HEADER + "(float[2, 192] x) => (float[2, 8] y) { y = MatMul(x, w) }".replace(
        "192", "191" if block == 20 else "192"
    )
    model = coded(ir.from_proto(build(text, w=drawn(191 if block == 20 else 192, 8))), method, block)
    assert matrix(coded_weights(model)[0]) == reason


def test_a_convolution_has_no_such_kernel() -> None:
    found = {weight.name: matrix(weight) for weight in coded_weights(net(Method("twn")))}
    assert found["w1"] == found["w2"] == "only matrix products have that kernel"
    assert not isinstance(found["w3"], str)


def test_what_was_expanded_is_stored_in_as_little_room_again() -> None:
    once = net(Method("residual", 2))
    store(once, Context())
    twice = once.clone()
    expand(twice)
    store(twice, Context(original=once))
    assert len(to_bytes(twice)) <= 1.01 * len(to_bytes(once))  # short names are taken, so new ones are longer
    assert np.array_equal(outputs(once)[0], outputs(twice)[0])


def test_the_scale_of_a_bias_is_a_constant_again() -> None:
    model = quantized()
    wanted = constant(model.graph.initializers["bias_scale"])
    store(model, Context())
    decoder = next(
        node
        for node in model.graph
        if node.op_type == "DequantizeLinear" and node.inputs[0].dtype == ir.DataType.INT32
    )
    assert decoder.inputs[1].producer().op_type == "Mul"
    expand(model)
    assert constant(decoder.inputs[1]).tobytes() == wanted.tobytes()
    assert not [node for node in model.graph if node.op_type in ("Mul", "Gather", "Split", "Range")]


def test_a_body_with_a_coded_weight_is_unpacked_there() -> None:
    text = (
        HEADER
        + """(bool c, float[2, 64] x) => (float[2, 64] y) {
      y = If (c) <then_branch = t () => (float[2, 64] p) { p = MatMul(x, w) },
                  else_branch = e () => (float[2, 64] q) { q = MatMul(x, v) }>
    }"""
    )
    model = coded(ir.from_proto(build(text, w=drawn(64, 64), v=drawn(64, 64, seed=1))), Method("optimal"))
    canonical = model.clone()
    store(model, Context())
    feeds = {"c": np.array(True), "x": drawn(2, 64)}
    wanted = drawn(2, 64) @ coded_weights(canonical)[0].decoded()
    assert np.allclose(
        Session(model, Setup(threads=1)).run(feeds)[0], wanted, atol=1e-5
    )  # 64 products of about 1
    expand(model)
    assert_same_codes(model, canonical)


def test_a_multiplication_of_the_users_own_is_no_coded_weight() -> None:
    text = (
        HEADER
        + "(float[2, 64] x) => (float[2, 64] y) { f = Cast <to = 1> (c) w = Mul(f, s) y = MatMul(x, w) }"
    )
    model = ir.from_proto(build(text, c=np.ones((64, 64), np.int8), s=np.ones(64, np.float32)))
    before = to_bytes(model)
    assert not expand(model)
    assert to_bytes(model) == before


@pytest.mark.parametrize(
    ("operator", "said"),
    [("Mul", "y: codes without a scale"), ("MatMulNBits", "its bias is gone")],
)
def test_a_damaged_file_is_refused(operator: str, said: str) -> None:
    model = for_kernel(products(Method("twn"), 0, True)) if operator == "MatMulNBits" else None
    if model is None:
        text = HEADER + "(float[2, 64] x) => (float[2, 64] y) { y = Mul(x, s) }"
        model = ir.from_proto(build(text, s=np.ones(64, np.float32)))
        model.graph[0].metadata_props[KEY] = "twn"
    else:
        kernel = next(node for node in model.graph if LAYER in node.metadata_props)
        kernel.metadata_props[LAYER] = json.dumps({**json.loads(kernel.metadata_props[LAYER]), "bias": True})
        kernel.outputs[0].uses()[0].node.op_type = "Sub"
    with pytest.raises(ValueError, match=said):
        expand(model)
