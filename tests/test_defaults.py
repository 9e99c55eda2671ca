"""The recipe that is chosen when the user gives none."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from compressor.defaults import choose
from compressor.errors import ModelError

CNN = "(float[N,3,8,8] x) => (float[N,C,6,6] y)"


def build(signature: str, body: str, version: int = 8, **weights: Any) -> ir.Model:
    proto = onnx.parser.parse_model(
        f'<ir_version: {version}, opset_import: ["" : 13]>\ng {signature}\n{{ {body} }}'
    )
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return ir.from_proto(proto)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def test_a_convolutional_model_with_samples_gets_static_int8() -> None:
    choice = choose(build(CNN, "y=Conv(x,w)", w=ones(4, 3, 3, 3)), calibrated=True)
    assert choice == ("quantize-int8", "mostly convolutions, and calibration samples are given")


def test_a_convolutional_model_without_samples_gets_small_weights() -> None:
    choice = choose(build(CNN, "y=Conv(x,w)", w=ones(4, 3, 3, 3)), calibrated=False)
    assert choice.recipe == "quantize-weights"
    assert "no calibration samples" in choice.reason


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_model_of_matrix_products_gets_dynamic_int8(calibrated: bool) -> None:
    model = build("(float[N,4] x) => (float[N,5] y)", "y=MatMul(x,w)", w=ones(4, 5))
    assert choose(model, calibrated).recipe == "quantize-dynamic"


def test_a_weight_counts_as_often_as_it_is_used() -> None:
    """36 weights at 36 positions outweigh 1,152 weights used once; without positions they would not."""
    body = "c=Conv(x,w) f=Flatten(c) y=MatMul(f,v)"
    model = build("(float[N,1,8,8] x) => (float[N,8] y)", body, w=ones(4, 1, 3, 3), v=ones(144, 8))
    next(n for n in model.graph if n.op_type == "Conv").outputs[0].shape = ir.Shape(["N", 4, 6, 6])
    assert choose(model, calibrated=True).recipe == "quantize-int8"


def test_weights_that_an_old_file_lists_among_its_inputs_count_too() -> None:
    signature = "(float[N,3,8,8] x, float[4,3,3,3] w) => (float[N,4,6,6] y)"
    model = build(signature, "y=Conv(x,w)", version=3, w=ones(4, 3, 3, 3))
    assert choose(model, calibrated=True).recipe == "quantize-int8"


def test_a_product_of_two_activations_counts_nothing() -> None:
    body = "c=Conv(x,w) y=MatMul(c,c)"
    model = build("(float[N,3,8,8] x) => (float[N,4,6,6] y)", body, w=ones(4, 3, 3, 3))
    assert choose(model, calibrated=True).recipe == "quantize-int8"


def test_a_model_without_weights_gets_a_recipe_too() -> None:
    assert (
        choose(build("(float[N] x) => (float[N] y)", "y=Relu(x)"), calibrated=True).recipe
        == "quantize-dynamic"
    )


def test_a_quantized_model_is_refused_with_the_way_out() -> None:
    body = "q=QuantizeLinear(x,s,z) d=DequantizeLinear(q,s,z) y=Relu(d)"
    model = build("(float[N] x) => (float[N] y)", body, s=np.float32(1), z=np.uint8(0))
    with pytest.raises(
        ModelError, match=r"already quantized \(static\)\. Give the float model, or a pipeline with -p"
    ):
        choose(model, calibrated=True)
