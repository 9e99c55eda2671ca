from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.channels import Group
from compressor.channels.axes import Atom
from compressor.pruning.channel_choice import Candidate, nearest, within
from compressor.pruning.channel_cost import Cost, Elements


def candidate(scores: list[float], widths: tuple[int, ...]) -> Candidate:
    size = len(scores)
    return Candidate(Group("g", size, (), None, Atom(size)), np.array(scores, float), widths)


def chain(*sizes: int) -> Cost:
    """Layers of the sizes given one behind the other, the first from 3 inputs."""
    terms = [Elements(1.0, (((3, ()),), ((sizes[0], (0,)),)))]
    for at in range(1, len(sizes)):
        terms.append(Elements(1.0, (((sizes[at - 1], (at - 1,)),), ((sizes[at], (at,)),))))
    return Cost(tuple(terms), 0.0)


def total(cost: Cost, candidates: list[Candidate], widths: list[int]) -> float:
    return cost.total([w / c.widths[0] for c, w in zip(candidates, widths, strict=True)])


def lost(candidates: list[Candidate], widths: list[int]) -> float:
    return sum(c.lost(w) for c, w in zip(candidates, widths, strict=True))


def test_the_channels_with_the_highest_scores_stay() -> None:
    assert candidate([1, 3, 2, 3], (4, 2)).kept(2).tolist() == [False, True, False, True]


def test_of_equal_channels_the_first_stay() -> None:
    assert candidate([1, 1, 1], (3, 2)).kept(2).tolist() == [True, True, False]


def test_nothing_is_lost_without_a_cut_and_the_last_channels_cost_the_most() -> None:
    costs = [candidate([1, 1, 1, 1], (4, 3, 2, 1)).lost(width) for width in (4, 3, 2, 1)]
    assert costs[0] == 0
    assert costs[1] - costs[0] < costs[2] - costs[1] < costs[3] - costs[2]


def test_a_small_cut_loses_about_what_its_channels_are_worth() -> None:
    many = candidate([1.0] * 1000, (1000, 999))
    assert many.lost(999) == pytest.approx(1.0, rel=1e-3)


def test_channels_worth_nothing_are_cut_for_nothing() -> None:
    assert candidate([0, 0, 0], (3, 1)).lost(1) == 0


def test_takes_the_nearest_width_and_of_two_the_wider() -> None:
    both = [candidate([1] * 8, (8, 6, 4)), candidate([1] * 8, (8, 4))]
    assert nearest(both, [5.0, 6.0]) == [6, 8]
    assert nearest(both, [4.4, 1.0]) == [4, 4]


def test_an_uncut_model_within_the_budget_stays() -> None:
    candidates = [candidate([1, 1], (2, 1)), candidate([1, 1], (2, 1))]
    assert within(candidates, chain(2, 2), 1000.0) == [2, 2]


def test_a_budget_out_of_reach_gives_the_least_widths() -> None:
    candidates = [candidate([1, 1, 1], (3, 2)), candidate([1, 1], (2, 1))]
    assert within(candidates, chain(3, 2), 0.0) == [2, 1]


def test_cuts_where_it_saves_most_for_equal_importance() -> None:
    candidates = [candidate([1] * 4, (4, 2)), candidate([1] * 4, (4, 2))]
    cost = Cost((Elements(10.0, (((4, (0,)),),)), Elements(1.0, (((4, (1,)),),))), 0.0)
    assert within(candidates, cost, 30.0) == [2, 4]


def test_does_not_cut_a_group_that_saves_nothing() -> None:
    candidates = [candidate([0, 0], (2, 1)), candidate([5, 5], (2, 1))]
    cost = Cost((Elements(1.0, (((2, (1,)),),)),), 0.0)
    assert within(candidates, cost, 1.0) == [2, 1]


def test_takes_back_a_cut_that_a_later_one_made_needless() -> None:
    small, large = candidate([1, 1], (2, 1)), candidate([100, 100], (2, 1))
    cost = Cost((Elements(1.0, (((2, (0,)),),)), Elements(10.0, (((2, (1,)),),))), 0.0)
    assert within([small, large], cost, 12.0) == [2, 1]


@given(
    st.lists(st.lists(st.floats(0.01, 10), min_size=4, max_size=4), min_size=3, max_size=3),
    st.floats(0.3, 0.95),
)
def test_stays_within_the_budget_and_near_the_best_choice(scores: list[list[float]], share: float) -> None:
    candidates = [candidate(held, (4, 3, 2, 1)) for held in scores]
    cost = chain(4, 4, 4)
    budget = share * cost.total([1.0] * 3)
    widths = within(candidates, cost, budget)
    assert total(cost, candidates, widths) <= budget
    possible = (list(w) for w in product((4, 3, 2, 1), repeat=3))
    best = min(lost(candidates, w) for w in possible if total(cost, candidates, w) <= budget)
    for at in range(3):
        if widths[at] < 4:
            wider = [*widths[:at], widths[at] + 1, *widths[at + 1 :]]
            assert total(cost, candidates, wider) > budget, "a cut was not needed"
    assert (
        lost(candidates, widths) <= 3 * best + 1e-9
    )  # greedy; the worst of 4,000 random cases was 1.6 times


@given(st.floats(0.3, 0.6), st.floats(0.61, 0.95))
def test_a_smaller_budget_never_costs_less_importance(small: float, large: float) -> None:
    candidates = [candidate([1, 2, 3, 4], (4, 3, 2, 1)), candidate([4, 1, 1, 1], (4, 3, 2, 1))]
    cost = chain(4, 4)
    whole = cost.total([1.0, 1.0])
    less, more = (lost(candidates, within(candidates, cost, share * whole)) for share in (small, large))
    assert less >= more


def measured(curve: dict[float, float], size: int = 8) -> Candidate:
    scores = np.arange(1.0, size + 1)
    return Candidate(Group("g", size, (), None, Atom(size)), scores, tuple(range(size, 0, -1)), curve)


def test_a_measured_drop_decides_what_a_cut_costs() -> None:
    curve = {0.25: 0.1, 0.5: 0.5}
    assert measured(curve).lost(8) == 0
    assert measured(curve).lost(6) == pytest.approx(0.1, abs=1e-3)
    assert measured(curve).lost(5) == pytest.approx(0.3, abs=1e-3)


def test_a_score_that_rises_costs_nothing_and_a_larger_cut_never_less() -> None:
    rising = measured({0.25: 0.2, 0.5: -0.1})
    assert rising.lost(4) == pytest.approx(0.2, abs=1e-3)
    assert 0 < measured({0.25: -0.1}).lost(6) < 1e-3


def test_the_group_that_was_measured_to_be_dull_is_cut() -> None:
    keen, dull = measured({0.5: 0.9}), measured({0.5: 0.0})
    cost = Cost(tuple(Elements(1.0, (((8, (at,)),),)) for at in range(2)), 0.0)
    assert within([keen, dull], cost, 12) == [8, 4]
