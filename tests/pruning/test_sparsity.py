"""Masks, the growth of sparsity, how it is shared out among layers, and what solving a layer brings."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import OptionError
from compressor.pruning.allocation import cheapest, curves, lamp, share_out
from compressor.pruning.layer_inputs import Gram
from compressor.pruning.masks import Layout, Pattern, keeps, units
from compressor.pruning.optimal_brain import damped, solved
from compressor.pruning.sparsity import Gradual, Schedule, ramp
from tests.conftest import drawn

LAYOUTS = {
    "Conv": ((6, 4, 3, 3), Layout((6, 4, 3, 3), (0, 2, 3, 1)), (6, 9, 4)),
    "grouped ConvTranspose": ((6, 2, 3, 3), Layout((3, 2, 2, 3, 3), (0, 2, 3, 4, 1), 2), (6, 9, 2)),
    "MatMul": ((5, 7), Layout((5, 7), (1, 0)), (7, 1, 5)),
    "LSTM": ((2, 12, 5), Layout((2, 12, 5), (0, 1, 2), 2), (24, 1, 5)),
}


def scores(*shape: int) -> np.ndarray:
    return np.asarray(np.abs(drawn(*shape)))


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_view_has_rows_positions_and_inputs_and_is_undone(case: str) -> None:
    shape, layout, expected = LAYOUTS[case]
    array = drawn(*shape)
    assert layout.view(array).shape == expected
    assert np.array_equal(layout.restored(layout.view(array), shape), array)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 9), st.floats(0, 0.999))
def test_takes_the_nearest_count_and_leaves_one(rows: int, positions: int, run: int, sparsity: float) -> None:
    size = rows * positions * run
    kept = keeps(scores(rows, positions, run), sparsity, Pattern())
    assert (~kept).sum() == min(round(sparsity * size), size - 1)


@given(st.floats(0, 0.99))
def test_what_stays_is_nowhere_lower_than_what_goes(sparsity: float) -> None:
    values = scores(5, 3, 4)
    kept = keeps(values, sparsity, Pattern())
    assert values[kept].min() >= values[~kept].max(initial=0)


def test_equal_scores_go_in_order_so_that_the_count_is_exact() -> None:
    assert keeps(np.ones((2, 1, 3)), 0.5, Pattern()).ravel().tolist() == [False] * 3 + [True] * 3


@given(st.floats(0, 0.95))
def test_by_row_each_row_gives_its_share(sparsity: float) -> None:
    gone = (~keeps(scores(7, 2, 10), sparsity, Pattern(), by_row=True)).sum(axis=(1, 2))
    assert abs(gone - sparsity * 20).max() <= 1
    assert abs(gone.sum() - sparsity * 140) <= 0.5 + 1e-9  # a half is rounded either way


@pytest.mark.parametrize(("text", "keep", "of"), [("2:4", 2, 4), ("1:4", 1, 4), ("1:3", 1, 3), ("5:8", 5, 8)])
@pytest.mark.parametrize("by_row", [False, True])
def test_n_of_each_m_stay_and_they_are_the_highest(text: str, keep: int, of: int, by_row: bool) -> None:
    values, pattern = scores(5, 2, 24), Pattern.parse(text)
    kept = keeps(values, pattern.limit, pattern, by_row).reshape(-1, of)
    assert (kept.sum(axis=1) == keep).all()
    grouped = values.reshape(-1, of)
    lowest, highest = (
        np.where(kept, grouped, np.inf).min(axis=1),
        np.where(kept, -np.inf, grouped).max(axis=1),
    )
    assert (lowest >= highest).all()


def test_on_the_way_to_n_of_m_only_what_goes_in_the_end_is_gone() -> None:
    values, pattern = scores(4, 1, 16), Pattern.parse("2:4")
    half, whole = keeps(values, 0.25, pattern), keeps(values, 0.5, pattern)
    assert (~half).sum() == 16
    assert not (~half & whole).any()


@pytest.mark.parametrize("by_row", [False, True])
def test_blocks_go_whole(by_row: bool) -> None:
    kept = keeps(scores(8, 3, 12), 0.5, Pattern.parse("block", (2, 4)), by_row)
    blocks = kept.reshape(4, 2, 3, 3, 4).mean(axis=(1, 4))
    assert set(np.unique(blocks)) == {0, 1}
    assert kept.mean() == 0.5


def test_blocks_at_an_edge_are_smaller_and_count_as_such() -> None:
    values = np.ones((3, 1, 5))
    values[2, 0, 4] = 0
    assert units(values, Pattern.parse("block", (2, 4))).shape == (2, 1, 2)
    kept = keeps(values, 1 / 15, Pattern.parse("block", (2, 4)))
    assert np.argwhere(~kept).tolist() == [[2, 0, 4]]


@pytest.mark.parametrize("text", ["4:4", "0:4", "5:4", "half", "n:m", ""])
def test_refuses_a_pattern_it_does_not_know(text: str) -> None:
    with pytest.raises(OptionError, match=r"pattern must be 'element', 'block', or n:m .*got"):
        Pattern.parse(text)


@pytest.mark.parametrize("schedule", ["cubic", "linear", "iterative", "one-shot"])
def test_sparsity_grows_to_its_end_and_stays_there(schedule: Schedule) -> None:
    shares = [ramp(schedule, t, 0.8) for t in np.linspace(0, 1.5, 31)]
    assert shares == sorted(shares)
    assert shares[20] == shares[-1] == pytest.approx(1)
    assert (shares[0] == 1) == (schedule == "one-shot")


def test_iterative_takes_the_same_share_of_the_rest_each_time() -> None:
    gradual = Gradual({"w": 0.75}, {}, Pattern(), "iterative", 4)
    left = [1 - gradual.sparsity("w", step / 4) for step in range(5)]
    np.testing.assert_allclose(np.divide(left[1:], left[:-1]), 0.25**0.25)


def test_gradual_masks_have_the_shape_of_the_weight_and_only_shrink() -> None:
    shape, layout, _ = LAYOUTS["Conv"]
    gradual = Gradual({"w": 0.5}, {"w": layout}, Pattern.parse("2:4"), steps=5)
    kept = [gradual.keeps("w", scores(*shape), step / 5) for step in range(6)]
    assert kept[0].all()
    assert kept[-1].mean() == 0.5
    assert all(not (later & ~earlier).any() for earlier, later in pairwise(kept))
    assert (kept[-1].sum(axis=1) == 2).all()  # along the input channels of a convolution


def test_lamp_keeps_the_order_and_gives_the_largest_one() -> None:
    found = lamp(np.sort(scores(100)))
    assert (np.diff(found) >= 0).all()
    assert found[-1] == 1


def test_lamp_survives_a_layer_of_zeros() -> None:
    assert lamp(np.zeros(4)).tolist() == [0, 0, 0, 0]


@given(st.floats(0, 0.98), st.integers(1, 400), st.integers(1, 400))
def test_shares_reach_the_total_exactly(sparsity: float, first: int, second: int) -> None:
    ordered = {"a": np.sort(scores(first)), "b": np.sort(scores(second) * 3)}
    shares = share_out(ordered, sparsity)
    counts = {name: round(share * len(ordered[name])) for name, share in shares.items()}
    caps = sum(min(int(0.99 * size), size - 1) for size in (first, second))
    assert sum(counts.values()) == min(round(sparsity * (first + second)), caps)


def test_no_layer_is_emptied_however_small_its_scores() -> None:
    ordered = {"weak": np.sort(scores(1000)) * np.float32(1e-6), "strong": np.sort(scores(2000))}
    shares = share_out(ordered, 0.5)
    assert shares["weak"] == 0.99
    assert 1000 * shares["weak"] + 2000 * shares["strong"] == 1500


def test_among_equal_scores_the_total_is_still_exact() -> None:
    shares = share_out({"a": np.ones(10, np.float32), "b": np.ones(10, np.float32)}, 0.6)
    assert sum(shares.values()) == pytest.approx(1.2)


def test_curves_are_spent_where_they_cost_least() -> None:
    steep, flat = {0.5: 0.2, 0.9: 0.6}, {0.5: 0.01, 0.9: 0.05}
    shares = cheapest({"steep": steep, "flat": flat}, {"steep": 100, "flat": 300}, 0.6)
    assert shares["flat"] == 0.8
    assert shares["steep"] == 0


def test_a_curve_is_followed_by_its_convex_hull_and_never_beyond_its_end() -> None:
    bumpy = {0.3: 0.5, 0.6: 0.1, 0.8: 0.05}
    shares = cheapest({"a": bumpy, "b": {0.8: 10.0}}, {"a": 10, "b": 10}, 0.7)
    assert shares == {"a": 0.8, "b": pytest.approx(0.6)}
    assert cheapest({"a": bumpy}, {"a": 10}, 0.95) == {"a": 0.8}


def test_reads_the_curves_of_a_sensitivity_file(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"layers": {"w": {"sparsity": {"0.5": 0.1}}, "v": {"int8": 0.0}}}))
    assert curves(str(path)) == {"w": {0.5: 0.1}}
    path.write_text(json.dumps({"layers": {"w": {"sparsity": {"0.5": 0.1, "0.9": None}}}}))
    assert curves(str(path)) == {"w": {0.5: 0.1}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not what `compress sensitivity` writes"),
        ('{"layer": 1}', "is not what `compress sensitivity` writes"),
        ('{"layers": {"w": {"int8": 0.1}}}', "has no curve over sparsity"),
        ('{"layers": {"w": {"sparsity": {}}}}', "has no curve over sparsity"),
        ('{"layers": {"w": {"sparsity": {"0.5": null}}}}', "has no curve over sparsity"),
        ('{"layers": {"w": {"sparsity": {"1.5": 0.1}}}}', "layer 'w' has the drop 0.1 at sparsity 1.5"),
        ('{"layers": {"w": {"sparsity": {"0.5": NaN}}}}', "layer 'w' has the drop nan at sparsity 0.5"),
        (None, "there is no file"),
    ],
)
def test_refuses_a_file_without_curves_by_name(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "s.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(OptionError, match=f"sensitivity: .*{said}") as caught:
        curves(str(path))
    assert str(path) in str(caught.value)


def correlated(rows: int, columns: int) -> np.ndarray:
    """Inputs with few directions of large variance, as activations have."""
    mixed = drawn(rows, columns // 4, seed=1) @ drawn(columns // 4, columns, seed=2)
    return np.asarray(mixed + 0.1 * drawn(rows, columns, seed=3), np.float32)


def summed(x: np.ndarray, x0: np.ndarray | None = None) -> Gram:
    gram = Gram.zero(x[None])
    gram.add(x[None], None if x0 is None else x0[None])
    return gram


@pytest.mark.parametrize("text", ["element", "2:4", "block"])
def test_solving_loses_less_than_half_of_what_dropping_the_smallest_loses(text: str) -> None:
    x, w = correlated(2000, 64), drawn(24, 64)
    pattern = Pattern.parse(text, (1, 4))
    found = solved(w[:, None], summed(x), 0.5, pattern)
    plain = np.where(keeps(np.abs(w)[:, None], 0.5, pattern)[:, 0], w, 0)
    after = found.weights[:, 0]
    assert (after == 0).mean() == 0.5
    lost, lost_plain = (np.linalg.norm(x @ (w - new).T) for new in (after, plain))
    assert lost < 0.5 * lost_plain
    assert found.error == pytest.approx(lost / np.linalg.norm(x @ w.T), rel=1e-3)
    assert found.error < found.plain


def test_solving_is_nearly_the_best_for_the_weights_that_stay() -> None:
    x, w = correlated(500, 32), drawn(6, 32)
    found = solved(w[:, None], summed(x), 0.6, Pattern()).weights[:, 0]
    hessian = damped(np.asarray(x.T @ x, np.float64))
    for row, target in zip(found, w, strict=True):
        best, kept = np.zeros(32), row != 0
        best[kept] = np.linalg.solve(hessian[np.ix_(kept, kept)], (hessian @ target)[kept])
        lost, least = ((new - target) @ hessian @ (new - target) for new in (row, best))
        assert lost < 1.01 * least


def test_solving_keeps_zeros_and_the_pattern_over_kernel_positions() -> None:
    weights = drawn(6, 9, 8)
    weights[:, :, 0] = 0
    found = solved(weights, summed(correlated(900, 72)), 0.5, Pattern.parse("2:4")).weights
    assert (found[:, :, 0] == 0).all()
    assert ((found.reshape(-1, 4) != 0).sum(axis=1) <= 2).all()


def test_columns_are_taken_in_the_order_of_the_stored_weight() -> None:
    kernel = np.sign(drawn(5, 4, 2, 2))
    x = drawn(400, 16, seed=1)
    x[:, 3] = 0  # channel 0, kernel position (1, 1)
    view = Layout(kernel.shape, (0, 2, 3, 1)).view(kernel)
    found = solved(view, summed(x), 5 / 80, Pattern()).weights
    assert np.argwhere(found == 0)[:, 1:].tolist() == [[3, 0]] * 5


def test_groups_are_solved_each_on_their_own_inputs() -> None:
    x, w = correlated(600, 16), drawn(8, 1, 8)
    halves = x.reshape(600, 2, 8).transpose(1, 0, 2)
    gram = Gram.zero(halves)
    gram.add(halves)
    found = solved(w, gram, 0.5, Pattern.parse("2:4")).weights
    first = solved(w[:4], summed(x[:, :8]), 0.5, Pattern.parse("2:4")).weights
    np.testing.assert_allclose(found[:4], first, atol=1e-6)


def test_makes_up_for_what_earlier_layers_lost() -> None:
    x0, w = correlated(4000, 16), drawn(8, 16)
    x = (0.7 * x0 + 0.05 * drawn(4000, 16, seed=9)).astype(np.float32)
    aware, unaware = (solved(w[:, None], sums, 0.3, Pattern()) for sums in (summed(x, x0), summed(x)))
    lost = [np.linalg.norm(x0 @ w.T - x @ found.weights[:, 0].T) for found in (aware, unaware)]
    assert lost[0] < 0.5 * lost[1]


def test_solving_a_layer_that_reads_only_zeros_drops_the_smallest() -> None:
    w = drawn(4, 1, 8)
    found = solved(w, summed(np.zeros((10, 8), np.float32)), 0.5, Pattern())
    assert np.array_equal(found.weights != 0, keeps(np.abs(w), 0.5, Pattern()))
    assert found.error == 0
