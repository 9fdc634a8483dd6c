"""P1.nonlinearity on a few MDPs: its orderings, and its measures by hand."""

import jax
import numpy as np
import pytest

from envs.tabular import garnet
from experiments.claims.claim import Budget
from experiments.claims.p1 import critic_errors, nonlinearity, reward_classes
from experiments.claims.p1.landscapes import GAP
from experiments.statistics.intervals import rank_correlation

SMALL = nonlinearity.Sizes(
    reward_classes.Sizes(num_instances=3, num_points=3, num_starts=2, max_steps=25, num_steps=200),
    critic_errors.Sizes(
        layout="..\n.G",
        num_seeds=2,
        num_targets=12,
        transitions=(1024,),
        num_chains=8,
        network_transitions=(1024,),
        network_chains=2,
        fit_steps=500,
        num_restarts=2,
    ),
    num_restarts=2,
    num_steps=200,
    names=("affine", "table"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return nonlinearity.measure(Budget(True, tmp_path_factory.mktemp("nonlinearity")), SMALL)


@pytest.mark.slow
def test_only_a_table_holds_what_is_not_additive(data):
    lost = reward_classes.losses(data.rewards)
    assert all((part > -1e-9).all() for parts in lost.values() for part in parts)
    below = lost["affine"][0]  # [interaction, instance]
    assert below[1].mean() > below[0].mean() + 0.03
    assert (below[1] > 0.01).any()
    assert lost["table"][0].mean() < 0.02


@pytest.mark.slow
def test_algorithm_1_ends_at_the_best_of_its_class_or_is_counted_below_it(data):
    for found in data.rewards.values():
        assert found.converged.mean() > 0.3
        assert (found.returned <= 1 + 1e-9).all()
        assert (found.reached > -np.log(2)).all()  # better than a constant reward
        assert reward_classes.ends_below(found).shape == (2, 3)
        assert (reward_classes.ends_below(found) == (found.best - found.reached > GAP)).all()
    assert np.mean([reward_classes.ends_below(found) for found in data.rewards.values()]) < 0.6


def test_an_instance_without_interaction_is_additive_and_with_it_is_the_random_table(x64):
    key = jax.random.key(3)
    whole, none = (np.asarray(reward_classes.instance(key, x).reward) for x in (1.0, 0.0))
    np.testing.assert_allclose(whole, garnet(key, 3, 2).reward, atol=1e-12)
    np.testing.assert_allclose(none[:, 0] - none[:, 1], (none[:, 0] - none[:, 1])[0], atol=1e-12)
    np.testing.assert_allclose(none.sum(axis=0), whole.sum(axis=0), atol=1e-12)
    np.testing.assert_allclose(none.sum(axis=1), whole.sum(axis=1), atol=1e-12)


def test_rank_correlations_of_planted_orders():
    x = np.random.default_rng(0).normal(size=(2, 40))
    for y, expected in ((np.exp(x), 1.0), (-(x**3), -1.0)):
        rank = rank_correlation(x, y)
        np.testing.assert_allclose([*rank["pooled"], *rank["within"]], expected, atol=1e-12)
    # Classes that differ, without an order within: pooled alone sees one.
    noise, apart = np.random.default_rng(1).normal(size=(2, 40)), np.array([[0.0], [9.0]])
    rank = rank_correlation(x + apart, noise + apart)
    assert rank["within"].low < 0 < rank["within"].high
    assert rank["pooled"].low > 0.5
    assert np.isnan(rank_correlation(x, np.zeros_like(x))["within"].center)


def test_where_the_lowest_meters_end_below_the_first_fifth_says_so():
    domination, best = np.broadcast_to(np.arange(10.0), (2, 10)), np.zeros((2, 10))
    nothing = dict.fromkeys(("ascents", "returned", "converged"))
    found = reward_classes.Rewards(best=best, domination=domination, reached=best - (domination < 2), **nothing)
    parts = reward_classes.by_meter({"affine": found, "table": found})
    np.testing.assert_array_equal(np.nanmean(parts, axis=0)[:, 0], [1, 0, 0, 0, 0])


@pytest.mark.slow
def test_an_affine_policy_and_an_affine_critic_stop_short_of_the_table(data):
    assert data.policies["table"].returns.min() > 0.9
    assert data.policies["affine"].returns.max() < 0.8 * data.policies["table"].returns.min()
    errors, floors = data.critics["affine"]
    assert errors.shape == (2, 2)
    assert (errors.mean(axis=1) > 0.95 * floors.min(axis=1)).all()
    assert (data.critics["table"].errors.mean(axis=1) < errors.mean(axis=1)).all()
    assert (data.critics["table"].floors == 0).all()


@pytest.mark.slow
def test_every_level_has_its_numbers_and_the_figure_is_drawn(data, tmp_path):
    measured = nonlinearity.judge(data)
    assert {table.title: len(table.rows) for table in measured.tables} == {"rewards": 4, "critics": 4, "policies": 2}
    for name in SMALL.names:
        lost = measured.numbers[f"Φ lost, {name}, truth with interaction"]
        assert lost.low <= lost.center <= lost.high
    assert all(row["best"] >= row["median"] >= row["worst"] for row in measured.tables[2].rows)
    nonlinearity.draw(data).savefig(tmp_path / "nonlinearity.png", dpi=40)
    assert (tmp_path / "nonlinearity.png").stat().st_size > 10_000
