"""The widths that reach a target, checked on the model that they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import onnx_ir as ir

from compressor.pipeline import Context
from compressor.pruning.channel_choice import Candidate, nearest, within
from compressor.pruning.channel_cost import Cost, multiply_accumulates, parameters
from compressor.pruning.channel_latency import milliseconds, narrowed, share_of
from compressor.summary import macs

Goal = Literal["ratio", "macs", "params", "latency"]

_ROUNDS = 5
_NEAR = {"macs": 0.01, "latency": 0.02}
"""How far from the budget, as a share of it, is near enough to stop correcting."""


@dataclass(frozen=True)
class Target:
    """What is to be reached.

    Args:
        goal: what is to become less.
        share: how much of it goes, above 0 and below 1.
        whole: MACs or parameters of the model that it is a share of.
        sizes: group name -> how many channels it has there.
        reference: that model, for "latency".
        feeds: a batch to time, for "latency".
    """

    goal: Goal
    share: float
    whole: float
    sizes: Mapping[str, int]
    reference: ir.Model | None = field(default=None, repr=False)
    feeds: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)


class Choice(NamedTuple):
    """One width per candidate; and what is left of the goal, as a share of the whole, None for "ratio"."""

    widths: list[int]
    left: float | None


def choose(model: ir.Model, candidates: Sequence[Candidate], target: Target, context: Context) -> Choice:
    """The widths to cut the candidates to, whose groups were found in `model`."""
    groups = [candidate.group for candidate in candidates]
    match target.goal:
        case "ratio":
            wanted = [target.sizes.get(group.name, group.size) * (1 - target.share) for group in groups]
            return Choice(nearest(candidates, wanted), None)
        case "params":
            cost = parameters(model, groups)
            widths = within(candidates, cost, target.whole * (1 - target.share))
            return Choice(widths, cost.total(shares(candidates, widths)) / target.whole)
        case "macs":
            cost = multiply_accumulates(model, groups)
            return _reached(candidates, cost, target, lambda w: macs_of(model, candidates, w) / target.whole)
        case "latency":
            cost = milliseconds(model, candidates, target.feeds, context)
            return _reached(
                candidates, cost, target, lambda w: _latency(model, candidates, w, target, context)
            )


def macs_of(model: ir.Model, candidates: Sequence[Candidate], widths: Sequence[int]) -> int:
    """The MACs of the model cut to these widths."""
    return macs(narrowed(model, candidates, widths)) or 0


def _latency(
    model: ir.Model, candidates: Sequence[Candidate], widths: Sequence[int], target: Target, context: Context
) -> float:
    if target.reference is None:
        raise ValueError("latency is measured against a reference")
    return share_of(target.reference, narrowed(model, candidates, widths), target.feeds, context)


def _reached(
    candidates: Sequence[Candidate], cost: Cost, target: Target, left: Callable[[list[int]], float]
) -> Choice:
    """The widths whose model is nearest to the target.

    The cost predicts, in any unit, and `left` says what became of the goal, as a share of the reference. Where the
    two are not in proportion, the prediction is corrected by their ratio and the widths are chosen again.
    """
    budget = 1 - target.share
    per_unit = left([candidate.widths[0] for candidate in candidates]) / cost.total([1.0] * len(candidates))
    tried: dict[tuple[int, ...], float] = {}
    for _ in range(_ROUNDS):
        widths = within(candidates, cost, budget / per_unit)
        if tuple(widths) in tried:
            break
        value = tried[tuple(widths)] = left(widths)
        if abs(value - budget) <= _NEAR[target.goal] * budget:
            break
        per_unit = value / cost.total(shares(candidates, widths))
    best = min(tried, key=lambda widths: abs(tried[widths] - budget))
    return Choice(list(best), tried[best])


def shares(candidates: Sequence[Candidate], widths: Sequence[int]) -> list[float]:
    """Width / size of each candidate."""
    return [width / candidate.widths[0] for candidate, width in zip(candidates, widths, strict=True)]
