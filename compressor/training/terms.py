"""The loss of a step: the labels' share, the teacher's share, and what keeps weights small or in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compressor.training import penalties
from compressor.training.distillation import attention_matching, feature_matching
from compressor.training.likeness import Distillation
from compressor.training.objective import Objective, weighted
from compressor.training.options import Training
from compressor.training.teacher import Answers


@dataclass(frozen=True)
class Memory:
    """What elastic weight consolidation holds on to: the weights after the old data, and how much each matters."""

    anchors: Mapping[str, Tensor]
    information: Mapping[str, Tensor]


@dataclass(frozen=True)
class Terms:
    """All that the loss of a batch is made of.

    Args:
        options: the weights of the terms.
        labelled: the loss on labels; None when the labels have no share.
        distilled: the loss on the original's outputs; None when they have no share.
        share: of the original's answers; the labels get the rest.
        probabilities: whether a matched attention value holds probabilities, by name.
        memory: of ewc.
    """

    options: Training
    labelled: Objective | None
    distilled: Distillation | None
    share: float
    probabilities: Mapping[str, bool] = field(default_factory=dict)
    memory: Memory | None = None

    def of_batch(
        self,
        outputs: Sequence[Tensor],
        values: Mapping[str, Tensor],
        labels: Tensor | None,
        answers: Answers | None,
    ) -> dict[str, Tensor]:
        """Name of a term -> its weighted value for a batch.

        Args:
            outputs: the student's.
            values: the student's values to match, by name.
            labels: of the batch.
            answers: the original's.
        """
        found: dict[str, Tensor] = {}
        if self.labelled is not None and self.share < 1:
            found["labels"] = weighted(1 - self.share, self.labelled(outputs, labels))
        if answers is None:
            return found
        if self.distilled is not None and (weight := self.share + self.options.lwf):
            found["original"] = weighted(weight, self.distilled(outputs, answers.outputs))
        for name, value in values.items():
            theirs = answers.values[name]
            if name in self.probabilities:
                same = attention_matching(value, theirs, name, self.probabilities[name])
                found[f"attention {name}"] = self.options.attention_weight * same
            else:
                found[f"feature {name}"] = self.options.feature_weight * feature_matching(value, theirs, name)
        return found

    def of_weights(self, module: nn.Module) -> dict[str, Tensor]:
        """Name of a penalty -> its weighted value."""
        found: dict[str, Tensor] = {}
        weights = penalties.penalized(module) if self.options.l1 or self.options.l2 else []
        if self.options.l1:
            found["l1"] = self.options.l1 * penalties.l1(weights)
        if self.options.l2:
            found["l2"] = self.options.l2 * penalties.l2(weights)
        if self.memory is not None:
            now = dict(module.named_parameters())
            found["ewc"] = self.options.ewc * penalties.ewc(now, self.memory.anchors, self.memory.information)
        return found


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The sum of the terms, a scalar."""
    losses = [term.float() for term in terms.values()]
    return torch.stack(losses).sum() if len(losses) > 1 else losses[0]
