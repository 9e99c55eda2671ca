"""Held-out samples and folds: every sample once, classes by their share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import DataError, OptionError
from compressor.training.splits import folds, hold_out

LABELS = np.repeat([0, 1, 2], [60, 30, 10])


@given(st.integers(2, 300), st.floats(0.01, 0.9), st.integers(0, 9), st.integers(0, 3))
def test_a_hold_out_takes_its_share_and_leaves_the_rest(
    count: int, share: float, classes: int, seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(classes, size=count) if classes else None
    held = max(1, round(share * count))
    if held == count:
        return
    train, out = hold_out(labels, count, share, seed)
    assert len(out) == held
    assert sorted([*train, *out]) == list(range(count))
    assert np.all(np.diff(train) > 0)
    assert np.all(np.diff(out) > 0)


@given(st.integers(2, 8), st.integers(0, 9), st.integers(0, 3))
def test_folds_score_each_sample_once_and_have_each_class_to_within_one(
    k: int, classes: int, seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(classes, size=50) if classes else None
    parts = folds(labels, 50, k, seed)
    assert sorted(np.concatenate([test for _, test in parts])) == list(range(50))
    for train, test in parts:
        assert sorted([*train, *test]) == list(range(50))
    assert np.ptp([len(test) for _, test in parts]) <= 1
    for c in range(classes):
        assert labels is not None
        assert np.ptp([np.sum(labels[test] == c) for _, test in parts]) <= 1


@pytest.mark.parametrize("labels", [LABELS, LABELS[:, None], LABELS.astype(np.float64)])
def test_each_class_is_held_out_by_its_share(labels: np.ndarray) -> None:
    for seed in range(5):
        _, out = hold_out(labels, 100, 0.2, seed)
        assert np.bincount(LABELS[out]).tolist() == [12, 6, 2]


def test_values_are_held_out_over_their_whole_range() -> None:
    values = np.random.default_rng(0).normal(size=100)
    _, out = hold_out(values, 100, 0.1)
    ranks = np.argsort(np.argsort(values))[out] // 10
    assert sorted(ranks) == list(range(10))


def test_the_only_sample_of_a_class_is_trained_on() -> None:
    labels = np.array([0] * 10 + [1, 2, 3])
    for seed in range(20):
        assert np.all(hold_out(labels, 13, 0.5, seed)[1] < 10)


def test_where_all_classes_are_single_samples_some_are_held_out_all_the_same() -> None:
    assert len(hold_out(np.arange(10), 10, 0.3)[1]) == 3


def test_the_parts_depend_on_the_seed_only() -> None:
    first, again, other = (hold_out(LABELS, 100, 0.2, seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    one, two, three = (folds(LABELS, 100, 4, seed)[0][1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, three)


def test_labels_with_several_numbers_per_sample_are_dealt_out_at_random() -> None:
    _, out = hold_out(np.zeros((100, 4), np.int64), 100, 0.2)
    assert len(out) == 20
    assert out.tolist() == hold_out(None, 100, 0.2)[1].tolist()


def test_a_share_of_zero_holds_nothing_out() -> None:
    train, out = hold_out(LABELS, 100, 0)
    assert train.tolist() == list(range(100))
    assert not len(out)


def test_what_cannot_be_divided_is_refused() -> None:
    with pytest.raises(OptionError, match=r"holdout must be in \[0, 1\), got 1"):
        hold_out(None, 10, 1)
    with pytest.raises(
        DataError, match=r"holdout=0.1 of 1 samples leaves none to train on. Give more samples"
    ):
        hold_out(None, 1, 0.1)
    with pytest.raises(OptionError, match="folds must be at least 2, got 1"):
        folds(None, 10, 1)
    with pytest.raises(DataError, match=r"3 samples cannot make 5 folds. Give more samples, or fewer folds"):
        folds(None, 3, 5)
