from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import pytest

from compressor.low_bit.coded_weights import coded_weights, rows_of, write
from compressor.low_bit.codes import Method
from compressor.low_bit.matching import Moments, affine, apply, can_match, end_of
from compressor.low_bit.methods import encode
from compressor.pruning.prunable import weights
from compressor.runtime import Session, Setup
from tests.conftest import build, drawn

HEAD = '<ir_version: 8, opset_import: ["" : 13]>\ng '
MAPS = "(float[8,4,6,6] x) => (float[8,3,6,6] y)"
CASES = {
    "Conv": (MAPS, "y = Conv <pads = [1, 1, 1, 1]> (x, w, b)", (3, 4, 3, 3)),
    "Conv without bias": (MAPS, "y = Conv <pads = [1, 1, 1, 1]> (x, w)", (3, 4, 3, 3)),
    "ConvTranspose": (MAPS, "y = ConvTranspose <pads = [1, 1, 1, 1]> (x, w, b)", (4, 3, 3, 3)),
    "Gemm": ("(float[80,4] x) => (float[80,3] y)", "y = Gemm(x, w, b)", (4, 3)),
    "MatMul and Add": ("(float[8,9,4] x) => (float[8,9,3] y)", "m = MatMul(x, w) y = Add(m, b)", (4, 3)),
    "Add and MatMul": ("(float[8,9,4] x) => (float[8,9,3] y)", "m = MatMul(x, w) y = Add(b, m)", (4, 3)),
}


class Layer(NamedTuple):
    model: ir.Model
    node: ir.Node
    x: np.ndarray

    def run(self) -> np.ndarray:
        return Session(self.model, Setup(integers=False)).run({"x": self.x})[0]


def layer(name: str, block: int = 0) -> tuple[Layer, np.ndarray]:
    """A ternary layer, and the output that it had with its floats."""
    signature, body, shape = CASES[name]
    arrays = {"w": drawn(*shape)} | ({"b": drawn(3)} if "b" in body.split("=")[-1] else {})
    model = ir.from_proto(build(f"{HEAD}{signature} {{ {body} }}", **arrays))
    size = [int(extent) for extent in model.graph.inputs[0].shape.numpy()]  # type: ignore[union-attr]
    found = Layer(model, model.graph[0], drawn(*size, seed=3) + 0.5)
    before = found.run()
    weight = weights(model)[0]["w"]
    write(model, weight, encode(rows_of(weight, block), Method("twn")), Method("twn"), block)
    return found, before


@pytest.mark.parametrize("block", [0, 16])
@pytest.mark.parametrize("name", CASES)
def test_a_layer_gets_the_mean_that_it_had_and_is_what_was_foretold(name: str, block: int) -> None:
    found, before = layer(name, block)
    (coded,) = coded_weights(found.model)
    assert can_match(found.node, coded)
    change = affine(found.node, Moments.of(found.node, [before], [now := found.run()]))
    apply(found.model, found.node, coded, change)
    after = found.run()
    over = (0, 2, 3) if "Conv" in name else tuple(range(before.ndim - 1))
    np.testing.assert_allclose(after.mean(over), before.mean(over), atol=2e-5)
    np.testing.assert_allclose(change.applied(end_of(found.node), now), after, atol=2e-5)
    assert np.linalg.norm(after - before) < np.linalg.norm(now - before)


def test_the_deviation_lies_between_its_own_and_that_of_least_squares() -> None:
    node = ir.node("Gemm", [None, None])
    rng = np.random.default_rng(0)
    before = rng.standard_normal((4000, 1)).astype(np.float32)
    now = 3 * before + 3 * rng.standard_normal((4000, 1)).astype(np.float32)
    found = Moments.of(node, [before], [now])
    np.testing.assert_allclose(found.correlation, np.sqrt(0.5), atol=0.03)
    factor = affine(node, found).factor
    np.testing.assert_allclose(factor, np.sqrt(1 / (3 * np.sqrt(2)) * (1 / 6)), rtol=0.05)


def test_batches_count_alike() -> None:
    node = ir.node("Gemm", [None, None])
    before, now = drawn(60, 5), drawn(60, 5, seed=1)
    whole = Moments.of(node, [before], [now])
    parts = Moments.of(node, [before[:20], before[20:]], [now[:20], now[20:]])
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_a_channel_that_is_constant_is_only_shifted() -> None:
    node = ir.node("Gemm", [None, None])
    found = Moments.of(node, [np.ones((4, 1), np.float32)], [drawn(4, 1)])
    change = affine(node, found)
    assert change.factor.tolist() == [1]
    np.testing.assert_allclose(change.new, 1 - drawn(4, 1).mean(0), atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "body",
    [
        "a = MatMul(x, w) y = MatMul(a, w)",
        "y = Gemm <alpha = 0.5> (x, w)",
        "y = Gemm(x, w, full)",
        "y = MatMul(w, x)",
    ],
)
def test_layers_whose_outputs_cannot_be_matched_are_known(body: str) -> None:
    text = f"{HEAD}(float[4,4] x) => (float[4,4] y) {{ {body} }}"
    arrays = {"w": drawn(4, 4)} | ({"full": drawn(4, 4, seed=1)} if "full" in body else {})
    model = ir.from_proto(build(text, **arrays))
    node = model.graph[0]
    weight = weights(model)[0]["w"]
    coded = write(model, weight, encode(rows_of(weight), Method("twn")), Method("twn"))
    assert not can_match(node, coded)
