"""How sparse each weight is to become, and how sparsity grows while a model is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor
from typing import Literal

import numpy as np

from compressor.pruning.masks import Layout, Pattern, keeps

Schedule = Literal["one-shot", "cubic", "linear", "iterative"]
Importance = Literal["magnitude", "wanda", "taylor", "movement"]
Scope = Literal["global", "layer"]


@dataclass(frozen=True)
class Gradual:
    """A pruning that the next training carries out as it goes.

    Args:
        targets: name of an initializer -> its final sparsity.
        layouts: name of an initializer -> how it is seen.
        pattern: which weights go together.
        schedule: how sparsity grows; see `ramp`.
        steps: how many times weights are taken away.
        importance: what decides, at each step, which.
        rewind: after each step, put the weights that stay back to what they were before the training.
        scope: 'global' shares `targets` out anew at each step, by the scores of all layers; 'layer' keeps them.
        end: the share of the training after which nothing more is taken, in (0, 1]; what follows is for recovery.
    """

    targets: Mapping[str, float]
    layouts: Mapping[str, Layout]
    pattern: Pattern
    schedule: Schedule = "cubic"
    steps: int = 10
    importance: Importance = "magnitude"
    rewind: bool = False
    scope: Scope = "layer"
    end: float = 2 / 3

    def sparsity(self, name: str, progress: float) -> float:
        """The sparsity that a weight should have at `progress` in [0, 1] of the ramp, in `steps` equal steps of time.

        >>> gradual = Gradual({"w": 0.8}, {}, Pattern(), schedule="linear", steps=4)
        >>> [gradual.sparsity("w", at) for at in (0.0, 0.3, 1.0, 2.0)]
        [0.0, 0.2, 0.8, 0.8]
        """
        done = floor(min(max(progress, 0.0), 1.0) * self.steps + 1e-9) / self.steps
        final = self.targets[name]
        return final * ramp(self.schedule, done, final)

    def keeps(self, name: str, scores: np.ndarray, progress: float) -> np.ndarray:
        """True for the weights that stay at `progress`: bool, shaped as `scores`, which are shaped as the weight."""
        layout = self.layouts[name]
        kept = keeps(layout.view(scores), self.sparsity(name, progress), self.pattern)
        return layout.restored(kept, scores.shape)


def ramp(schedule: Schedule, progress: float, final: float = 0.5) -> float:
    """The share of the final sparsity reached at `progress` in [0, 1] of the ramp; 1 past its end.

    'cubic' is 1 - (1 - t)^3 (Zhu and Gupta 2017, arXiv:1710.01878, eq. 1), fast while much is redundant; 'linear' is
    t; 'iterative' takes the same share of what is left at every step, (1 - (1 - final)^t) / final (Frankle and Carbin
    2019, arXiv:1803.03635, section 2); 'one-shot' is 1 from the start.

    >>> [ramp("cubic", t) for t in (0, 0.5, 1, 2)]
    [0.0, 0.875, 1.0, 1.0]
    >>> [round(ramp("iterative", t, 0.75), 3) for t in (0, 0.5, 1)]
    [0.0, 0.667, 1.0]
    """
    t = min(max(progress, 0.0), 1.0)
    if schedule == "cubic":
        return float(1 - (1 - t) ** 3)
    if schedule == "iterative" and final > 0:
        return float((1 - (1 - final) ** t) / final)
    return 1.0 if schedule == "one-shot" else float(t)
