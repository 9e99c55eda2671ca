from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compressor.channels import Group, Member, find
from compressor.channels.axes import Atom
from compressor.prepare import infer_shapes
from compressor.pruning.channel_importance import (
    Part,
    activation,
    combined,
    distance_to_others,
    hessian,
    norm,
    normalization_scale,
    per_channel,
    real,
    taylor,
)
from tests.conftest import build, drawn


def found(text: str, **weights: np.ndarray) -> tuple[ir.Model, tuple[Group, ...]]:
    header = '<ir_version: 8, opset_import: ["" : 17]>\n'
    model = ir.from_proto(build(header + text, **weights))
    infer_shapes(model)
    return model, find(model).groups


def mlp(w1: np.ndarray, w2: np.ndarray, b1: np.ndarray | None = None) -> Group:
    signature = f"m (float[N, {w1.shape[0]}] x) => (float[N, {w2.shape[1]}] y)"
    text = f"{signature} {{ h = Gemm(x, w1, b1) r = Relu(h) y = MatMul(r, w2) }}"
    bias = np.zeros(w1.shape[1], np.float32) if b1 is None else b1
    _, (group,) = found(text, w1=w1, b1=bias, w2=w2)
    return group


def member(array: np.ndarray, index: list[int], axis: int = 0) -> Member:
    value = ir.Value(name="w", const_value=ir.tensor(array), type=ir.TensorType(ir.DataType.FLOAT))
    return Member(value, axis, np.array(index, np.int32), "output")


@pytest.mark.parametrize("order", [1, 2])
def test_a_norm_is_that_of_the_weights_that_make_a_channel(order: int) -> None:
    w1 = drawn(3, 4)
    (part,) = norm(mlp(w1, drawn(4, 2)), order)  # type: ignore[arg-type]
    assert part.scores == pytest.approx(np.linalg.norm(w1, order, axis=0), rel=1e-6)
    assert part.layers == 1


def test_a_channel_in_the_middle_of_the_others_is_the_least_distant() -> None:
    w1 = np.array([[0, 1, -1, 0, 0], [0, 0, 0, 1, -1]], np.float32)
    (part,) = distance_to_others(mlp(w1, drawn(5, 2)))
    assert part.scores.argmin() == 0
    brute = [sum(np.linalg.norm(w1[:, i] - w1[:, j]) for j in range(5)) for i in range(5)]
    assert part.scores == pytest.approx(brute, rel=1e-6)


def test_equal_channels_have_no_distance() -> None:
    (part,) = distance_to_others(mlp(np.ones((3, 4), np.float32), drawn(4, 2)))
    assert part.scores == pytest.approx(np.zeros(4))


def test_slices_of_a_channel_are_summed_wherever_they_lie_and_others_left_out() -> None:
    w = member(np.arange(10, dtype=np.float32).reshape(2, 5), [0, 1, -1, 1, 0], axis=1)
    assert per_channel(real(w.value), w, 2).tolist() == [0 + 4 + 5 + 9, 1 + 3 + 6 + 8]


def test_taylor_is_the_mean_square_of_the_sum_over_weights_and_bias() -> None:
    w1, b1 = drawn(3, 4), drawn(4, seed=1)
    group = mlp(w1, drawn(4, 2), b1)
    batches = [{"w1": drawn(3, 4, seed=s), "b1": drawn(4, seed=s + 9)} for s in (2, 3)]
    expected = sum(((w1 * g["w1"]).sum(axis=0) + b1 * g["b1"]) ** 2 for g in batches) / 2
    scored = taylor([group], batches)[group]
    assert scored == pytest.approx(expected, rel=1e-5)


def test_taylor_lets_weights_of_a_channel_cancel_and_hessian_does_not() -> None:
    group = mlp(np.ones((2, 3), np.float32), drawn(3, 2))
    opposite = [{"w1": np.array([[1, 1, 0], [-1, 1, 0]], np.float32)}]
    assert taylor([group], opposite)[group].tolist() == [0, 4, 0]
    assert hessian([group], opposite)[group].tolist() == [1, 1, 0]


def test_gradient_scores_do_not_depend_on_how_often_the_batches_are_repeated() -> None:
    group, batches = mlp(drawn(2, 3), drawn(3, 2)), [{"w1": drawn(2, 3, seed=5)}]
    for score in (taylor, hessian):
        assert score([group], batches * 3)[group] == pytest.approx(score([group], batches)[group])


