from __future__ import annotations

import numpy as np
import pytest

from compressor.pruning.least_squares import Sums, solve
from tests.conftest import drawn


def summed(x: np.ndarray, y: np.ndarray, batches: int = 1) -> Sums:
    sums = Sums.empty(x.shape[0], x.shape[2], y.shape[2])
    for rows in np.array_split(np.arange(x.shape[1]), batches):
        sums.add(x[:, rows], y[:, rows])
    return sums


def test_outputs_that_the_weights_give_already_leave_them() -> None:
    x, w = drawn(2, 500, 4), drawn(2, 4, 3, seed=1).astype(np.float64)
    found = solve(summed(x, (x @ w + 2).astype(np.float32)), w, shifts=True)
    assert found.weights == pytest.approx(w, abs=1e-4)
    assert found.bias == pytest.approx(np.full((2, 3), 2), abs=1e-4)
    assert found.before == pytest.approx(0, abs=1e-6)


def test_finds_other_weights_near_enough_that_little_is_missed() -> None:
    x, w = drawn(1, 2000, 4), drawn(1, 4, 3, seed=1).astype(np.float64)
    found = solve(summed(x, (x @ w).astype(np.float32)), np.zeros_like(w), shifts=True)
    # Each weight is drawn to 0 by the share ridge / (ridge + 1) of about 1 %.
    assert found.weights == pytest.approx(w, rel=0.02, abs=0.01)
    assert found.before == pytest.approx(1, abs=1e-6)
    assert found.after < 1e-3


def test_never_misses_more_than_before() -> None:
    for seed in range(5):
        x, y = drawn(1, 50, 6, seed=seed), drawn(1, 50, 2, seed=seed + 10)
        found = solve(summed(x, y), drawn(1, 6, 2, seed=seed + 20).astype(np.float64), shifts=True)
        assert found.after <= found.before


def test_fewer_rows_than_columns_keep_the_weights_where_the_rows_say_nothing() -> None:
    x = np.zeros((1, 3, 8), np.float32)
    x[0, :, :2] = drawn(3, 2)
    w = drawn(1, 8, 2).astype(np.float64)
    found = solve(summed(x, drawn(1, 3, 2, seed=4)), w, shifts=False)
    assert found.weights[0, 2:] == pytest.approx(w[0, 2:])
    assert found.bias is None


def test_inputs_that_are_always_zero_change_nothing() -> None:
    x, w = np.zeros((1, 10, 3), np.float32), drawn(1, 3, 2).astype(np.float64)
    found = solve(summed(x, np.ones((1, 10, 2), np.float32)), w, shifts=True)
    assert found.weights == pytest.approx(w)
    assert found.bias == pytest.approx(np.ones((1, 2)))


def test_the_bias_alone_makes_up_for_a_shift() -> None:
    x, w = drawn(1, 400, 3), drawn(1, 3, 2, seed=1).astype(np.float64)
    found = solve(summed(x, (x @ w - 7).astype(np.float32)), w, shifts=True)
    assert found.bias == pytest.approx(np.full((1, 2), -7), abs=1e-3)
    assert found.before == pytest.approx(0, abs=1e-6), "the error without solving takes the best bias"


def test_batches_sum_to_the_same() -> None:
    x, y, w = drawn(2, 60, 3), drawn(2, 60, 2, seed=1), np.zeros((2, 3, 2))
    whole, parts = (solve(summed(x, y, n), w, shifts=True) for n in (1, 4))
    assert whole.weights == pytest.approx(parts.weights, abs=1e-6)
