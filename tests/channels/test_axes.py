from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import prod

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.channels.axes import (
    ONE,
    Atom,
    Axis,
    Product,
    Sum,
    atom,
    atoms,
    fixed,
    layout,
    length,
    normalize,
    pin,
    positions,
    product,
    resolved,
    same,
    squares,
)
from compressor.channels.cutting import remaining
from compressor.channels.joining import join

SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=4)
TREES = st.recursive(
    st.integers(1, 4),
    lambda inner: st.tuples(st.sampled_from([Sum, Product]), st.lists(inner, min_size=2, max_size=3)),
    max_leaves=6,
)


def grown(tree: object) -> Axis:
    """The axis that a drawn tree describes, of new atoms."""
    if isinstance(tree, int):
        return atom(tree)
    kind, parts = tree  # type: ignore[misc]
    return kind(tuple(grown(part) for part in parts))


def seen(axis: Axis) -> dict[Atom, list[int]]:
    """What an axis is, said by positions."""
    return {found: index.tolist() for found, index in layout(axis).items()}


@given(SIZES)
def test_positions_of_a_product_are_those_that_numpy_reshapes_to(sizes: list[int]) -> None:
    factors = [Atom(size) for size in sizes]
    whole = product(*factors)
    for factor, index in zip(factors, np.indices(sizes), strict=True):
        np.testing.assert_array_equal(positions(whole, factor), index.ravel())


@given(SIZES)
def test_positions_of_a_sum_are_those_that_numpy_concatenates(sizes: list[int]) -> None:
    terms = [Atom(size) for size in sizes]
    whole = Sum(tuple(terms))
    for number, term in enumerate(terms):
        expected = [
            np.arange(size) if other == number else np.full(size, -1) for other, size in enumerate(sizes)
        ]
        np.testing.assert_array_equal(positions(whole, term), np.concatenate(expected))


def test_positions_of_an_atom_that_is_not_there_are_minus_one() -> None:
    assert positions(product(Atom(2), Atom(3)), Atom(4)).tolist() == [-1] * 6


@given(TREES, st.randoms(use_true_random=False))
def test_what_remains_is_as_long_as_the_axis_of_the_atoms_that_remain(tree: object, random: object) -> None:
    axis = grown(tree)
    masks = {}
    for found in dict.fromkeys(atoms(axis)):
        masks[found] = np.array([random.random() < 0.6 for _ in range(found.size or 0)])  # type: ignore[attr-defined]

    def shorter(axis: Axis, masks: Mapping[Atom, np.ndarray]) -> int:
        axis = resolved(axis)
        if isinstance(axis, Atom):
            return int(masks[axis].sum())
        sizes = [shorter(part, masks) for part in axis.parts]
        return sum(sizes) if isinstance(axis, Sum) else prod(sizes)

    assert remaining(axis, masks).sum() == shorter(axis, masks)


@settings(max_examples=300)
@given(TREES, TREES)
def test_joined_axes_stand_for_the_same_channels_at_every_position(first: object, second: object) -> None:
    a, b = grown(first), grown(second)
    if join(a, b):
        assert seen(a) == seen(b)
        before = seen(a)
        assert join(b, a)
        assert seen(a) == before


@settings(max_examples=200)
@given(TREES, TREES)
def test_join_does_not_care_which_axis_is_first(first: object, second: object) -> None:
    a, b, c, d = grown(first), grown(second), grown(first), grown(second)
    assert join(a, b) == join(d, c)


@given(TREES)
def test_join_is_transitive_through_an_atom(tree: object) -> None:
    a, c = grown(tree), grown(tree)
    b = atom(length(a))
    assert join(a, b)
    assert join(b, c)
    assert seen(a) == seen(b) == seen(c)


def test_axes_of_different_length_do_not_join() -> None:
    assert not join(atom(4), atom(5))
    assert not join(product(Atom(2), Atom(3)), product(Atom(4), Atom(3)))


def test_an_atom_is_split_where_it_meets_factors_and_terms() -> None:
    whole, heads, width = Atom(6), Atom(2), Atom(3)
    assert join(whole, product(heads, width))
    assert list(atoms(whole)) == [heads, width]
    other, first, second = Atom(6), Atom(2), Atom(4)
    assert join(Sum((first, second)), other)
    assert list(atoms(other)) == [first, second]


def test_a_product_of_a_sum_joins_the_sum_of_the_products() -> None:
    a, b, inner = Atom(2), Atom(3), Atom(4)
    parts = Atom(8), Atom(12)
    assert join(product(Sum((a, b)), inner), Sum(parts))
    assert list(atoms(parts[1])) == [b, inner]


def test_an_axis_does_not_join_an_axis_that_holds_it() -> None:
    one = Atom(4)
    assert not join(one, Sum((one, Atom(0))))


def test_a_reason_passes_to_what_is_joined_and_the_first_one_stays() -> None:
    a, b, c = Atom(4), Atom(4), Atom(4)
    pin(a, "first")
    assert join(b, a)
    pin(b, "second")
    assert join(c, b)
    assert fixed(c) == "first"


def test_parts_of_a_pinned_or_normalized_atom_are_so_too() -> None:
    whole = Atom(6)
    normalize(whole, "under a norm")
    pin(whole, "an output")
    assert join(whole, product(Atom(2), Atom(3)))
    assert {(found.reason, found.normalized) for found in atoms(whole)} == {("an output", "under a norm")}


def test_a_length_that_is_not_known_pins_what_it_meets() -> None:
    known = Atom(4)
    assert join(Atom(None), known)
    assert known.reason == "its length is not in the file"


def test_an_axis_with_one_free_atom_is_not_fixed() -> None:
    assert fixed(product(Atom(2, "spatial"), Atom(3))) is None
    assert fixed(product(Atom(2, "spatial"), Atom(3, "too"))) == "spatial"
    assert fixed(ONE) == "it is made of single positions"


def test_a_channel_that_meets_itself_is_a_square() -> None:
    a, b = Atom(3), Atom(3)
    assert not list(squares(product(a, b)))
    assert join(a, b)
    assert list(squares(product(a, b))) == [resolved(b)]


def test_axes_are_the_same_when_their_atoms_and_structure_are() -> None:
    a, b = Atom(2), Atom(2)
    assert same(product(a, b), Product((a, Product((b,)))))
    assert not same(product(a, b), Sum((a, b)))
    assert not same(product(a, b), product(b, a))


def test_a_chain_of_a_thousand_joins_is_followed() -> None:
    chain = [Atom(4) for _ in range(3000)]
    for first, second in pairwise(chain):
        assert join(first, second)
    assert resolved(chain[0]) is chain[-1]
