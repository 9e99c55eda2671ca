"""Undoing the shift of a layer's mean output that rounding its weights causes.

With W = W_q + E, the output of the quantized layer is off by -E x on average, which is a constant per output channel:
E E[x]. It is added to the bias. Only the mean of each input channel is needed, gathered during calibration.
Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction"
(arXiv:1906.04721), section 4.2, with the measured mean in place of the one from BatchNormalization.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from compressor.clipping import Range
from compressor.observers import Observer, stride

POSITIONS = 64
"""How many positions of a channel's map are averaged in one sample, evenly strided."""


@dataclass
class WithMean(Observer):
    """An observer that also keeps the mean of each channel, axis 1 (the last axis of a vector or matrix).

    Of a map, `POSITIONS` positions are averaged: looking at all would cost as much as the extremes.

    >>> from compressor.observers import MinMax
    >>> seen = WithMean(MinMax()); seen.observe(np.array([[1.0, 2.0], [3.0, 2.0]])); seen.mean()
    array([2., 2.])
    """

    inner: Observer
    total: np.ndarray = field(default_factory=lambda: np.zeros(0))
    count: int = 0

    def observe(self, batch: np.ndarray, extremes: Range | None = None) -> None:  # noqa: D102
        self.inner.observe(batch, extremes)
        if not batch.size:
            return
        if batch.ndim < 2:
            batch = batch.reshape(1, -1)
        channels = batch.reshape(len(batch), batch.shape[1], -1)
        channels = channels[:, :, :: stride(channels.shape[2], POSITIONS)]
        total = channels.sum(axis=2).sum(axis=0, dtype=np.float64)
        self.total = total + self.total if self.count else total
        self.count += len(batch) * channels.shape[2]

    def merge(self, later: WithMean) -> None:  # noqa: D102
        self.inner.merge(later.inner)
        self.total = (
            self.total + later.total
            if self.count and later.count
            else self.total
            if self.count
            else later.total
        )
        self.count += later.count

    def range(self) -> Range:  # noqa: D102
        return self.inner.range()

    def mean(self) -> np.ndarray | None:
        """The mean of each channel over all samples, float64 [channels]; None when nothing was seen."""
        return self.total / self.count if self.count else None


def shift(error: np.ndarray, mean: np.ndarray, groups: int = 1) -> np.ndarray:
    """The mean output that the rounded weights lack, per output channel.

    Args:
        error: weights before minus after rounding, [out, in / groups, ...].
        mean: mean of each input channel, [in].
        groups: of a grouped convolution.

    Returns:
        [out], to be added to the bias. Borders count as if they were padded with the mean.

    >>> shift(np.array([[0.5, 0.25]]), np.array([2.0, 4.0]))
    array([2.])
    """
    taps = error.reshape(*error.shape[:2], -1).sum(axis=2, dtype=np.float64)
    out, inner = taps.shape
    per_group = taps.reshape(groups, out // groups, inner)
    made: np.ndarray = np.einsum("goi,gi->go", per_group, mean.reshape(groups, inner)).reshape(out)
    return made
