"""Making two axes one, as types are unified (Robinson 1965).

An atom is bound to what it meets. Products are joined from the outermost factor on, sums from the first term on, and an
atom is split where it meets something finer. Whatever is split keeps its reason and its normalization.
"""

from __future__ import annotations

from collections.abc import Sequence

from compressor.channels.axes import (
    Atom,
    Axis,
    Product,
    Sum,
    atom,
    atoms,
    length,
    normalize,
    pin,
    product,
    resolved,
)


def join(a: Axis, b: Axis) -> bool:
    """Make two axes one; False when their lengths or their structures do not allow it."""
    a, b = resolved(a), resolved(b)
    if a is b:
        return True
    if isinstance(a, Atom):
        return _bind(a, b)
    if isinstance(b, Atom):
        return _bind(b, a)
    if isinstance(a, Product) and isinstance(b, Product):
        return _join_products(list(a.parts), list(b.parts))
    return _join_sums(_terms(a), _terms(b))


def _bind(free: Atom, other: Axis) -> bool:
    size = length(other)
    if free.size is None or size is None:
        reason = "its length is not in the file"
        pin(free, reason)
        pin(other, reason)
        if not (isinstance(other, Atom) and free.size == size):
            return True
    elif free.size != size or any(found is free for found in atoms(other)):
        return False
    if free.reason:
        pin(other, free.reason)
    if free.normalized:
        normalize(other, free.normalized)
    free.bound = other
    return True


def _split(whole: Atom, kind: type[Sum] | type[Product], sizes: Sequence[int]) -> list[Axis]:
    """Bind an atom to new ones."""
    parts = [atom(size, whole.reason) for size in sizes]
    if whole.normalized:
        for part in parts:
            normalize(part, whole.normalized)
    whole.bound = kind(tuple(parts))
    return parts


def _join_products(a: list[Axis], b: list[Axis]) -> bool:
    """Join two lists of factors from the outermost on, splitting the longer factor where lengths differ."""
    while a and b:
        a, b = _factors(a), _factors(b)
        if not a or not b:
            break
        first, second = a.pop(0), b.pop(0)
        m, n = length(first), length(second)
        if first is second:
            continue
        if m is None or n is None:
            return False
        if m == n:
            if not join(first, second):
                return False
            continue
        long, short, rest = (first, n, a) if m > n else (second, m, b)
        if not isinstance(long, Atom) or max(m, n) % short:
            return False
        outer, inner = _split(long, Product, (short, max(m, n) // short))
        rest.insert(0, inner)
        if not join(outer, second if long is first else first):
            return False
    return all(length(part) == 1 for part in a + b)


def _factors(parts: list[Axis]) -> list[Axis]:
    """The factors as joined so far, nested products flattened and lengths of one left out."""
    whole = product(*parts)
    return list(whole.parts) if isinstance(whole, Product) else [whole]


def _terms(axis: Axis) -> list[Axis]:
    """The axis as a list of axes one behind the other; a product whose outer factor is a sum is multiplied out."""
    axis = resolved(axis)
    if isinstance(axis, Sum):
        return [term for part in axis.parts for term in _terms(part)]
    if isinstance(axis, Product) and axis.parts and isinstance(axis.parts[0], Sum):
        return [product(term, *axis.parts[1:]) for term in _terms(axis.parts[0])]
    return [axis]


def _join_sums(a: list[Axis], b: list[Axis]) -> bool:
    """Join two lists of terms from the first on, splitting the longer term where lengths differ."""
    while a and b:
        first, second = _terms(a.pop(0)), _terms(b.pop(0))
        a, b = first[1:] + a, second[1:] + b
        m, n = length(first[0]), length(second[0])
        if m is None or n is None:
            return False
        if m == n:
            if not join(first[0], second[0]):
                return False
            continue
        long, short, rest = (first[0], n, a) if m > n else (second[0], m, b)
        pieces = _cut_off(long, short)
        if pieces is None or not join(pieces[0], second[0] if long is first[0] else first[0]):
            return False
        rest.insert(0, pieces[1])
    return not a and not b


def _cut_off(axis: Axis, count: int) -> tuple[Axis, Axis] | None:
    """The first `count` positions and the others, by splitting what lies across the border."""
    terms = _terms(axis)
    if len(terms) > 1:
        return _cut_terms(terms, count)
    axis = terms[0]
    if isinstance(axis, Atom):
        first, second = _split(axis, Sum, (count, (axis.size or 0) - count))
        return first, second
    if not isinstance(axis, Product) or not axis.parts or not isinstance(axis.parts[0], Atom):
        return None
    outer, rest = axis.parts[0], product(*axis.parts[1:])
    inner = length(rest)
    if outer.size is None or not inner:
        return None
    before, part = divmod(count, inner)
    if part == 0:
        first, second = _split(outer, Sum, (before, outer.size - before))
        return product(first, rest), product(second, rest)
    sizes = before, 1, outer.size - before - 1  # the border runs through one position of the outer factor
    terms = [product(term, rest) for term in _split(outer, Sum, [size for size in sizes if size])]
    return _cut_terms(terms, count)


def _cut_terms(terms: list[Axis], count: int) -> tuple[Axis, Axis] | None:
    """The first `count` positions of axes one behind the other, and the others."""
    first: list[Axis] = []
    while terms and count:
        size = length(terms[0])
        if size is None:
            return None
        if size > count:
            pieces = _cut_off(terms[0], count)
            if pieces is None:
                return None
            first, terms, count = [*first, pieces[0]], [pieces[1], *terms[1:]], 0
        else:
            first, terms, count = [*first, terms[0]], terms[1:], count - size
    return resolved(Sum(tuple(first))), resolved(Sum(tuple(terms)))
