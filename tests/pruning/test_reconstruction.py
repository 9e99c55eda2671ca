from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from compressor.channels import Kept, cut, find
from compressor.data import Samples, open_samples
from compressor.errors import ModelError
from compressor.graph import constant
from compressor.pipeline import Context
from compressor.prepare import prepare
from compressor.pruning.reconstruction import reconstruct
from compressor.pruning.solvable import layers
from compressor.runtime import Session
from tests.conftest import build, drawn

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'


def prepared(text: str, **weights: np.ndarray) -> ir.Model:
    return prepare(ir.from_proto(build(HEADER + text, **weights))).model


def doubled(array: np.ndarray, axis: int = 0) -> np.ndarray:
    """Every slice twice, so that half of them can go without loss."""
    return np.repeat(array, 2, axis)


def images(model: ir.Model, count: int = 24, channels: int = 3) -> Samples:
    return open_samples({"x": drawn(count, channels, 6, 6)}, model)


def halved(model: ir.Model) -> tuple[ir.Model, dict[str, str], tuple[str, ...]]:
    """Every second channel of every group cut, and the layers solved again; what was declined, what was solved."""
    whole, work = model.clone(), model
    found = find(work)
    kept: Kept = {group: np.arange(group.size) % 2 == 0 for group in found.groups}
    assert kept
    again, declined = layers(work, kept)
    cut(work, found, kept)
    solved = reconstruct(work, whole, again, images(work), Context(threads=1))
    return work, declined, tuple(solved)


def missed(before: ir.Model, after: ir.Model) -> float:
    """The largest difference, as a share of the largest output."""
    x = images(before, 50).batches(50)
    feeds = next(iter(x)).feeds
    expected, got = (Session(model).run(feeds)[0] for model in (before, after))
    return float(np.abs(got - expected).max() / np.abs(expected).max())


CHAIN = """m (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y) {
  a = Conv <pads = [1, 1, 1, 1]> (x, w, b) r = Relu (a) y = Conv <pads = [1, 1, 1, 1]> (r, v, c) }"""


def chain(**changed: np.ndarray) -> ir.Model:
    weights = {
        "w": doubled(drawn(5, 3, 3, 3)),
        "b": doubled(drawn(5)),
        "v": drawn(4, 10, 3, 3),
        "c": drawn(4),
    }
    return prepared(CHAIN, **(weights | changed))


def test_channels_that_others_repeat_go_without_loss() -> None:
    before = chain()
    after, declined, solved = halved(before.clone())
    assert (len(solved), declined) == (1, {})
    assert missed(before, after) < 0.05  # the ridge draws to the old weights by about a hundredth


def test_without_solving_the_same_cut_loses_much() -> None:
    before = chain()
    after = before.clone()
    found = find(after)
    cut(after, found, {group: np.arange(group.size) % 2 == 0 for group in found.groups})
    assert missed(before, after) > 0.3


def test_a_constant_channel_moves_into_the_bias() -> None:
    b = np.zeros(10, np.float32)
    b[1::2] = 3.0
    w = doubled(drawn(5, 3, 3, 3))
    w[1::2] = 0
    before = chain(w=w, b=b)
    after, _, _ = halved(before.clone())
    # At the border the constant is cut off by padding, which a bias cannot follow.
    feeds = next(iter(images(before).batches(8))).feeds
    inner = [Session(model).run(feeds)[0][:, :, 1:-1, 1:-1] for model in (before, after)]
    cut_only = before.clone()
    found = find(cut_only)
    cut(cut_only, found, {group: np.arange(group.size) % 2 == 0 for group in found.groups})
    unsolved = Session(cut_only).run(feeds)[0][:, :, 1:-1, 1:-1]
    assert np.abs(inner[1] - inner[0]).mean() < np.abs(unsolved - inner[0]).mean() / 2


def test_a_layer_without_bias_gets_one() -> None:
    text = CHAIN.replace("(r, v, c)", "(r, v)")
    before = prepared(text, w=doubled(drawn(5, 3, 3, 3)), b=doubled(drawn(5)), v=drawn(4, 10, 3, 3))
    after, _, solved = halved(before.clone())
    (node,) = [node for node in after.graph if node.name in solved]
    assert len(node.inputs) == 3
    assert missed(before, after) < 0.05


