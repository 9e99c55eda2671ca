"""Which samples make which batch of which epoch: a pure function of the seed and the epoch. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.intp]


class Plan(Protocol):
    """The batches of every epoch, as sample numbers; each epoch has the same number of batches."""

    def __len__(self) -> int:
        """The number of batches in an epoch."""

    def batches(self, epoch: int) -> Sequence[Numbers]:
        """The sample numbers of each batch of an epoch, counted from 0; the same at each call."""


@dataclass(frozen=True)
class EpochPlan:
    """Each sample once per epoch, in batches of samples of one shape.

    Of each shape the last batch may be smaller. A last batch of one sample joins the one before it, since batch
    normalization cannot be trained on one sample. When the model fixes the batch, samples that do not fill one
    are left out of the epoch: others in each epoch if they are shuffled, for no sample may count twice.

    Args:
        shapes: [samples], equal numbers where samples have the same shapes.
        size: samples per batch.
        exact: whether the model takes batches of this size only.
        shuffle: whether each epoch has an order of its own.
        seed: of the order, 0 or more.
        window: how many samples the source can hold at a time, for one that gives them in its own order; the
            order is then shuffled within so many. None for a source that reads any sample at any time.
    """

    shapes: Numbers
    size: int
    exact: bool = False
    shuffle: bool = True
    seed: int = 0
    window: int | None = None

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return self._length

    @cached_property
    def _length(self) -> int:
        counts = np.unique_counts(self.shapes)[1]
        return sum(len(_sizes(int(count), self.size, self.exact)) for count in counts)

    def batches(self, epoch: int) -> list[Numbers]:
        """The sample numbers of each batch of an epoch; a batch comes where its last sample is in the order."""
        order = self._order(epoch)
        shapes = self.shapes[order]
        found: list[Numbers] = []
        for shape in np.unique(shapes):
            places = np.flatnonzero(shapes == shape)
            sizes = _sizes(len(places), self.size, self.exact)
            found += np.split(places[: sum(sizes)], np.cumsum(sizes)[:-1]) if sizes else []
        return [order[places] for places in sorted(found, key=lambda places: int(places[-1]))]

    def _order(self, epoch: int) -> Numbers:
        count = len(self.shapes)
        if not self.shuffle:
            return np.arange(count)
        draw = np.random.default_rng([self.seed, epoch])
        if self.window is None or self.window >= count:
            return draw.permutation(count)
        return np.fromiter(_windowed(count, self.window, draw), np.intp, count)


def _sizes(count: int, size: int, exact: bool) -> list[int]:
    """The sizes of the batches of `count` samples of one shape."""
    whole, rest = divmod(count, size)
    sizes = [size] * whole
    if not rest or exact:
        return sizes
    if rest == 1 and whole:
        return [*sizes[:-1], size + 1]
    return [*sizes, rest]


def _windowed(count: int, window: int, draw: np.random.Generator) -> Iterator[int]:
    """0 to count - 1, each taken at random from a buffer that is filled in order."""
    buffer = list(range(window))
    for number, place in zip(range(window, count), draw.integers(window, size=count - window), strict=True):
        yield buffer[place]
        buffer[place] = number
    yield from draw.permutation(buffer)
