"""Small networks to code, and samples for them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compressor.data import Samples, open_samples
from tests.conftest import build, drawn

CNN = """
<ir_version: 8, opset_import: ["" : 13]>
cnn (float[N, 3, 8, 8] x) => (float[N, 5] y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
  ar = Relu(a)
  b = Conv <pads = [1, 1, 1, 1], group = 16> (ar, wd, bd)
  br = Relu(b)
  c = Conv <pads = [1, 1, 1, 1]> (br, w2, b2)
  cr = Relu(c)
  d = Conv (cr, w3)
  dr = Relu(d)
  p = GlobalAveragePool(dr)
  f = Flatten(p)
  y = Gemm <transB = 1> (f, w4, b4)
}
"""
MLP = """
<ir_version: 8, opset_import: ["" : 13]>
mlp (float[N, 32] x) => (float[N, 40] y) {
  a = MatMul(x, w1)
  ab = Add(a, b1)
  ar = Relu(ab)
  b = Gemm <transB = 1> (ar, w2, b2)
  br = Relu(b)
  y = MatMul(br, w3)
}
"""


def cnn() -> ir.Model:
    """Conv, depthwise Conv, Conv, Conv without bias, Gemm."""
    weights = {"w1": drawn(16, 3, 3, 3) / 5, "wd": drawn(16, 1, 3, 3, seed=1) / 3}
    weights |= {"w2": drawn(24, 16, 3, 3, seed=2) / 12, "w3": drawn(24, 24, 1, 1, seed=3) / 5}
    weights |= {"w4": drawn(5, 24, seed=4), "b4": drawn(5)}
    weights |= {"b1": drawn(16) / 5, "bd": drawn(16, seed=5) / 5, "b2": drawn(24, seed=6) / 5}
    return ir.from_proto(build(CNN, **weights))


def mlp() -> ir.Model:
    """MatMul and Add, Gemm, MatMul."""
    weights = {"w1": drawn(32, 48) / 6, "b1": drawn(48), "w2": drawn(40, 48, seed=1) / 7, "b2": drawn(40)}
    return ir.from_proto(build(MLP, **weights, w3=drawn(40, 40, seed=2) / 6))


def samples(model: ir.Model, count: int = 64) -> Samples:
    """Standard normal inputs."""
    value = model.graph.inputs[0]
    shape = (count, *tuple(value.shape or ())[1:])
    array = np.random.default_rng(7).standard_normal([int(size) for size in shape]).astype(np.float32)  # type: ignore[call-overload]
    return open_samples({str(value.name): array}, model)
