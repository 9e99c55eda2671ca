from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from compressor.low_bit.binary import residual, xnor
from compressor.low_bit.codes import Codes
from tests.conftest import drawn


def loss(rows: np.ndarray, codes: Codes) -> float:
    return float(np.square(rows.astype(np.float64) - codes.decoded()).sum())


def test_xnor_is_the_sign_with_the_mean_size_as_the_scale_and_zero_counts_as_positive() -> None:
    codes = xnor(np.array([[3.0, -1.0, 0.0, -4.0]], np.float32))
    assert codes.codes.tolist() == [[1, -1, 1, -1]]
    assert codes.scale.tolist() == [2]


def test_one_basis_is_xnor() -> None:
    rows = drawn(4, 9)
    assert np.array_equal(residual(rows, 1).decoded(), xnor(rows).decoded())


@pytest.mark.parametrize("bases", [2, 3])
def test_codes_are_sums_of_signed_parts_of_127(bases: int) -> None:
    for row in residual(drawn(6, 500), bases).codes.astype(int):
        down = np.unique(row)[::-1]
        parts = (down[0] - down[1:bases]) // 2  # those of r1 + r2 + r3, r1 + r2 - r3, r1 - r2 + r3
        whole = [127 - sum(parts), *parts]
        sums = {sum(signed) for signed in product(*[(part, -part) for part in whole])}
        assert sums == set(down)
        assert len(sums) == 2**bases


def test_weights_that_two_bases_can_give_are_given() -> None:
    rows = np.array([[1.0, 3.0, -1.0, -3.0, 3.0]], np.float32)  # 2 +- 1: parts 85 and 42 of 127
    assert np.allclose(residual(rows, 2).decoded(), rows, atol=3 / 127)


def test_every_basis_brings_the_codes_nearer() -> None:
    rows = drawn(8, 400)
    losses = [loss(rows, residual(rows, bases)) for bases in (1, 2, 3)]
    # Of normal weights 1, 2 and 3 bits lose at least 0.3634, 0.1175 and 0.0345 (Max 1960, table I).
    assert losses[0] > 2.5 * losses[1] > 5 * losses[2]
    assert losses[2] > 0.0345 * np.square(rows).sum() * 0.8  # of 400 weights the law is not quite normal


def test_weights_of_one_size_need_one_basis() -> None:
    rows = np.array([[0.5, -0.5, 0.5]], np.float32)
    for bases in (1, 2, 3):
        assert residual(rows, bases).decoded() == pytest.approx(rows, abs=0.5 / 127)
