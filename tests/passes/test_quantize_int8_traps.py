"""Known ways to make an int8 model that is wrong, does not load, or is slower than float; one test each."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from compressor.data import open_samples
from compressor.observers import observer
from compressor.pipeline import Change, Context, Pipeline
from compressor.runtime import Session, Setup, optimized_graph
from passes.quantize_int8 import QuantizeInt8

Arrays = dict[str, NDArray[Any]]
FLOOR = 25.0
"""dB: 256 levels over 8 standard deviations leave 41, eight such roundings in a row 32."""
ONE = "(float[N,4,8,8] x) => (float[N,4,8,8] y)"
SAME = "<pads=[1,1,1,1]>"
POOLS = {
    "MaxPool": "MaxPool<kernel_shape=[3,3],pads=[1,1,1,1]>",
    "AveragePool": "AveragePool<kernel_shape=[3,3],pads=[1,1,1,1]>",
    "Softmax": "Softmax<axis=1>",
}


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng([seed, *shape])
    return (rng.standard_normal(shape) * scale).astype(np.float32)


W1 = {"w": normal(4, 4, 3, 3, scale=0.2), "b": normal(4)}
W2 = {"w2": normal(4, 4, 3, 3, scale=0.2, seed=2), "b2": normal(4, seed=2)}
IMAGES = {"x": normal(16, 4, 8, 8)}


def build(
    signature: str, body: str, opset: int = 17, version: int = 8, tail: str = "", **weights: Any
) -> ir.Model:
    imports = f'"" : {opset}' + (', "here" : 1' if tail else "")
    text = f"<ir_version: {version}, opset_import: [{imports}]>\ng {signature}\n{{ {body} }}{tail}"
    proto = onnx.parser.parse_model(text)
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return ir.from_proto(proto)


class Outcome(NamedTuple):
    model: ir.Model
    change: Change
    executed: list[ir.Node]
    expected: list[NDArray[Any]]
    got: list[NDArray[Any]]

    def kernels(self) -> Counter[str]:
        return Counter(node.op_type for node in self.executed)


def quantize(model: ir.Model, arrays: Arrays, **options: Any) -> Outcome:
    samples = open_samples(arrays, model)
    result = Pipeline(QuantizeInt8(**options)).run(model, Context(calibration=samples, threads=1))
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)
    feeds = next(iter(samples.batches(64))).feeds
    expected = Session(model, Setup(threads=1)).run(feeds)
    got = Session(result.model, Setup(threads=1)).run(feeds)
    return Outcome(result.model, result.changes[-1], list(optimized_graph(result.model).graph), expected, got)


def sqnr(expected: NDArray[Any], got: NDArray[Any]) -> float:
    """Signal to quantization noise, in dB."""
    noise = float(np.sum((expected.astype(np.float64) - got) ** 2))
    return 10 * float(np.log10((np.sum(expected.astype(np.float64) ** 2) + 1e-30) / (noise + 1e-30)))


def array(value: ir.Value | None) -> NDArray[Any]:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def producer(value: ir.Value | None) -> ir.Node:
    assert value is not None
    node = value.producer()
    assert node is not None
    return node


@pytest.mark.parametrize("seed", range(8))
def test_a_bias_scale_is_exactly_the_float32_product_of_the_other_two(seed: int) -> None:
    """onnxruntime fuses a Gemm with any other bias scale too, and computes something else without a word."""
    rng = np.random.default_rng(seed)
    weights = {"w": normal(12, 7, scale=float(rng.uniform(0.001, 9)), seed=seed), "b": normal(7, seed=seed)}
    convolution = {"k": normal(3, 4, 3, 3, scale=float(rng.uniform(0.001, 9)), seed=seed), "d": normal(3)}
    body = "a=Gemm(x,w,b) y=Relu(a) z=Conv(m,k,d)"
    model = build(
        "(float[N,12] x, float[N,4,8,8] m) => (float[N,7] y, float[N,3,6,6] z)",
        body,
        **weights,
        **convolution,
    )
    data = {
        "x": normal(16, 12, scale=float(rng.uniform(0.01, 9))),
        "m": normal(16, 4, 8, 8, scale=float(rng.uniform(0.01, 9))),
    }
    got = quantize(model, data)
    checked = 0
    for node in got.model.graph:
        if node.op_type in ("Gemm", "Conv"):
            step, scale, bias = (array(producer(v).inputs[1]) for v in node.inputs)
            np.testing.assert_array_equal(bias, np.float32(step) * scale)
            checked += 1
    assert checked == 2
    assert min(sqnr(a, b) for a, b in zip(got.expected, got.got, strict=True)) > FLOOR


def test_scales_and_zero_points_of_activations_are_scalars() -> None:
    """Of shape [1] they make Add, Mul and AveragePool fail to load."""
    body = f"c=Conv{SAME}(x,w,b) d=Conv{SAME}(x,w2,b2) s=Sigmoid(d) m=Mul(c,s) y=Add(m,c)"
    got = quantize(build(ONE, body, **W1, **W2), IMAGES)
    pairs = [n for n in got.model.graph if n.op_type == "QuantizeLinear"]
    assert len(pairs) == 6
    assert {array(value).shape for n in pairs for value in n.inputs[1:]} == {()}


@pytest.mark.parametrize(("opset", "version"), [(7, 3), (9, 4), (10, 5), (12, 7)])
def test_an_old_model_is_raised_to_the_operator_set_that_per_axis_needs(opset: int, version: int) -> None:
    clip = "y=Clip<min=0.0,max=6.0>(c)" if opset < 11 else "y=Clip(c,lo,hi)"
    limits = {} if opset < 11 else {"lo": np.float32(0), "hi": np.float32(6)}
    got = quantize(build(ONE, f"c=Conv{SAME}(x,w,b) {clip}", opset, max(version, 4), **W1, **limits), IMAGES)
    assert 13 <= got.model.graph.opset_imports[""] <= 26
    assert got.model.ir_version <= 13
    assert got.kernels()["QLinearConv"] == 1
    assert got.kernels()["Clip"] == 0
    assert sqnr(got.expected[0], got.got[0]) > FLOOR


def test_the_newest_operator_set_is_kept() -> None:
    got = quantize(build(ONE, f"y=Conv{SAME}(x,w,b)", opset=26, version=13, **W1), IMAGES)
    assert (got.model.graph.opset_imports[""], got.model.ir_version) == (26, 13)
    assert got.kernels()["QLinearConv"] == 1


def in_constant_nodes() -> ir.Model:
    model = build(ONE, f"y=Conv{SAME}(x,w,b)", **W1)
    for name in ("w", "b"):
        value = model.graph.initializers.pop(name)
        node = ir.node("Constant", [], {"value": value.const_value})
        model.graph.insert_before(model.graph[0], node)
        ir.convenience.replace_all_uses_with(value, node.outputs[0])
    return model


def in_a_function() -> ir.Model:
    tail = f'\n<domain: "here", opset_import: ["" : 17]>\nLayer (a, k, d) => (r) {{ c=Conv{SAME}(a,k,d) r=Relu(c) }}'
    return build(ONE, "y=here.Layer(x,w,b)", tail=tail, **W1)


def among_the_inputs() -> ir.Model:
    signature = "(float[N,4,8,8] x, float[4,4,3,3] w, float[4] b) => (float[N,4,8,8] y)"
    return build(signature, f"y=Conv{SAME}(x,w,b)", 8, 3, **W1)


@pytest.mark.parametrize("make", [in_constant_nodes, in_a_function, among_the_inputs])
def test_weights_are_found_wherever_they_are_stored(make: Any) -> None:
    got = quantize(make(), IMAGES)
    assert got.kernels()["QLinearConv"] == 1
    assert sqnr(got.expected[0], got.got[0]) > FLOOR


def test_the_attention_mask_stays_float() -> None:
    """-10000 in a value that is rounded to 256 levels leaves one level for all scores."""
    body = "q=MatMul(x,wq) k=MatMul(x,wk) v=MatMul(x,wv) t=Transpose<perm=[0,2,1]>(k) s=MatMul(q,t) "
    body += "u=Unsqueeze(mask,one) o=Sub(unit,u) f=Mul(o,far) a=Add(s,f) p=Softmax(a) z=MatMul(p,v) y=MatMul(z,wo)"
    weights = {k: normal(16, 16, scale=0.3, seed=i) for i, k in enumerate(("wq", "wk", "wv", "wo"))}
    weights |= {"unit": np.float32(1), "far": np.float32(-10000), "one": np.int64([1])}
    model = build("(float[N,6,16] x, float[N,6] mask) => (float[N,6,16] y)", body, **weights)
    mask = (np.arange(6) < np.arange(1, 9)[:, None]).astype(np.float32)
    got = quantize(model, {"x": normal(8, 6, 16), "mask": mask})
    watched = [array(n.inputs[1]) * 255 for n in got.model.graph if n.op_type == "QuantizeLinear"]
    assert len(got.change.touched) == 4
    assert max(watched) < 100
    assert sqnr(got.expected[0], got.got[0]) > FLOOR


def test_channels_of_very_different_size_keep_their_precision() -> None:
    """Folded batch normalization scales channels by 1 to 1000; one scale for all leaves the small ones no levels."""
    spread = W1["w"] * np.float32([1000, 10, 1, 0.1]).reshape(4, 1, 1, 1)
    body = f"c=Conv{SAME}(x,w) n=Mul(c,k) y=Relu(n)"
    signature = "(float[N,4,8,8] x) => (float[N,4,8,8] y)"
    inverse = np.float32([0.001, 0.1, 1, 10]).reshape(4, 1, 1)
    got = quantize(build(signature, body, w=spread, k=inverse), IMAGES)
    (node,) = (n for n in got.model.graph if n.op_type == "Conv")
    codes = array(producer(node.inputs[1]).inputs[0]).reshape(4, -1)
    assert np.abs(codes).max(axis=1).tolist() == [127] * 4
    assert sqnr(got.expected[0], got.got[0]) > FLOOR
    wide = quantize(build(ONE, f"y=Conv{SAME}(x,w)", w=spread), IMAGES, granularity="tensor")
    codes = array(wide.model.graph.initializers["w_quantized"]).reshape(4, -1)
    assert np.abs(codes).max(axis=1).tolist()[2:] == [0, 0]


def test_entropy_is_not_minmax_under_another_name() -> None:
    """With 128 bins for 256 levels nothing diverges and the whole range is kept; a far outlier must be cut off."""
    values = np.concatenate([normal(1, 100_000)[0], np.float32([40, -40])]).reshape(1, -1)
    found = {}
    for method in ("minmax", "entropy"):
        watcher = observer(method)
        for part in np.array_split(values[0], 40):
            watcher.observe(part.reshape(1, -1))
        found[method] = watcher.range()
    assert found["minmax"].high == 40
    assert found["entropy"].high < 30


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize(
    "before", ["t=Tanh(x)", f"t=Conv{SAME}(x,w,b)", "t=Neg(x)"], ids=["float", "conv", "neg"]
)
def test_pooling_and_softmax_run_in_the_form_that_is_fast(name: str, before: str) -> None:
    """onnxruntime moves QuantizeLinear through them; in uint8 they take 3 (AveragePool) to 15 times (MaxPool)."""
    weights = W1 | W2 if "Conv" in before else W2
    got = quantize(build(ONE, f"{before} p={POOLS[name]}(t) y=Conv{SAME}(p,w2,b2)", **weights), IMAGES)
    kernels = got.kernels()
    assert kernels["QLinearAveragePool"] + kernels["QLinearSoftmax"] == 0
    assert kernels["Conv"] == 0
    for node in got.executed:
        if node.op_type == "MaxPool":
            source = node.inputs[0]
            assert source is not None
            assert source.producer() is None or producer(source).op_type != "QuantizeLinear"
    assert sqnr(got.expected[0], got.got[0]) > FLOOR


def test_operators_without_integer_kernel_say_so() -> None:
    signature = "(float[N,4,8,8] x) => (float[N,4,10,10] y)"
    got = quantize(build(signature, f"c=Conv{SAME}(x,w,b) y=ConvTranspose(c,w2)", w2=W2["w2"], **W1), IMAGES)
    assert "onnxruntime has no integer kernel for it" in got.change.declined.values()
    assert (got.kernels()["QLinearConv"], got.kernels()["ConvTranspose"]) == (1, 1)


def test_an_lstm_points_to_the_pass_that_has_a_kernel() -> None:
    body = "t=Transpose<perm=[1,0,2]>(x) o,h,c=LSTM<hidden_size=4>(t,w,r) y=Squeeze(h,zero)"
    weights = {"w": normal(1, 16, 8), "r": normal(1, 16, 4), "zero": np.int64([0])}
    got = quantize(build("(float[N,6,8] x) => (float[N,4] y)", body, **weights), {"x": normal(8, 6, 8)})
    assert any("quantize-dynamic has" in reason for reason in got.change.declined.values())


@pytest.mark.parametrize("scale", [1e-6, 1e-12, 1e-20])
@pytest.mark.parametrize("operator", ["Conv", "Gemm"])
def test_a_bias_too_large_for_int32_at_a_tiny_input_scale_is_right(operator: str, scale: float) -> None:
    """b / (s_x s_w) passes 2^31 where x is tiny; the weight scale is raised until it does not."""
    if operator == "Conv":
        model, shape = build(ONE, f"y=Conv{SAME}(x,w,b)", **W1 | {"b": W1["b"] * 1000}), (16, 4, 8, 8)
    else:
        weights = {"w": normal(12, 7), "b": normal(7, scale=1000.0)}
        model, shape = build("(float[N,12] x) => (float[N,7] y)", "y=Gemm(x,w,b)", **weights), (16, 12)
    got = quantize(model, {"x": normal(*shape, scale=scale)})
    assert got.kernels()["QLinearConv"] + got.kernels()["QGemm"] == 1
    assert sqnr(got.expected[0], got.got[0]) > FLOOR


def test_a_value_that_is_always_zero_gives_the_bias() -> None:
    got = quantize(
        build(ONE, f"c=Conv{SAME}(x,w,b) r=Relu(c) y=Conv{SAME}(r,w2,b2)", **W1, **W2), {"x": 0 * IMAGES["x"]}
    )
    assert got.kernels()["QLinearConv"] == 2
    assert sqnr(got.expected[0], got.got[0]) > FLOOR


def test_weights_of_zeros_give_the_bias() -> None:
    got = quantize(build(ONE, f"y=Conv{SAME}(x,w,b)", w=0 * W1["w"], b=W1["b"]), IMAGES)
    assert sqnr(got.expected[0], got.got[0]) > FLOOR


def test_an_activation_below_zero_everywhere_keeps_zero_on_its_grid() -> None:
    """Padding inserts zeros, so that zero must be a level although it never occurs."""
    got = quantize(build(ONE, f"a=Abs(x) u=Neg(a) y=Conv{SAME}(u,w,b)", **W1), IMAGES)
    assert array(got.model.graph.initializers["u_zero_point"]) == 255
    assert sqnr(got.expected[0], got.got[0]) > FLOOR


def test_a_relu_that_cuts_everything_gives_the_bias_of_the_next_layer() -> None:
    weights = {**W1, **W2, "b": np.full(4, -100, np.float32)}
    got = quantize(build(ONE, f"c=Conv{SAME}(x,w,b) r=Relu(c) y=Conv{SAME}(r,w2,b2)", **weights), IMAGES)
    np.testing.assert_allclose(got.got[0][0, :, 0, 0], W2["b2"], atol=np.ptp(W2["b2"]) / 255)


def test_the_zero_point_after_a_relu_is_the_floor_that_lets_it_fuse() -> None:
    for body in ("y=Relu(c)", "y=Clip(c,lo,hi)"):
        limits = {"lo": np.float32(0), "hi": np.float32(6)} if "Clip" in body else {}
        got = quantize(build(ONE, f"c=Conv{SAME}(x,w,b) {body}", **W1, **limits), {"x": 10 * IMAGES["x"]})
        values = got.model.graph.initializers
        zero = next(array(v) for k, v in values.items() if k == "y_zero_point")
        scale = next(array(v) for k, v in values.items() if k == "y_scale")
        assert zero == 0
        assert not limits or np.float32(255) * scale <= 6
        assert got.kernels()["Relu"] + got.kernels()["Clip"] == 0
