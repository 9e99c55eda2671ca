"""Stored codes as latent weights, and back: nothing is lost when nothing is trained."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from compressor.runtime import to_bytes
from compressor.torch_graph import to_torch
from compressor.training.latent import LATENT, lift, settle
from tests.conftest import drawn
from tests.training.test_qat import RECIPES, quantized
from tests.training.trained import folded, images, made, mlp, outputs, points, values


@pytest.mark.parametrize("recipe", RECIPES)
def test_settling_what_was_not_trained_gives_the_same_file(recipe: str) -> None:
    model = quantized(folded(), images(), recipe)
    assert to_bytes(settle(lift(model), model)) == to_bytes(model)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_lifted_model_computes_the_same(recipe: str) -> None:
    model, x = quantized(mlp(), points(), recipe), points()["x"]
    before, after = outputs(model, x)[0], outputs(lift(model), x)[0]
    assert np.abs(before - after).max() < 1e-3 * np.abs(before).max()  # a bias is no longer rounded


def test_a_model_without_codes_is_lifted_to_itself() -> None:
    assert to_bytes(lift(mlp())) == to_bytes(mlp())


def one_weight(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, attributes: str = "") -> ir.Model:
    text = "g (float[N,4] x) => (float[N,3] y) { w = DequantizeLinear%s(c, s, z) y = MatMul(x, w) }"
    return made(text % attributes, c=codes, s=scale, z=zero)


def shifted(model: ir.Model, by: float) -> np.ndarray:
    """The codes after the latent weight was moved."""
    trained = lift(model)
    latent = trained.graph.initializers[f"c{LATENT}"]
    array = latent.const_value.numpy() + np.float32(by)
    latent.const_value = ir.tensor(array, name=latent.name)
    return values(settle(trained, model))["c"]


def test_a_latent_weight_is_decoded_by_scale_and_zero_point() -> None:
    model = one_weight(np.full((4, 3), 9, np.uint8), np.float32(0.5), np.uint8(3))
    assert (values(lift(model))[f"c{LATENT}"] == 3).all()


def test_codes_follow_the_latent_weight_to_the_nearest_step() -> None:
    model = one_weight(np.full((4, 3), 9, np.uint8), np.float32(0.5), np.uint8(3))
    assert (shifted(model, 0.2) == 9).all()
    assert (shifted(model, 0.3) == 10).all()
    assert (shifted(model, 1000) == 255).all()
    assert (shifted(model, -1000) == 0).all()


def test_each_channel_has_its_own_step() -> None:
    scale = np.float32([0.1, 1, 10])
    model = one_weight(np.full((4, 3), 2, np.int8), scale, np.zeros(3, np.int8), "<axis = 1>")
    assert (shifted(model, 1) == [[12, 3, 2]]).all()


@pytest.mark.parametrize(("largest", "end"), [(50, 63), (100, 127)])
def test_seven_bit_weights_stay_seven_bit_weights(largest: int, end: int) -> None:
    """A CPU without VNNI adds pairs of products in 16 bits, which overflow with 8-bit weights."""
    codes = np.full((4, 3), 1, np.int8)
    codes[0, 0] = largest
    model = one_weight(codes, np.float32(0.5), np.int8(0))
    assert (shifted(model, 1000) == end).all()
    assert (shifted(model, -1000) == -end).all()


def test_codes_that_two_nodes_decode_are_one_latent_weight() -> None:
    text = """g (float[N,4] x) => (float[N,4] y) {
      a = DequantizeLinear(c, s, z) b = DequantizeLinear(c, s, z) h = MatMul(x, a) y = MatMul(h, b) }"""
    model = made(text, c=np.eye(4, dtype=np.int8) * 5, s=np.float32(0.2), z=np.int8(0))
    assert [name for name in values(lift(model)) if name.endswith(LATENT)] == [f"c{LATENT}"]
    x = drawn(3, 4)
    assert np.allclose(outputs(lift(model), x)[0], outputs(model, x)[0])


def latent(model: ir.Model, floats: dict[str, ir.Tensor]) -> np.ndarray:
    """Where the training of the codes `c` starts."""
    return values(lift(model, floats))[f"c{LATENT}"]


def test_a_latent_weight_starts_from_the_floats_that_were_rounded() -> None:
    floats = drawn(4, 3)
    step = np.float32(np.abs(floats).max() / 127)
    model = one_weight(np.rint(floats / step).astype(np.int8), step, np.int8(0))
    assert np.array_equal(latent(model, {"c": ir.tensor(floats)}), floats)
    assert not np.array_equal(latent(model, {"other": ir.tensor(floats)}), floats)
    assert to_bytes(settle(lift(model, {"c": ir.tensor(floats)}), model)) == to_bytes(model)


def test_floats_that_the_codes_do_not_round_are_not_used() -> None:
    floats = drawn(4, 3)
    step = np.float32(np.abs(floats).max() / 127)
    codes = np.rint(floats / step).astype(np.int8)
    codes[1, 1] += 2
    model = one_weight(codes, step, np.int8(0))
    decoded = codes * step
    assert np.allclose(latent(model, {"c": ir.tensor(floats)}), decoded, atol=1e-6)
    assert np.allclose(latent(model, {"c": ir.tensor(floats.T.copy())}), decoded, atol=1e-6)


@pytest.mark.parametrize("codes", [(50, -63, 63), (100, -127, 127), (-128, -128, 127)], ids=str)
@pytest.mark.parametrize("by", [-1000, 1000])
def test_what_is_trained_has_no_codes_that_the_file_will_not_have(
    codes: tuple[int, int, int], by: float
) -> None:
    stored = np.full((4, 3), 1, np.int8)
    stored[0, 0] = codes[0]
    model, x = one_weight(stored, np.float32(0.5), np.int8(0)), drawn(2, 4)
    trained = lift(model)
    moved = trained.graph.initializers[f"c{LATENT}"]
    moved.const_value = ir.tensor(moved.const_value.numpy() + np.float32(by), name=moved.name)
    written = values(settle(trained, model))["c"]
    assert (written == codes[2 if by > 0 else 1]).all()
    for learned in (False, True):
        in_training = to_torch(trained, learn_ranges=learned)(torch.from_numpy(x)).detach().numpy()
        assert np.allclose(in_training, x @ (written * np.float32(0.5)), rtol=1e-5)