def test_activation_is_zero_for_a_channel_that_is_never_on() -> None:
    w2 = drawn(4, 2)
    group = mlp(drawn(3, 4), w2)
    norms = np.array([[0.0], [1.0], [2.0], [3.0]])
    (part,) = activation(group, {"w2": norms})
    assert part.scores == pytest.approx(np.abs(w2).sum(axis=1) * norms[:, 0], rel=1e-6)
    assert activation(group, {}) == []


def test_the_scale_of_a_normalization_that_is_not_folded_counts() -> None:
    text = """m (float[N, 2, 4, 4] x) => (float[N, 1, 4, 4] y) {
      c = Conv (x, w) n = BatchNormalization (c, s, b, mean, var) r = Relu (n) y = Conv (r, v) }"""
    four, scale = np.ones(4, np.float32), np.array([3, -1, 2, 0.5], np.float32)
    weights = {"w": drawn(4, 2, 1, 1), "v": drawn(1, 4, 1, 1), "b": four, "mean": four, "var": four}
    _, (group,) = found(text, s=scale, **weights)
    (part,) = normalization_scale(group)
    assert part.scores.tolist() == [3, 1, 2, 0.5]
    assert normalization_scale(mlp(drawn(3, 4), drawn(4, 2))) == []


def test_codes_are_scored_by_what_they_stand_for() -> None:
    text = """m (float[N, 2] x) => (float[N, 2] y) {
      d = DequantizeLinear <axis = 0> (w, s, z) h = Gemm <transB = 1> (x, d) y = MatMul (h, v) }"""
    codes, zero = np.array([[10, 10], [10, 10], [0, 5]], np.int8), np.array([0, 0, 5], np.int8)
    scale = np.array([1, 0.1, 2], np.float32)
    _, (group,) = found(text, w=codes, s=scale, z=zero, v=drawn(3, 2))
    (part,) = norm(group, 1)
    assert part.scores == pytest.approx([20, 2, 10])


def test_blocks_of_codes_have_a_scale_each() -> None:
    node = ir.node(
        "DequantizeLinear", [value("w", np.full((1, 4), 2, np.int8)), value("s", np.float32([[1, 10]]))]
    )
    node.attributes["axis"] = ir.AttrInt64("axis", 1)
    node.attributes["block_size"] = ir.AttrInt64("block_size", 2)
    assert node.inputs[0] is not None
    assert real(node.inputs[0]).tolist() == [[2, 2, 20, 20]]


def value(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(
        name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape)
    )


def test_a_layer_of_ten_times_larger_weights_is_not_worth_more() -> None:
    w1, w2 = drawn(3, 4), drawn(4, 2)
    for how in ("sum", "mean", "max"):
        small, large = (combined(norm(mlp(w1 * factor, w2), 2), how) for factor in (1, 10))  # type: ignore[arg-type]
        assert small == pytest.approx(large, rel=1e-5)
    assert combined(norm(mlp(w1 * 10, w2), 2), "none").sum() > combined(norm(mlp(w1, w2), 2), "none").sum()


def test_a_channel_of_few_is_worth_more_than_one_of_many_as_a_share() -> None:
    few, many = Part(np.ones(4), 1.0), Part(np.ones(64), 1.0)
    assert combined([few], "sum")[0] > combined([many], "sum")[0]
    assert combined([few], "mean")[0] == combined([many], "mean")[0]


def test_a_stream_that_many_layers_make_is_worth_as_many_layers() -> None:
    assert combined([Part(np.ones(4), 1.0)] * 3, "sum").sum() == pytest.approx(3)


def test_channels_beside_others_on_an_axis_are_worth_their_part_of_the_layer() -> None:
    group = Group("g", 2, (member(drawn(8, 3), [0, 1, -1, -1, -1, -1, -1, -1]),), None, Atom(2))
    assert combined(norm(group, 1), "sum").sum() == pytest.approx(2 / 8)


def test_channels_of_zeros_are_worth_nothing_however_they_are_scaled() -> None:
    for how in ("sum", "mean", "max", "none"):
        assert combined([Part(np.zeros(3), 1.0)], how).tolist() == [0, 0, 0]  # type: ignore[arg-type]
