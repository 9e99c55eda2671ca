"""Coded weights are packed without a loss, next to kernels that take them, in little room."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor import Context, Pipeline
from compressor.graph import constant
from compressor.low_bit import storage
from compressor.low_bit.coded_weights import KEY, coded_weights, rows_of, write
from compressor.low_bit.codes import Method
from compressor.low_bit.expanding import expand
from compressor.low_bit.methods import encode
from compressor.low_bit.storage import store
from compressor.pipeline import Change, Pass
from compressor.pruning.prunable import weights
from compressor.runtime import Session, Setup, optimized_graph, to_bytes
from tests.conftest import build, drawn

METHODS = tuple(
    Method.parse(text)
    for text in (
        "twn",
        "optimal",
        "ttq",
        "xnor",
        "residual 2",
        "residual 3",
        "uniform 3",
        "uniform 4",
        "uniform 8",
    )
)
TERNARY = Method("twn")
HEADER = '<ir_version: 8, opset_import: ["" : 13]> g '
NET = (
    HEADER
    + """(float[N, 6, 8, 8] x) => (float[N, 5] y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
  r = Relu(a)
  t = ConvTranspose <strides = [2, 2]> (r, w2)
  p = GlobalAveragePool(t)
  f = Flatten(p)
  g = Gemm <transB = 1> (f, w3, b3)
  h = Relu(g)
  y = MatMul(h, w4)
}"""
)
QUANTIZED = (
    HEADER
    + """(float[N, 8, 6, 6] x) => (float[N, 8, 6, 6] y) {
  q = QuantizeLinear(x, s, z)
  d = DequantizeLinear(q, s, z)
  b = DequantizeLinear <axis = 0> (bias, bias_scale)
  c = Conv <pads = [1, 1, 1, 1]> (d, w, b)
  r = Relu(c)
  q1 = QuantizeLinear(r, s, z1)
  y = DequantizeLinear(q1, s, z1)
}"""
)


def coded(model: ir.Model, method: Method, block: int = 0) -> ir.Model:
    """The model with every weight as codes."""
    for weight in weights(model)[0].values():
        write(model, weight, encode(rows_of(weight, block), method), method, block)
    return model


def net(method: Method, block: int = 0) -> ir.Model:
    """Convolution, transposed convolution, Gemm and MatMul, each with a coded weight."""
    arrays = {"w1": drawn(24, 6, 3, 3), "w2": drawn(24, 20, 2, 2), "w3": drawn(60, 20), "w4": drawn(60, 5)}
    biases = {"b1": drawn(24), "b3": drawn(60)}
    return coded(ir.from_proto(build(NET, **arrays, **biases)), method, block)


def quantized(method: Method = TERNARY, step: float = 0.05) -> ir.Model:
    """A convolution of int8 kernels: quantized input, codes, int32 bias on the product of the scales."""
    given = {"s": np.float32(step).reshape(()), "z": np.uint8(128).reshape(()), "z1": np.uint8(0).reshape(())}
    bias = {"bias": np.arange(8, dtype=np.int32), "bias_scale": np.ones(8, np.float32)}
    model = coded(ir.from_proto(build(QUANTIZED, w=drawn(8, 8, 3, 3), **given, **bias)), method)
    scale = model.graph.initializers["bias_scale"]
    scale.const_value = ir.tensor(coded_weights(model)[0].rows().scale * np.float32(step), name=scale.name)
    return model


def floats(model: ir.Model) -> ir.Model:
    """The model with what the codes stand for as float constants."""
    plain = model.clone()
    for weight in coded_weights(plain):
        array = weight.decoded()
        value = ir.Value(
            name=f"{weight.name}_float", const_value=ir.tensor(array), shape=ir.Shape(array.shape)
        )
        value.const_value.name, value.type = value.name, ir.TensorType(ir.DataType.FLOAT)
        plain.graph.register_initializer(value)
        weight.value.replace_all_uses_with(value)
    return plain


def outputs(model: ir.Model, optimize: bool = True) -> list[np.ndarray]:
    shapes = {value.name: value.shape for value in model.graph.inputs}
    feeds = {
        name: drawn(*(size if isinstance(size, int) else 2 for size in shape))
        for name, shape in shapes.items()
    }
    return Session(model, Setup(threads=1, optimize=optimize)).run(feeds)


def assert_same_codes(model: ir.Model, other: ir.Model) -> None:
    """The same coded weights in the same form: names, codes, scales to the bit, axes, methods."""
    found, wanted = ({weight.name: weight for weight in coded_weights(m)} for m in (model, other))
    assert found.keys() == wanted.keys() != set()
    for name, weight in wanted.items():
        assert np.array_equal(constant(found[name].codes), constant(weight.codes))
        assert constant(found[name].scale).tobytes() == constant(weight.scale).tobytes()
        assert (found[name].axis, found[name].method) == (weight.axis, weight.method)
        assert np.array_equal(found[name].decoded(), weight.decoded())


@pytest.mark.parametrize("block", [0, 16, 32])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_stored_model_computes_what_its_codes_stand_for_to_the_bit(method: Method, block: int) -> None:
    model = net(method, block)
    reference = outputs(floats(model))
    before, canonical = len(to_bytes(model)), model.clone()
    change = store(model, Context())
    onnx.checker.check_model(ir.to_proto(model))
    assert set(change.touched) == {"w1", "w2", "w3", "w4"}
    if not block and method.bits < 8:
        assert len(to_bytes(model)) < 0.95 * before
    assert np.array_equal(outputs(model)[0], reference[0])
    assert expand(model)
    assert_same_codes(model, canonical)


@settings(max_examples=25, deadline=None)
@given(
    method=st.sampled_from(METHODS),
    shape=st.tuples(st.integers(1, 30), st.integers(1, 90)),
    turned=st.booleans(),
    block=st.sampled_from((0, 16, 64)),
    seed=st.integers(0, 2**31),
)
def test_storing_and_expanding_any_shape_is_the_identity(
    method: Method, shape: tuple[int, int], turned: bool, block: int, seed: int
) -> None:
    rows, inputs = shape
    text = f"(float[N, {inputs}] x) => (float[N, {rows}] y) {{ y = Gemm <transB = {int(turned)}> (x, w) }}"
    array = drawn(*(shape if turned else shape[::-1]), seed=seed) * np.float32(10.0 ** (seed % 9 - 4))
    model = coded(ir.from_proto(build(HEADER + text, w=array)), method, block)
    canonical = model.clone()
    store(model, Context())
    expand(model)
    assert_same_codes(model, canonical)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_codes_that_meet_quantized_values_run_on_int8_kernels(method: Method) -> None:
    model = quantized(method)
    reference, canonical = outputs(model), model.clone()
    change = store(model, Context())
    assert change.figures["weights for int8 kernels"] == 1
    executed = Counter(node.op_type for node in optimized_graph(model).graph)
    assert executed["QLinearConv"] == 1
    assert not executed.keys() & {"Gather", "Split", "Mul", "Conv"}
    assert np.array_equal(outputs(model)[0], reference[0])
    expand(model)
    assert_same_codes(model, canonical)


def test_codes_that_no_integer_kernel_takes_are_not_decoded_at_every_run() -> None:
    model = quantized()
    conv = next(node for node in model.graph if node.op_type == "Conv")
    model.graph.outputs[0] = conv.outputs[0]  # float output: onnxruntime does not fuse the convolution
    conv.outputs[0].type, conv.outputs[0].shape = (
        ir.TensorType(ir.DataType.FLOAT),
        model.graph.inputs[0].shape,
    )
    change = store(model, Context())
    assert change.figures["weights for float kernels"] == 1
    assert "does not fuse" in change.declined["w"]
    decoded = [
        n
        for n in optimized_graph(model).graph
        if n.op_type == "DequantizeLinear" and n.inputs[0].dtype == ir.DataType.INT8
    ]
    assert not decoded


def test_nothing_is_done_to_a_model_without_coded_weights(tiny_mlp: ir.Model) -> None:
    before = to_bytes(tiny_mlp)
    assert store(tiny_mlp, Context()) == Change()
    assert not expand(tiny_mlp)
    assert to_bytes(tiny_mlp) == before


def test_blobs_of_more_codes_than_onnxruntime_folds_are_parted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_LARGEST", 3000)
    model = net(Method("xnor"))
    canonical = model.clone()
    store(model, Context())
    packed = [v for v in model.graph.initializers.values() if v.dtype == ir.DataType.UINT8]
    assert len(packed) > 1
    expand(model)
    assert_same_codes(model, canonical)


def test_weights_that_are_nearly_all_zeros_are_left_to_sparse_storage() -> None:
    text = "(float[N, 200] x) => (float[N, 200] y) { y = MatMul(x, w) }"
    array = np.where(np.random.default_rng(0).random((200, 200)) > 0.995, drawn(200, 200), np.float32(0))
    model = coded(ir.from_proto(build(HEADER + text, w=array)), Method("ttq"))
    alone = model.clone()
    store(alone, Context())
    store(model, Context(), sparse=True)
    assert any(v.dtype == ir.DataType.UINT8 for v in alone.graph.initializers.values())
    assert not any(v.dtype == ir.DataType.UINT8 for v in model.graph.initializers.values())


class Keeps(Pass):
    """Changes nothing, and remembers what it got."""

    name = "keeps"
    prepared = False

    def apply(self, model: ir.Model, context: Context) -> Change:
        assert_same_codes(model, net(Method("ttq")))
        return Change()


def test_a_pipeline_unpacks_before_its_passes_and_packs_after_them() -> None:
    first = net(Method("ttq"))
    once = Pipeline(Keeps()).run(first, Context())
    twice = Pipeline(Keeps()).run(once.model, Context())
    assert [change.recipe for change in once.changes] == ["keeps", "low-bit storage"]
    assert not coded_weights(once.model)
    assert len(to_bytes(once.model)) < 0.75 * len(to_bytes(first))
    assert len(to_bytes(twice.model)) <= len(to_bytes(once.model)) + 100
    assert np.array_equal(outputs(once.model)[0], outputs(twice.model)[0])
    assert_same_codes(first, net(Method("ttq")))


def test_every_stored_weight_carries_its_method() -> None:
    model = net(Method("uniform", 3))
    store(model, Context())
    assert [node.metadata_props[KEY] for node in model.graph if KEY in node.metadata_props] == [
        "uniform 3"
    ] * 4
