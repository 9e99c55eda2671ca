"""Questions about a model, and the edits that every pass needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from compressor import graph, summary
from compressor.runtime import Session

BRANCHES = """
<ir_version: 8, opset_import: ["" : 17]>
branches (float[N, 2] x, bool c) => (float[N, 2] y)
<float[2, 2] outer = {1, 0, 0, 1}> {
  h = MatMul(x, outer)
  y = If(c) <
    then_branch = t () => (float[N, 2] a) <float[2] inner = {0, 1}> { k = Constant <value = float[2] {1, 2}> ()
      m = Add(h, inner)
      a = Add(m, k) },
    else_branch = e () => (float[N, 2] b) { b = Identity(h) }
  >
}
"""


def model(text: str) -> ir.Model:
    return ir.from_proto(parser.parse_model(text))


def one(body: str, header: str = "float[2, 2] x", weights: str = "", version: int = 17) -> ir.Model:
    """A model around one line of ONNX text; its output is y."""
    return model(
        f'<ir_version: 8, opset_import: ["" : {version}]> g ({header}) => (float[] y) <{weights}> {{ {body} }}'
    )


def test_reads_the_operator_set_under_both_spellings(tiny_mlp: ir.Model) -> None:
    assert graph.opset(tiny_mlp) == 17
    version = tiny_mlp.graph.opset_imports.pop("")
    assert graph.opset(tiny_mlp) == 1
    tiny_mlp.graph.opset_imports["ai.onnx"] = version
    assert graph.opset(tiny_mlp) == 17


def test_walks_into_branches() -> None:
    assert Counter(node.op_type for node in graph.nodes(model(BRANCHES))) == {
        "MatMul": 1,
        "If": 1,
        "Constant": 1,
        "Add": 2,
        "Identity": 1,
    }


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("value = float[2] {1, 2}", [1.0, 2.0]),
        ("value_float = 1.5", 1.5),
        ("value_floats = [1.5, 2.0]", [1.5, 2.0]),
        ("value_int = 7", 7),
        ("value_ints = [7, 8]", [7, 8]),
        ("value = float[0] {}", []),
    ],
)
def test_reads_every_form_of_constant_node(attribute: str, expected: object) -> None:
    value = one(f"k = Constant <{attribute}> () y = Add(x, k)").graph[0].outputs[0]
    np.testing.assert_array_equal(graph.constant(value), np.asarray(expected))
    assert graph.is_constant(value)


def test_what_is_not_constant(tiny_mlp: ir.Model) -> None:
    x, w1 = tiny_mlp.graph.inputs[0], tiny_mlp.graph.initializers["w1"]
    assert graph.constant(None) is None
    assert not graph.is_constant(None)
    assert graph.constant(x) is None
    assert graph.constant(tiny_mlp.graph[0].outputs[0]) is None
    assert graph.is_constant(w1)
    tiny_mlp.graph.inputs.append(w1)
    assert not graph.is_constant(w1), "a caller can override an initializer that is an input"
    assert graph.constant(w1) is not None


def test_reads_attributes_with_their_defaults(tiny_cnn: ir.Model) -> None:
    conv, gemm = tiny_cnn.graph[0], tiny_cnn.graph[4]
    assert graph.attribute(conv, "group", 1) == 1
    assert graph.attribute(gemm, "transB", 0) == 1
    assert graph.integers(conv, "pads") == (1, 1, 1, 1)
    assert graph.integers(conv, "strides") is None


def test_rank_is_known_or_none(tiny_cnn: ir.Model) -> None:
    assert graph.rank(tiny_cnn.graph.inputs[0]) == 4
    assert graph.rank(None) is None
    assert graph.rank(tiny_cnn.graph[0].outputs[0]) is None


def test_a_sole_consumer_reads_once_and_alone() -> None:
    found = one("a = Relu(x) b = Relu(a) c = Add(b, b) y = Add(a, c)")
    a, b, c, y = (node.outputs[0] for node in found.graph)
    assert graph.sole_consumer(a) is None, "two nodes read it"
    assert graph.sole_consumer(b) is None, "one node reads it twice"
    assert graph.sole_consumer(c) is found.graph[3]
    assert graph.sole_consumer(y) is None, "an output of the model"
    branches = model(BRANCHES)
    assert graph.sole_consumer(branches.graph[0].outputs[0]) is None, "both branches read it"


@pytest.mark.parametrize("taken", ["x", "y", "outer", "h", "inner", "m", "k"])
def test_a_new_initializer_takes_no_name_that_is_in_use(taken: str) -> None:
    found = model(BRANCHES)
    for expected in (f"{taken}_1", f"{taken}_2"):
        value = graph.new_initializer(found.graph, taken, np.ones((2, 2), np.float32))
        assert value.name == expected
        assert value is found.graph.initializers[expected]
    Session(found)


def test_a_new_initializer_has_type_and_shape(tiny_mlp: ir.Model) -> None:
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    value = graph.new_initializer(tiny_mlp.graph, "new", turned)
    assert (value.name, value.dtype, list(value.shape or ())) == ("new", ir.DataType.FLOAT, [3, 2])
    np.testing.assert_array_equal(graph.constant(value), turned)
    four = graph.new_initializer(tiny_mlp.graph, "four", np.array([[-8, 7, 1]], np.int8), ir.DataType.INT4)
    assert (four.dtype, list(four.shape or ())) == (ir.DataType.INT4, [1, 3])
    scalar = graph.new_initializer(tiny_mlp.graph, "scalar", np.float32(2))
    assert list(scalar.shape or ()) == []
    empty = graph.new_initializer(tiny_mlp.graph, "empty", np.empty((0, 4), np.float32))
    assert list(empty.shape or ()) == [0, 4]


def test_remove_dead_drops_what_nothing_reads(tiny_mlp: ir.Model) -> None:
    extra = ir.node("Relu", [tiny_mlp.graph.inputs[0]])
    tiny_mlp.graph.append(extra)
    graph.new_initializer(tiny_mlp.graph, "unread", np.ones(3, np.float32))
    graph.remove_dead(tiny_mlp)
    assert [node.op_type for node in tiny_mlp.graph] == ["Gemm", "Relu", "Gemm"]
    assert set(tiny_mlp.graph.initializers) == {"w1", "b1", "w2", "b2"}


def test_counts_operators_parameters_and_macs(tiny_mlp: ir.Model, tiny_cnn: ir.Model) -> None:
    tiny_mlp.graph.initializers["b1"].const_value = ir.tensor(np.zeros(8, np.float32), name="b1")
    found = summary.summarize(tiny_mlp)
    assert found.operators == {"Gemm": 2, "Relu": 1}
    assert found.parameters == 4 * 8 + 8 + 8 * 3 + 3
    assert found.nonzero == found.parameters - 8
    assert found.quantized == "none"
    assert found.macs is None, "shapes of inner values are unknown"
    shaped = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(tiny_mlp)))
    assert summary.macs(shaped) == 4 * 8 + 8 * 3
    shaped = ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(tiny_cnn)))
    assert summary.macs(shaped) == 4 * 36 * 2 * 9 + 4 * 3


@pytest.mark.parametrize(
    ("body", "header", "weights", "expected"),
    [
        ("y = ConvTranspose(x, w)", "float[1, 2, 4, 4] x", "float[2, 3, 2, 2] w", 2 * 16 * 3 * 4),
        ("y = Conv <group = 2> (x, w)", "float[5, 2, 4, 4] x", "float[2, 1, 1, 1] w", 2 * 16),
        ("y = MatMul(x, w)", "float[5, 3, 4] x", "float[4, 6] w", 3 * 6 * 4),
        ("y = MatMul(x, w)", "float[4] x", "float[4] w", 4),
        ("y = Gemm <transB = 1> (x, w)", "float[5, 4] x", "float[6, 4] w", 6 * 4),
    ],
)
def test_macs_are_for_one_sample(body: str, header: str, weights: str, expected: int) -> None:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({header}, {weights}) => (y) {{ {body} }}'
    assert (
        summary.macs(ir.from_proto(onnx.shape_inference.infer_shapes(parser.parse_model(text)))) == expected
    )


def test_a_shared_weight_counts_once() -> None:
    tied = one("a = MatMul(x, w) y = MatMul(a, w)", weights="float[2, 2] w = {1, 0, 2, 3}")
    assert [v.name for v in summary.weight_values(tied)] == ["w"]
    assert (summary.summarize(tied).parameters, summary.summarize(tied).nonzero) == (4, 3)


def test_finds_weights_in_branches_and_constant_nodes() -> None:
    assert {v.name for v in summary.weight_values(model(BRANCHES))} == {"outer", "inner", "k"}


@pytest.mark.parametrize(
    "kind", [ir.DataType.BFLOAT16, ir.DataType.FLOAT16, ir.DataType.INT4, ir.DataType.INT2]
)
def test_counts_elements_of_every_weight_type(tiny_mlp: ir.Model, kind: ir.DataType) -> None:
    value = tiny_mlp.graph.initializers["w1"]
    array = np.array([[0, 1, 1, 0, 1]]).astype(kind.numpy())
    value.const_value = ir.tensor(array, dtype=kind, name="w1")
    found = summary.summarize(tiny_mlp)
    assert found.parameters == 5 + 8 + 24 + 3
    assert found.nonzero == 3 + 8 + 24 + 3


@pytest.mark.parametrize(
    ("operators", "kind"),
    [
        ((), "none"),
        (("Conv",), "none"),
        (("QuantizeLinear", "DequantizeLinear"), "static"),
        (("QLinearConv",), "static"),
        (("DynamicQuantizeLinear", "MatMulInteger"), "dynamic"),
        (("DequantizeLinear",), "weights"),
        (("MatMulNBits",), "weights"),
    ],
)
def test_tells_the_kind_of_quantization(operators: tuple[str, ...], kind: str) -> None:
    assert summary.quantization_of(Counter(operators)) == kind


def test_patterns_match_any_of_the_names() -> None:
    fits: Callable[..., bool] = graph.matches
    assert fits(("conv1", None), ("conv*",))
    assert not fits(("conv1", None), ("Conv*",))
    assert not fits((None,), ("*",))
    assert not fits(("a",), ())
