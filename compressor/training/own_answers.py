"""A loss for data without labels: how the model's outputs depend on its weights.

    what an output is       loss
    classes, chances        -log p(y), y drawn from the output itself: the mean of its squared gradient is the Fisher
                            information (Kunstner et al. 2019, arXiv:1905.12558, section 2)
    anything else           the mean of its squares (memory-aware synapses, Aljundi et al. 2018, arXiv:1711.09601,
                            section 4.1)

What it is, `likeness` says. Every output of floats counts, all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from compressor.errors import ModelError
from compressor.training.forms import Form, applied, channel_axis, full, logits, step
from compressor.training.likeness import Likeness, likeness
from compressor.training.losses import LOSSES


@dataclass(frozen=True)
class OwnAnswer:
    """The loss of one output: its index, what it is, how it is read, and what draws its answers."""

    index: int
    likeness: Likeness
    form: Form
    generator: torch.Generator

    def __call__(self, output: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        if self.likeness == "chances":
            chances = full(output.detach()).clamp(0, 1)
            drawn = torch.bernoulli(chances, generator=self.generator)
            return LOSSES["bce"](output, drawn, self.form).mean()
        if self.likeness in ("classes", "guess"):
            shares = logits(output.detach(), self.form).movedim(self.form.axis, -1).softmax(-1)
            drawn = torch.multinomial(shares.flatten(0, -2), 1, generator=self.generator)
            return LOSSES["cross-entropy"](output, drawn.reshape(shares.shape[:-1]), self.form).mean()
        return full(output).square().mean()


@dataclass(frozen=True)
class OwnAnswers:
    """The sum over the outputs; called as (outputs, None)."""

    terms: tuple[OwnAnswer, ...]

    def __call__(self, outputs: Sequence[Tensor], labels: Tensor | None) -> Tensor:
        """The loss of a batch, a scalar; labels are not looked at."""
        return torch.stack([term(outputs[term.index]) for term in self.terms]).sum()


def own_answers(model: ir.Model, outputs: Sequence[Tensor], seed: int) -> OwnAnswers:
    """The loss of a model without labels; it draws on, so that a second pass over the data has other answers.

    Args:
        model: its last operators say what the outputs are.
        outputs: for any batch, on the device of the module.
        seed: of what is drawn.

    Raises:
        ModelError: no output is made of floats.
    """
    generator = torch.Generator(outputs[0].device)
    generator.manual_seed(seed)
    terms = []
    for index, (value, output) in enumerate(zip(model.graph.outputs, outputs, strict=True)):
        if output.is_floating_point() and output.ndim:
            form = Form(applied(value), channel_axis(output.ndim), step=step(value))
            terms.append(OwnAnswer(index, likeness(output, form), form, generator))
    if not terms:
        raise ModelError(
            "The model has no output of floats, so that no gradient says which of its weights matter. Give an output "
            "before its ArgMax or Cast, or choose by magnitude."
        )
    return OwnAnswers(tuple(terms))
