"""Where the samples are after a Reshape."""

from __future__ import annotations

import math
from collections.abc import Sequence


def resolved(target: Sequence[int], shape: Sequence[int], copies: bool) -> list[int]:
    """What a Reshape gives: 0 copies a size, unless `copies` is False, and -1 is what is left.

    >>> resolved([0, -1], [2, 3, 4], True)
    [2, 12]
    """
    sizes = [shape[a] if size == 0 and copies else size for a, size in enumerate(target)]
    rest = math.prod(size for size in sizes if size != -1)
    return [math.prod(shape) // max(1, rest) if size == -1 else size for size in sizes]


def batch_axis(
    shape: Sequence[int], carried: int, new: Sequence[int], batch: int, last: bool = False
) -> int | None:
    """The axis of `new` that counts the samples of `shape`, whose axis `carried` does, alone or with others.

    In memory the samples lie between the sizes before `carried` and those behind it, and so they do in `new`. With
    one sample that leaves a choice: an axis of this very size, else one that begins before the samples; or, where the
    features behind them are split into heads, the one that begins with the samples. Of several axes of this very size
    it is the first, or the `last`.

    >>> batch_axis([7, 2, 6], 1, [14, 6], 2), batch_axis([7, 1, 6], 1, [7, 3, 2], 1)
    (0, 1)
    """
    low = math.prod(shape[:carried])
    high = low * shape[carried]
    found: list[tuple[int, int]] = []  # where an axis begins, and which it is
    start = 1
    for axis, size in enumerate(new):
        if max(start, low) * batch <= min(start * size, high) and size % batch == 0:
            found.append((start, axis))
        start *= size
    exact = [axis for _, axis in found if new[axis] == batch]
    if exact or not found:
        return exact[-1 if last else 0] if exact else None
    first = found[0][1]
    with_samples = [axis for start, axis in found if start == low]
    split = len(new) - first > len(shape) - carried
    return with_samples[0] if split and with_samples else first
