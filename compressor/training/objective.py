"""The labelled loss of a model: one loss per output, its weight, and the weights of the classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from compressor.errors import DataError, OptionError, did_you_mean
from compressor.metrics.labels import IGNORED
from compressor.metrics.outputs import alike
from compressor.statistics import Array
from compressor.training.class_weights import class_weights
from compressor.training.custom_loss import call, load
from compressor.training.forms import Form, applied, channel_axis, class_axis, step
from compressor.training.labels import auto_loss, check_labels
from compressor.training.losses import LOSSES
from compressor.training.options import Training

Criterion = Callable[[Tensor, Tensor | None], Tensor]
"""(output [n, ...], labels or None) -> the loss, a scalar: the mean over the samples."""


@dataclass(frozen=True)
class Term:
    """The loss of one output: its name, the output's index, the weight, how the output is read, and the function."""

    name: str
    index: int
    weight: float
    form: Form
    criterion: Criterion


@dataclass(frozen=True)
class Objective:
    """The weighted sum of the losses, each a mean over samples; called as (outputs, labels)."""

    terms: tuple[Term, ...]

    def __call__(self, outputs: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        """The loss of a batch, a scalar; every output gets the same labels."""
        losses = [weighted(t.weight, t.criterion(outputs[t.index], labels)) for t in self.terms]
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]


def weighted(weight: float, loss: Tensor) -> Tensor:
    """The loss times its weight; one of weight 1 is left alone, which spares its gradient a step."""
    return loss if weight == 1 else weight * loss


def objective(
    model: ir.Model, options: Training, labels: Array | None, outputs: Sequence[Tensor]
) -> Objective:
    """What training minimizes on labels.

    One loss counts for the first output, as metrics do, or for every output that has a weight; several are one per
    output. A weight of 0 leaves the output out. A weight of a class is divided by its mean over the labels, so
    that it says how classes compare and not how large the loss is, as torch's weighted mean does.

    Args:
        model: what the student was made from, without further outputs; its last operators say what the outputs are.
        options: the losses and their weights.
        labels: all training labels [samples, ...]; None when there are none, which only a custom loss can do with.
        outputs: the model's outputs for any batch, on the device of the training.

    Raises:
        OptionError: a loss that does not exist, cannot be loaded or does not fit the options.
        DataError: labels are missing or do not fit.
    """
    made = tuple(
        _term(model, options, labels, index, outputs[index])
        for index, (_, weight) in enumerate(shares(options, len(model.graph.outputs)))
        if weight
    )
    if options.label_smoothing and not any(t.name == "cross-entropy" for t in made):
        raise OptionError(
            f"{options.name}: label_smoothing={options.label_smoothing!r} is of cross-entropy, but the loss is "
            f"{made[0].name!r}. Leave it out."
        )
    return Objective(made)


def shares(options: Training, count: int) -> tuple[tuple[str, float], ...]:
    """(name of the loss, weight) of each of `count` outputs, weight 0 for an output without a loss."""
    names = (options.loss,) if isinstance(options.loss, str) else options.loss
    weights = options.loss_weights
    if len(names) not in (1, count):
        raise OptionError(f"{options.name}: loss has {len(names)} names, but the model {count} outputs.")
    if weights and len(weights) != count:
        raise OptionError(
            f"{options.name}: loss_weights has {len(weights)} numbers, but the model {count} outputs."
        )
    if weights and not any(weights):
        raise OptionError(f"{options.name}: loss_weights are all 0, so that nothing is trained.")
    if not weights:
        weights = (1.0,) * len(names) + (0.0,) * (count - len(names))
    return tuple(zip(names * (count // len(names)), weights, strict=True))


def _term(model: ir.Model, options: Training, labels: Array | None, index: int, output: Tensor) -> Term:
    """The loss of output `index`, whose values for any batch are `output`."""
    value, shape = model.graph.outputs[index], tuple(output.shape)
    name, weight = shares(options, len(model.graph.outputs))[index]
    if ":" in name:
        form = Form(applied(value), channel_axis(len(shape)), step=step(value))
        return Term(name, index, weight, form, partial(call, name, load(name)))
    if name not in (*LOSSES, "auto"):
        raise OptionError(f"{options.name}: no loss {name!r}. {did_you_mean(name, [*LOSSES, 'auto'])}")
    if labels is None:
        raise DataError(
            f"{options.name}: loss={name!r} needs labels, and the training data has none. Give labels, or distill=1."
        )
    name = auto_loss(labels, shape, applied(value)) if name == "auto" else name
    check_labels(name, labels, shape)
    axis = class_axis(shape, (shape[0], *labels.shape[1:]))
    weights = _class_weights(options, name, labels, (len(labels), *shape[1:]))
    form = Form(
        applied(value),
        channel_axis(len(shape)) if axis is None else axis,
        None if weights is None else torch.from_numpy(weights).to(output.device),
        options.label_smoothing if name == "cross-entropy" else 0.0,
        step(value),
    )
    return Term(name, index, weight, form, partial(_mean, LOSSES[name], form))


def _class_weights(options: Training, loss: str, labels: Array, output: tuple[int, ...]) -> np.ndarray | None:
    """The weights of the classes [classes], float32, divided by their mean over the labels; None when all are 1."""
    if options.class_weights == "none":
        return None
    axis = class_axis(output, labels.shape)
    if loss == "bce" and labels.size == len(labels):
        ids, classes = labels.ravel(), 2
    elif loss == "cross-entropy" and axis is not None:
        ids, classes = labels.ravel(), output[axis]
        if alike(output, labels.shape):
            ids = labels.reshape(output).argmax(axis).ravel()
    else:
        raise OptionError(
            f"{options.name}: class_weights need class labels (cross-entropy, or bce of one score), but the loss is "
            f"{loss!r}. Leave them out."
        )
    weights = class_weights(ids, classes, options.class_weights)
    if weights is None:
        return None
    counted = ids[ids != IGNORED].astype(np.intp)
    normalized: np.ndarray = (weights / weights[counted].mean()).astype(np.float32)
    return normalized


def _mean(
    loss: Callable[[Tensor, Tensor, Form], Tensor], form: Form, output: Tensor, labels: Tensor | None
) -> Tensor:
    if labels is None:
        raise DataError("A batch has no labels, but the loss needs them. Give labels to all training data.")
    return loss(output, labels, form).mean()
