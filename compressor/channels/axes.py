"""The algebra of axes: which positions of which axes stand for the same channel.

An axis is an atom, a sum or a product of axes. Concat lays axes one behind the other (a sum), Reshape merges
neighbours into one (a product, the outer factor first), and an atom is a run of channels that nothing takes apart.
Two axes that must be cut alike are *joined* (`joining`): an atom is bound to what it meets, and split where it meets
something finer. What cannot be joined is pinned with a reason, and then never cut.

    QKV weight [384, 3 * 6 * 64]    product(3, heads, width)
    Concat([a, b], axis=1)          sum(a, b)
    Flatten of [N, 16, 4, 4]        N, product(channels, 4, 4)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np


class Atom:
    """A run of channels, cut one by one.

    Args:
        size: how many; None when the file does not say.
        reason: why none of them may be cut, or None.
    """

    __slots__ = ("bound", "normalized", "reason", "size")

    def __init__(self, size: int | None, reason: str | None = None) -> None:
        self.size = size
        self.reason = reason
        self.normalized: str | None = None
        self.bound: Axis | None = None


@dataclass(frozen=True, eq=False)
class Sum:
    """Axes one behind the other."""

    parts: tuple[Axis, ...]


@dataclass(frozen=True, eq=False)
class Product:
    """Axes merged into one, the first the outermost; without parts, the axis of length one."""

    parts: tuple[Axis, ...]


Axis = Atom | Sum | Product

ONE = Product(())
"""The axis of length one, which stays."""


def atom(size: int | None, reason: str | None = None) -> Axis:
    """A new axis of that length.

    >>> atom(1) is ONE
    True
    """
    return ONE if size == 1 else Atom(size, reason)


def resolved(axis: Axis) -> Axis:
    """The axis as everything joined so far makes it, nested sums and products flattened."""
    chain = []
    while isinstance(axis, Atom):
        if axis.bound is None:
            break
        chain.append(axis)
        axis = axis.bound
    for link in chain[:-1]:
        link.bound = axis
    if isinstance(axis, Atom):
        return axis
    parts: list[Axis] = []
    for part in axis.parts:
        found = resolved(part)
        parts += found.parts if not isinstance(found, Atom) and type(found) is type(axis) else (found,)
    if len(parts) == 1:
        return parts[0]
    return type(axis)(tuple(parts))


def same(a: Axis, b: Axis) -> bool:
    """True when two axes are made of the same atoms in the same way: they are equally long after any cut."""
    a, b = resolved(a), resolved(b)
    if isinstance(a, Atom) or isinstance(b, Atom):
        return a is b
    parts = zip(a.parts, b.parts, strict=False)
    return type(a) is type(b) and len(a.parts) == len(b.parts) and all(same(x, y) for x, y in parts)


def product(*parts: Axis) -> Axis:
    """The axes merged into one."""
    return resolved(Product(parts))


def length(axis: Axis) -> int | None:
    """How many positions the axis has; None when a part is unknown."""
    axis = resolved(axis)
    if isinstance(axis, Atom):
        return axis.size
    sizes = [length(part) for part in axis.parts]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return None
    return sum(known) if isinstance(axis, Sum) else prod(known)


def atoms(axis: Axis) -> Iterator[Atom]:
    """The atoms of an axis, each as often as it occurs."""
    axis = resolved(axis)
    if isinstance(axis, Atom):
        yield axis
        return
    for part in axis.parts:
        yield from atoms(part)


def pin(axis: Axis, reason: str) -> None:
    """Forbid every cut in the axis; an earlier reason stays."""
    for found in atoms(axis):
        found.reason = found.reason or reason


def fixed(axis: Axis) -> str | None:
    """Why no position of the axis can be cut; None when some can."""
    reasons = [found.reason for found in atoms(axis)]
    return None if None in reasons else next(iter(reasons), "it is made of single positions")


def normalize(axis: Axis, reason: str) -> None:
    """Note that statistics are taken over the axis: a cut changes them, so it needs the user's word."""
    for found in atoms(axis):
        found.normalized = found.normalized or reason


def positions(axis: Axis, wanted: Atom) -> np.ndarray:
    """int32 [length]: the index in `wanted` of each position of the axis, -1 where it has no part in it.

    >>> heads, width = atom(2), atom(3)
    >>> positions(product(heads, width), heads).tolist()
    [0, 0, 0, 1, 1, 1]
    >>> positions(product(heads, width), width).tolist()
    [0, 1, 2, 0, 1, 2]
    """
    found = layout(axis)
    return found[wanted] if wanted in found else np.full(length(axis) or 0, -1, np.int32)


def layout(axis: Axis) -> dict[Atom, np.ndarray]:
    """The `positions` of every atom of the axis, in one pass."""
    axis = resolved(axis)
    if isinstance(axis, Atom):
        return {axis: np.arange(axis.size or 0, dtype=np.int32)}
    found: dict[Atom, np.ndarray] = {}
    sizes = [length(part) or 0 for part in axis.parts]
    shape = (sum(sizes),) if isinstance(axis, Sum) else tuple(sizes)
    for place, part in enumerate(axis.parts):
        for inner, index in layout(part).items():
            whole = found.setdefault(inner, np.full(shape, -1, np.int32))
            if isinstance(axis, Sum):
                start = sum(sizes[:place])
                whole[start : start + sizes[place]] = index
            else:
                along = [1] * len(sizes)
                along[place] = sizes[place]
                np.maximum(whole, index.reshape(along), out=whole)
    return {inner: index.reshape(-1) for inner, index in found.items()}


def squares(axis: Axis) -> Iterator[Atom]:
    """Atoms that are more than one factor of the same product: both cannot be cut by one index."""
    axis = resolved(axis)
    if isinstance(axis, Atom):
        return
    if isinstance(axis, Product):
        seen: set[Atom] = set()
        for part in axis.parts:
            here = set(atoms(part))
            yield from seen & here
            seen |= here
    for part in axis.parts:
        yield from squares(part)
