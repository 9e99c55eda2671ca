"""One gradual pruning on its way: what the weights' gradients have said so far, and which weights are cut.

    importance    score of a weight w with gradient g; the lowest go first
    magnitude     |w|
    taylor        the mean of (w g)^2 over the steps since the last cut (Molchanov et al. 2019, arXiv:1906.10771, eq. 8)
    movement      the sum of -w g over all steps: high for weights that move away from zero (Sanh et al. 2020,
                  arXiv:2005.07683, section 3)

What is cut keeps a mask, and never comes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.pruning.allocation import lamp, share_out
from compressor.pruning.masks import keeps, units
from compressor.pruning.sparsity import Gradual
from compressor.training.prunable_weights import Prunable

Arrays = dict[str, np.ndarray]


class Course:
    """A pruning on its way.

    Args:
        plan: what is to be reached, and how.
        weights: initializer name -> the weight, of those in `plan.targets` that are there.
    """

    def __init__(self, plan: Gradual, weights: Mapping[str, Prunable]) -> None:
        self.plan = plan
        self.weights = weights
        self.done = 0
        self._sums: dict[str, Tensor] = {}
        self._seen = 0

    @property
    def finished(self) -> bool:
        """Whether nothing more will be cut."""
        return self.done == self.plan.steps

    @property
    def unscored(self) -> list[str]:
        """The weights that no gradient has reached since the last cut."""
        return [] if self.plan.importance == "magnitude" else [n for n in self.weights if n not in self._sums]

    def due(self, step: int, steps: int) -> int:
        """How many cuts should be done after `step` of the training's `steps`.

        A one-shot pruning is done with its first cut, which waits for no gradients where magnitude decides.
        """
        at_once = self.plan.schedule == "one-shot"
        if at_once and self.plan.importance == "magnitude":
            return self.plan.steps
        cuts = min(self.plan.steps, floor(step * self.plan.steps / (self.plan.end * steps) + 1e-9))
        return self.plan.steps if at_once and cuts else cuts

    @torch.no_grad()
    def observe(self) -> None:
        """Take in the gradients of a step; those that overflowed in half precision do not count."""
        if self.plan.importance == "magnitude":
            return
        self._seen += 1
        for name, each in self.weights.items():
            if each.weight.grad is None:
                continue
            change = (each.weight * each.weight.grad).float().nan_to_num(0.0, 0.0, 0.0)
            change = -change if self.plan.importance == "movement" else change.square()
            self._sums[name] = self._sums[name].add_(change) if name in self._sums else change

    def cut(self, done: int) -> None:
        """Cut what the first `done` cuts of the plan leave no place for; a weight without a score is left alone."""
        scores = self._scores()
        for name, kept in _kept(self.plan, scores, done / self.plan.steps).items():
            self.weights[name].cut(kept)
        self.done = done
        if self.plan.importance == "taylor" and not self.finished:
            self._sums, self._seen = {}, 0

    def _scores(self) -> Arrays:
        """Name -> score, above 0 for what is alive and 0 for what is cut."""
        if self.plan.importance == "magnitude":
            found = {name: _array(each.weight.detach().abs()) for name, each in self.weights.items()}
        else:
            found = {name: _array(total) / self._seen for name, total in self._sums.items()}
        low = min((float(score.min()) for score in found.values()), default=0.0)
        above = float(np.finfo(np.float32).tiny) - min(low, 0.0)
        return {name: np.where(self.weights[name].alive, score + above, 0.0) for name, score in found.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds; the masks are part of the network."""
        return {"done": self.done, "seen": self._seen, "sums": dict(self._sums)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, with the sums on the device of the weights."""
        self.done, self._seen = state["done"], state["seen"]
        self._sums = {name: t.to(self.weights[name].weight.device) for name, t in state["sums"].items()}


def _kept(plan: Gradual, scores: Arrays, progress: float) -> Arrays:
    """Name -> what stays at `progress` of the ramp: bool, of the weight's shape."""
    views = {name: plan.layouts[name].view(score) for name, score in scores.items()}
    shares = {name: plan.sparsity(name, progress) for name in scores}
    if plan.scope == "global":
        shares = _shared_out(plan, views, shares)
    kept = {name: keeps(view, shares[name], plan.pattern) for name, view in views.items()}
    return {name: plan.layouts[name].restored(k, scores[name].shape) for name, k in kept.items()}


def _shared_out(plan: Gradual, views: Arrays, shares: Mapping[str, float]) -> dict[str, float]:
    """Name -> sparsity, such that all weights together have that of `shares` and the lowest scores of all go."""
    sizes = {name: view.size for name, view in views.items()}
    total = sum(shares[name] * size for name, size in sizes.items()) / max(1, sum(sizes.values()))
    ordered = {name: np.sort(units(view, plan.pattern), axis=None) for name, view in views.items()}
    by_size = plan.importance == "magnitude"
    ranked = {name: lamp(each) if by_size else each.astype(np.float32) for name, each in ordered.items()}
    return share_out(ranked, total)


def _array(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().double().cpu().numpy())
