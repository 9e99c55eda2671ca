"""The learning-rate range test."""

from __future__ import annotations

import math

import numpy as np
import pytest

from compressor.errors import DataError
from compressor.training.rate_finder import range_test, suggested_rate


def descent(rate: float) -> float:
    """A loss over the rate: flat at 2.3, falling fastest at 1e-3, rising steeply from 3e-2 on."""
    return 2.3 - 1.5 / (1 + (1e-3 / rate) ** 2) + (rate / 3e-2) ** 3


def quadratic(curvature: float) -> list[tuple[float, float]]:
    """The range test of gradient descent on curvature x^2 / 2, which diverges for rates above 2 / curvature."""
    x = 1.0

    def step(rate: float) -> float:
        nonlocal x
        loss = curvature * x * x / 2
        x -= rate * curvature * x
        return loss

    return range_test(step, low=1e-5, high=100.0, steps=120)


def split(found: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [loss for _, loss in found], [rate for rate, _ in found]


def test_rates_grow_by_one_factor_from_low_to_high() -> None:
    rates = [rate for rate, _ in range_test(lambda rate: 1.0, 1e-6, 1e-2, 9)]
    assert rates == pytest.approx([10 ** (-6 + n / 2) for n in range(9)])


def test_stops_once_the_smoothed_loss_is_four_times_its_best() -> None:
    losses, rates = split(range_test(descent))
    assert rates[-1] < 1.0
    assert losses[-1] > 4 * min(losses)
    assert max(losses[:-1]) < losses[-1]


def test_leaves_out_a_loss_that_is_not_finite_and_stops() -> None:
    called = []

    def step(rate: float) -> float:
        called.append(rate)
        return 1.0 if rate < 1e-3 else math.nan

    found = range_test(step)
    assert len(called) == len(found) + 1
    assert all(math.isfinite(loss) for _, loss in found)


def test_a_loss_below_zero_may_rise_by_three_times_its_best() -> None:
    assert len(range_test(lambda rate: -1.0 + rate, steps=30)) == 30
    losses, _ = split(range_test(lambda rate: -1.0 + 100 * rate))
    assert losses[-1] > 2.0


def test_suggests_where_the_loss_falls_fastest() -> None:
    rate = suggested_rate(*split(range_test(descent)))
    assert 1e-3 / 1.5 < rate < 1e-3 * 1.5


def test_noise_moves_the_suggestion_little() -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, 100).tolist()
    rate = suggested_rate(*split(range_test(lambda rate: descent(rate) + noise.pop())))
    assert 1e-3 / 4 < rate < 1e-3 * 4


@pytest.mark.parametrize("curvature", [0.1, 1.0, 30.0])
def test_the_suggestion_lies_below_the_rate_at_which_gradient_descent_diverges(curvature: float) -> None:
    rate = suggested_rate(*split(quadratic(curvature)))
    assert 0.001 < rate * curvature < 2


def test_a_loss_that_only_rises_is_refused_with_what_was_seen() -> None:
    with pytest.raises(
        DataError, match=r"lr='auto': the loss fell at no rate between 1.0e-07 and .*: 1 at the first"
    ):
        suggested_rate(*split(range_test(lambda rate: 1.0 + rate)))


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_is_no_descent(seed: int) -> None:
    rng = np.random.default_rng(seed)
    with pytest.raises(DataError, match=r"Give a rate, as in lr=1e-3"):
        suggested_rate(*split(range_test(lambda rate: float(rng.normal(2.0, 0.1)))))


def test_a_loss_that_is_nan_at_once_is_refused() -> None:
    with pytest.raises(DataError, match=r"lr='auto': .* at 0 rates only, 5 are needed"):
        suggested_rate(*split(range_test(lambda rate: math.nan)))
