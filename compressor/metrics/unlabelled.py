"""How far two models agree on samples without labels."""

from __future__ import annotations

import math

import numpy as np

from compressor import statistics as st
from compressor.metrics.outputs import (
    LARGEST,
    Outputs,
    are_classes,
    are_embeddings,
    finite,
    predictions,
    require_matching,
)
from compressor.metrics.scores import cosines, sqnr
from compressor.statistics import Interval

_ANY: st.Bounds = (-math.inf, math.inf)


def agreement(before: Outputs, after: Outputs, seed: int = 0) -> dict[str, Interval]:
    """How far the first outputs of two models agree, without labels.

    - top1: the share of samples with the same class; only for class outputs, [n, C >= 2] but not unit vectors, or
      integer ids.
    - cosine: the mean over samples of the cosine between both outputs; 1 where both are zero.
    - sqnr: 10 log10(sum x^2 / sum (x - y)^2) in dB over all samples, x the original; infinite without noise.

    Where both outputs are infinite with one sign, they agree and count as zero.
    """
    require_matching(before, after, False)
    shape = before[0].shape
    x, y = finite(before[0]), finite(after[0])
    alike = (x == y) & (np.abs(x) == LARGEST)
    x[alike] = y[alike] = 0.0
    ratio = sqnr(np.einsum("ij,ij->i", x, x), np.einsum("ij,ij->i", x - y, x - y))
    found = {"cosine": st.mean(cosines(x, y), (-1.0, 1.0)), "sqnr": st.interval(ratio, _ANY, seed)}
    if not are_classes(before[0]) or are_embeddings(before[0]):
        return found
    same = predictions(before[0], before[0]) == predictions(after[0], before[0])
    return {"top1": st.proportion(int(same.sum()), shape[0]), **found}
