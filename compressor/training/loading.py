"""The batches of training: which samples, in an order that can be taken up again at any step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compressor.errors import DataError, OptionError
from compressor.training.batches import TrainingBatch
from compressor.training.order import EpochPlan, Numbers, Plan
from compressor.training.sources import Source, open_source

__all__ = ["Loader", "TrainingBatch", "loader", "open_source"]


@dataclass
class Loader:
    """Batches of a source, epoch after epoch.

    An `iter` gives what is left of the epoch in which the last one stopped, or the next epoch; the first one epoch 0.
    `state_dict` says where that is, so Lightning takes a run up again at the step after a checkpoint.

    Args:
        source: what the samples are read from.
        plan: which samples make which batch.
        pin: whether batches are put in page-locked memory, from which they reach a GPU sooner.
        shard: (which, of how many) processes this is; each gets as many batches, none that another gets.
    """

    source: Source
    plan: Plan
    pin: bool = False
    shard: tuple[int, int] = (0, 1)
    _place: tuple[int, int] = (0, 0)  # the epoch and the batch in it that come next

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return len(self.plan) // self.shard[1]

    def batches(self, epoch: int, skip: int = 0) -> Iterator[TrainingBatch]:
        """The batches of an epoch, counted from 0, without the first `skip`, which are not read."""
        for batch in self.source.read(self.rows(epoch)[skip:]):
            yield pinned(batch) if self.pin else batch

    def rows(self, epoch: int) -> Sequence[Numbers]:
        """The sample numbers of each batch of an epoch that this process gets."""
        which, ranks = self.shard
        return self.plan.batches(epoch)[which::ranks][: len(self)]

    def start_at(self, epoch: int, skip: int = 0) -> None:
        """Let the next `iter` give this epoch without its first `skip` batches."""
        self._place = (epoch, skip)

    def state_dict(self) -> dict[str, int]:
        """The epoch and the batch in it that come next."""
        return {"epoch": self._place[0], "skip": self._place[1]}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on where `state_dict` was taken."""
        self.start_at(state_dict["epoch"], state_dict["skip"])

    def __iter__(self) -> Iterator[TrainingBatch]:
        """The batches of an epoch from the next one on; which that is, is asked when the first is drawn."""
        (epoch, skip), count = self._place, len(self)
        for number, batch in enumerate(self.batches(epoch, skip), skip + 1):
            self._place = (epoch, number) if number < count else (epoch + 1, 0)
            yield batch


def loader(source: Source, batch: int, *, shuffle: bool = True, seed: int = 0) -> Loader:
    """The batches of `source`, `batch` samples each, or as many as the model fixes; see `EpochPlan` for the last one.

    Args:
        source: from `open_source`.
        batch: samples per batch, at least 1.
        shuffle: whether each epoch has an order of its own, which depends on nothing but `seed` and its number.
        seed: of the order, 0 or more.

    Raises:
        OptionError: `batch` is below 1.
        DataError: the samples do not fill one batch of the size that the model fixes.
    """
    if batch < 1:
        raise OptionError(f"batch must be at least 1, got {batch!r}.")
    fixed = source.fixed_batch
    plan = EpochPlan(source.shapes, fixed or batch, fixed is not None, shuffle, seed, source.window)
    if not len(plan):
        raise DataError(
            f"The model fixes the batch at {fixed} samples of one shape, and there are {len(source.shapes)} samples. "
            "Give more, or a model with a dynamic batch axis."
        )
    return Loader(source, plan)


def pinned(batch: TrainingBatch) -> TrainingBatch:
    """The batch in page-locked memory; needs CUDA."""
    labels = None if batch.labels is None else batch.labels.pin_memory()
    return TrainingBatch(tuple(x.pin_memory() for x in batch.inputs), labels, batch.rows)
