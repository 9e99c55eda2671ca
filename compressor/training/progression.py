"""Codes of few bits that come into force step by step while the rest of the network makes up for them.

layers      layer by layer, first those without which the loss grows least when they alone have their codes
fraction    in every layer the largest weights first, which then stay as they are: half of them, half of the rest and
            so on, at last all (INQ: Zhou et al. 2017, arXiv:1702.03044, section 3)
anneal      every weight moves from its float to its code in a straight line (Louizos et al. 2018, arXiv:1810.01875,
            and Chen et al. 2019, ProxQuant, arXiv:1810.00861, do so by other curves)
"""

from __future__ import annotations

from math import floor
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, fx, nn

from compressor.training.options import Training
from compressor.training.projections import Projection, projections
from compressor.training.student import Student
from compressor.training.terms import total


class Progression(pl.Callback):
    """Puts the codes of a network into force on the way; no epoch before the last of them counts as the best.

    Args:
        network: with projections.
        options: progressive, progressive_steps and progressive_end are read.
    """

    def __init__(self, network: fx.GraphModule, options: Training) -> None:
        self.options = options
        self.parts = projections(network)
        self.order: list[str] = []
        self.done = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Find the order of the layers, and begin with what is due before the first step."""
        if self.options.progressive == "layers" and not self.order:
            self.order = least_sensitive_first(pl_module, self.parts)
        self._proceed(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Put into force what is due after this step."""
        if not pl_module.settled:
            self._proceed(trainer, pl_module)

    def _proceed(self, trainer: pl.Trainer, pl_module: Student) -> None:
        steps = self.options.progressive_end * int(trainer.estimated_stepping_batches)
        reached = min(1.0, trainer.global_step / steps)
        if self.options.progressive == "anneal":
            for part, _ in self.parts.values():
                part.share = reached
        else:
            self._take_step(floor(reached * self.options.progressive_steps + 1e-9))
        pl_module.settle("codes", reached == 1)

    def _take_step(self, step: int) -> None:
        """What is in force after so many of the steps; the first is taken before the training begins."""
        count = self.options.progressive_steps
        if self.options.progressive == "layers":
            held = set(self.order[: len(self.order) * step // count])
            for path, (part, _) in self.parts.items():
                part.share = float(path in held)
        elif step == count:
            for part, _ in self.parts.values():
                part.share = 1.0
        elif step >= self.done:
            for part, latent in self.parts.values():
                part.share = largest(latent.detach(), 1 - 0.5 ** (step + 1), part.share)
            self.done = step + 1

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "order": self.order,
            "done": self.done,
            "shares": {p: part.share for p, (part, _) in self.parts.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.order, self.done = state_dict["order"], state_dict["done"]
        for path, share in state_dict["shares"].items():
            part, latent = self.parts[path]
            part.share = share.to(latent.device) if isinstance(share, Tensor) else share


@torch.no_grad()
def least_sensitive_first(student: Student, parts: dict[str, tuple[Projection, nn.Parameter]]) -> list[str]:
    """The paths of the projections by the loss of the first batch when one of them alone is in force."""
    batch = next(student.loader.batches(0))
    student.network.eval()
    for part, _ in parts.values():
        part.share = 0.0
    losses: dict[str, float] = {}
    for path, (part, _) in parts.items():
        part.share = 1.0
        inputs = tuple(x.to(student.device) for x in batch.inputs)
        labels = None if batch.labels is None else batch.labels.to(student.device)
        losses[path] = float(total(student.losses(inputs, labels, batch.rows)))
        part.share = 0.0
    student.network.train()
    return sorted(losses, key=lambda path: losses[path])


def largest(latent: Tensor, share: float, held: Tensor | float) -> Tensor:
    """Which weights are among the largest `share` of all, those held before first: bool, of the latent's shape.

    >>> largest(torch.tensor([[3.0, -1.0, 2.0, -4.0]]), 0.5, 1.0)
    tensor([[ True, False, False,  True]])
    """
    size = latent.abs().flatten()
    if isinstance(held, Tensor):
        size = size.masked_fill(held.flatten(), float("inf"))
    chosen = torch.zeros_like(size, dtype=torch.bool)
    chosen[size.topk(round(share * size.numel())).indices] = True
    return chosen.reshape(latent.shape)
