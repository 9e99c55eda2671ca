"""Learning rates and optimizers drive the steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl

from compressor.pipeline import Pipeline
from compressor.training.options import Training
from compressor.training.schedules import curve
from tests.training.trained import change, distance, mlp, moved, points, train, values


class Rates(pl.Callback):
    """Notes the rate of every step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.found.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize(
    "options",
    [
        "schedule=constant",
        "schedule=constant warmup=0.5",
        "schedule=step gamma=0.5",
        "schedule=multistep milestones=(0.3,0.6)",
        "schedule=exponential gamma=0.01",
        "schedule=polynomial power=2 min_lr=0.1",
        "schedule=cosine warmup=3 min_lr=0.1",
        "schedule=cosine-restarts cycles=2",
        "schedule=one-cycle",
        "schedule=inverse-sqrt warmup=2",
        "schedule=cosine accumulate=2",
    ],
)
def test_the_rate_of_every_step_is_that_of_the_curve(options: str) -> None:
    rates = Rates()
    train(mlp(), points(), f"epochs=4 lr=0.05 {options}", callbacks=[rates])
    (settings,) = Pipeline.parse(
        f"finetune{{epochs=4 lr=0.05 warmup=0 {options}}}".replace("warmup=0 ", "", "warmup=" in options)
    )
    assert isinstance(settings, Training)
    per_epoch = 2 if settings.accumulate == 2 else 3
    assert rates.found == pytest.approx(curve(settings, 4 * per_epoch, per_epoch), rel=1e-9)


def test_the_rate_falls_when_the_score_has_stopped_getting_better() -> None:
    rates = Rates()
    options = "epochs=4 lr=1e-5 schedule=plateau gamma=0.1 plateau_patience=1"
    train(mlp(), points(), options, callbacks=[rates])
    assert rates.found == pytest.approx([1e-5] * 9 + [1e-6] * 3)


def test_layers_far_from_the_output_move_less_with_layerwise_rates() -> None:
    def ratio(options: str) -> float:
        before, after = values(mlp()), values(train(mlp(), points(), f"epochs=1 batch=24 {options}").model)
        first, last = (np.linalg.norm(after[n] - before[n]) for n in ("w1", "w2"))
        return float(first / last)

    assert ratio("lr_decay=0.1") == pytest.approx(0.1 * ratio(""), rel=1e-3)


def test_a_rate_for_a_glob_scales_its_steps_and_zero_stops_them() -> None:
    full, tenth = (train(mlp(), points(), f"epochs=1 batch=24 {o}").model for o in ("", "lr_for={'w1':0.1}"))
    steps = [np.linalg.norm(values(m)["w1"] - values(mlp())["w1"]) for m in (full, tenth)]
    assert steps[1] == pytest.approx(0.1 * steps[0], rel=1e-3)
    assert moved(full, tenth) == {"w1"}
    assert "b1" not in moved(mlp(), train(mlp(), points(), "lr_for={'b*':0}").model)


@pytest.mark.parametrize(
    ("options", "largest"),
    [
        ("optimizer=adam", 0.01),
        ("optimizer=adamw", 0.01),
        ("optimizer=adagrad", 0.01),
        ("optimizer=rmsprop", 0.1),  # the first step is lr / sqrt(1 - alpha), alpha 0.99
        ("optimizer='torch.optim:NAdam'", None),
    ],
)
def test_the_first_step_is_that_of_the_optimizer(options: str, largest: float | None) -> None:
    model = train(mlp(), points(), f"epochs=1 batch=24 lr=0.01 {options}").model
    steps = np.abs(values(model)["w1"] - values(mlp())["w1"])
    assert steps.max() > 1e-3
    if largest is not None:
        assert np.median(steps[steps > 0]) == pytest.approx(largest, rel=1e-2)


def test_momentum_goes_on_in_the_direction_of_earlier_steps() -> None:
    plain, fast = (train(mlp(), points(), f"lr=0.01 momentum={m}").model for m in (0, 0.9))
    assert distance(fast, mlp()) > 2 * distance(plain, mlp())


def test_a_found_rate_trains_and_is_reported() -> None:
    result = train(mlp(), points(96), "batch=48 lr=auto epochs=4 optimizer=adamw")
    rate = change(result).figures["rate"]
    assert 1e-5 < float(rate) < 1
    again = train(mlp(), points(96), f"batch=48 lr={rate} epochs=4 optimizer=adamw")
    assert distance(result.model, again.model) == 0
