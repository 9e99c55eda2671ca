"""The weights of rare and frequent classes."""

from __future__ import annotations

import numpy as np
import pytest

from compressor.errors import DataError, OptionError
from compressor.training.class_weights import class_weights

LABELS = np.repeat([0, 1, 2], [6, 3, 1])


def test_none_gives_no_weights() -> None:
    assert class_weights(LABELS, 3, "none") is None


@pytest.mark.parametrize("labels", [LABELS, LABELS[:, None], LABELS.astype(np.float64), LABELS.reshape(2, 5)])
def test_balanced_weights_are_n_by_k_times_the_number_of_the_class(labels: np.ndarray) -> None:
    weights = class_weights(labels, 3, "balanced")
    assert weights is not None
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, [10 / 18, 10 / 9, 10 / 3], rtol=1e-6)  # rounding to float32
    assert weights[LABELS].mean() == pytest.approx(1)


def test_balanced_weights_of_equally_frequent_classes_are_one() -> None:
    np.testing.assert_array_equal(class_weights(np.arange(12) % 4, 4, "balanced"), np.ones(4))


def test_labels_that_the_losses_ignore_are_not_counted() -> None:
    ignoring = np.concatenate([LABELS, np.full(7, -100)])
    np.testing.assert_array_equal(
        class_weights(ignoring, 3, "balanced"), class_weights(LABELS, 3, "balanced")
    )


def test_explicit_weights_are_taken_as_they_are_even_for_classes_without_samples() -> None:
    np.testing.assert_array_equal(class_weights(LABELS, 4, (1, 2, 0.5, 9)), np.float32([1, 2, 0.5, 9]))


def test_there_must_be_one_weight_per_class() -> None:
    with pytest.raises(
        OptionError, match=r"class_weights=\(1, 2\) has 2 numbers, and the model has 3 classes"
    ):
        class_weights(LABELS, 3, (1, 2))


def test_a_class_without_samples_cannot_be_balanced() -> None:
    with pytest.raises(
        DataError, match=r"no samples of class 3, 4 \(of 5\). Give such samples, or the weights"
    ):
        class_weights(LABELS, 5, "balanced")


def test_balanced_weights_need_class_labels() -> None:
    with pytest.raises(DataError, match="'balanced' needs labels, and the training data has none"):
        class_weights(None, 3, "balanced")
    for labels, bad in ((LABELS, 2), (LABELS - 1, -1), (LABELS + 0.5, 0.5)):
        with pytest.raises(
            DataError, match=f"needs labels from 0 to 1, one per class of the model, got {bad}"
        ):
            class_weights(labels, 2, "balanced")