def test_a_bias_that_two_layers_share_is_not_changed_for_the_other() -> None:
    text = """m (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y, float[N, 4, 6, 6] z) {
      a = Conv (x, w) r = Relu (a) y = Conv (r, v, c) z = Conv (x, u, c) }"""
    shared = drawn(4)
    before = prepared(
        text, w=doubled(drawn(5, 3, 1, 1)), v=drawn(4, 10, 1, 1), u=drawn(4, 3, 1, 1, seed=3), c=shared
    )
    after, _, _ = halved(before.clone())
    feeds = next(iter(images(before).batches(8))).feeds
    assert Session(after).run(feeds)[1] == pytest.approx(Session(before).run(feeds)[1])


def test_a_depthwise_layer_is_solved_channel_by_channel() -> None:
    text = """m (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y) {
      a = Conv (x, w) r = Relu (a) d = Conv <group = 10, pads = [1, 1, 1, 1]> (r, k) y = Conv (d, v) }"""
    weights = {"w": doubled(drawn(5, 3, 1, 1)), "k": doubled(drawn(5, 1, 3, 3)), "v": drawn(4, 10, 1, 1)}
    before = prepared(text, **weights)
    after, declined, solved = halved(before.clone())
    assert (len(solved), declined) == (2, {})
    assert missed(before, after) < 0.05


def test_layers_behind_are_solved_too() -> None:
    text = """m (float[N, 3, 6, 6] x) => (float[N, 2, 6, 6] y) {
      a = Conv (x, w) r = Relu (a) c = Conv (r, v) s = Sigmoid (c) t = Add (s, s) y = Conv (t, u) }"""
    model = prepared(text, w=drawn(8, 3, 1, 1), v=drawn(4, 8, 1, 1), u=drawn(2, 4, 1, 1))
    found = find(model)
    (first,) = [group for group in found.groups if group.name == "w"]
    again, _ = layers(model, {first: np.arange(8) < 4})
    assert [layer.node for layer in again] == [n.name for n in model.graph if n.op_type == "Conv"][1:]


def test_nothing_is_solved_where_nothing_was_cut() -> None:
    assert layers(chain(), {}) == ([], {})


def test_gemm_and_matmul_are_solved_and_the_bias_behind_a_matmul_with_them() -> None:
    text = """m (float[N, 3, 6, 6] x) => (float[N, 3] y) {
      p = GlobalAveragePool (x) f = Flatten (p) h = Gemm <transB = 1> (f, w, b) r = Relu (h)
      m = MatMul (r, v) a = Add (m, c) s = Relu (a) y = Gemm (s, u) }"""
    weights = {
        "w": doubled(drawn(5, 3)),
        "b": doubled(drawn(5)),
        "v": drawn(10, 4),
        "c": drawn(4),
        "u": drawn(4, 3),
    }
    before = prepared(text, **weights)
    after = before.clone()
    found = find(after)
    (first,) = [group for group in found.groups if group.name == "w"]
    kept = {first: np.arange(10) % 2 == 0}
    again, declined = layers(after, kept)
    assert ([layer.made for layer in again], declined) == (["a", "y"], {})
    cut(after, found, kept)
    reconstruct(after, before, again, images(after, 200), Context(threads=1))
    assert missed(before, after) < 0.05


def test_a_gemm_with_alpha_is_left_as_it_is() -> None:
    text = """m (float[N, 3] x) => (float[N, 2] y) {
      h = MatMul (x, w) r = Relu (h) y = Gemm <alpha = 2.0> (r, v) }"""
    assert "alpha, beta or transA" in declined(text, w=drawn(3, 4), v=drawn(4, 2))


def test_a_transposed_convolution_is_left_as_it_is() -> None:
    text = """m (float[N, 3, 6, 6] x) => (float[N, 2, 6, 6] y) {
      h = Conv (x, w) r = Relu (h) y = ConvTranspose (r, v) }"""
    reason = declined(text, w=drawn(4, 3, 1, 1), v=drawn(4, 2, 1, 1))
    assert reason.startswith("not solved again: ConvTranspose is not a Conv, Gemm or MatMul")


