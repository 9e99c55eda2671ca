"""When a training ends, which weights it leaves, and what happens when the loss goes astray."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import pytorch_lightning as pl

from compressor.errors import DataError
from tests.conftest import drawn
from tests.training.trained import (
    Arrays,
    change,
    cnn,
    distance,
    images,
    made,
    mlp,
    moved,
    outputs,
    points,
    train,
    values,
)


class States(pl.Callback):
    """Notes the weights after every step, and the score of every epoch."""

    def __init__(self) -> None:
        self.weights: list[Arrays] = []
        self.scores: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.weights.append({n: p.detach().numpy().copy() for n, p in pl_module.network.named_parameters()})

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.scores.append(pl_module.score)


def accuracy(model: ir.Model, data: Arrays) -> float:
    return float((outputs(model, data["x"])[0].argmax(1) == data["labels"]).mean())


def test_stops_after_as_many_epochs_without_a_better_score_as_asked() -> None:
    assert change(train(mlp(), points(), "epochs=9 lr=1e-9 patience=2")).figures["epochs"] == 3
    assert change(train(mlp(), points(), "epochs=9 lr=1e-9 patience=0")).figures["epochs"] == 9


def test_the_best_epoch_is_kept_and_reported() -> None:
    seen = States()
    result = train(mlp(), points(), "epochs=8 lr=2 keep=best", test=points(40, seed=3), callbacks=[seen])
    figures = change(result).figures
    best = int(np.argmax(seen.scores))
    assert best < 7  # else it would be the last one as well
    assert (figures["best epoch"], figures["score after"]) == (best + 1, seen.scores[best])
    kept = seen.weights[3 * best + 2]
    assert all(np.array_equal(values(result.model)[name], kept[name]) for name in kept)
    assert accuracy(result.model, points(40, seed=3)) == pytest.approx(seen.scores[best])


def test_the_last_epoch_is_kept_when_asked() -> None:
    seen = States()
    result = train(mlp(), points(), "epochs=4 lr=2 keep=last", test=points(40, seed=3), callbacks=[seen])
    assert change(result).figures["score after"] == seen.scores[-1]
    assert all(np.array_equal(values(result.model)[n], w) for n, w in seen.weights[-1].items())


@pytest.mark.parametrize("options", ["lr=100", "lr=30 optimizer=adam", "lr=5 schedule=one-cycle"])
def test_the_score_is_never_worse_than_at_the_start(options: str) -> None:
    learned = train(mlp(), points(), "epochs=20").model
    figures = change(train(learned, points(), f"keep=best {options}")).figures
    assert float(figures["score after"]) >= float(figures["score before"])


def test_a_start_that_nothing_beats_is_given_back_unchanged() -> None:
    result = train(mlp(), {"x": points()["x"]}, "keep=best lr=1")
    assert moved(mlp(), result.model) == set()
    assert (change(result).figures["best epoch"], change(result).touched) == (0, ())


@pytest.mark.parametrize(
    ("average", "weights"),
    [("ema ema_decay=0.5", [0.5**5 * 2**k for k in range(6)]), ("swa swa_start=0.5", [0, 0, 1, 1, 1, 1])],
)
def test_averaged_weights_are_the_average_of_the_steps(average: str, weights: list[float]) -> None:
    seen = States()
    result = train(mlp(), points(), f"average={average}", callbacks=[seen])
    for name in ("w1", "b2"):
        expected = np.average([w[name] for w in seen.weights], axis=0, weights=weights)
        assert np.allclose(values(result.model)[name], expected, atol=1e-6)


def test_averaged_weights_get_statistics_of_their_own() -> None:
    result = train(cnn(), images(), "epochs=1 batch=24 average=swa swa_start=0 lr=1e-9")
    x, weights = images()["x"], values(cnn())
    padded = np.pad(x[:, 0], ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    made = np.einsum("nhwij,oij->onhw", windows, weights["wc"][:, 0]) + weights["bc"][:, None, None, None]
    assert np.allclose(values(result.model)["mean"], made.mean((1, 2, 3)), atol=1e-5)


def test_frozen_statistics_stay_with_an_average_too() -> None:
    result = train(cnn(), images(), "average=swa swa_start=0 batchnorm=frozen")
    assert not {"mean", "var"} & moved(cnn(), result.model)


def test_the_score_is_that_of_the_average() -> None:
    data = {"x": points()["x"], "labels": drawn(24, 3)}
    result = train(mlp(), data, "average=swa swa_start=0 loss=mse")
    error = np.square(outputs(result.model, data["x"])[0] - data["labels"]).mean()
    assert change(result).figures["score after"] == pytest.approx(error, rel=1e-5)


def test_a_model_that_gives_nan_is_refused_with_the_name_of_the_value() -> None:
    text = "g (float[N,4] x) => (float[N,3] y) { h = MatMul(x, w) l = Log(h) y = Add(l, b) }"
    model = made(text, w=drawn(4, 3), b=drawn(3))
    with pytest.raises(
        DataError, match=r"finetune: .*NaN.*: the value '\w+' of node '\w+' is the first that is not"
    ):
        train(model, {"x": drawn(24, 4), "labels": drawn(24, 3)}, "loss=mse")


class Spoiler(pl.Callback):
    """Multiplies the weights before a step, as too high a rate would."""

    def __init__(self, step: int, factor: float) -> None:
        self.step = step
        self.factor = factor

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == self.step - 1:
            for parameter in pl_module.network.parameters():
                parameter.data *= self.factor


TARGETS = {"x": points()["x"], "labels": drawn(24, 3)}


def test_a_loss_that_is_nan_at_the_first_step_names_the_tensor() -> None:
    said = (
        "finetune: the loss is NaN at step 1: the parameter 'w1' holds NaN. Look at this tensor, or lower lr."
    )
    with pytest.raises(DataError, match=re.escape(said)):
        train(mlp(), TARGETS, "loss=mse", callbacks=[Spoiler(1, np.nan)])


@pytest.mark.parametrize(
    "options", ["keep=best", "keep=last", "keep=best average=ema", "keep=last patience=3"]
)
def test_a_loss_that_is_nan_later_ends_with_the_weights_of_the_epochs_before(options: str) -> None:
    run = f"lr=1e-4 loss=mse {options}"
    result = train(mlp(), TARGETS, f"epochs=6 {run}", callbacks=[Spoiler(8, np.nan)])
    said = "the loss is NaN at step 8; the weights are those of the epochs before"
    assert change(result).declined["training"] == said
    assert change(result).figures["best epoch"] == 2
    assert distance(result.model, train(mlp(), TARGETS, f"epochs=2 {run}").model) == 0


def test_a_loss_that_explodes_later_ends_with_the_best_weights() -> None:
    run = "batch=2 lr=1e-4 clip_norm=0.1 loss=mse keep=best"
    result = train(mlp(), TARGETS, f"epochs=6 {run}", callbacks=[Spoiler(27, 100)])
    assert re.match(r"the loss has exploded: \S+ at step 31, up to", change(result).declined["training"])
    assert change(result).figures["best epoch"] == 2
    assert distance(result.model, train(mlp(), TARGETS, f"epochs=2 {run}").model) == 0


def test_a_bad_loss_moves_no_weight() -> None:
    seen, labels = States(), drawn(24, 3)
    labels[10] = 1e30
    train(mlp(), {"x": points()["x"], "labels": labels}, "loss=mse shuffle=False", callbacks=[seen])
    assert len(seen.weights) == 2  # the second batch has the label
    assert all(
        np.array_equal(seen.weights[0][name], seen.weights[1][name]) for name in ("w1", "b1", "w2", "b2")
    )
