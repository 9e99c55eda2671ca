"""Models of a few nodes, for any test: `from` fixtures `tiny_mlp` and `tiny_cnn`, new at every use."""

from __future__ import annotations

import os

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import settings
from onnx import parser

MLP = """
<ir_version: 8, opset_import: ["" : 17]>
mlp (float[N, 4] x) => (float[N, 3] y) {
  h = Gemm(x, w1, b1)
  r = Relu(h)
  y = Gemm(r, w2, b2)
}
"""
CNN = """
<ir_version: 8, opset_import: ["" : 17]>
cnn (float[N, 2, 6, 6] x) => (float[N, 3] y) {
  c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, wc, bc)
  r = Relu(c)
  p = GlobalAveragePool(r)
  f = Flatten(p)
  y = Gemm <transB = 1> (f, wg, bg)
}
"""


def build(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    """A model from ONNX text and its initializers by name."""
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in weights.items()
    )
    return proto


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def mlp_proto() -> onnx.ModelProto:
    """x[N, 4] -> Gemm 8 -> Relu -> Gemm 3."""
    return build(MLP, w1=drawn(4, 8), b1=drawn(8), w2=drawn(8, 3), b2=drawn(3))


@pytest.fixture
def tiny_mlp(mlp_proto: onnx.ModelProto) -> ir.Model:
    """x[N, 4] -> Gemm 8 -> Relu -> Gemm 3."""
    return ir.from_proto(mlp_proto)


@pytest.fixture
def wide_mlp() -> ir.Model:
    """The MLP with 100 hidden values, so that its weights are worth a file of their own."""
    return ir.from_proto(build(MLP, w1=drawn(4, 100), b1=drawn(100), w2=drawn(100, 3), b2=drawn(3)))


@pytest.fixture
def tiny_cnn() -> ir.Model:
    """x[N, 2, 6, 6] -> Conv 4 -> Relu -> GlobalAveragePool -> Gemm 3."""
    return ir.from_proto(build(CNN, wc=drawn(4, 2, 3, 3), bc=drawn(4), wg=drawn(3, 4), bg=drawn(3)))


# A merge is decided by the same examples each time; at a desk every run looks for new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
