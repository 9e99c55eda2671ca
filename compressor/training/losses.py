"""Losses of one output against its labels. Each gives one number per sample: the mean over the sample's own elements.

    loss            formula, x the output, y the label                              labels
    cross-entropy   -sum_c q_c log softmax(x)_c                                     class ids, or shares q of classes
    bce             -(y log s(x) + (1 - y) log(1 - s(x))), s the sigmoid            0, 1 or between, of x's shape
    mse             (x - y)^2                                                       of x's shape
    mae             |x - y|                                                         of x's shape
    huber           (x - y)^2 / 2 up to |x - y| = 1, then |x - y| - 1/2             of x's shape
    cosine          1 - cos(x, y) along the channels                                of x's shape
    kl              sum_c y_c (log y_c - log softmax(x)_c)                          shares of classes

Samples weigh the same whatever batch they are in, so the mean over n samples may be accumulated from batches of
unequal sizes n_i, each mean times n_i / n. Half-precision outputs are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from compressor.errors import DataError
from compressor.metrics.labels import IGNORED
from compressor.metrics.outputs import alike
from compressor.training.forms import Form, channel_axis, full, logit, logits

Loss = Callable[[Tensor, Tensor, Form], Tensor]
"""(output [n, ...], labels, form) -> one loss per sample [n]."""


def as_output(labels: Tensor, output: Tensor) -> Tensor:
    """Labels in the shape and type of the output; DataError when more than axes of length 1 differ."""
    if not alike(tuple(output.shape), tuple(labels.shape)):
        raise DataError(f"Labels {list(labels.shape)} do not fit an output {list(output.shape)}.")
    return labels.reshape(output.shape).to(output.dtype)


def cross_entropy(output: Tensor, labels: Tensor, form: Form) -> Tensor:
    """Cross-entropy; labels are class ids [n, ...] without the class axis, or shares of the output's shape.

    The id -100 leaves a position out of its sample's mean. Smoothing e makes q = (1 - e) q + e / classes (Szegedy et
    al. 2015, arXiv:1512.00567, section 7). A weight multiplies its class's term.
    """
    scores = logits(output, form).movedim(form.axis, 1)
    weights = None if form.weights is None else form.weights.to(scores)
    smoothing = form.smoothing
    if alike(tuple(output.shape), tuple(labels.shape)):
        shares = as_output(labels, output).movedim(form.axis, 1).to(scores.dtype)
        losses = functional.cross_entropy(
            scores, shares, weights, reduction="none", label_smoothing=smoothing
        )
        return _per_sample(losses)
    ids = _ids(labels, scores)
    losses = functional.cross_entropy(
        scores, ids, weights, ignore_index=IGNORED, reduction="none", label_smoothing=smoothing
    )
    if losses.ndim == 1:
        return losses
    counted = (ids != IGNORED).flatten(1).sum(1).clamp_min(1)
    return losses.flatten(1).sum(1) / counted


def _ids(labels: Tensor, scores: Tensor) -> Tensor:
    """Class ids in the shape of scores [n, classes, ...] without the classes."""
    shape = (scores.shape[0], *scores.shape[2:])
    if not alike(shape, tuple(labels.shape)):
        raise DataError(f"Labels {list(labels.shape)} do not fit scores {list(scores.shape)} of classes.")
    return labels.reshape(shape).long()


def bce(output: Tensor, labels: Tensor, form: Form) -> Tensor:
    """Binary cross-entropy; the two weights of `form` are those of the labels 0 and 1."""
    chances = output.exp() if form.applied == "log-softmax" else output
    scores = logit(chances, form) if form.applied else full(output)
    targets = as_output(labels, scores)
    losses = functional.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    if form.weights is not None:
        off, on = form.weights.to(scores)
        losses = losses * (off + (on - off) * targets)
    return _per_sample(losses)


def mse(output: Tensor, labels: Tensor, form: Form) -> Tensor:
    """Mean squared error."""
    output = full(output)
    return _per_sample((output - as_output(labels, output)).square())


def mae(output: Tensor, labels: Tensor, form: Form) -> Tensor:
    """Mean absolute error."""
    output = full(output)
    return _per_sample((output - as_output(labels, output)).abs())


def huber(output: Tensor, labels: Tensor, form: Form) -> Tensor:
    """Huber's loss with its bend at 1."""
    output = full(output)
    return _per_sample(functional.huber_loss(output, as_output(labels, output), reduction="none"))


def cosine(output: Tensor, labels: Tensor, form: Form) -> Tensor:
    """One minus the cosine between output and label along the channels; lengths do not matter."""
    output = full(output)
    return _per_sample(
        1 - functional.cosine_similarity(output, as_output(labels, output), dim=channel_axis(output.ndim))
    )


def kl(output: Tensor, labels: Tensor, form: Form) -> Tensor:
    """Kullback-Leibler divergence of the output's classes from the shares in the labels."""
    scores = logits(output, form).log_softmax(form.axis)
    shares = as_output(labels, scores)
    return _per_sample(functional.kl_div(scores, shares, reduction="none").sum(form.axis))


def _per_sample(losses: Tensor) -> Tensor:
    return losses if losses.ndim == 1 else losses.flatten(1).mean(1)


LOSSES: dict[str, Loss] = {
    "cross-entropy": cross_entropy,
    "bce": bce,
    "mse": mse,
    "mae": mae,
    "huber": huber,
    "cosine": cosine,
    "kl": kl,
}
"""The losses by name."""
