"""The arithmetic of scales, zero points and codes: bounds that hold for any range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor import quantization as q

SIZES = st.floats(min_value=1e-38, max_value=1e38, allow_nan=False)
ENDS = st.one_of(st.just(0.0), SIZES, SIZES.map(lambda v: -v))
RANGES = st.tuples(ENDS, ENDS).map(sorted)
KINDS = st.sampled_from(["uint8", "int8"])


@settings(deadline=None, max_examples=200)
@given(RANGES, KINDS, st.booleans())
def test_rounding_is_at_most_half_a_step_inside_the_range(
    ends: list[float], kind: q.Kind, symmetric: bool
) -> None:
    low, high = ends
    grid = q.activation_grid(low, high, kind, symmetric)
    assert grid.scale.dtype == np.float32
    assert grid.scale.shape == ()
    assert grid.scale > 0
    assert np.isfinite(grid.scale)
    assert grid.zero_point.dtype == np.dtype(kind)
    x = np.linspace(low, high, 101).astype(np.float32)
    back = q.dequantize(q.quantize(x, grid), grid)
    # float32 rounding of scale, division and product: a few parts in 2^24 of 255 steps
    atol = float(grid.scale) * (0.5 + 255 * 2**-22)
    np.testing.assert_allclose(back.astype(np.float64), x.astype(np.float64), atol=atol, rtol=0)


@given(RANGES, KINDS, st.booleans())
def test_zero_is_represented_exactly(ends: list[float], kind: q.Kind, symmetric: bool) -> None:
    grid = q.activation_grid(ends[0], ends[1], kind, symmetric)
    zero = np.zeros(1, np.float32)
    assert q.dequantize(q.quantize(zero, grid), grid)[0] == 0.0


def test_a_range_of_zero_width_gets_scale_one() -> None:
    for kind in ("uint8", "int8"):
        assert q.activation_grid(0.0, 0.0, kind).scale == 1.0


def test_an_all_negative_range_uses_every_code_below_zero() -> None:
    grid = q.activation_grid(-5.0, -1.0)
    assert grid.zero_point == 255
    assert grid.scale == np.float32(5 / 255)


def test_symmetric_grids_have_a_fixed_zero_point() -> None:
    assert q.activation_grid(-1.0, 2.0, "int8", symmetric=True).zero_point == 0
    assert q.activation_grid(-1.0, 2.0, "uint8", symmetric=True).zero_point == 128
    assert q.activation_grid(0.0, 2.0, "uint8", symmetric=True).zero_point == 0


def test_values_far_outside_the_grid_are_clipped_without_a_warning() -> None:
    grid = q.activation_grid(0.0, 1e-20)
    codes = q.quantize(np.array([3e38, -3e38], np.float32), grid)
    assert codes.tolist() == [255, 0]


ARRAYS = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).normal(size=(3, 4, 2)).astype(np.float32)
)


@given(ARRAYS, st.sampled_from([None, 0, 1, 2]), st.sampled_from([4, 7, 8]), KINDS, st.integers(-30, 30))
def test_a_weight_is_off_by_at_most_half_a_step(
    array: np.ndarray, axis: int | None, bits: int, kind: q.Kind, power: int
) -> None:
    array = array * np.float32(10.0**power)
    made = q.quantize_weight(array, axis, kind, bits)
    assert made.codes.dtype == np.dtype(kind)
    back = q.dequantize(made.codes, made.grid, axis)
    bound = q.along(made.grid.scale.astype(np.float64), 3, axis) * (0.5 + 2**-14)
    assert np.all(np.abs(back.astype(np.float64) - array) <= bound)
    top = 2 ** (bits - 1) - 1
    assert np.abs(made.codes.astype(int) - (128 if kind == "uint8" else 0)).max() <= top


def test_a_channel_of_zeros_gets_scale_one_and_codes_of_zero() -> None:
    made = q.quantize_weight(np.array([[0, 0], [1, -2]], np.float32), 0)
    assert made.grid.scale[0] == 1.0
    assert made.codes.tolist() == [[0, 0], [64, -127]]


def test_an_axis_may_be_negative_and_a_weight_empty() -> None:
    array = np.ones((3, 2), np.float32)
    assert q.weight_grid(array, -1).scale.shape == (2,)
    assert q.weight_grid(np.zeros((0, 2), np.float32), 1).scale.tolist() == [1.0, 1.0]


SCALES = st.floats(1e-30, 1e15)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3), SCALES, SCALES, st.booleans())
def test_a_widened_grid_keeps_the_bias_in_int32(
    bias: list[float], step: float, weight: float, per_channel: bool
) -> None:
    shape = (3,) if per_channel else ()
    grid = q.Grid(np.full(shape, weight, np.float32), np.zeros(shape, np.int8))
    wide = q.widen_for_bias(grid, np.array(bias, np.float32), float(np.float32(step)))
    assert wide.scale.shape == shape
    assert np.all(wide.scale >= grid.scale)
    made = q.quantize_bias(np.array(bias, np.float32), np.float32(step), wide.scale)
    assert np.all(np.abs(made.codes.astype(np.int64)) < 2**31 - 1)
    back = made.codes.astype(np.float64) * made.grid.scale.astype(np.float64)
    # half a step, and for codes near 2^31 nothing more: the scale that divides is the scale that multiplies
    assert np.all(np.abs(back - np.array(bias)) <= made.grid.scale.astype(np.float64) * (0.5 + 2**-20))


@given(SCALES, st.lists(st.floats(1e-10, 1e10), min_size=1, max_size=4))
def test_the_bias_scale_is_exactly_the_float32_product(step: float, weights: list[float]) -> None:
    scales = np.array(weights, np.float32)
    made = q.quantize_bias(np.zeros(len(weights), np.float32), np.float32(step), scales)
    assert made.codes.dtype == np.int32
    assert made.grid.scale.dtype == np.float32
    assert np.array_equal(made.grid.scale, np.float32(step) * scales)
    assert not made.grid.zero_point.any()


def test_a_grid_that_is_wide_enough_is_left() -> None:
    grid = q.Grid(np.array([0.5, 1e-12], np.float32), np.zeros(2, np.int8))
    wide = q.widen_for_bias(grid, np.array([1.0, 1e3], np.float32), 1e-3)
    assert wide.scale[0] == np.float32(0.5)
    assert wide.scale[1] > 1e-4


def test_along_puts_channels_on_their_axis() -> None:
    values = np.arange(3.0)
    assert q.along(values, 4, 1).shape == (1, 3, 1, 1)
    assert q.along(values, 2, -1).shape == (1, 3)
    assert q.along(np.float32(2.0) * np.ones(()), 4, 1).shape == ()


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_codes_round_half_to_even_as_onnx_does(kind: q.Kind) -> None:
    grid = q.Grid(np.asarray(np.float32(1)), np.asarray(0, kind))
    assert q.quantize(np.array([0.5, 1.5, 2.5], np.float32), grid).tolist() == [0, 2, 2]


def test_a_range_too_narrow_for_float32_products_keeps_both_signs() -> None:
    grid = q.activation_grid(-1e-31, 1.5e-28)
    x = np.linspace(-1e-31, 1.5e-28, 101, dtype=np.float32)
    back = q.dequantize(q.quantize(x, grid), grid)
    np.testing.assert_allclose(back, x, rtol=0, atol=float(grid.scale) / 2 * (1 + 1e-6))
