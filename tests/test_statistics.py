import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, spearmanr, ttest_1samp, ttest_rel
from sklearn.metrics import f1_score, roc_auc_score

from compressor import resampling as rs
from compressor import statistics as st
from compressor.statistics import Interval, Resampled


def covers(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def one_row(statistic: st.Statistic, samples: int) -> float:
    return float(statistic(np.ones((1, samples)))[0])


@pytest.mark.parametrize(("hits", "samples"), [(0, 1), (1, 1), (0, 7), (7, 7), (3, 10), (901, 1000)])
def test_a_proportion_has_wilsons_interval(hits: int, samples: int) -> None:
    ours, theirs = st.proportion(hits, samples), binomtest(hits, samples).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours.value == hits / samples
    assert ours.low <= ours.value <= ours.high


def profile_score(lost: int, won: int, samples: int, difference: float) -> float:
    """The squared score statistic with the nuisance share found by numerical maximisation, not by formula."""
    even = samples - lost - won

    def loss(wins: float) -> float:
        shares = (wins + difference, wins, 1 - 2 * wins - difference)
        return -sum(n * math.log(max(p, 1e-300)) for n, p in zip((lost, won, even), shares, strict=True) if n)

    low, high = max(0.0, -difference), (1 - difference) / 2
    wins = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    variance = samples * (2 * wins + difference - difference**2)
    return float((lost - won - samples * difference) ** 2 / variance)


@pytest.mark.parametrize(
    ("lost", "won", "samples"), [(9, 1, 100), (1, 9, 100), (16, 2, 44), (5, 5, 30), (1, 0, 9)]
)
def test_the_ends_of_the_paired_interval_are_where_the_score_test_rejects(
    lost: int, won: int, samples: int
) -> None:
    interval = st.paired_proportions(lost, won, samples)
    for end in (interval.low, interval.high):
        # xatol=1e-12 on the nuisance share is multiplied by at most samples / variance, well under 1e-3
        assert profile_score(lost, won, samples, end) == pytest.approx(st.Z**2, rel=1e-3)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (3, 0), (4, 1), (10, 3), (10, 2), (12, 11)])
def test_the_paired_interval_holds_zero_exactly_when_mcnemars_test_does_not_reject(
    lost: int, won: int
) -> None:
    rejected = lost + won > 0 and (lost - won) ** 2 / (lost + won) > st.Z**2
    assert covers(st.paired_proportions(lost, won, 200), 0.0) is not rejected


@pytest.mark.parametrize("samples", [1, 2, 10, 1000, 10**7])
def test_without_a_discordant_pair_the_paired_interval_has_a_width_and_is_symmetric(samples: int) -> None:
    interval = st.paired_proportions(0, 0, samples)
    assert interval.high == pytest.approx(st.Z**2 / (samples + st.Z**2), rel=1e-6)  # 60 halvings of 1
    assert interval.low == -interval.high or interval.low == pytest.approx(-interval.high, rel=1e-6)


@pytest.mark.parametrize(("lost", "won"), [(1, 0), (0, 1)])
def test_one_discordant_sample_gives_a_wide_interval_within_minus_one_and_one(lost: int, won: int) -> None:
    interval = st.paired_proportions(lost, won, 1)
    assert interval.value == lost - won
    assert -1 <= interval.low < 0 < interval.high <= 1


def test_swapping_the_models_mirrors_the_paired_interval() -> None:
    one, other = st.paired_proportions(7, 2, 50), st.paired_proportions(2, 7, 50)
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low), abs=1e-12)


@pytest.mark.parametrize(("lose", "win", "samples"), [(0.08, 0.03, 200), (0.2, 0.1, 60), (0.05, 0.05, 300)])
def test_the_paired_interval_covers_a_known_drop_93_to_97_percent_of_the_time(
    lose: float, win: float, samples: int
) -> None:
    # with 3,000 repeats the standard error of the coverage is 0.4 points
    pairs = np.random.default_rng(0).multinomial(samples, [lose, win, 1 - lose - win], 3000)
    kinds, times = np.unique(pairs[:, :2], axis=0, return_counts=True)
    inside = [covers(st.paired_proportions(int(b), int(c), samples), lose - win) for b, c in kinds]
    assert 0.93 <= np.average(inside, weights=times) <= 0.97


def test_a_mean_has_students_interval() -> None:
    values = np.random.default_rng(0).exponential(size=30)
    ours, theirs = st.mean(values), ttest_1samp(values, 0).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)
    assert ours.value == pytest.approx(values.mean())


def test_a_paired_difference_of_means_is_the_paired_t_interval() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=40)
    b = a + rng.normal(0.1, 0.2, 40)
    ours = st.paired(a, b, (-math.inf, math.inf), 0)[2]
    theirs = ttest_rel(a, b).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)


def test_the_mean_of_one_value_may_be_anything_within_the_bounds() -> None:
    assert st.mean(np.array([0.3]), (0.0, 1.0)) == Interval(0.3, 0.0, 1.0)
    assert st.mean(np.array([0.3])) == Interval(0.3, -math.inf, math.inf)


def test_the_interval_of_a_mean_stays_within_the_bounds() -> None:
    assert st.mean(np.array([0.0, 0.0, 1.0]), (0.0, math.inf)).low == 0.0


def test_pairing_what_was_measured_differently_is_refused() -> None:
    with pytest.raises(TypeError, match="measured by the same metric"):
        st.paired(np.array([True]), np.array([0.5]), (0.0, 1.0), 0)


