from __future__ import annotations

import numpy as np
import pytest

from compressor.low_bit.feedback import forward, mutual, rounded
from tests.conftest import drawn


def hessians(groups: int, columns: int) -> np.ndarray:
    x = drawn(groups, 3 * columns, columns).astype(np.float64) @ drawn(columns, columns, seed=1)
    return x.transpose(0, 2, 1) @ x + 0.1 * np.eye(columns)


def nearest(parts: np.ndarray, column: int) -> np.ndarray:
    return np.clip(np.rint(parts), -3, 3)


def textbook(weights: np.ndarray, hessian: np.ndarray, step: float) -> np.ndarray:
    """Frantar et al. 2023, algorithm 1, with one block: the columns left are moved through the factor of H^-1."""
    left, codes = weights.copy(), np.zeros_like(weights)
    factor = np.linalg.cholesky(np.linalg.inv(hessian)).T
    for column in range(weights.shape[1]):
        codes[:, column] = nearest(left[:, column] / step, column)
        lost = (left[:, column] - codes[:, column] * step) / factor[column, column]
        left[:, column:] -= lost[:, None] * factor[column, column:]
    return codes


def test_forward_is_a_triangular_factor() -> None:
    hessian = hessians(2, 7)
    upper = forward(hessian)
    whole = upper + np.eye(7)
    inner = np.linalg.inv(whole) @ hessian @ np.linalg.inv(whole).transpose(0, 2, 1)
    assert np.array_equal(upper, np.triu(upper, 1))
    assert inner == pytest.approx(np.einsum("gkk->gk", inner)[:, :, None] * np.eye(7), abs=1e-9)


@pytest.mark.parametrize("columns", [5, 128, 150])
def test_a_pass_forward_is_gptq(columns: int) -> None:
    target, hessian = drawn(2, 4, columns).astype(np.float64), hessians(2, columns)
    steps = np.full_like(target, 0.4)
    codes = rounded(target, None, forward(hessian), steps, nearest)
    for group in range(2):
        assert np.array_equal(codes[group], textbook(target[group], hessian[group], 0.4))


def test_without_feedback_every_weight_gets_its_nearest_code() -> None:
    target = drawn(1, 3, 150)
    codes = rounded(target, None, np.zeros((1, 150, 150), np.float32), np.ones_like(target), nearest)
    assert np.array_equal(codes, nearest(target, 0))


def test_mutual_passes_end_where_no_single_code_can_be_bettered() -> None:
    target, hessian, step = drawn(1, 4, 140).astype(np.float64), hessians(1, 140), 0.4

    def errors(codes: np.ndarray) -> np.ndarray:
        off = codes * step - target
        return np.asarray(np.einsum("grk,grk->gr", off @ hessian, off))

    steps, feedback = np.full_like(target, step), mutual(hessian)
    codes = nearest(target / step, 0)
    for _ in range(60):
        last, codes = codes, rounded(target, codes * step, feedback, steps, nearest)
        assert (errors(codes) <= errors(last) * (1 + 1e-9)).all()
    assert np.array_equal(last, codes)
    for column in range(0, 140, 7):
        for change in (-1, 1):
            other = codes.copy()
            other[:, :, column] = np.clip(other[:, :, column] + change, -3, 3)
            assert (errors(other) >= errors(codes) * (1 - 1e-9)).all()
