"""Pruning during a training: how sparsity grows, what goes, what comes back by rewinding, and how a training ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import pytorch_lightning as pl
import torch

from compressor.data import open_samples
from compressor.errors import OptionError
from compressor.pipeline import Change, Context, Pipeline
from compressor.pruning.masks import Layout, Pattern
from compressor.pruning.sparsity import Gradual
from compressor.torch_graph import to_torch
from compressor.training.callbacks import Keeper
from compressor.training.gradual import Pruning, cuts, schedule
from compressor.training.prunable_weights import Prunable, add_masks
from compressor.training.pruning_course import Course
from compressor.training.zeros import Mask
from passes.finetune import Finetune
from tests.conftest import drawn
from tests.training.trained import (
    change,
    check,
    made,
    mlp,
    points,
    train,
    values,
)

LAYOUTS = {"w1": Layout((4, 8), (1, 0)), "w2": Layout((8, 3), (1, 0))}


def plan(targets: dict[str, float] | None = None, pattern: str = "element", **more: Any) -> Gradual:
    """A pruning of the MLP."""
    found = {"w1": 0.75, "w2": 0.5} if targets is None else targets
    return Gradual(
        found, {name: LAYOUTS.get(name, LAYOUTS["w1"]) for name in found}, Pattern.parse(pattern), **more
    )


def zeros(model: ir.Model) -> dict[str, np.ndarray]:
    return {name: values(model)[name] == 0 for name in ("w1", "w2")}


class Watching(pl.Callback):
    """The masks and the rate after every step."""

    def __init__(self) -> None:
        self.masks: list[dict[str, np.ndarray]] = []
        self.rates: list[float] = []
        self.scores: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        masks = (part for part in pl_module.network.modules() if isinstance(part, Mask))
        self.masks.append({f"w{n}": part.mask.numpy().copy() for n, part in enumerate(masks, 1)})

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.scores.append(pl_module.score)

    def sparsity(self, name: str = "w1") -> list[float]:
        return [1 - float(masks[name].mean()) for masks in self.masks]


def watched(gradual: Gradual, options: str = "epochs=4", **more: Any) -> tuple[Watching, ir.Model, Change]:
    """A training of 12 steps."""
    seen = Watching()
    result = train(mlp(), points(), options, gradual=(gradual,), callbacks=[seen], **more)
    return seen, result.model, change(result)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cubic", [0, 0.75 * 0.578125, 0.75 * 0.875, 0.75 * 0.984375, 0.75]),
        ("linear", [0, 0.75 / 4, 0.75 / 2, 0.75 * 3 / 4, 0.75]),
        ("iterative", [0, 1 - 0.25**0.25, 1 - 0.25**0.5, 1 - 0.25**0.75, 0.75]),
    ],
)
def test_sparsity_follows_its_schedule_and_stays_where_it_ends(name: str, expected: list[float]) -> None:
    """Of 12 steps the ramp takes 8, with a cut after every second; 32 weights, so the nearest share is 1/64 off."""
    seen, model, _ = watched(plan(schedule=name, steps=4))
    steps = [expected[min(4, step // 2)] for step in range(1, 13)]
    np.testing.assert_allclose(seen.sparsity(), steps, atol=1 / 64)
    assert {name: mask.sum() for name, mask in zeros(model).items()} == {"w1": 24, "w2": 12}


@pytest.mark.parametrize(("importance", "first"), [("magnitude", 1), ("taylor", 2), ("movement", 2)])
def test_one_shot_cuts_all_at_once_as_soon_as_it_knows_what(importance: str, first: int) -> None:
    seen, _, _ = watched(plan(schedule="one-shot", steps=4, importance=importance))
    assert seen.sparsity() == [0.0] * (first - 1) + [0.75] * (13 - first)


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "movement"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_what_is_cut_never_comes_back(importance: str, scope: str) -> None:
    seen, model, done = watched(plan(importance=importance, scope=scope, steps=6))
    for before, after in zip(seen.masks, seen.masks[1:], strict=False):
        assert all((after[name] <= before[name]).all() for name in before)
    assert sum(mask.sum() for mask in zeros(model).values()) == 24 + 12
    assert done.figures["sparsity reached"] == round(36 / 56, 4)
    check(model)


def test_layers_share_a_global_target_by_their_scores() -> None:
    weights = {"a": drawn(8, 8), "b": drawn(8, 8, seed=1) * 0.1}
    weights = {name: torch.nn.Parameter(torch.tensor(array)) for name, array in weights.items()}
    layout = {name: Layout((8, 8), (1, 0)) for name in weights}
    gradual = Gradual(
        dict.fromkeys(weights, 0.5), layout, Pattern(), importance="taylor", scope="global", steps=1
    )
    held = {name: Prunable(w, Mask(torch.ones(8, 8, dtype=torch.bool))) for name, w in weights.items()}
    course = Course(gradual, held)
    for weight in weights.values():
        weight.grad = torch.ones(8, 8)
    course.observe()
    course.cut(1)
    stays = np.concatenate([held[name].alive.ravel() for name in weights])
    scores = np.concatenate([w.detach().square().numpy().ravel() for w in weights.values()])
    assert scores[stays].min() > scores[~stays].max()
    assert stays.sum() == 64
    assert held["a"].alive.sum() > held["b"].alive.sum()


@pytest.mark.parametrize("importance", ["magnitude", "movement"])
def test_a_pattern_holds_at_the_end(importance: str) -> None:
    _, model, _ = watched(plan({"w1": 0.5}, "2:4", importance=importance, steps=3))
    assert (zeros(model)["w1"].T.reshape(-1, 4).sum(axis=1) == 2).all()


def test_blocks_go_as_a_whole() -> None:
    gradual = plan({"w1": 0.5}, steps=3)
    blocks = Gradual(gradual.targets, gradual.layouts, Pattern.parse("block", (2, 2)), steps=3)
    _, model, _ = watched(blocks)
    gone = zeros(model)["w1"].reshape(2, 2, 4, 2).sum(axis=(1, 3))
    assert set(gone.ravel().tolist()) == {0, 4}
    assert gone.sum() == 16


def test_zeros_of_an_earlier_pruning_stay_and_count() -> None:
    model = mlp()
    array = values(model)["w1"]
    array[np.abs(array) > np.median(np.abs(array))] = 0
    model.graph.initializers["w1"].const_value = ir.tensor(array, name="w1")
    made_model = train(model, points(), "epochs=4", gradual=(plan(steps=4),)).model
    assert zeros(made_model)["w1"][array == 0].all()
    assert zeros(made_model)["w1"].sum() == 24


def test_a_weight_that_is_sparser_already_is_left_as_it_is() -> None:
    model = mlp()
    array = values(model)["w1"]
    array[1:] = 0
    model.graph.initializers["w1"].const_value = ir.tensor(array, name="w1")
    assert zeros(train(model, points(), gradual=(plan({"w1": 0.5}),)).model)["w1"].sum() == 24


def moving(importance: str) -> Course:
    """Two weights: the large one moves to zero, the small one away from it."""
    weight = torch.nn.Parameter(torch.tensor([[3.0, 0.5]]))
    gradual = Gradual({"w": 0.5}, {"w": Layout((1, 2), (0, 1))}, Pattern(), importance=importance, steps=1)
    course = Course(gradual, {"w": Prunable(weight, Mask(torch.ones(1, 2, dtype=torch.bool)))})
    for _ in range(3):
        weight.grad = torch.tensor([[0.01, -1.0]])
        course.observe()
    course.cut(1)
    return course


def test_movement_cuts_what_moves_to_zero_and_magnitude_what_is_small() -> None:
    assert moving("movement").weights["w"].alive.tolist() == [[False, True]]
    assert moving("magnitude").weights["w"].alive.tolist() == [[True, False]]


def test_taylor_cuts_where_weight_times_gradient_is_small() -> None:
    assert moving("taylor").weights["w"].alive.tolist() == [[False, True]]


def test_a_gradient_that_overflowed_does_not_count() -> None:
    course = moving("taylor")
    course.weights["w"].weight.grad = torch.tensor([[torch.inf, torch.nan]])
    course.observe()
    assert all(total.isfinite().all() for total in course.state_dict()["sums"].values())


def test_rewinding_puts_the_weights_that_stay_back_to_the_start() -> None:
    """The last cut is after the last step, so nothing is trained behind it."""
    _, model, _ = watched(plan(schedule="iterative", rewind=True, steps=3, end=1.0))
    for name in ("w1", "w2", "b1", "b2"):
        stays = values(model)[name] != 0
        assert np.array_equal(values(model)[name][stays], values(mlp())[name][stays])
    assert zeros(model)["w1"].sum() == 24


def test_without_rewinding_the_weights_that_stay_go_on() -> None:
    _, model, _ = watched(plan(schedule="iterative", steps=3, end=1.0))
    stays = values(model)["w1"] != 0
    assert (values(model)["w1"][stays] != values(mlp())["w1"][stays]).all()


def test_rewinding_forgets_the_momentum() -> None:
    sizes: list[int] = []

    class State(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            sizes.append(len(trainer.optimizers[0].state))

    gradual = plan(schedule="iterative", rewind=True, steps=2)
    train(mlp(), points(), "epochs=4 optimizer=adamw", gradual=(gradual,), callbacks=[State()])
    assert [step for step, size in enumerate(sizes) if not size] == [0, 4, 8]


def test_the_learning_rate_starts_again_after_every_cut_of_an_iterative_pruning() -> None:
    seen, _, _ = watched(plan(schedule="iterative", steps=2), "epochs=4 schedule=cosine")
    np.testing.assert_allclose(
        seen.rates, 3 * [0.05 * (1 + np.cos(np.pi * k / 4)) for k in range(4)], atol=1e-9
    )
    once, _, _ = watched(plan(schedule="cubic", steps=2), "epochs=4 schedule=cosine")
    assert once.rates == sorted(once.rates, reverse=True)


def test_plateau_is_not_started_again() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    options = Finetune(schedule="plateau", warmup=4)
    found = schedule((plan(schedule="iterative", steps=2),), options, optimizer, 30, 10)
    assert type(found).__name__ == "LinearLR"


def test_cuts_are_at_equal_distances_up_to_the_end_of_the_ramp() -> None:
    assert cuts((plan(schedule="iterative", steps=4),), 30) == [5, 10, 15, 20]
    assert cuts((plan(schedule="iterative", steps=2, end=1.0),), 30) == [15]
    assert cuts((plan(schedule="cubic", steps=4),), 30) == []


def test_an_epoch_before_the_last_cut_is_never_the_best() -> None:
    """Of 18 steps the last cut is after the twelfth, which ends the fourth epoch."""
    seen, model, done = watched(plan(steps=4), "epochs=6 keep=best")
    assert done.figures["best epoch"] >= 4
    assert done.figures["score after"] == max(seen.scores[3:])
    assert zeros(model)["w1"].sum() == 24
    assert "training" not in done.declined


def test_a_better_score_from_before_the_last_cut_is_forgotten() -> None:
    student = SimpleNamespace(network=torch.nn.Linear(1, 1), fault="", resumed=0, pace=(0, 0.0))
    keeper = Keeper(Finetune(), True, 0.9, None, trained_only=True)
    trainer: Any = SimpleNamespace(current_epoch=0, global_step=1)
    keeper.on_fit_start(trainer, student)
    for trainer.current_epoch, (score, settled) in enumerate([(1.0, False), (0.3, True), (0.2, True)]):
        student.score, student.settled = score, settled
        student.network.weight.data.fill_(score)
        keeper.on_validation_end(trainer, student)
    keeper.on_fit_end(trainer, student)
    assert (student.outcome["best"], student.outcome["best_epoch"]) == (0.3, 2)
    assert student.network.weight.item() == pytest.approx(0.3)


def test_epochs_before_the_last_cut_cost_no_patience() -> None:
    """The sixth epoch is the first that counts, and the seventh no better."""
    _, model, done = watched(plan(steps=4), "epochs=9 keep=best patience=1 lr=1e-12")
    assert done.figures["epochs"] == 7
    assert zeros(model)["w1"].sum() == 24


@pytest.mark.parametrize("average", ["average=ema ema_decay=0.9", "average=swa swa_start=0.1"])
def test_averaged_weights_are_as_sparse(average: str) -> None:
    _, model, done = watched(plan(steps=4), f"epochs=6 keep=best {average}")
    assert {name: mask.sum() for name, mask in zeros(model).items()} == {"w1": 24, "w2": 12}
    assert done.figures["sparsity reached"] == round(36 / 56, 4)


def test_a_single_step_is_enough_to_reach_the_target() -> None:
    result = train(mlp(), points(8), "epochs=1 batch=8", gradual=(plan(steps=10),))
    assert zeros(result.model)["w1"].sum() == 24


def test_accumulated_batches_count_as_one_step() -> None:
    seen, _, _ = watched(plan({"w1": 0.75}, schedule="linear", steps=4), "epochs=4 accumulate=3")
    assert [round(s * 32) for s in seen.sparsity()[2::3]] == [6, 18, 24, 24]


def test_a_training_that_goes_astray_before_the_last_cut_keeps_the_weights_from_before_it() -> None:
    _, model, done = watched(plan(steps=4), "epochs=4 lr=1e30")
    assert done.declined["pruning"].startswith(
        "the training ended before the last cut, so that the weights from"
    )
    assert done.figures["sparsity reached"] == 0
    assert all(np.array_equal(values(model)[name], array) for name, array in values(mlp()).items())


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
def test_the_latent_weights_of_a_quantized_model_are_cut(importance: str) -> None:
    samples = open_samples({"x": points()["x"]}, mlp(), "calibration")
    quantized = Pipeline.parse("quantize-int8").run(mlp(), Context(calibration=samples, threads=1)).model
    result = train(quantized, points(), "epochs=4", gradual=(plan({"w1": 0.75}, importance=importance),))
    codes = next(array for array in values(result.model).values() if array.shape == (4, 8))
    assert codes.dtype == np.int8
    assert (codes == 0).sum() >= 24
    assert change(result).figures["sparsity reached"] == 0.75


def test_weights_that_cannot_be_cut_are_declined_with_the_reason() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, v) }"
    model = made(text, w=drawn(4, 4), v=drawn(4, 4).T.copy())
    layouts = {"w": Layout((4, 4), (1, 0)), "v": Layout((4, 4), (0, 1)), "gone": Layout((2, 2), (0, 1))}
    both = Gradual(dict.fromkeys(layouts, 0.5), layouts, Pattern())
    other = Gradual({"w": 0.5}, {"w": Layout((4, 8), (0, 1))}, Pattern())
    data = {"x": points()["x"]}
    found = change(train(model, data, gradual=(both,)))
    assert found.declined == {
        "v": "its transpose is trained in its place",
        "gone": "it is not trained any more",
    }
    assert change(train(model, data, gradual=(other,))).declined == {"w": "its shape has changed since"}


def test_frozen_weights_are_cut_by_magnitude_and_declined_where_gradients_decide() -> None:
    _, model, _ = watched(plan(), "epochs=2 freeze=w1")
    assert zeros(model)["w1"].sum() == 24
    _, model, done = watched(plan(importance="taylor"), "epochs=2 freeze=w1")
    assert done.declined == {"w1": "no gradient reached it"}
    assert zeros(model)["w1"].sum() == 0
    assert zeros(model)["w2"].sum() == 12


def test_sharded_weights_are_refused() -> None:
    network = to_torch(mlp())
    add_masks(network, (plan(),))
    with pytest.raises(
        OptionError, match="finetune: strategy='fsdp' shards the weights, and pruning during the"
    ):
        Pruning(network, (plan(),), Finetune(strategy="fsdp"))


class Interrupt(pl.Callback):
    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == 8:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    "more",
    [
        {"importance": "movement", "scope": "global"},
        {"importance": "taylor", "steps": 3},
        {"schedule": "iterative", "rewind": True, "steps": 4},
    ],
    ids=["movement", "taylor", "rewinding"],
)
def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path: Path, more: dict[str, Any]) -> None:
    given = "epochs=5 optimizer=adamw lr=0.01 average=ema keep=best"
    whole = train(mlp(), points(), given, gradual=(plan(**more),))
    state = {"gradual": (plan(**more),), "workspace": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        train(mlp(), points(), given, callbacks=[Interrupt()], **state)
    again = train(mlp(), points(), given, resume=True, **state)
    assert change(again).figures["resumed after epoch"] == 2
    assert values(again.model).keys() == values(whole.model).keys()
    assert all(np.array_equal(values(again.model)[n], array) for n, array in values(whole.model).items())
    assert zeros(whole.model)["w1"].any()


def test_a_checkpoint_of_another_pruning_is_refused(tmp_path: Path) -> None:
    train(mlp(), points(), gradual=(plan(steps=2),), workspace=tmp_path)
    with pytest.raises(Exception, match="is of another training"):
        train(mlp(), points(), gradual=(plan(steps=3),), workspace=tmp_path, resume=True)


def test_gradual_pruning_is_a_recipe() -> None:
    folder = Path(__file__).parents[2] / "sample_models"
    model = ir.load(folder / "breast_cancer_mlp.onnx")
    train, data = (
        open_samples(str(folder / f"breast_cancer_{part}.npz"), model, part) for part in ("train", "test")
    )
    recipe = (
        "prune-magnitude{schedule='cubic' sparsity=0.8 min_elements=100 storage='dense'},finetune{epochs=3}"
    )
    result = Pipeline.parse(recipe).run(model, Context(train=train, data=data, threads=1))
    weights = [array for array in values(result.model).values() if array.ndim == 2]
    assert sum((w == 0).sum() for w in weights) == round(0.8 * sum(w.size for w in weights))
    assert change(result).figures["score after"] > change(result).figures["score before"] - 0.03
    check(result.model)


def test_pruning_on_the_way_needs_a_training_behind_it() -> None:
    recipe = "finetune,prune-magnitude{schedule='cubic'},optimize"
    with pytest.raises(
        OptionError, match="prune-magnitude prunes during the training: put finetune behind it"
    ):
        Pipeline.parse(recipe).check(Context(train=open_samples(points(), mlp(), "train")))
