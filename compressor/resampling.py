"""Statistics of resamples, vectorised: as `statistics.bootstrap` takes them.

Each is a function of counts float64 [resamples, samples], how often each sample was drawn in each resample,
that gives one number per resample, NaN where it is undefined.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from compressor.statistics import Array, Floats, Statistic


def auc_statistic(positive: npt.NDArray[np.bool_], scores: Array) -> Statistic:
    """The area under the ROC curve on resamples: the share of pairs in order, ties half (Mann-Whitney)."""
    values, groups = np.unique(scores, return_inverse=True)
    above = _grouped(positive, groups, len(values))
    below = _grouped(~positive, groups, len(values))

    def statistic(counts: Floats) -> Floats:
        p, n = above(counts), below(counts)
        ordered = (p * (np.cumsum(n, axis=1) - n / 2)).sum(axis=1)
        with np.errstate(invalid="ignore"):
            return np.asarray(ordered / (p.sum(axis=1) * n.sum(axis=1)), dtype=np.float64)

    return statistic


def spearman_statistic(a: Array, b: Array) -> Statistic:
    """Spearman's rank correlation on resamples; tied values share their mean rank, a constant gives 0."""
    ranks = (_ranked(a), _ranked(b))

    def statistic(counts: Floats) -> Floats:
        x, y = (rank(counts) for rank in ranks)
        spread = np.sqrt((counts * x * x).sum(axis=1) * (counts * y * y).sum(axis=1))
        together = (counts * x * y).sum(axis=1)
        return np.asarray(np.divide(together, spread, out=np.zeros(len(counts)), where=spread > 0))

    return statistic


def f1_statistic(labels: Array, predictions: Array) -> Statistic:
    """Macro F1 on resamples: the mean of 2 TP / (2 TP + FP + FN) over the classes in the resample."""
    classes, both = np.unique(np.concatenate([labels, predictions]), return_inverse=True)
    truth, guess = both[: len(labels)], both[len(labels) :]
    everything = np.ones(len(labels), dtype=np.bool_)
    right = _grouped(truth == guess, truth, len(classes))
    actual, predicted = (_grouped(everything, groups, len(classes)) for groups in (truth, guess))

    def statistic(counts: Floats) -> Floats:
        size = actual(counts) + predicted(counts)
        f1 = np.divide(2 * right(counts), size, out=np.zeros_like(size), where=size > 0)
        return np.asarray(f1.sum(axis=1) / (size > 0).sum(axis=1), dtype=np.float64)

    return statistic


def _grouped(mask: npt.NDArray[np.bool_], groups: Array, size: int) -> Statistic:
    """The function counts [resamples, samples] -> sums of the masked ones per group [resamples, size]."""
    used = np.flatnonzero(mask)
    order = used[np.argsort(groups[used], kind="stable")]
    present, starts = np.unique(groups[order], return_index=True)

    def sums(counts: Floats) -> Floats:
        found = np.zeros((len(counts), size))
        if order.size:
            picked = counts[:, order]
            found[:, present] = (
                picked if len(order) == len(present) else np.add.reduceat(picked, starts, axis=1)
            )
        return found

    return sums


def _ranked(values: Array) -> Statistic:
    """The function counts [resamples, samples] -> centred mean rank of every sample in each resample."""
    distinct, groups = np.unique(values, return_inverse=True)
    sizes = _grouped(np.ones(len(values), dtype=np.bool_), groups, len(distinct))

    def ranks(counts: Floats) -> Floats:
        size = sizes(counts)
        return np.asarray((np.cumsum(size, axis=1) - size / 2)[:, groups] - len(values) / 2, dtype=np.float64)

    return ranks
