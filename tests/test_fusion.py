"""Reading off the executed graph which kernels are integer ones, and which weights are unpacked at every run."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from compressor.fusion import kernels

QDQ = "q=QuantizeLinear(x,s,z) xd=DequantizeLinear(q,s,z) wd=DequantizeLinear(w,s) "
CONSTANTS = {"s": np.float32(0.02), "z": np.uint8(0)}


def build(signature: str, body: str, **weights: Any) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\ng {signature}\n{{ {body} }}')
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return ir.from_proto(proto)


def conv(body: str, weight: np.ndarray | None = None) -> ir.Model:
    given = np.ones((4, 4, 3, 3), np.int8) if weight is None else weight
    return build("(float[1,4,8,8] x) => (float[1,4,6,6] y)", body, w=given, **CONSTANTS)


def test_a_complete_pattern_is_an_integer_kernel() -> None:
    found = kernels(conv(QDQ + "c=Conv(xd,wd) cq=QuantizeLinear(c,s,z) y=DequantizeLinear(cq,s,z)"))
    assert found == (1, (), ())


def test_a_convolution_with_float_output_unpacks_its_weight_at_every_run() -> None:
    found = kernels(conv(QDQ + "y=Conv(xd,wd)"))
    assert (found.integer, len(found.floating), found.unfused) == (0, 1, ("w",))


def test_a_convolution_with_a_relu_off_zero_is_not_fused() -> None:
    body = QDQ + "c=Conv(xd,wd) r=Relu(c) cq=QuantizeLinear(r,s,k) y=DequantizeLinear(cq,s,k)"
    model = build(
        "(float[1,4,8,8] x) => (float[1,4,6,6] y)",
        body,
        w=np.ones((4, 4, 3, 3), np.int8),
        k=np.uint8(9),
        **CONSTANTS,
    )
    assert kernels(model).unfused == ("w",)


def test_a_plain_float_model_has_float_kernels_and_nothing_unfused() -> None:
    model = build(
        "(float[1,4,8,8] x) => (float[1,4,6,6] y)", "y=Conv(x,w)", w=np.ones((4, 4, 3, 3), np.float32)
    )
    found = kernels(model)
    assert (found.integer, len(found.floating), found.unfused) == (0, 1, ())


def test_a_product_that_onnxruntime_merges_with_a_sum_is_still_traced_to_its_weight() -> None:
    """MatMul + Add becomes a Gemm with a name of its own, so that node names would not tell."""
    model = build(
        "(float[N,4] x, float[N,5] r) => (float[N,5] y)",
        QDQ + "m=MatMul(xd,wd) y=Add(m,r)",
        w=np.ones((4, 5), np.int8),
        **CONSTANTS,
    )
    assert kernels(model).unfused == ("w",)