def test_a_weight_that_two_layers_read_is_left_as_it_is() -> None:
    text = """m (float[N, 3] x) => (float[N, 2] y, float[N, 2] z) {
      h = MatMul (x, w) r = Relu (h) s = Sigmoid (h) y = MatMul (r, v) z = MatMul (s, v) }"""
    assert "read elsewhere too" in declined(text, w=drawn(3, 4), v=drawn(4, 2))


def test_zeros_of_an_earlier_pruning_are_not_filled() -> None:
    text = """m (float[N, 3] x) => (float[N, 2] y) {
      h = MatMul (x, w) r = Relu (h) y = MatMul (r, v) }"""
    half = drawn(4, 2) * np.array([[1, 0]], np.float32)
    assert "pruned before, and solving it would fill the zeros" in declined(text, w=drawn(3, 4), v=half)


def test_codes_are_left_as_they_are() -> None:
    text = """m (float[N, 3] x) => (float[N, 2] y) {
      h = MatMul (x, w) r = Relu (h) d = DequantizeLinear (v, s) y = MatMul (r, d) }"""
    reason = declined(text, w=drawn(3, 4), v=np.ones((4, 2), np.int8), s=np.float32(0.1))
    assert reason.startswith("not solved again: ")


def declined(text: str, **weights: np.ndarray) -> str:
    model = prepared(text, **weights)
    found = find(model)
    again, reasons = layers(model, {group: np.arange(group.size) < 2 for group in found.groups})
    assert again == []
    return next(iter(reasons.values()))


def test_samples_that_make_nan_are_an_error_that_names_the_layer() -> None:
    before = chain()
    model = before.clone()
    found = find(model)
    kept = {group: np.arange(group.size) % 2 == 0 for group in found.groups}
    again, _ = layers(model, kept)
    cut(model, found, kept)
    bad = open_samples({"x": np.full((2, 3, 6, 6), 3e38, np.float32)}, model)
    with pytest.raises(
        ModelError, match="reads or makes NaN or infinity on the samples; mend them or the model"
    ):
        reconstruct(model, before, again, bad, Context(threads=1))


def test_a_fixed_batch_that_is_filled_up_counts_each_sample_once() -> None:
    weights = {
        "w": doubled(drawn(5, 3, 3, 3)),
        "b": doubled(drawn(5)),
        "v": drawn(4, 10, 3, 3),
        "c": drawn(4),
    }
    free, fixed = (prepared(CHAIN.replace("N", size), **weights) for size in ("N", "5"))
    solved = []
    for model in (free, fixed):
        whole, found = model.clone(), find(model)
        kept = {group: np.arange(group.size) % 2 == 0 for group in found.groups}
        again, _ = layers(model, kept)
        cut(model, found, kept)
        reconstruct(model, whole, again, images(model, 3), Context(threads=1))
        solved.append(constant(model.graph.initializers["v"]))
    assert solved[0] == pytest.approx(solved[1], abs=1e-4)


def test_biases_that_are_added_in_another_order_than_the_products_are_found() -> None:
    text = """m (float[N, 3, 6, 6] x) => (float[N, 4] y) {
      p = GlobalAveragePool (x) f = Flatten (p) h = Gemm (f, w, b) r = Relu (h)
      m = MatMul (r, v) n = MatMul (r, u) nb = Add (n, c) mb = Add (m, d) y = Sub (mb, nb) }"""
    weights = {
        "w": doubled(drawn(3, 5), 1),
        "b": doubled(drawn(5)),
        "v": drawn(10, 4),
        "u": drawn(10, 4, seed=1),
    }
    before = prepared(text, **weights, c=drawn(4), d=drawn(4, seed=2))
    after = before.clone()
    found = find(after)
    (first,) = [group for group in found.groups if group.name == "w"]
    again, _ = layers(after, {first: np.arange(10) % 2 == 0})
    assert [layer.made for layer in again] == ["mb", "nb"]
    cut(after, found, {first: np.arange(10) % 2 == 0})
    reconstruct(after, before, again, images(after, 200), Context(threads=1))
    assert missed(before, after) < 0.05
    assert set(after.graph.initializers) == set(before.graph.initializers)
