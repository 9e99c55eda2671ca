"""Losses that pull a student to the original's answers (distillation); all are scalars, means over the samples."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from compressor.errors import OptionError
from compressor.training.forms import Form, channel_axis, full, logits


def logit_distillation(
    student: Tensor, teacher: Tensor, temperature: float, form: Form | None = None
) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) (Hinton et al. 2015, arXiv:1503.02531, section 2).

    T^2 keeps the gradient's size as the temperature changes. With the teacher's answers from before the training it
    is learning without forgetting (Li & Hoiem 2016, arXiv:1606.09282).

    Args:
        student: scores [n, classes], or as `form` reads them.
        teacher: the original's, of the same shape.
        temperature: T, above 0.
        form: the class axis and what the graph applies to its scores; None for plain scores [n, classes].
    """
    form = form or Form()
    ours = (logits(student, form) / temperature).log_softmax(form.axis)
    theirs = (logits(teacher, replace(form, step=0.0)) / temperature).log_softmax(form.axis)
    divergences = functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(form.axis)
    return temperature**2 * divergences.mean()


def chance_distillation(
    student: Tensor, teacher: Tensor, temperature: float, form: Form | None = None
) -> Tensor:
    """T^2 KL between the two-sided distributions sigmoid(score / T), each element one of its own."""
    form = form or Form()
    ours = logits(student, form) / temperature
    theirs = logits(teacher, replace(form, step=0.0)) / temperature
    chance = theirs.sigmoid()
    cross = functional.binary_cross_entropy_with_logits(ours, chance, reduction="none")
    own = functional.binary_cross_entropy_with_logits(theirs, chance, reduction="none")
    return temperature**2 * (cross - own).mean()


def direction_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the cosine along the channels."""
    axis = channel_axis(teacher.ndim)
    return (1 - functional.cosine_similarity(full(student), full(teacher), dim=axis)).mean()


def value_distillation(student: Tensor, teacher: Tensor, scale: float = 1.0) -> Tensor:
    """The mean squared difference over `scale`, the variance of the original's values."""
    return (full(student) - full(teacher)).square().mean() / scale


def feature_matching(student: Tensor, teacher: Tensor, name: str = "value") -> Tensor:
    """The mean squared difference over the mean square of the teacher's (FitNets, Romero et al. 2015, arXiv:1412.6550).

    Where pruning took channels away there is no element to compare with, and no layer in between is learned here as
    in FitNets: then the attention maps along the channels are matched (`attention_transfer`). OptionError when the
    shapes differ in more than their channels.
    """
    if student.shape != teacher.shape:
        return attention_transfer(student, teacher, name)
    energy = full(teacher).square().mean()
    return value_distillation(student, teacher) / torch.where(energy > 0, energy, 1.0)


def attention_map(values: Tensor, axis: int = 1) -> Tensor:
    """Where a layer is active: its squares summed over the channels, a vector of length 1 per sample [n, positions].

    Zagoruyko & Komodakis 2017, arXiv:1612.03928, section 3.1, F_sum^2. A sample that is zero everywhere stays zero.
    """
    energy = full(values).square().sum(axis).flatten(1)
    return functional.normalize(energy, dim=1)


def attention_transfer(student: Tensor, teacher: Tensor, name: str = "value") -> Tensor:
    """The squared distance of the attention maps, from 0 to 2.

    The paper's equation 2 has the distance itself, whose gradient does not exist where student and teacher agree;
    the authors' code squares it, too. The channels are the axis whose length differs, or the customary one.
    OptionError when the shapes differ elsewhere, or nothing but channels is there.
    """
    rank = teacher.ndim
    differing = [a for a in range(min(rank, student.ndim)) if student.shape[a] != teacher.shape[a]]
    axis = differing[0] if differing else channel_axis(rank)
    if student.ndim != rank or len(differing) > 1 or axis == 0 or rank < 3:
        raise OptionError(
            f"{name!r} is {list(student.shape)} in the student and {list(teacher.shape)} in the original: an attention "
            "map needs channels and positions, and equal shapes but for the channels. Choose another value."
        )
    distance = attention_map(student, axis) - attention_map(teacher, axis)
    return distance.square().sum(1).mean()


def attention_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of attention probabilities [n, heads, queries, keys], mean over heads and queries.

    Wang et al. 2020 (MiniLM, arXiv:2002.10957, section 3.1). Where heads were pruned, the mean over the heads is
    compared.
    """
    ours, theirs = full(student), full(teacher)
    if ours.shape[1] != theirs.shape[1]:
        ours, theirs = ours.mean(1), theirs.mean(1)
    smallest = torch.finfo(ours.dtype).tiny
    return functional.kl_div(ours.clamp_min(smallest).log(), theirs, reduction="none").sum(-1).mean()


def attention_matching(student: Tensor, teacher: Tensor, name: str, probabilities: bool) -> Tensor:
    """`attention_divergence` for what a Softmax gives in rank 4 (see `forms.applied`), else `attention_transfer`."""
    if probabilities and teacher.ndim == 4:
        return attention_divergence(student, teacher)
    return attention_transfer(student, teacher, name)
