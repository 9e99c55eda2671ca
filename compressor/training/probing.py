"""Options that are found by trying: the learning rate, and the largest batch that fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.optim import Optimizer

from compressor.training.batches import TrainingBatch
from compressor.training.loading import Loader
from compressor.training.rate_finder import range_test, suggested_rate
from compressor.training.sources import Source
from compressor.training.student import Student
from compressor.training.terms import total

_TRIES = 60
"""Steps of the range test: from 1e-7 to 1, about nine for a factor of ten."""
_LARGEST = 1024
"""A larger batch gains nothing on one device, and costs accuracy (Keskar et al. 2017, arXiv:1609.04836)."""
_MEMORY = 0.5
"""Share of the free memory that the values kept for the gradient may take."""


def rate(student: Student, groups: Sequence[dict[str, Any]], optimizer: Optimizer, batches: Loader) -> float:
    """The peak learning rate that a range test suggests; the weights are put back afterwards.

    Batches differ more than a small rate changes them, so that each loss is taken against that of the same batch
    before the test, which is the same few batches again and again.
    """
    network = student.network
    device = next(network.parameters()).device
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    shares = [group["lr"] for group in groups]
    network.train()

    def loss_of(batch: TrainingBatch) -> Tensor:
        inputs = tuple(tensor.to(device) for tensor in batch.inputs)
        labels = None if batch.labels is None else batch.labels.to(device)
        return total(student.losses(inputs, labels, batch.rows))

    with torch.no_grad():
        untrained = [float(loss_of(batch)) for batch in islice(batches.batches(0), _TRIES)]
    level = float(np.mean(untrained))
    endless = _endless(batches, len(untrained))

    def step(peak: float) -> float:
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = peak * share
        place, batch = next(endless)
        loss = loss_of(batch)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return float(loss.detach()) - untrained[place] + level

    found = range_test(step, steps=_TRIES)
    network.load_state_dict(state)
    network.eval()
    return suggested_rate([loss for _, loss in found], [value for value, _ in found])


def largest_batch(network: fx.GraphModule, source: Source, device: torch.device) -> int:
    """The largest power of two, up to the data's size and 1024, whose step fits in half of the free memory."""
    if source.fixed_batch is not None:
        return source.fixed_batch
    limit = min(_LARGEST, max(1, len(source.shapes) // 2))
    free = _free(device) * _MEMORY
    size = 1
    while size * 2 <= limit and _kept(network, source, size * 2, device) <= free:
        size *= 2
    return size


def _kept(network: fx.GraphModule, source: Source, size: int, device: torch.device) -> float:
    """Bytes that a step of this size keeps for its gradient; infinite when it does not fit."""
    batch: TrainingBatch = next(iter(source.read([np.arange(size)])))
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    try:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            network(*(tensor.to(device) for tensor in batch.inputs))
    except torch.OutOfMemoryError:
        return float("inf")
    return float(sum(seen.values()))


def _free(device: torch.device) -> float:
    """Free memory of the device, in bytes."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    import os

    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _endless(batches: Loader, count: int) -> Iterator[tuple[int, TrainingBatch]]:
    """The first batches over and over, each with its place."""
    while True:
        yield from enumerate(islice(batches.batches(0), count))
