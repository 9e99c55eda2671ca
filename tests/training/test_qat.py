"""Quantization-aware training: the quantized file trains, stays a QDQ file, and runs as torch computed it."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch

from compressor.data import open_samples
from compressor.pipeline import Change, Context, Pipeline
from compressor.torch_graph import to_torch
from tests.conftest import build, drawn
from tests.training.trained import (
    Arrays,
    check,
    cnn,
    folded,
    images,
    mlp,
    moved,
    outputs,
    points,
    values,
)

FINETUNE = "finetune{warmup=0 keep=last %s}"


def quantized(model: ir.Model, data: Arrays, recipe: str = "quantize-int8") -> ir.Model:
    samples = open_samples(data, model)
    return Pipeline.parse(recipe).run(model, Context(calibration=samples, data=samples, threads=1)).model


def trained(
    model: ir.Model, data: Arrays, options: str = "", original: ir.Model | None = None
) -> tuple[ir.Model, Change]:
    samples = open_samples(data, model, "train")
    context = Context(train=samples, data=samples, threads=1, original=original)
    given = [
        text
        for text in ("epochs=3", "batch=8", "lr=0.01", "schedule=constant")
        if text.partition("=")[0] + "=" not in options
    ]
    result = Pipeline.parse(FINETUNE % " ".join([options, *given])).run(model, context)
    return result.model, result.changes[-1]


def in_torch(model: ir.Model, x: np.ndarray) -> np.ndarray:
    made: np.ndarray = to_torch(model)(torch.from_numpy(x)).detach().numpy()
    return made


MODELS: dict[str, tuple[Callable[[], ir.Model], Callable[[], Arrays]]] = {
    "mlp": (mlp, points),
    "cnn": (cnn, images),
    "folded": (folded, images),
}
RECIPES = ["quantize-int8", "quantize-int8{granularity='tensor'}", "quantize-int8{calibration='entropy'}"]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("learned", [False, True])
def test_the_file_keeps_its_graph_and_types_and_runs_as_in_torch(
    name: str, recipe: str, learned: bool
) -> None:
    build, data = MODELS[name]
    before = quantized(build(), data(), recipe)
    after, change = trained(before, data(), f"learn_ranges={learned}")
    check(after)
    assert [(n.op_type, n.name) for n in after.graph] == [(n.op_type, n.name) for n in before.graph]
    types = [{k: (v.dtype, v.shape) for k, v in m.graph.initializers.items()} for m in (before, after)]
    assert types[0] == types[1]
    codes = {k for k, v in before.graph.initializers.items() if v.dtype == ir.DataType.INT8}
    assert codes & moved(before, after)
    assert set(change.touched) == moved(before, after)
    x = data()["x"]
    step = max((float(v.max()) for k, v in values(after).items() if k.endswith("scale")), default=0.0)
    assert np.abs(in_torch(after, x) - outputs(after, x)[0]).max() <= step + 1e-5  # one code at a tie


def scales(model: ir.Model) -> set[str]:
    return {name for name in values(model) if name.endswith("_scale")}


def test_scales_stay_unless_ranges_are_learned() -> None:
    before = quantized(mlp(), points())
    assert not scales(before) & moved(before, trained(before, points())[0])
    learned, _ = trained(before, points(), "learn_ranges=True")
    assert scales(before) <= moved(before, learned)
    assert all((values(learned)[name] > 0).all() for name in scales(learned))


def test_learned_scales_of_any_size_stay_positive_at_a_high_rate() -> None:
    before = quantized(mlp(), points())
    learned, _ = trained(before, points(), "learn_ranges=True lr=1 optimizer=adam")
    assert all((values(learned)[name] > 0).all() for name in scales(learned))


def test_frozen_scales_stay_bit_identical_while_others_are_learned() -> None:
    before = quantized(mlp(), points())
    learned, _ = trained(before, points(), "learn_ranges=True freeze=x_scale")
    assert "x_scale" not in moved(before, learned)
    assert "w1_scale" in moved(before, learned)


@pytest.mark.parametrize("options", ["", "learn_ranges=True"])
def test_the_scale_of_a_bias_is_the_product_of_those_of_input_and_weight(options: str) -> None:
    after, _ = trained(quantized(folded(), images()), images(), options)
    layers = [node for node in after.graph if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 2
    for layer in layers:
        x, w, b = (value.producer().inputs[1].const_value.numpy() for value in layer.inputs)
        assert np.array_equal(b, x * w)
        assert b.dtype == np.float32


def test_distillation_recovers_what_four_bit_codes_lose() -> None:
    original, data = mlp(), {"x": points(64)["x"]}
    before = four_bit(original)
    after, _ = trained(before, data, "epochs=40 schedule=cosine", original)
    assert {k: v.dtype for k, v in after.graph.initializers.items()}["w1_codes"] == ir.DataType.INT4
    lost, left = (
        np.abs(outputs(m, data["x"])[0] - outputs(original, data["x"])[0]).mean() for m in (before, after)
    )
    assert left < 0.8 * lost
    check(after)


def four_bit(model: ir.Model) -> ir.Model:
    """The MLP with its matrices as int4 codes, one step for all."""
    weights = values(model)
    decoded = "a = DequantizeLinear(w1_codes, w1_scale) b = DequantizeLinear(w2_codes, w2_scale) "
    body = decoded + "h = Gemm(x, a, b1) r = Relu(h) y = Gemm(r, b, b2)"
    head = '<ir_version: 10, opset_import: ["" : 21]>\n'
    biases = {name: weights[name] for name in ("b1", "b2")}
    steps = {f"{name}_scale": np.abs(weights[name]).max() / 7 for name in ("w1", "w2")}
    codes = {
        f"{n}_codes": np.rint(weights[n] / steps[f"{n}_scale"]).astype(ml_dtypes.int4) for n in ("w1", "w2")
    }
    text = f"{head} g (float[N,4] x) => (float[N,3] y) {{ {body} }}"
    return ir.from_proto(build(text, **biases, **steps, **codes))


def test_codes_that_rounding_put_at_zero_move_and_pruned_ones_stay() -> None:
    weights = drawn(4, 8)
    weights[np.abs(weights) < np.median(np.abs(weights))] = 0
    model = mlp()
    model.graph.initializers["w1"].const_value = ir.tensor(weights, name="w1")
    before = quantized(model, points())
    after, change = trained(before, points(), "lr=0.05")
    codes = [values(m)["w1_quantized"] for m in (before, after)]
    assert np.array_equal(codes[0] == 0, codes[1] == 0)
    assert change.figures["weights kept at zero"] == 1


def test_statistics_and_weights_of_a_quantized_model_do_not_come_apart() -> None:
    """Quantization folds BatchNormalization, so that there is none whose statistics could move."""
    before = quantized(cnn(), images())
    assert "BatchNormalization" not in {node.op_type for node in before.graph}


def test_norms_are_bound_behind_quantizers_too() -> None:
    after, _ = trained(quantized(mlp(), points()), points(), "max_norm=0.3 lr=0.1")
    w1 = values(after)["w1_quantized"].astype(np.float32) * values(after)["w1_scale"]
    step = values(after)["w1_scale"].max()
    assert np.linalg.norm(w1, axis=0).max() <= 0.3 + step  # rounding adds half a step to each of 4 inputs


def calibrated(model: ir.Model, data: Arrays) -> Context:
    samples = open_samples(data, model)
    return Context(calibration=samples, train=samples, data=samples, threads=1)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_floats_behind_the_codes_are_known_to_within_half_a_step(recipe: str) -> None:
    """Those of a corrected bias as well; what a weight is a copy of costs no memory."""
    model = mlp()
    step = Pipeline.parse(recipe).passes[0]
    change = step.apply(model, calibrated(model, points()))
    stored = values(model)
    assert set(change.latents) == {"w1_quantized", "b1_quantized", "w2_quantized", "b2_quantized"}
    for name, floats in change.latents.items():
        scale = stored[name.replace("_quantized", "_scale")]
        assert (np.abs(stored[name] * scale - floats.numpy()) <= scale * 0.501).all()
    original = mlp()
    change = step.apply(original.clone(), calibrated(original, points()))
    assert change.latents["w1_quantized"] is original.graph.initializers["w1"].const_value


def test_the_pipeline_hands_the_floats_on_and_keeps_none() -> None:
    model = mlp()
    recipe = f"quantize-int8{{granularity='tensor'}},{FINETUNE % 'lr=1e-12 epochs=1'}"
    found = Pipeline.parse(recipe).run(model, calibrated(model, points()))
    assert not any(change.latents for change in found.changes)
    assert np.array_equal(
        values(found.model)["w1_quantized"],
        values(quantized(mlp(), points(), recipe.split(",f")[0]))["w1_quantized"],
    )


def test_weights_that_one_step_for_all_rounds_to_zero_are_trained() -> None:
    """Zero codes would count as pruned (see `zeros`), and the small weights behind them differ in nothing."""
    model = mlp()
    w1 = values(model)["w1"] * 0.01
    w1[:, 0] = 40
    model.graph.initializers["w1"].const_value = ir.tensor(w1, name="w1")
    recipe = "quantize-int8{granularity='tensor'}"
    before = values(quantized(model, points(), recipe))["w1_quantized"]
    assert (before[:, 1:] == 0).all()
    run = Pipeline.parse(f"{recipe},{FINETUNE % 'lr=0.05 epochs=5'}")
    found = run.run(model, calibrated(model, points()))
    assert (values(found.model)["w1_quantized"][:, 1:] != 0).any()
    assert "weights kept at zero" not in found.changes[-1].figures
