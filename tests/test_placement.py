"""Which nodes and values a plan takes, seen on the plan itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from compressor.low_bit.coded_weights import rows_of, write
from compressor.low_bit.codes import Method
from compressor.low_bit.methods import encode
from compressor.placement import Plan, Selection, activation_end, plan, refusal
from compressor.pruning.prunable import weights

ONE = "(float[1,4,8,8] x) => (float[1,4,8,8] y)"
SAME = "<pads=[1,1,1,1]>"
W = np.ones((4, 4, 3, 3), np.float32)


def build(body: str, signature: str = ONE, **weights: Any) -> ir.Model:
    text = f'<ir_version: 8, opset_import: ["" : 17, "other" : 1]>\ng {signature}\n{{ {body} }}'
    proto = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    for node in model.graph:
        node.name = str(node.outputs[0].name)
    return model


def made(found: Plan) -> list[str | None]:
    return [value.name for value in found.made]


def taken(found: Plan) -> list[str | None]:
    return [value.name for value in found.taken]


def test_an_empty_selection_takes_everything_that_pays() -> None:
    found = plan(build(f"c=Conv{SAME}(x,w) d=Conv{SAME}(c,w) y=Add(c,d)", w=W), Selection())
    assert [n.name for n in found.compute] == ["c", "d"]
    assert (made(found), taken(found)) == (["c", "d", "y"], ["x"])
    assert found.observed() == ["x", "c", "d", "y"]


def test_a_withdrawn_node_is_declined_and_its_followers_go_with_it() -> None:
    model = build(f"c=Conv{SAME}(x,w) d=Sigmoid(c) y=Conv{SAME}(d,w)", w=W)
    found = plan(model, Selection(), withdrawn=["c"])
    assert [n.name for n in found.compute] == ["y"]
    assert "slower than float" in found.declined["c"]
    assert (made(found), taken(found)) == (["y"], ["d"])


def test_operators_that_move_values_share_the_grid_of_their_input() -> None:
    body = f"c=Conv{SAME}(x,w) t=Transpose<perm=[0,1,3,2]>(c) f=Slice(t,zero,eight) y=Conv{SAME}(f,w)"
    model = build(body, w=W, zero=np.int64([0, 0, 0, 0]), eight=np.int64([9, 9, 9, 9]))
    found = plan(model, Selection())
    values = {v.name: v for v in found.made}
    assert found.root(values["f"]) is values["c"]
    assert found.observed() == ["x", "c", "y"]


def test_a_reshape_that_leads_to_no_integer_kernel_stays_float() -> None:
    found = plan(build(f"c=Conv{SAME}(x,w) y=Transpose<perm=[0,1,3,2]>(c)", w=W), Selection())
    assert made(found) == ["c"]


def test_the_search_for_an_integer_kernel_ahead_is_not_exponential() -> None:
    """40 sums of a value with itself are 2^40 paths."""
    body = f"c=Conv{SAME}(x,w) t0=Transpose<perm=[0,1,3,2]>(c) "
    body += " ".join(f"t{i}=Add(t{i - 1},t{i - 1})" for i in range(1, 41))
    found = plan(build(body + " y=Tanh(t40)", w=W), Selection())
    assert made(found) == ["c"]


def test_a_sum_with_a_float_operand_stays_float() -> None:
    assert made(plan(build(f"c=Conv{SAME}(x,w) t=Tanh(x) y=Add(c,t)", w=W), Selection())) == ["c"]


def test_a_sum_with_a_float_operand_that_is_quantized_anyway_follows() -> None:
    found = plan(build(f"c=Conv{SAME}(x,w) y=Add(c,x)", w=W), Selection())
    assert made(found) == ["c", "y"]
    assert [n.name for n in found.readers[found.compute[0].inputs[0]]] == ["c", "y"]  # type: ignore[index]


def test_an_operator_of_another_domain_is_no_follower() -> None:
    found = plan(build(f"c=Conv{SAME}(x,w) d=Conv{SAME}(c,w) y=other.Add(c,d)", w=W), Selection())
    assert made(found) == ["c", "d"]


@pytest.mark.parametrize(
    ("operator", "taken_too"),
    [
        ("MaxPool<kernel_shape=[3,3],pads=[1,1,1,1]>(c)", True),
        ("AveragePool<kernel_shape=[3,3],pads=[1,1,1,1]>(c)", False),
        ("Softmax(c)", False),
        ("HardSwish(c)", False),
        ("Sigmoid(c)", True),
        ("LeakyRelu(c)", True),
        ("GlobalAveragePool(c)", True),
        ('Resize<mode="nearest">(c,,r)', True),
        ('Resize<mode="linear">(c,,r)', False),
        ("Pad(c,p)", True),
        ("Pad(c,p,one)", False),
    ],
)
def test_followers_are_those_with_a_faster_integer_kernel(operator: str, taken_too: bool) -> None:
    weights = {"w": W, "r": np.float32([1, 1, 2, 2]), "p": np.int64([0] * 6 + [1, 1]), "one": np.float32(1)}
    used = {
        k: v
        for k, v in weights.items()
        if k == "w" or k in operator[operator.index("(") :].strip("()").split(",")
    }
    found = plan(build(f"c=Conv{SAME}(x,w) t={operator} y=Conv{SAME}(t,w)", **used), Selection())
    assert ("t" in made(found)) == taken_too


def test_bounds_come_from_relu_and_clip_but_not_from_another_floor() -> None:
    limits = {"zero": np.float32(0), "six": np.float32(6), "minus": np.float32(-1)}
    body = f"a=Conv{SAME}(x,w) r=Relu(a) b=Conv{SAME}(x,w) s=Clip(b,zero,six) c=Conv{SAME}(x,w) "
    body += f"u=Clip(c,minus,six) d=Conv{SAME}(x,w) v=Clip(d,zero,minus) e=Conv{SAME}(x,w) y=Clip(e,zero)"
    model = build(
        body,
        f"(float[1,4,8,8] x) => ({', '.join(f'float[1,4,8,8] {name}' for name in 'rsuvy')})",
        w=W,
        **limits,
    )
    ends = {n.name: activation_end(n) for n in model.graph if n.op_type == "Conv"}
    assert {k: (v[0].name, v[1]) for k, v in ends.items()} == {
        "a": ("r", (0.0, float("inf"))),
        "b": ("s", (0.0, 6.0)),
        "c": ("c", None),
        "d": ("d", None),
        "e": ("y", (0.0, float("inf"))),
    }


def test_a_clip_whose_limits_are_computed_sets_no_bounds() -> None:
    model = build(f"c=Conv{SAME}(x,w) m=ReduceMax<keepdims=0>(x) y=Clip(c,zero,m)", w=W, zero=np.float32(0))
    assert activation_end(model.graph[0])[1] is None


def test_a_gemm_gets_a_quantized_output_only_for_integer_readers() -> None:
    signature = "(float[2,4] x) => (float[2,4] y, float[2,4] z)"
    weights = {"w": np.ones((4, 4), np.float32)}
    assert made(
        plan(build("a=Gemm(x,w) r=Relu(a) y=Gemm(r,w) z=Tanh(x)", signature, **weights), Selection())
    ) == ["r"]
    assert (
        made(plan(build("a=Gemm(x,w) r=Relu(a) y=Gemm(r,w) z=Tanh(r)", signature, **weights), Selection()))
        == []
    )


@pytest.mark.parametrize(
    ("body", "weights", "reason"),
    [
        ("y=Conv(x,w)", {"w": np.ones((4, 4, 3, 3), np.float64)}, "its weight is not float32"),
        ("y=Conv(x,w)", {"w": np.ones((0, 4, 3, 3), np.float32)}, "its weight is empty"),
        (
            "y=Conv(x,w)",
            {"w": np.full((4, 4, 3, 3), np.nan, np.float32)},
            "its weight or bias contains NaN or infinity",
        ),
        ("y=Conv(k,w)", {"k": np.ones((1, 4, 8, 8), np.float32), "w": W}, "its input is a constant"),
        ("y=Conv(x,x)", {}, "its second operand is not a constant"),
        (
            "v=DequantizeLinear(w,s) y=Conv(x,v)",
            {"w": np.ones((4, 4, 3, 3), np.int8), "s": np.float32(1)},
            "it is quantized already",
        ),
        ("y=MatMul(x,w)", {"w": np.ones((1, 8, 8), np.float32)}, "its weight is not a matrix"),
        ("y=MatMul(x,w)", {"w": np.ones((8, 8), np.float32)}, None),
        ("y=Conv(x,w)", {"w": W}, None),
    ],
)
def test_refusal_says_why(body: str, weights: dict[str, Any], reason: str | None) -> None:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\ng {ONE}\n{{ {body} }}')
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(proto)
    assert refusal(model.graph[-1]) == reason


def test_a_selection_says_what_it_refuses() -> None:
    node = build(f"y=Conv{SAME}(x,w)", w=W).graph[0]
    assert Selection().refuses(node) is None
    assert Selection(operators=("Gemm",)).refuses(node) == "Conv is not among ops"
    assert Selection(include=("other*",)).refuses(node) == "no include pattern fits it"
    assert Selection(exclude=("w",)).refuses(node) == "excluded"
    assert Selection(operators=("MatMul",), products=frozenset({"y"})).refuses(node) is None


def coded(model: ir.Model, block: int = 0) -> ir.Model:
    """The model with its weights as ternary codes."""
    for weight in weights(model)[0].values():
        write(model, weight, encode(rows_of(weight, block), Method("twn")), Method("twn"), block)
    return model


def test_weights_that_stand_as_codes_are_taken_and_those_quantized_by_others_are_not() -> None:
    model = coded(build(f"y=Conv{SAME}(x,w)", w=W))
    (node,) = plan(model, Selection()).compute
    assert refusal(node) is None
    decoder = node.inputs[1].producer()  # type: ignore[union-attr]
    decoder.metadata_props.clear()  # type: ignore[union-attr]
    assert refusal(node) == "it is quantized already"


def test_codes_that_no_integer_kernel_can_read_are_refused() -> None:
    (node,) = (n for n in coded(build(f"y=Conv{SAME}(x,w)", w=W), block=16).graph if n.op_type == "Conv")
    assert refusal(node) == "the codes of its weight have scales per block, which no integer kernel takes"
    matrix = np.ones((4, 4), np.float32)
    body = "a=Gather(w,i) b=MatMul(x,w) y=Add(a,b)"
    model = build(body, "(float[1,4] x, int64[1] i) => (float[1,4] y)", w=matrix)
    weight = weights(model)[0]["w"]
    coded_by_rows = encode(rows_of(weight), Method("twn"))
    (gather, matmul, _) = model.graph
    write(model, weight, coded_by_rows, Method("twn"))
    decoder = matmul.inputs[1].producer()  # type: ignore[union-attr]
    decoder.attributes.add(ir.AttrInt64("axis", 0))  # type: ignore[union-attr]
    assert gather.inputs[0] is matmul.inputs[1]
    assert refusal(matmul) == "the scales of its codes run along its inputs"
