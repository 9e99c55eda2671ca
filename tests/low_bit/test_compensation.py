from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from compressor.low_bit.codes import Method
from compressor.low_bit.compensation import gptq
from compressor.low_bit.methods import codebook, encode
from compressor.pruning.layer_inputs import Gram
from tests.conftest import drawn

METHODS = ("twn", "optimal", "ttq", "xnor", "residual 2", "residual 3", "uniform 3", "uniform 4", "uniform 8")
every = pytest.mark.parametrize("method", [Method.parse(text) for text in METHODS], ids=METHODS)
TERNARY = Method("optimal")


def inputs(groups: int, columns: int, rows: int = 400, seed: int = 0) -> np.ndarray:
    """Correlated and above zero, as behind a Relu: float32 [groups, rows, columns]."""
    return np.maximum(
        drawn(groups, rows, 3, seed=seed) @ drawn(3, columns, seed=seed + 1)
        + 0.5 * drawn(groups, rows, columns, seed=seed + 2),
        0,
    )


def gram(x: np.ndarray, x0: np.ndarray | None = None) -> Gram:
    sums = Gram.zero(x)
    sums.add(x, x0)
    return sums


def off(x: np.ndarray, rows: np.ndarray, decoded: np.ndarray, x0: np.ndarray | None = None) -> float:
    """How far the output is from the original one, as a share of its norm."""
    weights, made = (array.reshape(len(x), -1, x.shape[2]).transpose(0, 2, 1) for array in (rows, decoded))
    wanted = (x if x0 is None else x0) @ weights
    return float(np.linalg.norm(x @ made - wanted) / np.linalg.norm(wanted))


@every
@pytest.mark.parametrize(("groups", "block"), [(1, 24), (4, 24), (1, 8), (2, 12)])
def test_the_output_is_nearer_than_that_of_the_plain_codes(method: Method, groups: int, block: int) -> None:
    x, rows = inputs(groups, 24), drawn(8, 24, seed=9)
    found = gptq(rows.reshape(-1, block), gram(x), method)
    plain = encode(rows.reshape(-1, block), method)
    assert found.codes.codes.shape == (8 * 24 // block, block)
    # 1e-4: the sums are of float32 products.
    assert off(x, rows, found.codes.decoded()) == pytest.approx(found.error, rel=1e-3, abs=1e-4)
    assert off(x, rows, plain.decoded()) == pytest.approx(found.plain, rel=1e-3, abs=1e-4)
    assert found.error < 0.9 * found.plain


@every
def test_codes_stay_among_the_levels_of_the_method(method: Method) -> None:
    rows = drawn(6, 40)
    found = gptq(rows, gram(inputs(1, 40)), method).codes
    allowed = codebook(encode(rows, method), method)
    assert (found.codes.dtype, found.scale.dtype) == (np.int8, np.float32)
    for row, levels in zip(found.codes, allowed, strict=True):
        assert set(row) <= set(levels)


@pytest.mark.parametrize("seed", range(4))
def test_is_near_the_best_of_all_ternary_codes(seed: int) -> None:
    x, rows = inputs(1, 6, seed=seed), drawn(1, 6, seed=seed + 50)
    outputs = np.array(list(product((-1, 0, 1), repeat=6))) @ x[0].T.astype(np.float64)
    wanted = x[0].astype(np.float64) @ rows[0]
    fits = np.maximum(outputs @ wanted, 0) ** 2 / np.maximum(np.square(outputs).sum(axis=1), 1e-9)
    best = np.sqrt(1 - fits.max() / np.square(wanted).sum())
    found = gptq(rows, gram(x), TERNARY)
    assert best * (1 - 1e-4) <= found.error <= 1.25 * best
    assert found.error < found.plain


def test_inputs_that_have_nothing_in_common_leave_nothing_to_make_up_for() -> None:
    rows, eye = drawn(5, 30), np.eye(30, dtype=np.float32)[None]
    found = gptq(rows, gram(eye), TERNARY)
    assert np.array_equal(found.codes.decoded(), encode(rows, TERNARY).decoded())
    assert found.error == found.plain


def test_makes_up_for_what_layers_before_changed() -> None:
    x0, rows = inputs(1, 24, 4000), drawn(8, 24, seed=9)
    x = x0 + 0.3 * drawn(*x0.shape, seed=5) + 0.2
    knowing, unaware = (gptq(rows, sums, Method("uniform", 4)) for sums in (gram(x, x0), gram(x)))
    aware, blind = (off(x, rows, found.codes.decoded(), x0) for found in (knowing, unaware))
    assert aware < 0.9 * blind


def test_groups_do_not_change_each_other() -> None:
    x, rows = inputs(1, 20), drawn(6, 20)
    both = gptq(rows, gram(np.concatenate([x, x])), TERNARY).codes
    first = gptq(rows[:3], gram(x), TERNARY).codes
    assert np.array_equal(both.codes[:3], first.codes)
    assert np.array_equal(both.scale[:3], first.scale)


@every
def test_what_a_block_is_filled_up_with_is_not_counted(method: Method) -> None:
    x, rows = inputs(1, 22), drawn(4, 22)
    filled = np.pad(rows, ((0, 0), (0, 2)), mode="edge").reshape(-1, 8)
    found = gptq(filled, gram(x), method)
    decoded = found.codes.decoded().reshape(4, 24)[:, :22]
    assert off(x, rows, decoded) == pytest.approx(found.error, rel=1e-3, abs=1e-4)
    assert found.error < found.plain


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    x, rows = inputs(1, 20), drawn(4, 20)
    x[:, :, ::3] = 0
    found = gptq(rows, gram(x), TERNARY)
    assert found.error < found.plain
    nothing = gptq(rows, gram(np.zeros_like(x)), TERNARY)
    assert (nothing.error, nothing.plain) == (0, 0)
    assert np.array_equal(nothing.codes.codes, encode(rows, TERNARY).codes)


def test_fewer_samples_than_inputs_are_enough() -> None:
    x, rows = inputs(1, 40, rows=5), drawn(4, 40)
    found = gptq(rows, gram(x), TERNARY)
    assert found.error < found.plain


@every
def test_hard_rows_get_finite_weights_and_scales_above_zero(method: Method) -> None:
    x = inputs(1, 4)
    rows = np.array(
        [
            *([0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [1e-44, -1e-45, 1e-40, 0], [2e-30, -1e-30, 1e-32, 0]),
            *([3.4e38, -3.4e38, 1e38, 0], [1e30, 1e-30, -1e-30, 0], [1, 2, -3, 0.5]),
        ],
        np.float32,
    )
    for block in (4, 2):
        codes = gptq(rows.reshape(-1, block), gram(x), method).codes
        assert np.isfinite(codes.decoded()).all()
        assert (codes.scale > 0).all()
        if not (set(codebook(codes, method)[0]) & {0}):
            assert codes.codes.all()


def test_a_row_of_zeros_stays_zero_and_others_are_coded_beside_it() -> None:
    rows = np.concatenate([np.zeros((1, 12), np.float32), drawn(2, 12)])
    codes = gptq(rows, gram(inputs(1, 12)), TERNARY).codes
    assert not codes.codes[0].any()
    assert codes.scale[0] == 1
    assert codes.codes[1:].any(axis=1).all()
