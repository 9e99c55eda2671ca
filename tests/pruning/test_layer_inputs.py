"""Layers as matrix products: unfolded inputs times weights are what onnxruntime computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compressor import open_samples
from compressor.errors import ModelError
from compressor.pruning.layer_inputs import grams, refusal, source, square_norms, unfolded
from compressor.runtime import Session, Setup
from tests.conftest import build, drawn

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\nm '
CONVOLUTIONS = {
    "defaults": ((2, 3, 7, 6), (4, 3, 3, 3), ""),
    "1 x 1": ((2, 3, 5, 5), (4, 3, 1, 1), ""),
    "uneven pads": ((2, 3, 7, 6), (4, 3, 3, 2), "pads=[1,0,2,1]"),
    "strides": ((2, 3, 9, 8), (4, 3, 3, 3), "strides=[2,3] pads=[1,1,1,1]"),
    "dilations": ((2, 3, 9, 8), (4, 3, 3, 2), "dilations=[2,3]"),
    "groups": ((2, 6, 5, 5), (4, 3, 3, 3), "group=2 pads=[1,1,1,1]"),
    "depthwise": ((2, 4, 5, 5), (8, 1, 3, 3), "group=4"),
    "SAME_UPPER": ((1, 2, 7, 8), (3, 2, 4, 3), 'auto_pad="SAME_UPPER" strides=[2,2]'),
    "SAME_LOWER": ((1, 2, 7, 8), (3, 2, 4, 3), 'auto_pad="SAME_LOWER" strides=[2,3]'),
    "SAME with a stride beyond the kernel": (
        (1, 2, 7, 8),
        (3, 2, 1, 1),
        'auto_pad="SAME_UPPER" strides=[3,3]',
    ),
    "VALID": ((1, 2, 7, 8), (3, 2, 3, 3), 'auto_pad="VALID" strides=[2,1]'),
    "one axis": ((2, 3, 9), (4, 3, 3), "pads=[2,1] strides=[2]"),
    "three axes": ((1, 2, 4, 5, 4), (3, 2, 2, 3, 2), "pads=[0,1,0,1,1,0]"),
}
TRANSPOSED = {
    "defaults": ((2, 3, 4, 5), (3, 4, 3, 3), ""),
    "strides": ((2, 3, 4, 5), (3, 4, 3, 3), "strides=[2,3]"),
    "pads": ((2, 3, 4, 5), (3, 4, 4, 3), "strides=[2,2] pads=[1,0,2,1]"),
    "pads beyond the kernel": ((1, 2, 6, 6), (2, 3, 1, 1), "strides=[2,2] pads=[1,1,2,1]"),
    "output padding": ((1, 2, 4, 4), (2, 3, 3, 3), "strides=[2,2] pads=[1,1,1,1] output_padding=[1,1]"),
    "dilations": ((1, 2, 4, 4), (2, 3, 3, 2), "dilations=[2,3] strides=[2,1]"),
    "groups": ((1, 4, 4, 4), (4, 3, 3, 3), "group=2 strides=[2,2]"),
    "SAME_UPPER": ((1, 2, 4, 5), (2, 3, 4, 3), 'auto_pad="SAME_UPPER" strides=[2,2]'),
    "SAME_LOWER": ((1, 2, 4, 5), (2, 3, 4, 4), 'auto_pad="SAME_LOWER" strides=[3,1]'),
    "VALID": ((1, 2, 4, 5), (2, 3, 4, 3), 'auto_pad="VALID" strides=[2,2]'),
    "output shape": ((1, 2, 4, 5), (2, 3, 4, 3), "output_shape=[8,10] strides=[2,2]"),
    "one axis": ((1, 2, 6), (2, 3, 3), "strides=[2] pads=[1,0]"),
}


def layer(operator: str, shape: tuple[int, ...], weight: tuple[int, ...], options: str) -> ir.Model:
    dims = ",".join(map(str, shape))
    listed = options.replace(" ", ",")
    attributes = f"<{listed}>" if listed else ""
    text = f"{HEAD}(float[{dims}] x) => (float y) {{ y = {operator}{attributes}(x, w) }}"
    model = ir.from_proto(build(text, w=drawn(*weight, seed=1)))
    model.graph.outputs[0].shape = None
    return model


def computed(model: ir.Model, x: np.ndarray) -> np.ndarray:
    return Session(model, Setup(threads=1)).run({"x": x})[0]


def channels_last(y: np.ndarray) -> np.ndarray:
    """[N, M, *size] as [rows, M]."""
    return np.moveaxis(y, 1, -1).reshape(-1, y.shape[1])


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_unfolded_times_weights_is_the_convolution(case: str) -> None:
    shape, weight, options = CONVOLUTIONS[case]
    model, x = layer("Conv", shape, weight, options), drawn(*shape)
    rows = unfolded(model.graph[0], x)
    matrices = drawn(*weight, seed=1).reshape(len(rows), -1, rows.shape[2])
    got = np.concatenate(list(rows @ matrices.transpose(0, 2, 1)), axis=1)
    np.testing.assert_allclose(got, channels_last(computed(model, x)), atol=1e-5)


@pytest.mark.parametrize("case", TRANSPOSED)
def test_unfolded_times_weights_is_the_transposed_convolution(case: str) -> None:
    shape, weight, options = TRANSPOSED[case]
    model, x = layer("ConvTranspose", shape, weight, options), drawn(*shape)
    rows = unfolded(model.graph[0], x)
    groups = len(rows)
    grouped = drawn(*weight, seed=1).reshape(groups, shape[1] // groups, weight[1], -1)
    matrices = grouped.transpose(0, 1, 3, 2).reshape(groups, rows.shape[2], weight[1])
    got = np.concatenate(list(rows @ matrices), axis=1)
    np.testing.assert_allclose(got, channels_last(computed(model, x)), atol=1e-5)


@pytest.mark.parametrize(
    ("text", "shape", "weight", "transposed"),
    [
        ("y = Gemm(x, w)", (5, 4), (4, 3), False),
        ("y = Gemm<transB=1>(x, w)", (5, 4), (3, 4), True),
        ("y = Gemm<transA=1>(x, w)", (4, 5), (4, 3), False),
        ("y = MatMul(x, w)", (2, 5, 4), (4, 3), False),
        ("y = MatMul(x, w)", (4,), (4, 3), False),
    ],
)
def test_rows_times_the_matrix_are_the_product(
    text: str, shape: tuple[int, ...], weight: tuple[int, ...], transposed: bool
) -> None:
    dims = ",".join(map(str, shape))
    w, x = drawn(*weight, seed=1), drawn(*shape)
    model = ir.from_proto(build(f"{HEAD}(float[{dims}] x) => (float y) {{ {text} }}", w=w))
    model.graph.outputs[0].shape = None
    got = unfolded(model.graph[0], x)[0] @ (w.T if transposed else w)
    np.testing.assert_allclose(got, computed(model, x).reshape(got.shape), atol=1e-5)


def test_a_weight_on_the_left_multiplies_columns() -> None:
    w, x = drawn(3, 4, seed=1), drawn(2, 4, 5)
    model = ir.from_proto(build(f"{HEAD}(float[2,4,5] x) => (float[2,3,5] y) {{ y = MatMul(w, x) }}", w=w))
    assert source(model.graph[0]).name == "x"  # type: ignore[union-attr]
    got = unfolded(model.graph[0], x)[0] @ w.T
    np.testing.assert_allclose(got, computed(model, x).swapaxes(1, 2).reshape(-1, 3), atol=1e-5)


def test_drawn_rows_are_rows_of_all_and_the_same_each_time() -> None:
    model, x = layer("Conv", (2, 3, 7, 6), (4, 3, 3, 3), ""), drawn(2, 3, 7, 6)
    every, some = unfolded(model.graph[0], x)[0], unfolded(model.graph[0], x, 9)[0]
    assert some.shape == (9, 27)
    assert {row.tobytes() for row in some} <= {row.tobytes() for row in every}
    assert np.array_equal(some, unfolded(model.graph[0], x, 9)[0])


def test_grams_are_sums_of_products_of_what_each_layer_reads(tiny_mlp: ir.Model) -> None:
    samples = open_samples({"x": drawn(40, 4)}, tiny_mlp)
    first, _, second = tiny_mlp.graph
    found = grams(tiny_mlp, [first, second], samples, 1)
    w, b = (tiny_mlp.graph.initializers[name].const_value.numpy() for name in ("w1", "b1"))  # type: ignore[union-attr]
    hidden = np.maximum(drawn(40, 4) @ w + b, 0)
    np.testing.assert_allclose(found[second].products[0], hidden.T @ hidden, rtol=1e-4, atol=1e-4)
    assert found[first].rows == found[second].rows == 40
    means = square_norms(tiny_mlp, [second], samples, 1)[second]
    np.testing.assert_allclose(means[0], np.square(hidden).mean(axis=0), rtol=1e-4, atol=1e-5)


def test_a_long_calibration_is_read_only_as_far_as_it_settles_the_sums(tiny_cnn: ir.Model) -> None:
    samples = open_samples({"x": drawn(1000, 2, 6, 6)}, tiny_cnn)
    found = grams(tiny_cnn, [tiny_cnn.graph[0]], samples, 1)[tiny_cnn.graph[0]]
    assert 8192 <= found.rows < 1000 * 36


def test_refuses_values_that_are_not_finite_by_name(tiny_mlp: ir.Model) -> None:
    tiny_mlp.graph.initializers["w1"].const_value = ir.tensor(np.full((4, 8), 3e38, np.float32))
    samples = open_samples({"x": np.full((2, 4), 9, np.float32)}, tiny_mlp)
    with pytest.raises(ModelError, match="'r' becomes NaN or infinite on the samples"):
        grams(tiny_mlp, [tiny_mlp.graph[2]], samples, 1)


def test_refuses_an_operator_without_weights_by_name(tiny_mlp: ir.Model) -> None:
    relu = tiny_mlp.graph[1]
    with pytest.raises(ModelError, match="Relu does not multiply rows by a weight"):
        unfolded(relu, drawn(2, 8))
    assert "does not multiply rows" in str(refusal(tiny_mlp, relu, 0))


def test_says_why_rows_cannot_be_had() -> None:
    text = f"{HEAD}(float[6,2,3] x) => (float[6,1,2,4] y) {{ y, h, c = LSTM<hidden_size=4>(x, w, r) }}"
    model = ir.from_proto(build(text, w=drawn(1, 16, 3), r=drawn(1, 16, 4)))
    lstm = model.graph[0]
    assert refusal(model, lstm, 1) is None
    assert "its own state" in str(refusal(model, lstm, 2))
    batched = ir.from_proto(
        build(f"{HEAD}(float[2,3,4] x) => (float[2,3,5] y) {{ y = MatMul(x, w) }}", w=drawn(2, 4, 5))
    )
    assert refusal(batched, batched.graph[0], 1) == "its weight is not one matrix"


def test_values_in_a_body_cannot_be_watched() -> None:
    then = "then_branch=t () => (float[2,3] u) {u=MatMul(x,w)}"
    other = "else_branch=e () => (float[2,3] v) {v=MatMul(x,w)}"
    text = f"{HEAD}(float[2,4] x, bool c) => (float[2,3] y) {{ y = If(c)<{then},{other}> }}"
    model = ir.from_proto(build(text, w=drawn(4, 3)))
    inner = next(node for graph in model.graphs() for node in graph if node.op_type == "MatMul")
    assert "body of a control-flow operator" in str(refusal(model, inner, 1))
