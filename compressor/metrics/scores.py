"""The built-in scores: each measures (outputs, labels, the original's outputs) of n samples.

The result is right or wrong per sample, or a value per sample, or a statistic to be resampled. Labels have
passed the checks of `labels`; only predictions look at the original's outputs.
"""

from __future__ import annotations

import numpy as np

from compressor import resampling
from compressor.metrics.labels import IGNORED
from compressor.metrics.outputs import Outputs, finite, predictions
from compressor.statistics import Array, Floats, Measured, Resampled


def top1(outputs: Outputs, labels: Array, original: Outputs) -> Measured:
    """Right or wrong per sample, bool [n]: whether the class is the label's."""
    return np.asarray(predictions(outputs[0], original[0]) == labels.ravel())


def top5(outputs: Outputs, labels: Array, original: Outputs) -> Measured:
    """Right where fewer than five classes come before the label's; of equal ones the lower id comes first."""
    wanted = labels.reshape(-1, 1).astype(np.int64)
    own = np.take_along_axis(outputs[0], wanted, axis=1)
    earlier = np.arange(outputs[0].shape[1]) < wanted
    ahead = (outputs[0] > own) | ((outputs[0] == own) & earlier)
    return np.asarray(ahead.sum(axis=1) < 5)


def f1(outputs: Outputs, labels: Array, original: Outputs) -> Measured:
    """Macro F1 over the classes that occur in the labels or in the predictions."""
    from sklearn.metrics import f1_score

    truth, guess = labels.ravel().astype(np.int64), predictions(outputs[0], original[0])
    value = float(f1_score(truth, guess, average="macro"))
    return Resampled(value, resampling.f1_statistic(truth, guess), len(truth), len(truth))


def auc(outputs: Outputs, labels: Array, original: Outputs) -> Measured:
    """The area under the ROC curve; of two columns, their difference is the score."""
    from sklearn.metrics import roc_auc_score

    columns, positive = finite(outputs[0]), labels.ravel() == 1
    scores = columns[:, -1] - columns[:, 0] if columns.shape[1] == 2 else columns[:, 0]
    rarer = min(int(positive.sum()), int((~positive).sum()))
    value = float(roc_auc_score(positive, scores))
    return Resampled(value, resampling.auc_statistic(positive, scores), len(positive), rarer)


def spearman(outputs: Outputs, labels: Array, original: Outputs) -> Measured:
    """Spearman's rank correlation of all samples; 0 for a constant output."""
    from scipy.stats import spearmanr

    a, b = finite(outputs[0])[:, 0], labels.ravel().astype(np.float64)
    value = float(spearmanr(a, b).statistic) if np.any(a != a[0]) else 0.0
    return Resampled(value, resampling.spearman_statistic(a, b), len(a), len(a))


def mse(outputs: Outputs, labels: Array, original: Outputs) -> Floats:
    """The mean squared error of each sample, float64 [n]."""
    return np.asarray(((finite(outputs[0]) - finite(labels)) ** 2).mean(axis=1), dtype=np.float64)


def mae(outputs: Outputs, labels: Array, original: Outputs) -> Measured:
    """The mean absolute error of each sample, float64 [n]."""
    return np.asarray(np.abs(finite(outputs[0]) - finite(labels)).mean(axis=1), dtype=np.float64)


def cosine(outputs: Outputs, labels: Array, original: Outputs) -> Measured:
    """The cosine of each sample's output and label, float64 [n]."""
    return cosines(finite(outputs[0]), finite(labels))


def cosines(x: Floats, y: Floats) -> Floats:
    """The cosine of each pair of rows: 1 where both are zero, 0 where one is; exactly 1 for equal rows."""
    xx, yy, xy = (np.einsum("ij,ij->i", p, q) for p, q in ((x, x), (y, y), (x, y)))
    length = np.sqrt(xx) * np.sqrt(yy)
    found = np.divide(xy, length, out=np.where(xx == yy, 1.0, 0.0), where=length > 0)
    return np.where((x == y).all(axis=1), 1.0, found)


def psnr(outputs: Outputs, labels: Array, original: Outputs) -> Measured:
    """10 log10(peak^2 / mse) over all samples; peak is 1, 2 or 255 if the labels fit, else their range."""
    low, high = float(labels.min()), float(labels.max())
    usual = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
    peak = next((b - a for a, b in usual if a <= low and high <= b), high - low)
    errors = mse(outputs, labels, original)
    return sqnr(np.full(len(errors), peak * peak), errors)


def sqnr(signal: Floats, noise: Floats) -> Resampled:
    """10 log10(sum of signal / sum of noise) in dB over samples; infinite without noise."""

    def statistic(counts: Floats) -> Floats:
        above, below = counts @ signal, counts @ noise
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(below == 0, np.inf, 10 * (np.log10(above) - np.log10(below)))

    value = float(statistic(np.ones((1, len(signal))))[0])
    return Resampled(value, statistic, len(signal), len(signal))


def perplexity(outputs: Outputs, labels: Array, original: Outputs) -> Measured:
    """exp of the mean negative log-likelihood of all tokens that are not ignored; at most exp(709)."""
    rows = [_token_losses(logits, tokens) for logits, tokens in zip(outputs[0], labels, strict=True)]
    losses, tokens = np.array([r.sum() for r in rows]), np.array([float(r.size) for r in rows])

    def statistic(counts: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            return np.asarray(np.exp(np.minimum(counts @ losses / (counts @ tokens), 709.0)))

    value = float(statistic(np.ones((1, len(rows))))[0])
    return Resampled(value, statistic, len(rows), int(np.count_nonzero(tokens)))


def _token_losses(logits: Array, tokens: Array) -> Floats:
    """The negative log-likelihood of each token that is not ignored, from logits [T, V] and ids [T]."""
    from scipy.special import logsumexp

    used = np.flatnonzero(tokens != IGNORED)
    x = finite(logits[used])
    return np.asarray(logsumexp(x, axis=1) - x[np.arange(len(used)), tokens[used].astype(np.int64)])
