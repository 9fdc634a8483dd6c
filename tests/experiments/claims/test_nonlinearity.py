"""The non-linearity study on a few MDPs: its orderings, and its measures by hand."""

import json

import jax
import numpy as np
import pytest

from envs.tabular import garnet
from experiments.report.summary import rank_correlation
from experiments.studies import approximation, critic, nonlinearity, reward_classes

SMALL = reward_classes.Sizes(num_instances=3, num_points=3, num_starts=2, max_steps=25, num_steps=200)
POLICIES = approximation.PolicySizes(num_restarts=2, num_steps=200)
CRITICS = critic.Sizes(
    layout="..\n.G",
    num_seeds=2,
    num_targets=12,
    transitions=(1024,),
    num_chains=8,
    network_transitions=(1024,),
    network_chains=2,
    hidden_sizes=((),),
    fit_steps=500,
    num_restarts=2,
)


@pytest.fixture(scope="module")
def result():
    return nonlinearity.study(SMALL, POLICIES, CRITICS, names=("affine", "table"))


@pytest.mark.slow
def test_only_a_table_holds_what_is_not_additive(result):
    lost = reward_classes.losses(result.rewards)
    assert all((part > -1e-9).all() for parts in lost.values() for part in parts)
    below = lost["affine"][0][0]  # [interaction, instance]
    assert below[1].mean() > below[0].mean() + 0.03
    assert (below[1] > 0.01).any()
    assert lost["table"][0].mean() < 0.02


@pytest.mark.slow
def test_algorithm_1_ends_at_the_best_of_its_class_or_is_counted_below_it(result):
    for found in result.rewards.values():
        assert reward_classes.converged(found).mean() > 0.3
        assert (found.returned <= 1 + 1e-9).all()
        assert (found.reached > -np.log(2)).all()  # better than a constant reward
    below = reward_classes.ends_below(result.rewards)
    assert below.shape == (2, 1, 2, 3)
    assert below.mean() < 0.6
    gaps = np.stack([found.best - found.reached for found in result.rewards.values()])
    assert (below == (gaps > reward_classes.GAP)).all()


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
        rank = rank_correlation(x, y, 50)
        np.testing.assert_allclose([*rank["pooled"], *rank["within"]], expected, atol=1e-12)
    # Classes that differ, without an order within: pooled alone sees one.
    noise, apart = np.random.default_rng(1).normal(size=(2, 40)), np.array([[0.0], [9.0]])
    rank = rank_correlation(x + apart, noise + apart, 200)
    assert rank["within"][1] < 0 < rank["within"][2]
    assert rank["pooled"][1] > 0.5
    assert np.isnan(rank_correlation(x, np.zeros_like(x), 10)["within"][0])


@pytest.mark.slow
def test_where_the_lowest_meters_end_below_the_first_fifth_says_so(result):
    def planted(name):
        found = result.rewards[name]
        domination = np.broadcast_to(np.arange(10.0), (1, 1, 10))
        best = np.zeros((1, 1, 10))
        return found._replace(domination=domination, best=best, reached=best - (domination < 2))

    parts = reward_classes.by_meter({name: planted(name) for name in result.rewards})
    np.testing.assert_array_equal(np.nanmean(parts, axis=0)[:, 0, 0], [1, 0, 0, 0, 0])


@pytest.mark.slow
def test_an_affine_policy_and_an_affine_critic_stop_short_of_the_table(result):
    assert result.policies["table"].min() > 0.9
    assert result.policies["affine"].max() < 0.8 * result.policies["table"].min()
    errors, floors = result.critics["affine"]
    assert (errors.mean(axis=1) > 0.95 * floors.min(axis=1)).all()
    assert (result.critics["table"][0].mean(axis=1) < errors.mean(axis=1)).all()
    assert (result.critics["table"][1] == 0).all()


@pytest.mark.slow
def test_numbers_and_figure_are_written(result, tmp_path):
    lines = []
    nonlinearity.report(result, SMALL, tmp_path, lines.append)
    summary = json.loads((tmp_path / "nonlinearity.json").read_text())
    assert [len(summary[k]) for k in ("reward", "meter", "policy", "critic")] == [4, 2, 2, 4]
    for row in summary["reward"]:
        below, left, lost = (row[k][0] for k in ("class_below_best", "left", "lost"))
        assert lost == pytest.approx(below + left)
    assert (tmp_path / "nonlinearity.png").stat().st_size > 10_000
    assert lines[-1].startswith("figure")
