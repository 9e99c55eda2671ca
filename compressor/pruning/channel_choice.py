"""Which channels of which groups go.

In each group the channels go in the order of their scores. How many go where is a knapsack: the next cut is the one
that loses the least importance per unit of cost saved, given all cuts before it, until the cost is within the target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from compressor.channels import Group
from compressor.pruning.allocation import Curve
from compressor.pruning.channel_cost import Cost

_LEAST = 1e-12
_TIE = 1e-6
"""What the importance counts where the drop of the score was measured: it decides between equal drops."""
_AHEAD = 16
"""How many widths further down a cut may lead: the channels of a block, of which only the last saves time."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A group that may be cut.

    Args:
        group: the channels.
        scores: float64 [size], what each is worth, comparable between groups.
        widths: how many may stay, the largest first; the first is the group's size.
        curve: share of the channels cut -> measured drop of the score; empty where nothing was measured. It then
            says what a cut costs, and the scores only which channels go.
    """

    group: Group
    scores: np.ndarray
    widths: tuple[int, ...]
    curve: Curve = field(default_factory=dict)
    _lost: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Add up the scores from the lowest on."""
        object.__setattr__(self, "_lost", np.concatenate([[0.0], np.cumsum(np.sort(self.scores))]))

    def lost(self, width: int) -> float:
        """What it costs to go down to this width: -T log(1 - r), r the share of the importance T that goes.

        A small cut costs what its channels are worth; the last channels of a group cost more and more, since nothing
        is left to make up for them.
        """
        total, gone = self._lost[-1], self._lost[len(self.scores) - width]
        lost = float(-total * np.log(max(1 - gone / total, _LEAST))) if total > 0 else 0.0
        return self._measured(1 - width / len(self.scores)) + _TIE * lost if self.curve else lost

    def _measured(self, share: float) -> float:
        """The drop of the score at a share, straight between measured ones; never less than at a smaller share."""
        levels = sorted({0.0: 0.0, **self.curve}.items())
        drops = np.maximum.accumulate([max(drop, 0.0) for _, drop in levels])
        return float(np.interp(share, [level for level, _ in levels], drops))

    def kept(self, width: int) -> np.ndarray:
        """bool [size]: the `width` channels with the highest scores; of equal ones the first stay."""
        keep = np.zeros(len(self.scores), bool)
        keep[np.argsort(-self.scores, kind="stable")[:width]] = True
        return keep


def nearest(candidates: Sequence[Candidate], wanted: Sequence[float]) -> list[int]:
    """The width of each candidate that is nearest to the wanted one; the wider of two equally near."""

    def distances(candidate: Candidate, width: float) -> Iterator[tuple[float, int]]:
        return ((abs(held - width), -held) for held in candidate.widths)

    return [-min(distances(c, width))[1] for c, width in zip(candidates, wanted, strict=True)]


def within(candidates: Sequence[Candidate], cost: Cost, budget: float) -> list[int]:
    """The widths that bring the cost down to the budget and lose the least importance, chosen greedily.

    Args:
        candidates: in the order of the cost's groups.
        cost: what the whole model costs.
        budget: what it may cost.

    Returns:
        One width per candidate; all at their least when even that costs more.
    """
    search = _Search(candidates, cost)
    while search.total > budget and search.advance(budget):
        pass
    search.widen(budget)
    return search.widths


class _Cut(NamedTuple):
    """A cut of one group: the place in its list of widths that it leads to, what it loses and what it saves."""

    place: int
    lost: float
    saved: float


class _Search:
    """The widths so far, as places in the candidates' lists of widths, and the best next cut of each candidate."""

    def __init__(self, candidates: Sequence[Candidate], cost: Cost) -> None:
        self.candidates = candidates
        self.cost = cost
        self.places = [0] * len(candidates)
        self.shares = [1.0] * len(candidates)
        self.total = cost.total(self.shares)
        self.best = [self._best(at) for at in range(len(candidates))]

    @property
    def widths(self) -> list[int]:
        return [c.widths[place] for c, place in zip(self.candidates, self.places, strict=True)]

    def advance(self, budget: float) -> bool:
        """Make the next cut; False when none is left that saves anything."""
        possible = [(cut.lost / cut.saved, at, cut) for at, cut in enumerate(self.best) if cut is not None]
        if not possible:
            return False
        _, at, cut = min(possible)
        if self.total - cut.saved <= budget:  # the last one: of all that are enough, what loses least
            excess = self.total - budget
            enough = [
                (c.lost, at, c) for at in range(len(self.best)) for c in self._cuts(at) if c.saved >= excess
            ]
            _, at, cut = min(enough, default=(cut.lost, at, cut))
        self._move(at, cut.place)
        return True

    def widen(self, budget: float) -> None:
        """Take back cuts that later ones made needless, those that lost the most first."""
        for at in sorted(range(len(self.candidates)), key=lambda at: -self._last_loss(at)):
            while self.places[at]:
                back = self.places[at] - 1
                more = -self.cost.saved(self.shares, at, self._share(at, back))
                if self.total + more > budget:
                    break
                self._move(at, back)

    def _move(self, at: int, place: int) -> None:
        self.total -= self.cost.saved(self.shares, at, self._share(at, place))
        self.places[at] = place
        self.shares[at] = self._share(at, place)
        for near in self.cost.neighbours(at):
            self.best[near] = self._best(near)

    def _best(self, at: int) -> _Cut | None:
        """The next cut of a candidate that loses the least per unit saved; None when none saves anything."""
        saving = (cut for cut in self._cuts(at) if cut.saved > 0)
        return min(saving, key=lambda cut: cut.lost / cut.saved, default=None)

    def _cuts(self, at: int) -> Iterator[_Cut]:
        """The next few cuts of a candidate. Where a width saves nothing, one further down may."""
        candidate, place = self.candidates[at], self.places[at]
        now = candidate.lost(candidate.widths[place])
        for further in range(place + 1, min(place + 1 + _AHEAD, len(candidate.widths))):
            lost = candidate.lost(candidate.widths[further]) - now
            yield _Cut(further, lost, self.cost.saved(self.shares, at, self._share(at, further)))

    def _last_loss(self, at: int) -> float:
        candidate, place = self.candidates[at], self.places[at]
        return candidate.lost(candidate.widths[place]) - candidate.lost(candidate.widths[max(place - 1, 0)])

    def _share(self, at: int, place: int) -> float:
        candidate = self.candidates[at]
        return candidate.widths[place] / candidate.widths[0]
