"""Parts of the training data: a share that is held out to score on, and folds for cross-validation. No torch here.

Labels with one number per sample are stratified: the samples are put in the order of their labels, equal ones in a
random order, and dealt out evenly. Each class, or each range of values, is so in every part by its share, to within
one sample. Other labels, or none, are dealt out at random.
"""

from __future__ import annotations

import numpy as np

from compressor.data.arithmetic import Array
from compressor.errors import DataError, OptionError
from compressor.training.order import Numbers


def hold_out(labels: Array | None, count: int, share: float, seed: int = 0) -> tuple[Numbers, Numbers]:
    """(the samples to train on, those held out), each sorted.

    `round(share * count)` samples are held out, at least one. The only sample of a class is trained on.

    Args:
        labels: [count, ...] or None.
        count: the number of samples.
        share: in [0, 1); 0 holds nothing out.
        seed: of the random order, 0 or more.

    Raises:
        OptionError: `share` is out of range.
        DataError: nothing would be left to train on.
    """
    if not 0 <= share < 1:
        raise OptionError(f"holdout must be in [0, 1), got {share!r}.")
    if not share:
        return np.arange(count), np.arange(0)
    held = max(1, round(share * count))
    if held >= count:
        raise DataError(
            f"holdout={share!r} of {count} samples leaves none to train on. Give more samples, or evaluation data "
            "of its own and holdout=0."
        )
    order = _dealt(labels, count, seed)
    candidates = order[_shared(labels, count)[order]]
    if len(candidates) < held:
        candidates = order
    places = (np.arange(held) + 0.5) * len(candidates) / held
    out = np.sort(candidates[places.astype(np.intp)])
    return np.setdiff1d(np.arange(count), out), out


def folds(labels: Array | None, count: int, k: int, seed: int = 0) -> list[tuple[Numbers, Numbers]]:
    """k times (the samples to train on, those to score on), sorted; each sample is scored on in one of them.

    The sizes of the parts differ by one sample at most, and so does the number of a class in them.

    Args:
        labels: [count, ...] or None.
        count: the number of samples.
        k: the number of folds, at least 2.
        seed: of the random order, 0 or more.

    Raises:
        OptionError: `k` is below 2.
        DataError: there are fewer samples than folds.
    """
    if k < 2:
        raise OptionError(f"folds must be at least 2, got {k!r}.")
    if count < k:
        raise DataError(f"{count} samples cannot make {k} folds. Give more samples, or fewer folds.")
    part = np.empty(count, np.intp)
    part[_dealt(labels, count, seed)] = np.arange(count) % k
    return [(np.flatnonzero(part != fold), np.flatnonzero(part == fold)) for fold in range(k)]


def _dealt(labels: Array | None, count: int, seed: int) -> Numbers:
    """The samples in the order of their labels, equal ones at random."""
    chance = np.random.default_rng(seed).permutation(count)
    if labels is None or labels.size != count:
        return chance
    return chance[np.argsort(labels.ravel()[chance], kind="stable")]


def _shared(labels: Array | None, count: int) -> Array:
    """Whether another sample has the same label; True where labels are no classes."""
    if labels is None or labels.size != count or labels.dtype.kind not in "iub":
        return np.ones(count, bool)
    _, inverse, counts = np.unique(labels.ravel(), return_inverse=True, return_counts=True)
    shared: Array = counts[inverse] > 1
    return shared
