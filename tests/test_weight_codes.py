from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.weight_codes import encode, in_blocks

ROUNDING = 1 + 2.0**-20
"""Scale, quotient and product are each rounded to float32 once: 2^-24 of the value, at most 127 steps."""


@given(
    st.sampled_from([8, 4, 2]),
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(0, 2**31),
    st.integers(-30, 30),
)
@settings(max_examples=80, deadline=None)
def test_the_error_is_at_most_half_a_step(bits: int, rows: int, columns: int, seed: int, power: int) -> None:
    array = (np.random.default_rng(seed).standard_normal((rows, columns)) * 10.0**power).astype(np.float32)
    coded = encode(array, (1,), bits)
    step = coded.scale * (coded.values[1] - coded.values[0])
    assert coded.scale.shape == (rows, 1)
    assert np.all(np.abs(array - coded.decoded()) <= step / 2 * ROUNDING + np.abs(array) * 2.0**-21)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_channel_of_zeros_stays_zero(bits: int) -> None:
    array = np.zeros((2, 8), np.float32)
    array[1] = np.linspace(-1, 1, 8)
    assert np.array_equal(encode(array, (1,), bits).decoded()[0], np.zeros(8))


def test_two_bits_take_three_levels_when_most_weights_are_zero_and_four_otherwise() -> None:
    sparse = np.zeros((1, 64), np.float32)
    sparse[0, :4] = [1, -1, 1, 1]
    assert encode(sparse, (1,), 2).values == (-1, 0, 1)
    assert np.array_equal(encode(sparse, (1,), 2).decoded(), sparse)
    dense = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    assert encode(dense, (1,), 2).values == (-3, -1, 1, 3)
    assert encode(dense, (1,), 2, with_zero=True).values == (-1, 0, 1)


def test_blocks_are_of_even_size_and_padded_with_zeros() -> None:
    blocks = in_blocks(np.arange(1, 8, dtype=np.float32).reshape(1, 7, 1), 4)
    assert blocks.shape == (1, 2, 4, 1)
    assert blocks.reshape(-1).tolist() == [1, 2, 3, 4, 5, 6, 7, 0]
