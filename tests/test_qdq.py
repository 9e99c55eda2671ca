"""Pairs in the exact form that onnxruntime fuses: grids, bounds, names, outputs, barriers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from compressor.clipping import Range
from compressor.low_bit.coded_weights import coded_weights, rows_of
from compressor.low_bit.coded_weights import write as write_codes
from compressor.low_bit.codes import Method
from compressor.low_bit.methods import encode
from compressor.placement import Selection, output_axis, plan
from compressor.pruning.prunable import weights
from compressor.qdq import Scheme, Writer, is_pooled

ONE = "(float[1,4,8,8] x) => (float[1,4,8,8] y)"
SAME = "<pads=[1,1,1,1]>"
W = np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32)
POOL = "MaxPool<kernel_shape=[3,3],pads=[1,1,1,1]>"


def build(body: str, signature: str = ONE, **weights: Any) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\ng {signature}\n{{ {body} }}')
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    for node in model.graph:
        node.name = str(node.outputs[0].name)
    return model


def write(model: ir.Model, ranges: dict[str, tuple[float, float]], **scheme: Any) -> ir.Model:
    found = plan(model, Selection())
    full = {name: Range(*ranges.get(name, (-1.0, 1.0))) for name in found.observed()}
    Writer(model, found, full, Scheme(**scheme)).write()
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


def stored(model: ir.Model, name: str) -> np.ndarray:
    value = model.graph.initializers[name].const_value
    assert value is not None
    return value.numpy()


def test_after_a_relu_the_zero_point_is_the_lowest_code() -> None:
    for kind, lowest in (("uint8", 0), ("int8", -128)):
        model = write(build(f"c=Conv{SAME}(x,w) y=Relu(c)", w=W), {"y": (0.0, 5.1)}, activations=kind)
        assert stored(model, "y_zero_point") == lowest
        assert stored(model, "y_zero_point").dtype == kind
        assert stored(model, "y_scale") == pytest.approx(0.02)


@pytest.mark.parametrize("top", [0.1, 0.3, 1.0, 3.3, 6.0, 7.7])
def test_behind_a_clip_the_highest_level_does_not_pass_the_limit(top: float) -> None:
    """Else onnxruntime keeps the Clip, and the convolution before it in float."""
    limits = {"lo": np.float32(0), "hi": np.float32(top)}
    model = write(build(f"c=Conv{SAME}(x,w) y=Clip(c,lo,hi)", w=W, **limits), {"y": (0.0, 100.0)})
    scale = stored(model, "y_scale")
    assert np.float32(255) * scale <= np.float32(top)
    assert float(scale) == pytest.approx(top / 255, rel=1e-6)


def test_a_sigmoid_uses_all_levels_for_zero_to_one() -> None:
    model = write(build(f"c=Conv{SAME}(x,w) y=Sigmoid(c)", w=W), {"y": (-3.0, 3.0)})
    assert (float(stored(model, "y_scale")), int(stored(model, "y_zero_point"))) == (
        pytest.approx(1 / 255),
        0,
    )


def test_a_value_on_another_values_grid_shares_its_constants() -> None:
    model = write(build(f"c=Conv{SAME}(x,w) t=Transpose<perm=[0,1,3,2]>(c) y=Conv{SAME}(t,w)", w=W), {})
    scales = {
        n.inputs[1].name for n in model.graph if n.op_type == "QuantizeLinear" and n.inputs[1] is not None
    }
    assert scales == {"x_scale", "c_scale", "y_scale"}


def test_one_weight_on_one_grid_is_stored_once() -> None:
    model = write(build(f"c=Conv{SAME}(x,w) y=Conv{SAME}(c,w)", w=W), {})
    assert [k for k in model.graph.initializers if k.startswith("w_quantized")] == ["w_quantized"]


def test_the_dequantized_value_is_the_output_under_its_name() -> None:
    model = write(build(f"y=Conv{SAME}(x,w)", w=W), {})
    (output,) = model.graph.outputs
    assert output.name == "y"
    assert output.producer() is not None
    assert output.producer().op_type == "DequantizeLinear"  # type: ignore[union-attr]
    assert output.dtype == ir.DataType.FLOAT


def test_names_that_are_taken_get_a_number() -> None:
    body = f"y_float=Conv{SAME}(x,w) w_quantized_dequantized=Relu(y_float) x_scale=Tanh(x) "
    body += "y=Add(w_quantized_dequantized,x_scale)"
    model = write(build(body, w=W), {})
    names = [v.name for n in model.graph for v in n.outputs] + list(model.graph.initializers)
    assert len(names) == len(set(names))
    assert "x_scale_1" in model.graph.initializers


def test_an_integer_pad_fills_with_the_zero_point() -> None:
    body = f"c=Conv{SAME}(x,w) t=Pad(c,p) y=Conv(t,w)"
    model = write(build(body, w=W, p=np.int64([0, 0, 1, 1, 0, 0, 1, 1])), {"c": (-1.0, 3.0)})
    pad = next(n for n in model.graph if n.op_type == "Pad")
    assert [v.name for v in pad.inputs if v is not None] == ["c_quantized", "p", "c_zero_point"]
    assert int(stored(model, "c_zero_point")) == 64
    assert pad.outputs[0].dtype == ir.DataType.UINT8


@pytest.mark.parametrize(("barriers", "count"), [(True, 1), (False, 0)])
def test_a_barrier_stands_between_a_float_pool_and_its_quantizer(barriers: bool, count: int) -> None:
    signature = "(float[1,4,8,8] x) => (float[1,4,8,8] y, float[1,4,8,8] p)"
    model = write(build(f"t=Tanh(x) p={POOL}(t) y=Conv{SAME}(p,w)", signature, w=W), {}, barriers=barriers)
    assert [n.op_type for n in model.graph].count("Max") == count
    assert model.graph.outputs[1].producer().op_type == "MaxPool"  # type: ignore[union-attr]


def test_pooled_values_are_known_behind_operators_that_move_them() -> None:
    body = f"t=Tanh(x) p={POOL}(t) f=Flatten(p) r=Relu(f) y=Tanh(r)"
    values = {n.op_type: n.outputs[0] for n in build(body, "(float[1,4,8,8] x) => (float[1,256] y)").graph}
    assert [is_pooled(values[k]) for k in ("MaxPool", "Flatten", "Relu", "Tanh")] == [True, True, True, False]


def test_the_output_axis_of_a_weight() -> None:
    nodes = [
        ir.node("Conv", []),
        ir.node("Gemm", [], {"transB": 1}),
        ir.node("Gemm", []),
        ir.node("MatMul", []),
    ]
    assert [output_axis(node) for node in nodes] == [0, 0, 1, 1]


def test_weights_of_one_scale_have_no_axis() -> None:
    model = write(build(f"y=Conv{SAME}(x,w)", w=W), {}, per_channel=False)
    decode = next(n for n in model.graph if n.name.startswith("w_quantized"))  # type: ignore[union-attr]
    assert "axis" not in decode.attributes
    assert stored(model, "w_scale").shape == ()


@pytest.mark.parametrize(
    ("bits", "kind", "low", "high"), [(8, "int8", -127, 127), (7, "int8", -63, 63), (8, "uint8", 1, 255)]
)
def test_weight_codes_use_their_whole_range_and_no_more(bits: int, kind: str, low: int, high: int) -> None:
    codes = stored(write(build(f"y=Conv{SAME}(x,w)", w=W), {}, bits=bits, weights=kind), "w_quantized")
    middle = 128 if kind == "uint8" else 0
    assert codes.min() >= low
    assert codes.max() <= high
    assert np.abs(codes.astype(int) - middle).reshape(4, -1).max(axis=1).tolist() == [high - middle] * 4


def test_symmetric_ranges_behind_a_clip_reach_its_ceiling() -> None:
    from compressor.placement import plan
    from compressor.qdq import Scheme, Writer

    text = '<ir_version: 8, opset_import: ["": 13]> m (float[1,1,4,4] x) => (float[1,1,4,4] y) '
    text += "<float[1,1,1,1] w = {2.0}, float lo = {0.0}, float hi = {6.0}> "
    text += "{ a = Conv(x, w) b = Clip(a, lo, hi) y = Conv(b, w) }"
    from onnx import parser

    model = ir.from_proto(parser.parse_model(text))
    from compressor.prepare import prepare

    ready = prepare(model).model
    found = plan(ready, Selection())
    ranges = {name: Range(0.0, 6.0) for name in found.observed()}
    writer = Writer(ready, found, ranges, Scheme(activations="int8", symmetric=True))
    clipped = next(v for v in found.made if v.name == "b")
    assert float(writer.grid(clipped)[2].scale) * 127 == pytest.approx(6.0, rel=1e-6)


def coded(model: ir.Model, method: Method) -> ir.Model:
    """The model with its weights as codes."""
    for weight in weights(model)[0].values():
        write_codes(model, weight, encode(rows_of(weight), method), method)
    return model


def test_codes_and_their_scale_stay_as_they_are() -> None:
    model = coded(build(f"y=Conv{SAME}(x,w,b)", w=W, b=W[:, 0, 0, 0]), Method("twn"))
    before = coded_weights(model)[0].rows()
    write(model, {})
    (found,) = coded_weights(model)
    assert np.array_equal(found.rows().codes, before.codes)
    assert np.array_equal(found.rows().scale, before.scale)
    bias = next(v for name, v in model.graph.initializers.items() if name.startswith("b_scale"))
    grid = next(v for name, v in model.graph.initializers.items() if name.startswith("x_scale"))
    product = grid.const_value.numpy() * before.scale  # type: ignore[union-attr]
    assert np.array_equal(bias.const_value.numpy(), product)  # type: ignore[union-attr]


def test_a_gemm_gets_a_zero_point_without_which_it_is_not_fused_and_one_of_a_size_serves_all() -> None:
    body = "a=Gemm(x,v) y=Gemm(a,w)"
    model = build(body, "(float[1,4] x) => (float[1,4] y)", v=W[:, :, 0, 0], w=W[:, :, 1, 1])
    write(coded(model, Method("twn")), {})
    points = {found.node.inputs[2] for found in coded_weights(model)}
    (point,) = points
    assert point is not None
    assert not point.const_value.numpy().any()  # type: ignore[union-attr]
    conv = coded(build(f"y=Conv{SAME}(x,w)", w=W), Method("twn"))
    write(conv, {})
    assert len(coded_weights(conv)[0].node.inputs) == 2


def test_codes_that_are_too_wide_for_seven_bits_are_rounded_again() -> None:
    model = coded(build(f"y=Conv{SAME}(x,w)", w=W), Method("uniform", 8))
    before = coded_weights(model)[0].decoded()
    write(model, {}, bits=7)
    assert coded_weights(model) == []
    codes = model.graph.initializers["w_quantized"].const_value.numpy()  # type: ignore[union-attr]
    scale = model.graph.initializers["w_scale_1"].const_value.numpy()  # type: ignore[union-attr]
    assert np.abs(codes).max() == 63
    np.testing.assert_allclose(codes * scale.reshape(4, 1, 1, 1), before, atol=scale.max() / 2 * 1.01)
    narrow = coded(build(f"y=Conv{SAME}(x,w)", w=W), Method("twn"))
    write(narrow, {}, bits=7)
    assert len(coded_weights(narrow)) == 1


@pytest.mark.parametrize("method", [Method("twn"), Method("uniform", 8)])
def test_a_scale_too_small_for_the_bias_is_raised(method: Method) -> None:
    tiny = W.copy()
    tiny[1] *= 2.0**-60
    model = coded(build(f"y=Conv{SAME}(x,w,b)", w=tiny, b=np.ones(4, np.float32)), method)
    codes, scale = coded_weights(model)[0].rows()
    write(model, {})
    (found,) = coded_weights(model)
    after = found.rows()
    others = [0, 2, 3]
    assert np.array_equal(after.scale[others], scale[others])
    assert np.array_equal(after.codes[others], codes[others])
    assert after.scale[1] > 2.0**-45
    assert np.array_equal(after.codes[1], codes[1] if method.name == "twn" else 0 * codes[1])
    bias = model.graph.initializers["b_quantized"].const_value.numpy()  # type: ignore[union-attr]
    step = model.graph.initializers["b_scale"].const_value.numpy()  # type: ignore[union-attr]
    assert (np.abs(bias * step.astype(np.float64) - 1) <= step * 0.51).all()


def test_a_layer_that_needs_another_scale_than_the_next_gets_codes_of_its_own() -> None:
    tiny = W.copy()
    tiny[1] *= 2.0**-60
    body = f"a=Conv{SAME}(x,w,b) y=Conv{SAME}(a,w,b)"
    model = coded(build(body, w=tiny, b=np.ones(4, np.float32)), Method("twn"))
    write(model, {})
    (left,) = coded_weights(model)
    assert [use.node.name for use in left.layers] == ["y"]
    assert "w_quantized" in model.graph.initializers
