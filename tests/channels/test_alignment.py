from __future__ import annotations

from math import prod

from hypothesis import given
from hypothesis import strategies as st

from compressor.channels.alignment import measured, remainder, runs, total
from compressor.channels.axes import Atom, Axis, Sum, atom, layout, length, product, resolved, same
from compressor.channels.joining import join

PRIMES = st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=6)


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Two shapes of the same number of elements: the same factors, merged in two ways."""
    factors = draw(PRIMES)

    def merged() -> list[int]:
        shape = [1]
        for factor in factors:
            if draw(st.booleans()):
                shape.append(1)
            shape[-1] *= factor
        return shape

    return merged(), merged()


@given(reshapes())
def test_runs_hold_the_same_elements_in_order(shapes: tuple[list[int], list[int]]) -> None:
    before, after = shapes
    found = runs([measured(atom(size)) for size in before], [measured(atom(size)) for size in after])
    assert found is not None
    for a, b in found:
        assert prod(before[i] for i in a) == prod(after[j] for j in b)
    assert [i for a, _ in found for i in a] == list(range(len(before)))
    assert [j for _, b in found for j in b] == list(range(len(after)))


@given(reshapes())
def test_axes_joined_run_by_run_lie_as_numpy_reshapes_them(shapes: tuple[list[int], list[int]]) -> None:
    before, after = ([atom(size) for size in shape] for shape in shapes)
    for a, b in runs([measured(axis) for axis in before], [measured(axis) for axis in after]) or ():
        join(product(*(before[i] for i in a)), product(*(after[j] for j in b)))
    first, second = layout(product(*before)), layout(product(*after))
    assert first.keys() == second.keys()
    assert all((first[found] == second[found]).all() for found in first)


def test_a_batch_of_unknown_length_ends_a_run() -> None:
    batch, tokens = Atom(None), Atom(None)
    a = [measured(axis) for axis in (batch, tokens, Atom(6))]
    b = [measured(axis) for axis in (batch, Atom(2), tokens, Atom(3))]
    assert runs(a, b) == [(range(1), range(1)), (range(1, 3), range(1, 4))]


def test_shapes_of_other_lengths_have_no_runs() -> None:
    assert runs([measured(Atom(4))], [measured(Atom(6))]) is None
    assert runs([measured(Atom(None))], [measured(Atom(None))]) is None
    assert runs([measured(Atom(4))], [measured(Atom(4)), measured(Atom(2))]) is None


def test_what_is_left_of_a_product_is_an_axis() -> None:
    batch, tokens = Atom(None), Atom(None)
    left = remainder([batch, tokens, Atom(6)], [measured(batch), measured(Atom(3))])
    assert left is not None
    whole = resolved(left)
    assert not isinstance(whole, Atom)
    assert same(whole.parts[0], tokens)
    assert length(whole.parts[1]) == 2
    assert remainder([batch, Atom(6)], [measured(tokens)]) is None
    assert remainder([batch, Atom(6)], [measured(Atom(4))]) is None


def test_a_sum_with_an_unknown_part_is_known_again_by_its_parts() -> None:
    past, new = Atom(None), Atom(1)
    first: Axis = Sum((past, new))
    assert measured(first) == measured(Sum((past, new)))
    assert measured(first) != measured(Sum((past, past)))
    assert total([measured(first), measured(Atom(3))]) == measured(product(first, Atom(3)))
