"""The mean error of rounded weights, and taking it back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from compressor.bias_correction import WithMean, shift
from compressor.clipping import Range
from compressor.observers import Histogram, MinMax


@given(st.integers(0, 2**31), st.integers(0, 9))
def test_two_halves_merged_equal_the_whole(seed: int, cut: int) -> None:
    data = np.random.default_rng(seed).normal(size=(9, 3, 4, 4)).astype(np.float32)
    whole, first, second = (WithMean(Histogram()) for _ in range(3))
    whole.observe(data)
    first.observe(data[:cut])
    second.observe(data[cut:])
    first.merge(second)
    assert first.range() == whole.range()
    np.testing.assert_allclose(first.mean(), whole.mean(), atol=1e-6)
    np.testing.assert_allclose(whole.mean(), data.mean(axis=(0, 2, 3)), atol=1e-6)


def test_the_range_is_that_of_the_observer_inside() -> None:
    seen = WithMean(MinMax())
    seen.observe(np.array([-1.0, 4.0], np.float32))
    assert seen.range() == Range(-1.0, 4.0)


def test_nothing_seen_has_no_mean() -> None:
    assert WithMean(MinMax()).mean() is None


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_shift_is_the_mean_difference_of_the_outputs(groups: int) -> None:
    """A convolution without padding by hand: exact up to float64 rounding, since the layer is linear."""
    rng = np.random.default_rng(groups)
    x = rng.normal(1.0, 2.0, (50, 4, 1, 1))  # one position per sample: no borders
    error = rng.normal(size=(8, 4 // groups, 1, 1))
    parts = []
    for g in range(groups):
        inside = x[:, g * (4 // groups) : (g + 1) * (4 // groups), 0, 0]
        rows = error[g * (8 // groups) : (g + 1) * (8 // groups), :, 0, 0]
        parts.append(inside @ rows.T)
    expected = np.concatenate(parts, axis=1).mean(axis=0)
    np.testing.assert_allclose(shift(error, x.mean(axis=(0, 2, 3)), groups), expected, atol=1e-12)


def test_a_constant_map_is_corrected_exactly_inside_the_borders() -> None:
    error = np.arange(9.0).reshape(1, 1, 3, 3)
    x = np.full((1, 1, 6, 6), 0.5)
    inside = (sliding_window_view(x[0, 0], (3, 3)) * error[0, 0]).sum(axis=(2, 3))
    assert np.all(inside == shift(error, np.array([0.5]))[0])


@pytest.mark.parametrize("side", [8, 32, 64])
def test_the_positions_looked_at_are_spread_over_the_whole_map(side: int) -> None:
    seen = WithMean(MinMax())
    columns = np.broadcast_to(np.arange(side, dtype=np.float32), (4, 2, side, side))
    seen.observe(columns)
    # 64 positions of a uniform ramp: the mean is within three standard errors of the middle
    np.testing.assert_allclose(seen.mean(), (side - 1) / 2, atol=3 * side / np.sqrt(12 * 64))
