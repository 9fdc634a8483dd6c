"""Intervals over seeds, against scipy, plain bootstraps and tables of their coverage where the truth is known."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm, spearmanr, t, trim_mean

from experiments.statistics.intervals import (
    RESAMPLES,
    bars,
    bootstrap,
    ends,
    interquartile_mean,
    mean,
    proportion,
    rank_correlation,
    resamples,
)

SEEDS = (8, 16, 24, 32, 64)  # how many the runs and claims have
DRAWS = {"normal": lambda z: z, "lognormal": lambda z: np.exp(z / 2)}
MISSED = {  # the truth below the interval and above it, at most, at any of those numbers of seeds; nominal 2.5 %
    ("normal", 0.0): (0.045, 0.045),
    ("normal", 0.25): (0.035, 0.035),
    ("lognormal", 0.0): (0.03, 0.095),
    ("lognormal", 0.25): (0.035, 0.035),
}
TRUTH = {  # interquartile means by quadrature over the middle half
    kind: {0.0: whole, 0.25: np.mean(draw(norm.ppf(0.25 + 0.5 * (np.arange(10_000) + 0.5) / 10_000)))}
    for (kind, draw), whole in zip(DRAWS.items(), (0.0, np.exp(1 / 8)), strict=True)
}


def expanded(resampled, num):
    """The ends of an interval in as many words as the rule has."""
    farther = t.ppf(0.975, num - 1) * np.sqrt(num / (num - 1))
    return np.quantile(resampled, norm.cdf([-farther, farther]))


# Means ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [1, 2, 3, 4, 7, 32])
@pytest.mark.parametrize("trim", [0.0, 0.25])
def test_the_center_is_scipys_trimmed_mean(num, trim):
    values = np.random.default_rng(0).normal(size=(num, 3, 2))
    np.testing.assert_allclose(mean(values, trim).center, trim_mean(values, trim, axis=0), atol=1e-12)


@pytest.mark.parametrize("num", [2, 5, 16])
@pytest.mark.parametrize("trim", [0.0, 0.25])
def test_the_interval_is_that_of_a_plain_bootstrap_over_seeds_with_expanded_percentiles(num, trim):
    values = np.sort(np.random.default_rng(num).normal(size=num))
    drawn = values[np.random.default_rng(0).integers(num, size=(RESAMPLES, num))]
    shuffled = mean(np.random.default_rng(1).permutation(values), trim)
    expected = expanded(trim_mean(drawn, trim, axis=1), num)
    np.testing.assert_allclose([shuffled.low, shuffled.high], expected, atol=1e-12)


@pytest.mark.parametrize("num", SEEDS)
@pytest.mark.parametrize(("kind", "trim"), MISSED)
def test_each_end_of_a_means_interval_is_missed_as_often_as_is_said(num, kind, trim):
    found = mean(DRAWS[kind](np.random.default_rng(0).normal(size=(num, 2000))), trim)
    truth, (below, above) = TRUTH[kind][trim], MISSED[kind, trim]
    assert np.mean(truth < found.low) < below and np.mean(truth > found.high) < above
    assert np.mean((found.low <= truth) & (truth <= found.high)) < 0.98  # and is no wider than it needs to be


def test_values_that_are_not_finite_are_left_out():
    values = np.array([[1.0, np.nan], [2.0, 4.0], [np.inf, np.nan], [6.0, 5.0]])
    result, alone = mean(values), mean(np.array([1.0, 2.0, 6.0]))
    np.testing.assert_allclose(result.center, [3.0, 4.5])
    np.testing.assert_allclose([result.low[0], result.high[0]], [alone.low, alone.high])


def test_one_seed_has_no_interval_and_no_seed_has_no_mean():
    one, none = interquartile_mean(np.array([[3.0]])), interquartile_mean(np.zeros((0, 2)))
    assert one.center == 3.0 and np.isnan(one.low) and np.isnan(one.high)
    assert np.all(np.isnan(none))


def test_equal_seeds_have_an_interval_of_length_zero_and_bars_that_are_not_negative():
    result = mean(np.full((6, 1), 0.1))
    np.testing.assert_allclose(result, 0.1)
    assert np.all(bars(result) >= 0)


def test_seeds_may_lie_along_any_axis():
    values = np.random.default_rng(0).normal(size=(3, 9, 2))
    np.testing.assert_array_equal(mean(values, axis=1), mean(np.moveaxis(values, 1, 0)))
    np.testing.assert_array_equal(proportion(values > 0, axis=1), proportion(np.moveaxis(values, 1, 0) > 0))


# Shares and correlations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "num"), [(0, 20), (1, 20), (4, 20), (20, 20), (7, 64)])
def test_a_shares_interval_is_scipys_exact_one(count, num):
    found = proportion(np.arange(num) < count)
    exactly = binomtest(count, num).proportion_ci(method="exact")
    np.testing.assert_allclose(found, [count / num, exactly.low, exactly.high], atol=1e-10)


@pytest.mark.parametrize("num", SEEDS)
@pytest.mark.parametrize("chance", [0.05, 0.5])
def test_each_end_of_a_shares_interval_is_missed_in_two_and_a_half_percent_at_most(num, chance):
    """By the exact distribution of the count, without a sample."""
    found = proportion(np.tri(num + 1, num, k=-1, dtype=bool), axis=1)  # 0 to num events
    probability = binom.pmf(np.arange(num + 1), num, chance)
    assert probability @ (chance < found.low) <= 0.025 and probability @ (chance > found.high) <= 0.025


def test_a_rank_correlation_is_scipys_and_its_interval_a_loop_of_them():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 12))
    y = np.round(x + rng.normal(size=x.shape))  # with ties
    found = rank_correlation(x, y)
    picks = resamples(12)
    pooled = [spearmanr(x[:, pick].ravel(), y[:, pick].ravel()).statistic for pick in picks]
    within = [np.mean([spearmanr(a[pick], b[pick]).statistic for a, b in zip(x, y, strict=True)]) for pick in picks]
    assert found["pooled"].center == pytest.approx(spearmanr(x.ravel(), y.ravel()).statistic)
    np.testing.assert_allclose(found["pooled"][1:], expanded(pooled, 12), atol=1e-12)
    np.testing.assert_allclose(found["within"][1:], expanded(within, 12), atol=1e-12)


def test_a_class_without_an_order_counts_in_no_correlation_within_classes():
    x = np.stack([np.arange(8.0), np.ones(8)])
    assert rank_correlation(x, x)["within"].center == pytest.approx(1.0)
    assert np.all(np.isnan(rank_correlation(x[1:], x[1:])["pooled"]))


# The bootstrap --------------------------------------------------------------------------------------------------------


def test_any_number_of_seeds_has_the_same_interval_and_draws_without_a_number_are_left_out():
    values = np.random.default_rng(0).lognormal(size=20)
    found = bootstrap(lambda picks: np.median(values[picks], axis=1), 20)
    drawn = np.median(values[resamples(20)], axis=1)
    np.testing.assert_allclose(found, [np.median(values), *expanded(drawn, 20)])
    some = bootstrap(lambda picks: np.where(picks[:, 0] == 19, np.nan, np.median(values[picks], axis=1)), 20)
    np.testing.assert_allclose(some[1:], expanded(drawn[resamples(20)[:, 0] != 19], 20))


def test_ends_lie_farther_out_the_fewer_the_seeds_and_come_to_the_plain_percentiles():
    resampled = np.random.default_rng(0).normal(size=RESAMPLES)
    lows = [ends(resampled, num)[0] for num in (*SEEDS, 10**6)]
    assert np.all(np.diff(lows) > 0)
    assert lows[-1] == pytest.approx(np.quantile(resampled, 0.025), abs=1e-4)
