"""How sparse each layer becomes, so that all together reach a total: by comparable scores, or by measured curves."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import isfinite
from typing import Literal, NamedTuple

import numpy as np

from compressor.errors import OptionError
from compressor.sensitivity_file import drops

KEPT = 0.01
"""The share of a layer that stays, at least, when layers share a total: one without weights ends the network."""

Curve = Mapping[float, float]
"""Sparsity -> how much the score drops when one layer alone is that sparse."""


def lamp(ordered: np.ndarray) -> np.ndarray:
    """Scores of a layer made comparable to those of others: s^2 over the sum of all squares that are not smaller.

    The score of the largest is 1, so no layer is emptied, and within a layer the order stays. Lee et al. 2021
    (arXiv:2010.07611), eq. 3.

    Args:
        ordered: scores in ascending order, not negative.

    >>> lamp(np.array([0.0, 1.0, 1.0, 2.0]))
    array([0.        , 0.16666667, 0.2       , 1.        ], dtype=float32)
    """
    squares = np.square(ordered, dtype=np.float64)
    rest = np.cumsum(squares[::-1])[::-1]
    return np.asarray(squares / np.where(rest > 0, rest, 1), np.float32)


def share_out(ordered: Mapping[str, np.ndarray], sparsity: float) -> dict[str, float]:
    """The sparsity of each layer when the lowest scores go, whichever layer they are in.

    Every layer keeps 1 % of its weights (or the total's share where that is less) and at least one.

    Args:
        ordered: layer -> its scores, float32, ascending, not negative.
        sparsity: the share of all to take away, in [0, 1).

    >>> share_out({"a": np.float32([1, 2, 3, 4]), "b": np.float32([3, 5, 6, 7])}, 0.5)
    {'a': 0.75, 'b': 0.25}
    """
    sizes = {name: len(scores) for name, scores in ordered.items()}
    most = max(sparsity, 1 - KEPT)
    caps = {name: min(int(most * size), size - 1) for name, size in sizes.items()}
    wanted = round(sparsity * sum(sizes.values()))

    def below(limit: np.float32, side: str) -> dict[str, int]:
        return {
            name: min(int(np.searchsorted(scores, limit, side)), caps[name])  # type: ignore[call-overload]
            for name, scores in ordered.items()
        }

    low, high = (
        0,
        int(np.float32(np.inf).view(np.int32)),
    )  # floats that are not negative are ordered as their bits
    while low < high:
        middle = (low + high) // 2
        enough = sum(below(_float(middle), "right").values()) >= wanted
        low, high = (low, middle) if enough else (middle + 1, high)
    counts, ties = below(_float(low), "left"), below(_float(low), "right")
    left = wanted - sum(counts.values())
    for name in counts:
        more = min(left, ties[name] - counts[name])
        counts[name] += more
        left -= more
    return {name: counts[name] / sizes[name] for name in counts}


def _float(bits: int) -> np.float32:
    return np.int32(bits).view(np.float32)


class Step(NamedTuple):
    """A piece of a layer's curve: the drop per weight, the layer, and the sparsities it leads from and to."""

    price: float
    name: str
    start: float
    end: float


def cheapest(curves: Mapping[str, Curve], sizes: Mapping[str, int], sparsity: float) -> dict[str, float]:
    """The sparsity of each layer that costs the least summed drop at a total sparsity.

    Between measured points a curve is taken as straight, and as its convex hull; the cheapest pieces go first, which
    for convex curves is the optimum (the marginal rule of Everett 1963, "Generalized Lagrange Multiplier Method").
    No layer passes the highest sparsity that was measured for it, so the total may stay short.

    Args:
        curves: layer -> its curve; zero costs nothing.
        sizes: layer -> how many weights it has.
        sparsity: of all weights in `sizes`, in [0, 1).

    >>> cheapest({"a": {0.5: 0.1, 0.8: 0.4}, "b": {0.5: 0.0, 0.8: 0.01}}, {"a": 100, "b": 100}, 0.5)
    {'a': 0.2, 'b': 0.8}
    """
    steps = sorted(step for name in sizes for step in _steps(name, curves[name], sizes[name]))
    found = dict.fromkeys(sizes, 0.0)
    left = sparsity * sum(sizes.values())
    for step in steps:
        weights = (step.end - step.start) * sizes[step.name]
        taken = min(weights, left)
        found[step.name] = round(step.start + taken / sizes[step.name], 12)
        left -= taken
        if left <= 0:
            break
    return found


def _steps(name: str, curve: Curve, size: int) -> list[Step]:
    """The pieces of a curve's lower convex hull, from nothing to the highest measured sparsity."""
    hull = [(0.0, 0.0)]
    worst = 0.0
    for at, drop in sorted(curve.items()):
        if at <= 0:
            continue
        worst = max(worst, drop)  # noise: a sparser layer is not worth more
        while len(hull) > 1 and _slope(hull[-1], (at, worst)) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append((at, worst))
    return [Step(_slope(a, b) / size, name, a[0], b[0]) for a, b in pairwise(hull)]


def _slope(a: tuple[float, float], b: tuple[float, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


def curves(path: str, kind: Literal["sparsity", "channels"] = "sparsity") -> dict[str, Curve]:
    """Layer -> curve over zeros or over channels cut, from a file that `compress sensitivity` wrote.

    A level whose drop is null, which stands for infinite, is left out: no layer is to go there.

    Raises:
        OptionError: there is no such file, it holds no curve, or one with a level outside 0 to 1 or a drop that is
            not finite.
    """
    found: dict[str, Curve] = {
        name: {at: drop for at, drop in curve.items() if drop is not None}
        for name, curve in drops(path, kind).items()
    }
    for name, curve in found.items():
        for at, drop in curve.items():
            if not (0 <= at < 1 and isfinite(drop)):
                raise OptionError(
                    f"sensitivity: in {path!r}, layer {name!r} has the drop {drop} at {kind} {at}; levels are "
                    "from 0 to below 1, and drops finite."
                )
    measured = {name: curve for name, curve in found.items() if any(curve)}
    if not measured:
        raise OptionError(f"sensitivity: {path!r} has no curve over {kind} for any layer.")
    return measured
