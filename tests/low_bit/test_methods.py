from __future__ import annotations

import numpy as np
import pytest

from compressor.low_bit.codes import Codes, Method
from compressor.low_bit.methods import codebook, encode, recode
from tests.conftest import drawn

METHODS = (
    *("twn", "optimal", "ttq", "xnor", "residual 1", "residual 2", "residual 3"),
    *("uniform 2", "uniform 3", "uniform 4", "uniform 8"),
)
BINARY = ("xnor", "residual 1", "residual 2", "residual 3")
every = pytest.mark.parametrize("method", [Method.parse(text) for text in METHODS], ids=METHODS)


@every
def test_codes_are_int8_with_one_float_scale_per_row(method: Method) -> None:
    codes = encode(drawn(5, 60), method)
    assert (codes.codes.dtype, codes.codes.shape) == (np.int8, (5, 60))
    assert (codes.scale.dtype, codes.scale.shape) == (np.float32, (5,))


@every
def test_a_row_has_no_more_levels_than_the_method_allows_and_all_are_in_its_codebook(method: Method) -> None:
    codes = encode(drawn(5, 600), method)
    book = codebook(codes, method)
    assert (book.dtype, book.shape) == (np.int8, (5, method.levels))
    assert (np.diff(book.astype(int), axis=1) >= 0).all()
    for row, levels in zip(codes.codes, book, strict=True):
        assert set(row) <= set(levels)


@every
def test_coding_what_codes_stand_for_changes_nothing(method: Method) -> None:
    codes = encode(drawn(5, 60), method)
    again = recode(codes.decoded(), codes, method)
    assert np.array_equal(again.codes, codes.codes)
    assert np.array_equal(again.scale, codes.scale)


@every
def test_recoding_gives_the_nearest_level_and_keeps_the_scale(method: Method) -> None:
    codes = encode(drawn(3, 50), method)
    moved = drawn(3, 50, seed=1)
    found = recode(moved, codes, method)
    assert np.array_equal(found.scale, codes.scale)
    levels = codebook(codes, method) * codes.scale[:, None].astype(np.float64)
    best = np.abs(moved[:, :, None] - levels[:, None, :]).min(axis=2)
    # Two levels may be equally near, but for rounding.
    assert np.abs(moved - found.decoded()) == pytest.approx(best, abs=1e-6)


@every
@pytest.mark.parametrize("scale", [1e-20, 1e30])
def test_scaling_a_row_scales_its_scale(method: Method, scale: float) -> None:
    rows = drawn(3, 40)
    codes, scaled = encode(rows, method), encode(rows * np.float32(scale), method)
    # Another rounding of the floats can move a weight on the border of two levels; none of these is on one.
    assert np.array_equal(codes.codes, scaled.codes)
    assert scaled.scale == pytest.approx(codes.scale * scale, rel=1e-5)


HARD = {
    "zeros": np.zeros((1, 6), np.float32),
    "constant": np.full((1, 6), -0.25, np.float32),
    "one element": np.array([[0.75]], np.float32),
    "denormal": np.array([[1e-44, -1e-45, 1e-40]], np.float32),
    "huge": np.array([[3.4e38, -3.4e38, 1e38, 0.0]], np.float32),
    "one large": np.array([[1e30, 1e-30, -1e-30, 0.0]], np.float32),
}


@every
@pytest.mark.parametrize("rows", HARD.values(), ids=HARD)
def test_hard_rows_get_finite_weights_and_scales_above_zero(method: Method, rows: np.ndarray) -> None:
    codes = encode(rows, method)
    assert np.isfinite(codes.scale).all()
    assert (codes.scale > 0).all()
    # Off by the largest weight at most, or by the largest code of the smallest scale.
    most = max(float(np.abs(rows).max()), 127 * 2.0**-100) * 1.0001
    assert (np.abs(codes.decoded().astype(np.float64) - rows) <= most).all()


@every
def test_zeros_are_coded_as_zeros_or_as_next_to_nothing(method: Method) -> None:
    codes = encode(HARD["zeros"], method)
    if str(method) in BINARY:
        assert codes.codes.all()
        assert 0 < np.abs(codes.decoded()).max() < 1e-27
    else:
        assert not codes.codes.any()
        assert codes.scale.tolist() == [1]


@every
@pytest.mark.parametrize("rows", [HARD["constant"], HARD["one element"]], ids=["constant", "one element"])
def test_a_row_of_one_value_is_kept_but_for_rounding(method: Method, rows: np.ndarray) -> None:
    assert encode(rows, method).decoded() == pytest.approx(rows, rel=1e-6)


@every
def test_a_hard_row_does_not_change_the_others(method: Method) -> None:
    rows = drawn(2, 6)
    alone, beside = encode(rows, method), encode(np.concatenate([rows, HARD["zeros"]]), method)
    assert np.array_equal(beside.codes[:2], alone.codes)
    assert np.array_equal(beside.scale[:2], alone.scale)


def test_a_side_of_ttq_that_is_not_there_gets_the_size_of_the_other() -> None:
    codes = Codes(np.array([[0, 127, 127], [-127, 0, 60], [0, 0, 0]], np.int8), np.ones(3, np.float32))
    assert codebook(codes, Method("ttq")).tolist() == [[-127, 0, 127], [-127, 0, 60], [0, 0, 0]]


def test_levels_of_residual_are_those_that_are_there_with_their_negatives() -> None:
    codes = Codes(np.array([[127, -30, 30], [127, 127, 127]], np.int8), np.ones(2, np.float32))
    assert codebook(codes, Method("residual", 2)).tolist() == [[-127, -30, 30, 127], [-127, -127, 127, 127]]
