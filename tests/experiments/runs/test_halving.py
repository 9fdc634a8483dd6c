"""Successive halving takes what it says, and finds what is there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.lanes import Layout, programs
from bilevel.run import NEVER
from experiments import configure
from experiments.runs.halving import (
    RANGES,
    Candidates,
    draw_candidates,
    lanes_of,
    plan_rungs,
    score,
    spent,
    step_transitions,
    successive_halving,
)
from experiments.settings.job import resolve
from experiments.settings.options import OptionError

TINY = dict(states=3, actions=2, policy="table", reward="table", critic_model="table", num_policy_steps=1, batch_size=4)
TINY |= dict(rollout_length=4, segment_length=2, num_targets=1, num_transitions=4, num_chains=4, width=4)


@pytest.mark.parametrize("num", [2, 3, 8, 27, 100])
@pytest.mark.parametrize("transitions", [1, 7, 1000])
def test_the_rungs_cost_no_more_than_the_budget_and_equally_much(num, transitions):
    for budget in (500_000, 1_234_567, 10**9):
        rungs = plan_rungs(budget, num, transitions)
        assert spent(rungs, transitions) <= budget
        added = np.diff([0, *(rung.steps for rung in rungs)])
        assert np.all(added[1:] == 3 * added[:-1])
        one_more = [rung._replace(steps=rung.steps // added[0] * (added[0] + 1)) for rung in rungs]
        assert one_more[0].candidates * one_more[0].steps * transitions * len(rungs) > budget


def test_a_budget_below_one_step_a_rung_is_refused_with_what_is_needed():
    least = 3 * 27 * 10
    assert plan_rungs(least, 27, 10)[0].steps == 1
    with pytest.raises(OptionError, match=rf"--budget is {least - 1}; required: at least {least}"):
        plan_rungs(least - 1, 27, 10)
    with pytest.raises(OptionError, match="below 2\\^31 steps"):
        plan_rungs(2**62, 27, 10)


def noisy(quality: np.ndarray, scale: float, rng):
    """Scores whose noise falls with the steps, and the number of steps that were paid for."""
    paid = []

    def advance(candidates, steps):
        paid.append((len(candidates), steps))
        return quality[candidates] + scale * rng.normal(size=len(candidates)) / np.sqrt(steps)

    return advance, paid


def test_halving_finds_the_best_of_a_noisy_objective_within_its_budget():
    rng, budget, found = np.random.default_rng(0), 27 * 3 * 100, []
    for _ in range(50):
        quality = rng.normal(size=27)
        advance, paid = noisy(quality, 0.5, rng)
        *_, last = successive_halving(plan_rungs(budget, 27, 1), advance)
        found.append(last.candidates[0] == np.argmax(quality))
        steps = np.diff([0, *(steps for _, steps in paid)])
        assert sum(num * more for (num, _), more in zip(paid, steps, strict=True)) <= budget
    assert np.mean(found) > 0.9


def test_halving_of_noise_alone_finds_nothing():
    rng, found = np.random.default_rng(0), []
    for _ in range(100):
        *_, last = successive_halving(plan_rungs(8100, 27, 1), noisy(np.zeros(27), 1.0, rng)[0])
        found.append(last.candidates[0] == 0)
    assert np.mean(found) < 0.15


def test_a_score_that_is_no_number_is_the_worst_and_searches_side_by_side_do_not_mix():
    quality = np.array([[np.nan, 1.0, np.inf, -5.0, 2.0, 0.0], [6.0, np.nan, 4.0, np.nan, np.nan, 5.0]])
    each = np.arange(12).reshape(2, 6)
    first, last = successive_halving(plan_rungs(10_000, 6, 1), lambda c, _: quality.ravel()[c], each)
    assert last.candidates.tolist() == [[4, 1], [6, 11]]
    assert np.isneginf(first.scores).sum(axis=1).tolist() == [2, 3]


def test_the_score_is_the_mean_of_the_last_half_and_that_of_a_diverged_run_is_none():
    np.testing.assert_allclose(score(np.array([9.0, 9.0, 1.0, 3.0]), np.array(False)), 2.0)
    assert np.isnan(score(np.ones((2, 4)), np.array([True, False]))).tolist() == [True, False]


def test_candidates_are_log_uniform_over_the_stated_ranges_and_the_rest_stays():
    point = dict.fromkeys((*RANGES, "discount"), 0.5)
    hyper = draw_candidates(3, 3000, ("sigma", "reward_step_size"), point)
    for name in ("sigma", "reward_step_size"):
        low, high = np.log(RANGES[name])
        place = (np.log(hyper[name]) - low) / (high - low)
        assert -0.001 < place.min() < 0.01 and 0.99 < place.max() < 1.001
        np.testing.assert_allclose(np.quantile(place, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.04)
    assert np.all(hyper["policy_step_size"] == 0.5) and np.all(hyper["discount"] == 0.5)


@pytest.fixture(scope="module")
def tiny():
    """The programs of a tiny world, their layout, the lanes of three candidates, and the algorithm's make and point."""
    job = resolve(configure("garnet", **TINY))

    def make(point):
        return job.make(point)[0], None

    layout = Layout(4, 4, tuple(jax.devices()[:1]))
    ours = programs(make, 0, 2, layout, NEVER)
    hyper = draw_candidates(0, 3, tuple(RANGES), job.points[0])
    return ours, layout, lanes_of(hyper, np.arange(2)), make, job.points[0]


def test_candidates_that_stop_at_a_rung_and_go_on_are_those_that_never_stopped(tiny):
    ours, layout, lanes, _, _ = tiny
    whole, parts = (Candidates(ours, layout, lanes, 2, 2) for _ in range(2))
    whole.advance(np.arange(3), 5)
    parts.advance(np.arange(3), 2)
    scores = parts.advance(np.array([2, 0]), 5)
    kept = [4, 5, 0, 1]
    for x, y in zip(jax.tree.leaves(whole.state), jax.tree.leaves(parts.state), strict=True):
        np.testing.assert_array_equal(x[kept], y[kept])
    np.testing.assert_array_equal(whole.objective[kept], parts.objective[kept])
    np.testing.assert_allclose(scores, whole.objective[kept][:, 2:].mean(axis=1).reshape(2, 2).mean(axis=1))
    assert np.all(np.isnan(parts.objective[[2, 3], 2:]))


def test_the_counted_transitions_are_those_the_run_reports_and_nothing_true_is_measured(tiny):
    ours, layout, lanes, make, point = tiny
    lanes = layout.spread(jax.tree.map(lambda x: x[:4], lanes))
    _, metrics = ours.advance(lanes, ours.init(lanes), jnp.int32(0), jnp.int32(2))
    assert np.all(layout.gather(metrics["transitions"]) == step_transitions(make, point))
    assert not any(name.startswith("true") for name in metrics)
