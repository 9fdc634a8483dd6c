"""A configuration resolved: points, chunks, devices and the functions that its options name."""

import jax
import numpy as np
import pytest

from bilevel.types import Coefficients, Learned
from experiments import configure
from experiments.settings.job import arithmetic, baselines, resolve, tables
from experiments.settings.options import OptionError

TINY = dict(states=3, actions=2, successors=2, reward="table", policy="table", critic="monte_carlo")
TINY |= dict(batch_size=4, rollout_length=4, segment_length=2, num_policy_steps=1)


def job_of(**options):
    return resolve(configure("garnet", "bilevel", **(TINY | options)))


def test_points_are_the_grid_of_the_sweep_in_the_order_of_the_options():
    job = job_of(sigma=(0.1, 0.2), kl_weight=(0.3, 0.4, 0.5))
    assert job.swept == ("sigma", "kl_weight")
    assert [(p["sigma"], p["kl_weight"]) for p in job.points] == [(s, w) for s in (0.1, 0.2) for w in (0.3, 0.4, 0.5)]
    assert all(point["discount"] == 0.9 for point in job.points)


@pytest.mark.parametrize(
    ("chunk", "done", "expected"), [("10", 0, 10), ("10", 95, 10), ("500", 0, 100), ("all", 0, 100), ("all", 70, 30)]
)
def test_a_chunk_is_what_was_asked_for_or_what_is_left(chunk, done, expected):
    assert job_of(chunk=chunk, steps=100).chunk(done) == expected


def test_all_devices_share_the_lanes_unless_fewer_are_asked_for():
    assert job_of().devices == tuple(jax.devices())
    assert job_of(devices=1).devices == tuple(jax.devices()[:1])
    with pytest.raises(OptionError, match="--devices is 4096; this machine has"):
        job_of(devices=4096)


def test_double_precision_is_that_of_the_block():
    config = configure("garnet", "bilevel", **TINY, precision="float64")
    with arithmetic(config):
        job = resolve(config)
        algorithm, _ = job.make(job.points[0])
        assert algorithm.init(jax.random.key(0)).reward.params.dtype == np.float64
    assert not jax.config.jax_enable_x64


def test_the_annotator_is_the_one_that_the_options_describe():
    # Every label is flipped with probability ½: the probability of a label is ½ whatever the segments.
    job = job_of(error_rate=0.5)
    problem, key = job.problem(job.points[0]), jax.random.key(0)
    path = jax.tree.map(lambda x: np.zeros(2, np.int32), (0, 0, 0))
    from bilevel.types import Trajectory

    comparison = problem.annotate(key, Trajectory(*path), Trajectory(path[0], path[1], np.ones(2, np.int32)))
    assert float(comparison.probability) == 0.5


def test_baselines_are_those_of_a_bandit_by_hand():
    config = configure("bandit", "alternating", contexts=1, actions=2, dimension=2, kl_weight=0.5)
    job = resolve(config)
    reward = np.asarray(job.world.mdp.reward)[0]
    weights = np.exp(reward / 0.5)
    found = baselines(job)["true_return"]
    np.testing.assert_allclose(found["reference policy"], reward.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["best policy"], reward.max(), rtol=1e-5)
    np.testing.assert_allclose(found["KL-optimal policy"], reward @ weights / weights.sum(), rtol=1e-4)


def test_tables_without_a_learned_reward_hold_none():
    job = job_of()
    found = tables(job, Learned(None, np.zeros((5, 3, 2), np.float32)))
    assert found.keys() == {"policy", "true_reward"} and found["policy"].shape == (5, 3, 2)
    np.testing.assert_allclose(found["policy"], 0.5)


def test_coefficients_reach_the_problem_of_each_point():
    job = job_of(rationality=(1.0, 2.0))
    assert [point["rationality"] for point in job.points] == [1.0, 2.0]
    assert Coefficients._fields == ("discount", "kl_weight", "rationality")
