"""The original's answers, kept so that it runs on each sample once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class AnswerCache:
    """Answers by sample number, in memory.

    Args:
        count: the number of samples.
        limit: the most bytes to take.
    """

    def __init__(self, count: int, limit: int) -> None:
        self._limit = limit
        self._known = torch.zeros(count, dtype=torch.bool)
        self._kept: list[Tensor] = []

    def get(self, rows: Tensor) -> list[Tensor] | None:
        """The answers for these samples [n]; None unless all are known."""
        if not bool(self._known[rows].all()):
            return None
        return [tensor[rows] for tensor in self._kept]

    def put(self, rows: Tensor, answers: Sequence[Tensor]) -> None:
        """Keep the answers [n, ...] of these samples, if the shapes and the limit allow it."""
        count = len(self._known)
        if not all(a.ndim and len(a) == len(rows) for a in answers):
            return
        if not self._kept:
            size = sum(a[:1].nbytes for a in answers) * count
            if size > self._limit:
                self._limit = 0
                return
            self._kept = [torch.empty(count, *a.shape[1:], dtype=a.dtype) for a in answers]
        pairs = list(zip(self._kept, answers, strict=True))
        if all(kept.shape[1:] == a.shape[1:] and kept.dtype == a.dtype for kept, a in pairs):
            for kept, answer in pairs:
                kept[rows] = answer.detach().cpu()
            self._known[rows] = True
