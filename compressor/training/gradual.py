"""Pruning while a model is trained: the masks grow over the first part of the training, the rest is for recovery.

Zhu and Gupta 2017, arXiv:1710.01878. The cuts come at equal distances, the last one at the share `end` of the steps.
With 'iterative' the learning rate starts again after every cut (Renda et al. 2020, arXiv:2003.02389, section 2); with
`rewind` so do the weights that stay (Frankle and Carbin 2019, arXiv:1803.03635, section 2).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from math import ceil
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, fx
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from compressor.errors import OptionError
from compressor.pruning.sparsity import Gradual
from compressor.training.options import Training
from compressor.training.prunable_weights import masked_weights, places
from compressor.training.pruning_course import Course
from compressor.training.schedules import factor, scheduler
from compressor.training.zeros import Mask


class Pruning(pl.Callback):
    """Cuts weights on the way.

    Until the last cut the student is not `settled`: no epoch before it can be the best, or the reason to stop.

    Args:
        network: the student's, with a mask for every weight to be cut (`add_masks`).
        plans: what is to be cut.
        options: of the training.
    """

    def __init__(self, network: fx.GraphModule, plans: Sequence[Gradual], options: Training) -> None:
        if options.strategy == "fsdp":
            raise OptionError(
                f"{options.name}: strategy='fsdp' shards the weights, and pruning during the training looks at whole "
                "ones. Give strategy='ddp'."
            )
        self.network = network
        self.courses = [Course(plan, masked_weights(network, plan)) for plan in plans]
        self.declined = {name: why for plan in plans for name, why in places(network, plan)[1].items()}
        self._start = _unmasked(network) if any(plan.rewind for plan in plans) else {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Say whether cuts are still to come."""
        pl_module.settle("pruning", self._finished)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Make the cuts that are due before the first step."""
        self._cut(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """Look at the gradients, before they are clipped."""
        if not pl_module.fault:
            for course in self.courses:
                if not course.finished:
                    course.observe()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Make the cuts that are due after this step."""
        if not pl_module.fault:
            self._cut(trainer, pl_module)

    def _cut(self, trainer: pl.Trainer, pl_module: Any) -> None:
        steps = int(trainer.estimated_stepping_batches)
        for course in self.courses:
            due = course.due(trainer.global_step, steps)
            if due > course.done:
                course.cut(due)
                if course.plan.rewind and trainer.global_step:
                    self._rewind(trainer.optimizers)
        pl_module.settle("pruning", self._finished)

    @property
    def _finished(self) -> bool:
        return all(course.finished for course in self.courses)

    def _rewind(self, optimizers: Sequence[Optimizer]) -> None:
        """Put everything but the masks back to the start."""
        self.network.load_state_dict(self._start, strict=False)
        for optimizer in optimizers:
            optimizer.state.clear()

    def figures(self) -> dict[str, float | str]:
        """The share of zeros in all weights that were to be cut."""
        found = {id(each.weight): each.zeros for course in self.courses for each in course.weights.values()}
        zeros, size = (sum(column) for column in zip(*found.values(), strict=True)) if found else (0, 1)
        return {"sparsity reached": round(zeros / size, 4)}

    def left_out(self, trained: bool) -> dict[str, str]:
        """Name -> why it was not cut; `trained` says whether the weights are those of an epoch after the last cut."""
        if not trained:
            why = "the training ended before the last cut, so that the weights from before it are kept"
            return self.declined | {"pruning": why}
        unscored = {name: "no gradient reached it" for course in self.courses for name in course.unscored}
        return self.declined | unscored

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"courses": [course.state_dict() for course in self.courses]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        for course, state in zip(self.courses, state_dict["courses"], strict=True):
            course.load_state_dict(state)


def schedule(
    plans: Sequence[Gradual], options: Training, optimizer: Optimizer, steps: int, per_epoch: int
) -> LRScheduler:
    """The learning-rate schedule of `options`, begun anew after every cut of an iterative pruning.

    Args:
        plans: what is cut on the way.
        options: schedule and warmup; both are of each piece then. 'plateau' goes on as it is.
        optimizer: its groups hold their peak rates.
        steps: of the whole training.
        per_epoch: steps of an epoch.
    """
    starts = [0, *cuts(plans, steps)]
    if len(starts) == 1 or options.schedule == "plateau":
        return scheduler(options, optimizer, steps, per_epoch)
    pieces = [factor(options, end - start, per_epoch) for start, end in pairwise([*starts, steps])]

    def at(step: int) -> float:
        piece = bisect_right(starts, step) - 1
        return pieces[piece](step - starts[piece])

    return LambdaLR(optimizer, at)


def cuts(plans: Sequence[Gradual], steps: int) -> list[int]:
    """The steps before which an iterative pruning cuts, in order, without the first and the last of the training.

    >>> from compressor.pruning.masks import Pattern
    >>> cuts([Gradual({"w": 0.5}, {}, Pattern(), schedule="iterative", steps=2)], 30)
    [10, 20]
    """
    found = {
        ceil(number * plan.end * steps / plan.steps - 1e-6)
        for plan in plans
        if plan.schedule == "iterative"
        for number in range(1, plan.steps + 1)
    }
    return sorted(step for step in found if 0 < step < steps)


def _unmasked(network: fx.GraphModule) -> dict[str, Tensor]:
    """A copy of the network's state without its masks."""
    masks = {f"{path}.mask" for path, part in network.named_modules() if isinstance(part, Mask)}
    return {name: t.detach().clone() for name, t in network.state_dict().items() if name not in masks}