def test_a_resample_draws_as_many_samples_as_there_are_and_gives_equal_draws_for_equal_seeds() -> None:
    def total(counts: st.Floats) -> st.Floats:
        return np.asarray(counts.sum(axis=1))

    def first(counts: st.Floats) -> st.Floats:
        return counts[:, 0]

    draws = st.bootstrap([total, first], 50_000, 7, 12)  # several blocks
    assert np.all(draws[:, 0] == 50_000)
    assert np.array_equal(draws, st.bootstrap([total, first], 50_000, 7, 12))
    assert not np.array_equal(draws, st.bootstrap([total, first], 50_000, 8, 12))


def test_the_percentile_interval_of_a_mean_is_near_students() -> None:
    values = np.random.default_rng(3).normal(size=12)
    draws = st.bootstrap([lambda counts: counts @ values / 12], 12, 0, 20_000)[:, 0]
    ours, theirs = st.percentile(float(values.mean()), draws, 12), st.mean(values)
    # normal values: the bootstrap's own skewness and its 20,000 draws leave a few percent of the width
    assert (ours.low, ours.high) == pytest.approx(
        (theirs.low, theirs.high), abs=0.1 * (theirs.high - theirs.low)
    )


def test_undefined_draws_are_left_out() -> None:
    draws = np.array([math.nan, 0.1, 0.2, 0.3, math.nan])
    assert st.percentile(0.2, draws, 50) == st.percentile(0.2, draws[1:4], 50)
    assert st.percentile(0.2, draws[:1], 50, (0.0, 1.0)) == Interval(0.2, 0.0, 1.0)


def test_equal_draws_between_bounds_leave_room_for_what_was_not_seen() -> None:
    interval = st.percentile(1.0, np.ones(100), 20, (0.0, 1.0))
    assert interval == Interval(1.0, pytest.approx(1 - st.Z**2 / (20 + st.Z**2)), 1.0)


def test_infinite_values_that_are_equal_differ_by_zero() -> None:
    found = st.minus(np.array([math.inf, math.inf, 1.0]), np.array([math.inf, 2.0, 3.0]))
    assert found.tolist() == [0.0, math.inf, -2.0]


@pytest.mark.parametrize("ties", [False, True])
def test_the_fast_statistics_equal_scikit_learn_and_scipy_on_every_resample(ties: bool) -> None:
    rng = np.random.default_rng(0)
    n = 60
    positive, noise = rng.random(n) < 0.4, rng.normal(size=n)
    scores = np.round(noise + positive) if ties else noise + positive
    other = np.round(scores + rng.normal(size=n)) if ties else scores + rng.normal(size=n)
    classes, guesses = rng.integers(0, 7, (2, n))
    counts = rng.multinomial(n, [1 / n] * n, 20).astype(np.float64)
    fast = [
        rs.auc_statistic(positive, scores)(counts),
        rs.spearman_statistic(scores, other)(counts),
        rs.f1_statistic(classes, guesses)(counts),
    ]
    for row in range(20):
        drawn = np.repeat(np.arange(n), counts[row].astype(int))
        slow = [
            roc_auc_score(positive[drawn], scores[drawn]),
            spearmanr(scores[drawn], other[drawn]).statistic,
            f1_score(classes[drawn], guesses[drawn], average="macro"),
        ]
        assert [f[row] for f in fast] == pytest.approx(slow, abs=1e-12)


def test_a_resample_of_one_class_has_no_auc_and_a_constant_has_no_rank_correlation() -> None:
    counts = np.array([[2.0, 0.0], [1.0, 1.0]])
    auc = rs.auc_statistic(np.array([True, False]), np.array([1.0, 0.0]))(counts)
    assert math.isnan(auc[0])
    assert auc[1] == 1.0
    assert rs.spearman_statistic(np.array([1.0, 2.0]), np.array([3.0, 5.0]))(counts).tolist() == [0.0, 1.0]


def auc_pair(rng: np.random.Generator, samples: int) -> tuple[Resampled, Resampled]:
    positive = np.arange(samples) < samples // 2
    scores = rng.normal(size=samples) + 1.5 * positive
    worse = scores + rng.normal(size=samples) * 0.8
    statistics = [rs.auc_statistic(positive, s) for s in (scores, worse)]
    a, b = (Resampled(one_row(s, samples), s, samples, samples // 2, 400) for s in statistics)
    return a, b


def test_the_bootstrap_covers_a_known_drop_of_the_auc_93_to_97_percent_of_the_time() -> None:
    # two normal scores whose means lie d standard deviations apart have the AUC Phi(d / sqrt(2))
    truth = [0.5 * (1 + math.erf(1.5 / math.sqrt(1 + s * s) / 2)) for s in (0.0, 0.8)]
    rng = np.random.default_rng(0)
    found = [st.paired(*auc_pair(rng, 100), (0.0, 1.0), seed) for seed in range(500)]
    # with 500 repeats the standard error of the coverage is 1 point
    assert 0.93 <= np.mean([covers(drop, truth[0] - truth[1]) for _, _, drop in found]) <= 0.97
    assert 0.93 <= np.mean([covers(before, truth[0]) for before, _, _ in found]) <= 0.97


def test_the_bootstrap_covers_a_known_drop_of_a_ratio_in_decibels_93_to_97_percent_of_the_time() -> None:
    def measured(errors: np.ndarray) -> Resampled:
        def decibels(counts: st.Floats) -> st.Floats:
            return np.asarray(-10 * np.log10(counts @ errors / len(errors)))

        return Resampled(one_row(decibels, len(errors)), decibels, len(errors), len(errors), 400)

    rng, inside = np.random.default_rng(0), []
    for seed in range(500):
        before = rng.gamma(4.0, 1.0, 60)  # mean 4
        after = before + rng.gamma(2.0, 1.0, 60)  # mean 6
        drop = st.paired(measured(before), measured(after), (-math.inf, math.inf), seed)[2]
        inside.append(covers(drop, 10 * math.log10(6 / 4)))
    assert 0.93 <= np.mean(inside) <= 0.97
