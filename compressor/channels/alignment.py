"""Which axes of a tensor become which when it is reshaped: runs of equal product, lengths that are unknown included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from compressor.channels.axes import Atom, Axis, Product, atom, length, product, resolved


@dataclass(frozen=True)
class Extents:
    """A length as a number times lengths that the file does not say.

    Args:
        number: the known factor.
        unknown: what the other factors are, each as often as it occurs.
    """

    number: int
    unknown: Counter[Hashable]

    def times(self, other: Extents) -> Extents:
        """The product."""
        return Extents(self.number * other.number, self.unknown + other.unknown)

    def without(self, other: Extents) -> Extents | None:
        """The quotient; None when there is none."""
        fits = other.number and self.number % other.number == 0 and other.unknown <= self.unknown
        return Extents(self.number // other.number, self.unknown - other.unknown) if fits else None

    def needs(self, other: Extents) -> bool:
        """True when this one has to grow to become `other`."""
        missing, extra = other.unknown - self.unknown, self.unknown - other.unknown
        return bool(missing) or (not extra and self.number < other.number)


NOTHING = Extents(1, Counter())


def measured(axis: Axis) -> Extents:
    """The length of an axis."""
    number, unknown = 1, Counter[Hashable]()
    for part in _factors(axis):
        size = length(part)
        if size is None:
            unknown[_key(part)] += 1
        else:
            number *= size
    return Extents(number, unknown)


def total(extents: Sequence[Extents]) -> Extents:
    """The product."""
    found = NOTHING
    for extent in extents:
        found = found.times(extent)
    return found


def runs(a: Sequence[Extents], b: Sequence[Extents]) -> list[tuple[range, range]] | None:
    """The shortest runs of axes of `a` and of `b` that hold the same elements, in order; None when they do not match.

    Axes of length one at the end go with the last run.
    """
    found: list[tuple[range, range]] = []
    i = j = 0
    while i < len(a) and j < len(b):
        start, begin = i, j
        first, second = a[i], b[j]
        i, j = i + 1, j + 1
        while first != second:
            if first.needs(second) and i < len(a):
                first, i = first.times(a[i]), i + 1
            elif second.needs(first) and j < len(b):
                second, j = second.times(b[j]), j + 1
            else:
                return None
        found.append((range(start, i), range(begin, j)))
    if any(extent != NOTHING for extent in (*a[i:], *b[j:])):
        return None
    if i < len(a) or j < len(b):
        found.append((range(i, len(a)), range(j, len(b))))
    return found


def remainder(axes: Sequence[Axis], others: Sequence[Extents]) -> Axis | None:
    """The axis that is left of the product of `axes` when `others` are taken out; None when they do not divide it."""
    left = total([measured(axis) for axis in axes])
    for other in others:
        rest = left.without(other)
        if rest is None:
            return None
        left = rest
    kept: list[Axis] = []
    missing = Counter(left.unknown)
    for axis in axes:
        for part in _factors(axis):
            if length(part) is None and missing[_key(part)]:
                missing[_key(part)] -= 1
                kept.append(part)
    return product(*kept, atom(left.number))


def _factors(axis: Axis) -> tuple[Axis, ...]:
    axis = resolved(axis)
    return axis.parts if isinstance(axis, Product) else (axis,)


def _key(axis: Axis) -> Hashable:
    """What two axes of unknown length share when they are the same."""
    axis = resolved(axis)
    if isinstance(axis, Atom):
        return axis
    return (type(axis), *(_key(part) for part in axis.parts))
