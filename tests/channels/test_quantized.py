"""Quantized layers: scales and zero points are cut with their tensors, and zero is the zero point."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from compressor.channels import find
from tests.channels.law import assert_law, groups, plain, reasons
from tests.conftest import build, drawn

HEAD = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>'


def codes(*shape: int, seed: int = 0, dtype: str = "int8") -> np.ndarray:
    low, high = (-30, 30) if dtype == "int8" else (90, 160)
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def scales(size: int) -> np.ndarray:
    return np.linspace(0.01, 0.03, size, dtype=np.float32)


ONE = {"as_": np.float32(0.05), "az": np.uint8(120)}
"""Of activations."""


def layers(weight: str, **more: np.ndarray) -> onnx.ModelProto:
    """x -> Q -> DQ -> Conv 8 -> Relu -> Q -> DQ -> Conv 3, the weights as `weight` says."""
    text = f"""{HEAD} g (float[N, 4, 3, 3] x) => (float[N, 3, 3, 3] y) {{
      xq = QuantizeLinear(x, as_, az) xd = DequantizeLinear(xq, as_, az)
      {weight}
      bd = DequantizeLinear <axis = 0> (bq, bs)
      h = Conv(xd, wd, bd) r = Relu(h)
      rq = QuantizeLinear(r, as_, az) rd = DequantizeLinear(rq, as_, az)
      vd = DequantizeLinear <axis = 0> (vq, vs) y = Conv(rd, vd)
    }}"""
    weights = {"wq": codes(8, 4, 1, 1), "bq": codes(8).astype(np.int32), "bs": scales(8)}
    return build(text, **ONE, **{**weights, "vq": codes(3, 8, 1, 1), "vs": scales(3), **more})


WEIGHTS = {
    "per channel": (
        "wd = DequantizeLinear <axis = 0> (wq, ws, wz)",
        {"ws": scales(8), "wz": np.zeros(8, np.int8)},
    ),
    "per channel, with zero points": (
        "wd = DequantizeLinear <axis = 0> (wq, ws, wz)",
        {"ws": scales(8), "wz": codes(8, seed=3)},
    ),
    "per tensor": ("wd = DequantizeLinear(wq, ws)", {"ws": np.float32(0.02)}),
    "per tensor, one element": ("wd = DequantizeLinear(wq, ws)", {"ws": np.float32([0.02])}),
    "unsigned": (
        "wd = DequantizeLinear(wq, ws, wz)",
        {"ws": np.float32(0.02), "wz": np.uint8(120), "wq": codes(8, 4, 1, 1, dtype="uint8")},
    ),
}


@pytest.mark.parametrize(("weight", "more"), WEIGHTS.values(), ids=WEIGHTS)
def test_quantized_convolutions_are_cut_with_their_scales(weight, more):
    proto = layers(weight, **more)
    found = find(plain(proto))
    cut_along = {member.value.name for member in found.groups[0].members}
    along = {name for name in ("ws", "wz") if np.size(more.get(name, 0)) == 8}
    assert cut_along == {"wq", "bq", "bs", "vq"} | along
    assert [member.value.name for member in found.groups[0].weights("output")] == ["wq"]
    assert_law(proto)


def test_an_axis_with_a_scale_per_block_stays_and_the_other_is_cut():
    text = f"""{HEAD} g (float[N, 4] x) => (float[N, 3] y) {{
      wd = DequantizeLinear <axis = 0, block_size = 2> (wq, ws) h = MatMul(x, wd) r = Relu(h)
      vd = DequantizeLinear <axis = 0, block_size = 2> (vq, vs) k = MatMul(r, vd) s = Relu(k) y = MatMul(s, u)
    }}"""
    blocks = drawn(2, 8) / 100, drawn(4, 6) / 100
    proto = build(text, wq=codes(4, 8), ws=blocks[0], vq=codes(8, 6), vs=blocks[1], u=drawn(6, 3))
    assert groups(proto) == {"vq": 6}
    assert "one scale for a block" in reasons(proto)["wq"]
    assert_law(proto)


def test_integer_convolution_and_matrix_product():
    text = f"""{HEAD} g (uint8[N, 4, 3, 3] x) => (int32[N, 3] y) {{
      h = ConvInteger(x, w, xz, wz) f = Cast <to = 1> (h) p = GlobalAveragePool(f) e = Flatten(p) r = Relu(e)
      q = QuantizeLinear(r, s, xz) y = MatMulInteger(q, v, xz, vz)
    }}"""
    proto = build(
        text,
        w=codes(8, 4, 1, 1, dtype="uint8"),
        v=codes(8, 3, seed=2, dtype="uint8"),
        xz=np.uint8(3),
        wz=np.uint8(120),
        vz=np.uint8(121),
        s=np.float32(40),
    )
    assert groups(proto) == {"w": 8}
    assert_law(proto)


def test_a_range_taken_at_run_time_holds_zero_anyway():
    text = f"""{HEAD} g (float[N, 4] x) => (int32[N, 3] y) {{
      h = MatMul(x, w) r = Relu(h) q, s, z = DynamicQuantizeLinear(r) y = MatMulInteger(q, v, z, vz)
    }}"""
    proto = build(text, w=drawn(4, 8), v=codes(8, 3, dtype="uint8"), vz=codes(3, seed=4, dtype="uint8"))
    assert groups(proto) == {"w": 8}
    assert_law(proto)


def test_a_range_taken_at_run_time_over_masked_channels_keeps_them():
    text = f"""{HEAD} g (float[N, 4] x) => (int32[N, 3] y) {{
      h = MatMul(x, w) r = Sigmoid(h) q, s, z = DynamicQuantizeLinear(r) y = MatMulInteger(q, v, z)
    }}"""
    assert "takes its range over" in reasons(build(text, w=drawn(4, 8), v=codes(8, 3)))["w"]


def test_layers_on_integers():
    text = f"""{HEAD} g (uint8[N, 4, 3, 3] x) => (uint8[N, 3] y) {{
      h = QLinearConv(x, s, z, w, ws, wz, s, z, b) p = com.microsoft.QLinearGlobalAveragePool(h, s, z, s, z)
      e = Flatten(p) k = QLinearMatMul(e, s, z, v, vs, vz, s, z) l = com.microsoft.QLinearLeakyRelu(k, s, z, s, z)
      y = com.microsoft.QGemm(l, s, z, u, us, uz, c, s, z)
    }}"""
    proto = build(
        text,
        s=np.float32(0.05),
        z=np.uint8(120),
        w=codes(8, 4, 1, 1),
        ws=scales(8),
        wz=np.zeros(8, np.int8),
        b=codes(8).astype(np.int32),
        v=codes(8, 6, seed=2),
        vs=scales(6),
        vz=np.zeros(6, np.int8),
        u=codes(6, 3),
        us=np.float32(0.02),
        uz=np.int8(0),
        c=codes(3).astype(np.int32),
    )
    assert groups(proto) == {"w": 8, "v": 6}
    assert_law(proto)


def test_sums_and_concatenations_of_integers():
    text = f"""{HEAD} g (uint8[N, 4, 3, 3] x) => (uint8[N, 3, 3, 3] y) {{
      a = QLinearConv(x, s, z, w, ws, wz, s, z) b = QLinearConv(x, s, z, w2, ws, wz, s, z)
      c = QLinearConv(x, s, z, w3, ws, wz, s, z)
      d = com.microsoft.QLinearAdd(a, s, z, b, s, z, s, z) g2 = com.microsoft.QLinearSigmoid(c, s, z, s, z)
      f = com.microsoft.QLinearMul(d, s, z, g2, s, z, s, z)
      e = com.microsoft.QLinearConcat <axis = 1> (s, z, f, s, z, b, s, z)
      y = QLinearConv(e, s, z, v, ws, wz, s, z)
    }}"""
    proto = build(
        text,
        s=np.float32(0.05),
        z=np.uint8(120),
        w=codes(6, 4, 1, 1),
        w2=codes(6, 4, 1, 1, seed=1),
        w3=codes(6, 4, 1, 1, seed=2),
        ws=np.float32(0.02),
        wz=np.int8(0),
        v=codes(3, 12, 1, 1, seed=5),
    )
    assert groups(proto) == {"w": 6}
    assert_law(proto)


def test_products_that_quantize_their_input_themselves():
    text = f"""{HEAD} g (float[N, 4] x) => (float[N, 3] y) {{
      h = com.microsoft.DynamicQuantizeMatMul(x, w, ws, wz, b) r = Relu(h) q, s, z = DynamicQuantizeLinear(r)
      y = com.microsoft.MatMulIntegerToFloat(q, v, s, vs, z, vz)
    }}"""
    proto = build(
        text,
        w=codes(4, 8),
        ws=scales(8),
        wz=np.zeros(8, np.int8),
        b=drawn(8),
        v=codes(8, 3),
        vs=np.float32(0.02),
        vz=np.int8(0),
    )
    assert groups(proto) == {"w": 8}
    assert_law(proto)


def test_packed_weights_keep_both_sides():
    text = f"""{HEAD} g (float[N, 4] x) => (float[N, 3] y) {{
      h = MatMul(x, w) r = Relu(h)
      k = com.microsoft.MatMulNBits <K = 32, N = 32, bits = 4, block_size = 32> (r, q, s) y = MatMul(k, v)
    }}"""
    proto = build(text, w=drawn(4, 32), q=codes(32, 1, 16, dtype="uint8"), s=drawn(32), v=drawn(32, 3))
    assert groups(proto) == {}
    assert "packed weights" in reasons(proto)["w"]
