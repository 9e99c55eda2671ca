"""Gradients of the loss per weight: torch's own by hand, the same for the same seed, refused where there are none."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch.nn import functional

from compressor.data import open_samples
from compressor.errors import DataError, ModelError
from compressor.pipeline import Context, Pipeline
from compressor.training.saliency import Saliency, gradients, saliency
from tests.conftest import drawn
from tests.training.trained import (
    TIED,
    Arrays,
    cnn,
    dense,
    images,
    made,
    mlp,
    points,
    values,
)

WEIGHTS = ("w1", "b1", "w2", "b2")
NO_LABELS = {"x": points()["x"]}


def looked_at(model: ir.Model, data: Arrays, names: tuple[str, ...], **options: Any) -> dict[str, Saliency]:
    return saliency(model, open_samples(data, model, "train"), names, Context(seed=3), **options)


def stream(model: ir.Model, data: Arrays, names: tuple[str, ...], **options: Any) -> list[dict[str, Any]]:
    samples = open_samples(data, model, "train")
    return [dict(found) for found in gradients(model, samples, names, Context(seed=3), **options)]


def by_hand(data: Arrays) -> tuple[Arrays, dict[str, list[np.ndarray]]]:
    """The MLP's weights, and each sample's gradients, by torch alone."""
    weights = {name: torch.tensor(array, requires_grad=True) for name, array in dense().items()}
    found: dict[str, list[np.ndarray]] = {name: [] for name in weights}
    for x, label in zip(torch.tensor(data["x"]), torch.tensor(data["labels"]), strict=True):
        hidden = torch.relu(x @ weights["w1"] + weights["b1"])
        loss = functional.cross_entropy(hidden @ weights["w2"] + weights["b2"], label)
        for name, each in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            found[name].append(each.numpy())
    return dense(), found


def test_each_samples_gradients_are_those_of_torch_by_hand() -> None:
    weights, single = by_hand(points())
    found = looked_at(mlp(), points(), WEIGHTS, batch=1)
    for name in WEIGHTS:
        w, g = weights[name], np.array(single[name])
        np.testing.assert_allclose(found[name].gradient, g.mean(0), atol=1e-6)
        np.testing.assert_allclose(found[name].square, np.square(g).mean(0), atol=1e-6)
        np.testing.assert_allclose(found[name].product, (w * g).mean(0), atol=1e-6)
        np.testing.assert_allclose(found[name].taylor, np.square(w * g).mean(0), atol=1e-6)


def test_a_batch_gives_the_mean_gradient_of_its_samples() -> None:
    _, single = by_hand(points())
    found = stream(mlp(), points(), WEIGHTS, batch=24)
    assert len(found) == 1
    for name in WEIGHTS:
        np.testing.assert_allclose(found[0][name], np.mean(single[name], axis=0), atol=1e-6)
        assert found[0][name].dtype == np.float32


def test_only_the_weights_that_were_named_have_gradients() -> None:
    found = stream(mlp(), points(), ("w2",), batch=8)
    assert [set(batch) for batch in found] == [{"w2"}] * 3


def test_the_same_seed_gives_the_same_batches_and_another_one_others() -> None:
    samples, options = open_samples(points(), mlp(), "train"), {"batch": 4, "limit": 8}
    first, again, other = (
        [found["w1"] for found in gradients(mlp(), samples, ("w1",), Context(seed=seed), **options)]
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.allclose(np.mean(first, axis=0), np.mean(other, axis=0))


def test_no_more_samples_are_looked_at_than_the_limit() -> None:
    assert len(stream(mlp(), points(), ("w1",), batch=2, limit=8)) == 4


def test_the_model_stays_as_it_was() -> None:
    model = cnn()
    looked_at(model, images(), ("wc", "wg"))
    assert all(np.array_equal(values(model)[name], array) for name, array in values(cnn()).items())


def test_normalization_uses_the_statistics_of_the_file_and_not_those_of_the_batch() -> None:
    """A hundredfold variance makes what is normalized ten times smaller, and so its gradient."""
    model = cnn()
    model.graph.initializers["var"].const_value = ir.tensor(np.full(4, 100, np.float32), name="var")
    wide, narrow = (looked_at(m, images(), ("wc",), batch=1)["wc"].gradient for m in (model, cnn()))
    assert 5 < np.abs(narrow).max() / np.abs(wide).max() < 20


def test_without_labels_the_squared_gradient_of_a_classifier_is_its_fisher_information() -> None:
    """Of softmax regression it is E[x x^T] (diag p - p p^T), whose diagonal is x_i^2 p_c (1 - p_c)."""
    weight = drawn(4, 3, seed=2)
    model = made("g (float[N,4] x) => (float[N,3] y) { y = MatMul(x, w) }", w=weight)
    x = np.tile(drawn(6, 4, seed=1), (300, 1))
    found = looked_at(model, {"x": x}, ("w",), batch=1, limit=1800)["w"]
    scores = np.exp(x @ weight)
    shares = scores / scores.sum(1, keepdims=True)
    exact = np.einsum("ni,nc->ic", np.square(x), shares * (1 - shares)) / len(x)
    error = np.sqrt(np.einsum("ni,nc->ic", x**4, shares * (1 - shares)) / len(x) / len(x))
    assert (np.abs(found.square - exact) < 5 * error).all()


def test_chances_are_drawn_each_by_itself() -> None:
    """Of logistic regression the Fisher information is the mean of x_i^2 p (1 - p)."""
    weight = drawn(4, 1, seed=2)
    model = made("g (float[N,4] x) => (float[N,1] y) { h = MatMul(x, w) y = Sigmoid(h) }", w=weight)
    x = np.tile(drawn(6, 4, seed=1), (300, 1))
    found = looked_at(model, {"x": x}, ("w",), batch=1, limit=1800)["w"]
    chance = 1 / (1 + np.exp(-x @ weight))
    exact = (np.square(x) * chance * (1 - chance)).mean(0)
    error = np.sqrt((x**4 * chance * (1 - chance)).mean(0) / len(x))
    assert (np.abs(found.square[:, 0] - exact) < 5 * error).all()


def test_without_labels_values_count_by_their_squares() -> None:
    weight = drawn(4, 1)
    model = made("g (float[N,4] x) => (float[N,1] y) { y = MatMul(x, w) }", w=weight)
    x = points()["x"]
    found = looked_at(model, {"x": x}, ("w",), batch=24)["w"]
    np.testing.assert_allclose(found.gradient, 2 * x.T @ (x @ weight) / len(x), rtol=1e-5)


def test_own_answers_are_the_same_for_the_same_seed() -> None:
    first, again = (stream(mlp(), NO_LABELS, ("w1",)) for _ in range(2))
    assert all(np.array_equal(a["w1"], b["w1"]) for a, b in zip(first, again, strict=True))


def test_a_weight_that_is_used_twice_and_its_transpose_have_one_gradient() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"
    weight = drawn(4, 4)
    once = stream(made(TIED, w=weight), NO_LABELS, ("w",))
    twice = stream(made(text, w=weight, v=weight.T.copy()), NO_LABELS, ("w", "v"))
    for one, two in zip(once, twice, strict=True):
        np.testing.assert_allclose(two["w"], one["w"], atol=1e-6)
        np.testing.assert_array_equal(two["v"], two["w"].T)


def test_the_floats_behind_the_codes_of_a_quantized_model_have_gradients() -> None:
    samples = open_samples(NO_LABELS, mlp(), "calibration")
    quantized = Pipeline.parse("quantize-int8").run(mlp(), Context(calibration=samples, threads=1)).model
    codes = next(name for name, array in values(quantized).items() if array.shape == (4, 8))
    assert values(quantized)[codes].dtype.kind in "iu"
    found = looked_at(quantized, points(), (codes,), batch=1)[codes]
    plain = looked_at(mlp(), points(), ("w1",), batch=1)["w1"]
    assert np.abs(found.weight - plain.weight).max() < 0.02
    assert np.corrcoef(found.taylor.ravel(), plain.taylor.ravel())[0, 1] > 0.95


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ("w1", "w9"),
            "importance from gradients: 'w9' is no floating-point weight of the model. Leave it out.",
        ),
        ((), "importance from gradients: the model has no floating-point weights to look at."),
    ],
)
def test_names_that_are_no_weights_are_refused(names: tuple[str, ...], said: str) -> None:
    with pytest.raises(ModelError) as caught:
        stream(mlp(), points(), names)
    assert str(caught.value) == said


def test_labels_that_do_not_fit_are_refused_as_in_training() -> None:
    data = points() | {"labels": np.full(24, 7)}
    with pytest.raises(
        DataError, match=r"loss 'cross-entropy': label 7 in row 0, but the model has 3 classes"
    ):
        stream(mlp(), data, ("w1",))


def test_a_model_without_a_gradient_is_refused_by_the_node_that_stops_it() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { h = MatMul(x, w) i = Cast<to = 7>(h) y = Cast<to = 1>(i) }"
    with pytest.raises(ModelError, match="importance from gradients: no gradient reaches the weights: node"):
        stream(made(text, w=drawn(4, 4)), NO_LABELS, ("w",))


def test_a_model_that_gives_classes_only_is_refused() -> None:
    text = "g (float[N,4] x) => (int64[N,1] y) { h = MatMul(x, w) y = ArgMax<axis = 1>(h) }"
    with pytest.raises(ModelError, match="The model has no output of floats, so that no gradient says which"):
        stream(made(text, w=drawn(4, 4)), NO_LABELS, ("w",))


def test_a_model_that_gives_nan_is_refused() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { h = MatMul(x, w) y = Log(h) }"
    with pytest.raises(
        DataError, match="importance from gradients: the model gives NaN or infinity for some"
    ):
        stream(made(text, w=drawn(4, 4)), NO_LABELS, ("w",))
