from __future__ import annotations

import numpy as np
import pytest

from compressor.low_bit import uniform as module
from compressor.low_bit.codes import Codes
from compressor.low_bit.ternary import optimal
from compressor.low_bit.uniform import highest, rounded, uniform
from tests.conftest import drawn


def loss(rows: np.ndarray, codes: Codes) -> np.ndarray:
    return np.asarray(np.square(rows.astype(np.float64) - codes.decoded()).sum(axis=1))


def test_two_bits_are_the_optimal_ternary_codes() -> None:
    rows = drawn(5, 40)
    found, wanted = uniform(rows, 2), optimal(rows)
    assert np.array_equal(found.codes, wanted.codes)
    assert np.array_equal(found.scale, wanted.scale)


@pytest.mark.parametrize("bits", [3, 4])
def test_no_scale_out_of_a_thousand_gives_nearer_codes(bits: int) -> None:
    rows = drawn(3, 60)
    found = loss(rows, uniform(rows, bits))
    for share in np.linspace(0.001, 1, 1000):
        scale = np.abs(rows).max(axis=1) * share
        # 1e-5: the scale is a float32.
        assert (found <= loss(rows, rounded(rows, scale, highest(bits))) * (1 + 1e-5)).all()


def test_eight_bits_reach_the_largest_weight() -> None:
    rows = drawn(4, 30)
    codes = uniform(rows, 8)
    assert np.abs(codes.codes).max(axis=1).tolist() == [127] * 4
    assert (np.abs(rows - codes.decoded()) <= codes.scale[:, None] * 0.501).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_multiples_of_a_step_stay_as_they_are(bits: int) -> None:
    top = highest(bits)
    rows = 0.25 * np.arange(-top, top + 1, dtype=np.float32)[None]
    codes = uniform(rows, bits)
    assert np.array_equal(codes.decoded(), rows)
    assert codes.codes.tolist() == [list(range(-top, top + 1))]


def test_many_rows_are_coded_as_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = drawn(7, 20)
    whole = uniform(rows, 4)
    monkeypatch.setattr(module, "_AT_ONCE", 300)  # two rows at a time
    parts = uniform(rows, 4)
    assert np.array_equal(whole.codes, parts.codes)
    assert np.array_equal(whole.scale, parts.scale)
