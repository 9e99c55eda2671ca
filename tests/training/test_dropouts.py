"""Dropout in front of output layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from compressor.errors import OptionError
from compressor.runtime import Session, Setup
from compressor.torch_graph import to_torch
from compressor.training.dropouts import add_dropout, output_layers
from tests.conftest import build, drawn


def model(signature: str, body: str, opset: int = 17, **weights: Any) -> ir.Model:
    text = f'<ir_version: {8 if opset > 9 else 4}, opset_import: ["" : {opset}]>\ng {signature}\n{{ {body} }}'
    return ir.from_proto(build(text, **weights))


def dropped(given: ir.Model) -> dict[str, str]:
    """What each Dropout reads -> what type of node reads the Dropout."""
    found = {}
    for node in given.graph:
        if node.op_type == "Dropout":
            found[str(node.inputs[0].name)] = next(iter(node.outputs[0].uses())).node.op_type
    return found


@pytest.mark.parametrize("opset", [9, 11, 12, 13, 22])
def test_says_the_ratio_as_the_operator_set_does_and_changes_nothing_in_inference(opset: int) -> None:
    original = model(
        "(float[N,4] x) => (float[N,3] y)", "h=Relu(x) y=Gemm(h,w,b)", opset, w=drawn(4, 3), b=drawn(3)
    )
    made = add_dropout(original, 0.25)
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    node = next(node for node in made.graph if node.op_type == "Dropout")
    assert ("ratio" in node.attributes, len(node.inputs)) == ((True, 1) if opset < 12 else (False, 2))
    x = drawn(6, 4)
    before, after = (Session(m, Setup(threads=1)).run({"x": x})[0] for m in (original, made))
    np.testing.assert_array_equal(before, after)


def test_drops_the_given_share_in_training() -> None:
    ones = model("(float[N,4] x) => (float[N,4] y)", "y=MatMul(x,w)", w=np.eye(4, dtype=np.float32))
    module = to_torch(add_dropout(ones, 0.25)).train()
    torch.manual_seed(0)
    made = module(torch.ones(2000, 4))
    assert made.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert (made == 0).float().mean().item() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 8000) ** 0.5)


def test_stands_before_the_last_layer_of_every_output() -> None:
    body = "h=Gemm(x,w) r=Relu(h) a=Gemm(r,u) y=Softmax(a) c=MatMul(r,v) d=Add(c,b) z=Sigmoid(d)"
    weights = {"w": drawn(4, 4), "u": drawn(4, 3), "v": drawn(4, 2), "b": drawn(2)}
    two = model("(float[N,4] x) => (float[N,3] y, float[N,2] z)", body, **weights)
    made = add_dropout(two, 0.5)
    assert dropped(made) == {"r": "Gemm"}
    (dropout,) = (node for node in made.graph if node.op_type == "Dropout")
    assert {use.node.op_type for use in dropout.outputs[0].uses()} == {"Gemm", "MatMul"}


def test_a_layer_that_another_follows_gives_no_output_even_when_a_way_leads_around() -> None:
    body = "h=Gemm(x,w) r=Relu(h) a=Gemm(r,u) y=Add(a,h)"
    given = model("(float[N,4] x) => (float[N,4] y)", body, w=drawn(4, 4), u=drawn(4, 4))
    assert [use.weight.name for use in output_layers(given)] == ["u"]


def test_all_branches_of_a_detector_are_output_layers() -> None:
    body = "a=Conv(x,u) b=Conv(x,v) y=Concat<axis=1>(a,b)"
    given = model("(float[N,2,3,3] x) => (float[N,6,3,3] y)", body, u=drawn(2, 2, 1, 1), v=drawn(4, 2, 1, 1))
    assert [use.weight.name for use in output_layers(given)] == ["u", "v"]


QUANTIZED = "q=QuantizeLinear(r,s,z) d=DequantizeLinear(q,s,z) k=DequantizeLinear(w,t,n) y=MatMul(d,k)"
GRIDS = {"s": np.float32(0.1), "z": np.uint8(0), "t": np.float32(0.1), "n": np.int8(0)}


def test_stands_before_the_quantizer_of_the_activation() -> None:
    given = model(
        "(float[N,4] x) => (float[N,3] y)", "r=Relu(x) " + QUANTIZED, w=np.ones((4, 3), np.int8), **GRIDS
    )
    assert dropped(add_dropout(given, 0.5)) == {"r": "QuantizeLinear"}


def test_a_quantizer_that_others_read_too_is_left_to_them() -> None:
    body = "r=Relu(x) " + QUANTIZED + " o=Neg(d)"
    given = model("(float[N,4] x) => (float[N,3] y, float[N,4] o)", body, w=np.ones((4, 3), np.int8), **GRIDS)
    assert dropped(add_dropout(given, 0.5)) == {"d": "MatMul"}


def test_refuses_a_model_without_an_output_layer() -> None:
    with pytest.raises(
        OptionError, match=r"dropout=0\.5: no output comes from a Conv, Gemm or MatMul with stored weights"
    ):
        add_dropout(model("(float[N,4] x) => (float[N,4] y)", "y=Relu(x)"), 0.5)
