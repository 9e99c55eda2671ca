"""How each output of the original is distilled: this follows from what it is.

    likeness    when                                                                    loss
    classes     its loss is cross-entropy or kl, or the graph ends in a softmax         `logit_distillation`
    chances     its loss is bce, or the graph ends in a sigmoid                         `chance_distillation`
    directions  its loss is cosine, or its rows [n, d] are unit vectors                 `direction_distillation`
    guess       no loss and no activation says, and it is [n, 2 or more]                classes and values together
    values      anything else                                                           `value_distillation`

A softmax does not see a number added to all its scores, so taking a regression for classes would let its values
drift; taking classes for values costs little (Kim et al. 2021, arXiv:2105.08919). A guess therefore gets both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir
import torch
from torch import Tensor

from compressor.errors import OptionError
from compressor.metrics.outputs import are_embeddings
from compressor.training.distillation import (
    chance_distillation,
    direction_distillation,
    logit_distillation,
    value_distillation,
)
from compressor.training.forms import Form, applied, channel_axis, full, step
from compressor.training.objective import Term, shares
from compressor.training.options import Training

Likeness = Literal["classes", "chances", "directions", "guess", "values"]

_BY_LOSS: dict[str, Likeness] = {
    "cross-entropy": "classes",
    "kl": "classes",
    "bce": "chances",
    "cosine": "directions",
    "mse": "values",
    "mae": "values",
    "huber": "values",
}
_BY_ACTIVATION: dict[str, Likeness] = {"softmax": "classes", "log-softmax": "classes", "sigmoid": "chances"}


def likeness(answer: Tensor, form: Form, loss: str = "auto") -> Likeness:
    """What an output is for distillation; the table is at the top of this file.

    Args:
        answer: the original's output for a batch.
        form: what the graph applies to its scores.
        loss: the name of its loss, where labels or the user decided it.
    """
    found = _BY_LOSS.get(loss) or _BY_ACTIVATION.get(form.applied)
    wide = answer.ndim > 1 and answer.shape[form.axis] > 1
    if found in ("classes", "directions") and not wide:
        return "values"
    if found:
        return found
    if are_embeddings(full(answer).cpu().numpy()):
        return "directions"
    return "guess" if wide and answer.ndim == 2 else "values"


@dataclass(frozen=True)
class Match:
    """How one output is distilled: its index and weight, what it is, and the variance of the original's values."""

    index: int
    weight: float
    likeness: Likeness
    form: Form
    scale: float

    def __call__(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """The loss of this output, without its weight."""
        if self.likeness == "classes":
            return logit_distillation(student, teacher, temperature, self.form)
        if self.likeness == "chances":
            return chance_distillation(student, teacher, temperature, self.form)
        if self.likeness == "directions":
            return direction_distillation(student, teacher)
        values = value_distillation(student, teacher, self.scale)
        if self.likeness == "values":
            return values
        return logit_distillation(student, teacher, temperature, self.form) + values


@dataclass(frozen=True)
class Distillation:
    """The weighted sum over the outputs; called as (the student's outputs, the teacher's)."""

    matches: tuple[Match, ...]
    temperature: float

    def __call__(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """The loss of a batch, a scalar."""
        losses = [m.weight * m(student[m.index], teacher[m.index], self.temperature) for m in self.matches]
        return torch.stack(losses).sum()


def distillation(
    model: ir.Model, options: Training, answers: Sequence[Tensor], terms: Sequence[Term] = ()
) -> Distillation:
    """How the original's outputs are distilled: every float output, weighted by `loss_weights` when they are given.

    Args:
        model: what the student was made from, without further outputs.
        options: temperature, losses and their weights.
        answers: the original's outputs for any batch; their variance sets the scale of values.
        terms: the labelled losses, which say what their outputs are.

    Raises:
        OptionError: no output is made of floats.
    """
    known = {term.index: term for term in terms}
    count = len(model.graph.outputs)
    named = shares(options, count)
    matches = []
    for index, answer in enumerate(answers[:count]):
        name, given = named[index]
        weight = given if options.loss_weights else 1.0
        if not weight or not answer.is_floating_point() or not answer.ndim:
            continue
        term = known.get(index)
        value = model.graph.outputs[index]
        form = term.form if term else Form(applied(value), channel_axis(answer.ndim), step=step(value))
        like = likeness(answer, form, term.name if term else name)
        matches.append(Match(index, weight, like, form, _variance(answer)))
    if not matches:
        raise OptionError(
            f"{options.name}: the model has no output of floats to distil. Train on labels, distill=0."
        )
    return Distillation(tuple(matches), options.temperature)


def _variance(answer: Tensor) -> float:
    """The variance over all elements; where they are all equal their square, and 1 for zeros."""
    values = full(answer)
    spread = float(values.var(correction=0))
    return spread or float(values.square().mean()) or 1.0
