"""Training behind codes of few bits: the file holds what was trained, to the bit, and training pays."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

from compressor.data import open_samples
from compressor.low_bit.coded_weights import CodedWeight, coded_weights
from compressor.low_bit.expanding import expand
from compressor.pipeline import Context, Pipeline
from compressor.runtime import Session, Setup
from compressor.torch_graph import to_torch
from compressor.torch_graph.writing import NAMES
from compressor.training.bench import set_up
from compressor.training.projections import encoded
from compressor.training.working_copy import working_copy
from passes.finetune import Finetune
from tests.conftest import drawn
from tests.training.trained import folded, images, made, mlp, points, train

FLOAT = "keep_first_last=False min_elements=1 activations=float"
TERNARY = [f"quantize-ternary{{method={method} {FLOAT}}}" for method in ("optimal", "twn", "ttq")]
BINARY = [f"quantize-binary{{{FLOAT}}}", f"quantize-binary{{method=residual bases=2 {FLOAT}}}"]
UNIFORM = [f"quantize-weights{{bits={bits} min_elements=1}}" for bits in (2, 3, 4)]
RECIPES = [*TERNARY, *BINARY, *UNIFORM]


def coded(model: ir.Model, recipe: str) -> tuple[ir.Model, dict[str, ir.TensorProtocol]]:
    """The model as the next pass of a pipeline gets it, and the floats behind its codes."""
    work = model.clone()
    (one,) = Pipeline.parse(recipe)
    return work, dict(one.apply(work, Context()).latents)


def weights(model: ir.Model) -> dict[str, CodedWeight]:
    """The coded weights of a model, also of one that was packed."""
    work = model.clone()
    expand(work)
    return {weight.name: weight for weight in coded_weights(work)}


def wide() -> ir.Model:
    text = "g (float[N,64] x) => (float[N,3] y) { h = Gemm(x, w1, b1) r = Relu(h) y = Gemm(r, w2, b2) }"
    return made(text, w1=drawn(64, 64) * 0.2, b1=drawn(64), w2=drawn(64, 3), b2=drawn(3))


def wide_points(count: int = 24, seed: int = 0) -> dict[str, np.ndarray]:
    x = drawn(count, 64, seed=seed)
    return {"x": x, "labels": np.argmax(x[:, :3], axis=1)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_network_in_training_computes_what_the_file_does(recipe: str) -> None:
    model, latents = coded(wide(), recipe)
    data = open_samples(wide_points(), model, "train")
    copy = working_copy(model, Finetune(), latents)
    bench = set_up(copy, Finetune(), Context(train=data))
    x = wide_points()["x"]
    found = bench.network(torch.from_numpy(x)).detach().numpy()
    session = Session(model, Setup(threads=1, integers=False))
    expected = session.run({session.inputs[0]: x})[0]
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("recipe", RECIPES)
def test_without_a_step_the_codes_stay_as_they_are(recipe: str) -> None:
    model, _ = coded(wide(), recipe)
    before = {name: weight.rows() for name, weight in weights(model).items()}
    result = train(model, wide_points(), "lr=1e-12 epochs=1")
    after = weights(result.model)
    assert before
    for name, rows in before.items():
        assert np.array_equal(rows.codes, after[name].rows().codes)


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_file_holds_the_trained_weights_to_the_bit(
    recipe: str, learn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compressor.training import fitting

    trained: dict[str, np.ndarray] = {}

    def watched(network: torch.fx.GraphModule, names: dict[str, str]) -> object:
        for name, path in names.items():
            folder, _, leaf = path.rpartition(".")
            tensor = getattr(network.get_submodule(folder), leaf)
            trained[name] = tensor.detach().numpy().copy()
        return encoded(network, names)

    monkeypatch.setattr(fitting, "encoded", watched)
    model, _ = coded(wide(), recipe)
    result = train(model, wide_points(), f"lr=0.05 optimizer=adam learn_ranges={learn}")
    start = weights(model)
    assert any(not np.array_equal(w.decoded(), start[n].decoded()) for n, w in weights(result.model).items())
    for name, weight in weights(result.model).items():
        assert np.array_equal(
            weight.decoded(), trained[weight.node.outputs[0].name].reshape(weight.decoded().shape)
        ), name


@pytest.mark.parametrize("recipe", [*TERNARY, BINARY[0]])
def test_training_wins_back_what_the_codes_lost(recipe: str) -> None:
    some = wide_points(400)
    good = train(wide(), some, "epochs=10 optimizer=adam lr=0.01").model
    text = f"{recipe},finetune{{epochs=10 optimizer=adam lr=0.01}}"
    samples = {"train": open_samples(some, good, "train"), "data": open_samples(some, good, "data")}
    changes = Pipeline.parse(text).run(good, Context(**samples)).changes
    (figures,) = [c.figures for c in changes if "score after" in c.figures]
    assert figures["score after"] > figures["score before"]


def test_a_packed_file_can_be_trained_and_is_packed_again() -> None:
    packed = Pipeline.parse(TERNARY[0]).run(wide(), Context()).model
    assert not coded_weights(packed)
    again = train(packed, wide_points(), "lr=0.05 optimizer=adam").model
    assert not coded_weights(again)
    levels = {len(np.unique(np.abs(w))) for w in decoded(again)}
    assert levels == {2}


def decoded(model: ir.Model) -> list[np.ndarray]:
    """The rows of the first weight of a packed file."""
    (first, *_) = weights(model).values()
    return list(np.moveaxis(first.decoded(), first.axis, 0))


def test_normalization_put_back_for_training_ends_in_the_scales() -> None:
    model, _ = coded(folded(), TERNARY[0])
    before = weights(model)["wc"].rows()
    result = train(model, images(), "batchnorm=restore lr=0.05 optimizer=adam epochs=3")
    after = weights(result.model)["wc"].rows()
    assert set(np.unique(after.codes)) <= {-1, 0, 1}
    assert not np.allclose(before.scale, after.scale)


def test_scales_are_trained_where_weights_have_few_bits_unless_told_otherwise() -> None:
    model, latents = coded(mlp(), TERNARY[0])
    names = {weight.scale.name for weight in coded_weights(model)}
    data = open_samples(points(), model, "train")
    for options, expected in ((Finetune(), True), (Finetune(learn_ranges=False), False)):
        bench = set_up(working_copy(model, options, latents), options, Context(train=data))
        assert (names <= bench.parameters.keys()) is expected


def test_zeros_of_ternary_codes_may_come_back() -> None:
    packed = Pipeline.parse(TERNARY[0]).run(mlp(), Context()).model
    result = train(packed, points(100), "epochs=20 optimizer=adam lr=0.02")
    before, after = ({n: w.rows().codes for n, w in weights(m).items()} for m in (packed, result.model))
    assert any(((before[name] == 0) & (after[name] != 0)).any() for name in before)


def test_the_names_of_latent_weights_are_those_of_the_weights() -> None:
    model, latents = coded(mlp(), TERNARY[0])
    network = to_torch(working_copy(model, Finetune(), latents).model)
    assert {"w1", "w2"} <= network.meta[NAMES].keys()
