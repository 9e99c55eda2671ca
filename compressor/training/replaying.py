"""Old samples mixed into the batches of new ones, so that a model learns the new and keeps the old.

Experience replay: Chaudhry et al., On Tiny Episodic Memories in Continual Learning, arXiv:1902.10486.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compressor.errors import DataError, OptionError
from compressor.training.batches import TrainingBatch, joined
from compressor.training.loading import Loader
from compressor.training.order import EpochPlan, Numbers, Plan
from compressor.training.sources import Source

_REPLAY = 1  # keeps the draws of old samples apart from those of the epochs


def replayed(new: Loader, old: Source, share: float) -> Loader:
    """A loader in whose batches `round(share * batch)` samples are old ones, behind the new ones.

    An epoch has each new sample once; the old ones go on from batch to batch and from epoch to epoch, each once
    before any comes again. Old samples are numbered from `len(new.source.shapes)` on.

    Args:
        new: from `loading.loader`.
        old: samples that can be read in any order, with the shapes and the types of the new ones.
        share: in [0, 1); 0 gives `new` back.

    Raises:
        OptionError: `share` leaves no room for the new samples or for the old ones.
        DataError: the old samples do not fit to the new ones, or cannot be read in any order.
    """
    if not share:
        return new
    plan = new.plan
    if not isinstance(plan, EpochPlan):
        raise OptionError("replay: these batches have old samples already.")
    count = round(share * plan.size)
    if not 0 < count < plan.size:
        raise OptionError(
            f"replay={share!r} of a batch of {plan.size} is {count} samples; at least one must be old and one new. "
            "Give another share, or a larger batch."
        )
    _require_fit(new.source, old)
    fewer = replace(plan, size=plan.size - count)
    mixed = _ReplayPlan(fewer, len(plan.shapes), len(old.shapes), count, plan.seed)
    return Loader(_Mixed(new.source, old), mixed, new.pin, new.shard)


def _require_fit(new: Source, old: Source) -> None:
    if old.window is not None:
        raise DataError(
            "replay: the old samples come from a function and do not fit in memory. Save some of them as .npz."
        )
    if np.any(new.shapes != 0) or np.any(old.shapes != 0):
        raise DataError("replay: the samples have several shapes. Give a resize or crop that makes them one.")
    if new.window is None:
        first = [next(iter(source.read([np.zeros(1, np.intp)]))) for source in (new, old)]
        try:
            joined(first)
        except DataError as error:
            raise DataError(f"replay: the old samples do not fit to the new ones. {error}") from error


@dataclass(frozen=True)
class _ReplayPlan:
    """The batches of `new`, each with `count` of the numbers `start` to `start + old - 1` behind its own."""

    new: Plan
    start: int
    old: int
    count: int
    seed: int

    def __len__(self) -> int:
        return len(self.new)

    def batches(self, epoch: int) -> list[Numbers]:
        """The sample numbers of each batch of an epoch."""
        first = epoch * len(self) * self.count
        drawn = self.start + self._cycle(first, first + len(self) * self.count)
        parts = drawn.reshape(len(self), self.count)
        return [np.concatenate(pair) for pair in zip(self.new.batches(epoch), parts, strict=True)]

    def _cycle(self, first: int, end: int) -> Numbers:
        """The numbers from place `first` to `end` of an endless row of permutations, each of its own seed."""
        turns = range(first // self.old, -(-end // self.old))
        orders = [np.random.default_rng([self.seed, turn, _REPLAY]).permutation(self.old) for turn in turns]
        start = first - turns[0] * self.old
        return np.concatenate(orders)[start : start + end - first]


class _Mixed:
    """Two sources as one; the second's samples are numbered after the first's."""

    def __init__(self, new: Source, old: Source) -> None:
        self.fixed_batch = new.fixed_batch
        self.shapes = np.concatenate([new.shapes, old.shapes])
        self.window = new.window
        self._new = new
        self._old = old

    def read(self, plan: Sequence[Numbers]) -> Iterator[TrainingBatch]:
        """The batches with these sample numbers, in this order."""
        count = len(self._new.shapes)
        news = self._new.read([rows[rows < count] for rows in plan])
        olds = self._old.read([rows[rows >= count] - count for rows in plan])
        for new, old in zip(news, olds, strict=True):
            yield joined([new, old._replace(rows=old.rows + count)])
