from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from compressor.low_bit.codes import Codes
from compressor.low_bit.ternary import optimal, ttq, twn
from tests.conftest import drawn


def loss(rows: np.ndarray, codes: Codes) -> np.ndarray:
    return np.square(rows.astype(np.float64) - codes.decoded()).sum(axis=1)


def test_twn_keeps_what_is_above_seven_tenths_of_the_mean_with_its_mean_as_the_scale() -> None:
    codes = twn(np.array([[4.0, -3.0, 1.0, 0.0]], np.float32))  # threshold 0.7 * 2 = 1.4
    assert codes.codes.tolist() == [[1, -1, 0, 0]]
    assert codes.scale.tolist() == [3.5]


@pytest.mark.parametrize("seed", range(5))
def test_no_ternary_codes_are_nearer_than_the_optimal_ones(seed: int) -> None:
    rows = drawn(1, 6, seed=seed)
    every = np.array([codes for codes in product((-1, 0, 1), repeat=6) if any(codes)], np.float64)
    squares, products = np.square(every).sum(axis=1), np.maximum(every @ rows[0], 0)
    best = np.square(rows, dtype=np.float64).sum() - np.max(np.square(products) / squares)
    assert loss(rows, optimal(rows))[0] == pytest.approx(best, rel=1e-5)  # of a float32 scale


def test_optimal_codes_are_the_weights_above_half_the_scale() -> None:
    rows = drawn(20, 300)
    codes = optimal(rows)
    assert np.array_equal(codes.codes != 0, np.abs(rows) > codes.scale[:, None] / 2)
    assert (loss(rows, codes) <= loss(rows, twn(rows))).all()


def test_equal_weights_stay_as_they_are() -> None:
    assert optimal(np.full((1, 7), -0.3, np.float32)).decoded() == pytest.approx(-0.3)


def test_ttq_gives_each_side_a_scale_of_its_own_and_the_larger_one_the_code_127() -> None:
    rows = np.array([[4.0, 4.0, 0.1, -1.0, -1.0], [-4.0, -4.0, 0.0, 1.0, 1.0]], np.float32)
    codes = ttq(rows)
    assert codes.codes.tolist() == [[127, 127, 0, -32, -32], [-127, -127, 0, 32, 32]]
    assert np.allclose(codes.decoded(), np.rint(rows), atol=4 / 127 / 2 + 1e-4)  # half a step of the ratio


def test_ttq_is_not_farther_than_optimal_but_for_the_rounding_of_the_ratio() -> None:
    rows = drawn(50, 200) + np.float32(0.2)
    rounding = np.square(optimal(rows).scale / 127 / 2) * rows.shape[1]
    assert (loss(rows, ttq(rows)) <= loss(rows, optimal(rows)) + rounding).all()


def test_ttq_of_a_row_without_negative_weights_has_one_side() -> None:
    codes = ttq(np.array([[2.0, 0.0, 2.0]], np.float32))
    assert codes.codes.tolist() == [[127, 0, 127]]
    assert np.allclose(codes.decoded(), [[2, 0, 2]])
