"""Finite worlds: sampling follows the arrays, random instances are what they claim, mistakes are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from envs.base import MDP
from envs.tabular import check_mdp, garnet, invert_cdf, tabular, tabular_env

KEY = jax.random.key(0)
NUM_DRAWS = 20_000
KEYS = jax.random.split(KEY, 400)


@pytest.fixture(scope="module")
def instances():
    """400 random MDPs of five states, three actions and two successors, stacked."""
    return jax.vmap(lambda key: garnet(key, 5, 3, 2))(KEYS)


def frequencies_agree(draws, probabilities):
    """Whether counts pass a chi-square test at one in ten thousand, and nothing impossible was drawn."""
    counts = np.bincount(np.asarray(draws), minlength=len(probabilities))
    probabilities = np.asarray(probabilities, np.float64)
    possible = probabilities > 0
    expected = counts.sum() * probabilities[possible] / probabilities[possible].sum()
    if possible.sum() == 1 or counts[~possible].sum() > 0:
        return counts[~possible].sum() == 0
    return scipy.stats.chisquare(counts[possible], expected).pvalue > 1e-4


def valid():
    """Two states, one action, as plain arrays."""
    transition = np.array([[[0.25, 0.75]], [[1.0, 0.0]]])
    return MDP(np.array([0.5, 0.5]), transition, np.array([[1.0], [2.0]]))


@pytest.mark.parametrize("probabilities", [[0.1, 0.2, 0.3, 0.4], [0.0, 0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [1.0]])
def test_draws_have_the_probabilities_given(probabilities):
    cdf = jnp.cumsum(jnp.array(probabilities))
    draws = jax.vmap(lambda key: invert_cdf(jax.random.uniform(key), cdf))(jax.random.split(KEY, NUM_DRAWS))
    assert draws.dtype == jnp.int32
    assert frequencies_agree(draws, probabilities)
    assert not frequencies_agree(draws, np.roll(probabilities, 1)) or len(probabilities) == 1


def test_a_cumulative_sum_below_one_yields_no_index_out_of_range():
    draws = jax.vmap(lambda key: invert_cdf(jax.random.uniform(key), jnp.array([0.2, 0.4])))(
        jax.random.split(KEY, 1000)
    )
    assert set(np.unique(draws)) == {0, 1}


def test_equal_keys_couple_nearby_distributions():
    keys = jax.random.split(KEY, 2000)
    near, far = jnp.array([0.5, 1.0]), jnp.array([0.51, 1.0])
    differ = jax.vmap(
        lambda key: invert_cdf(jax.random.uniform(key), near) != invert_cdf(jax.random.uniform(key), far)
    )(keys)
    assert abs(np.mean(differ) - 0.01) < 4 * np.sqrt(0.01 / 2000)


def test_steps_and_first_states_follow_the_arrays(instances):
    mdp = jax.tree.map(lambda x: x[0], instances)
    env = tabular_env(mdp)
    keys = jax.random.split(jax.random.key(1), NUM_DRAWS)
    assert frequencies_agree(jax.vmap(env.init)(keys), mdp.initial)
    step = jax.jit(jax.vmap(env.step, (0, None, None)))
    for state in range(5):
        for action in range(3):
            assert frequencies_agree(step(keys, state, action), mdp.transition[state, action])


def test_draws_over_reachable_states_are_those_over_all_states_bit_for_bit():
    mdp = garnet(KEY, 6, 2, 3)
    short, dense = tabular_env(mdp).inversion, jax.jit(lambda mdp, *x: tabular_env(mdp).inversion.step(*x))
    uniforms = jnp.linspace(0, 1, 999, endpoint=False)
    for state in range(6):
        for action in range(2):
            ours = jax.vmap(lambda u, s=state, a=action: short.step(u, s, a))(uniforms)
            theirs = jax.vmap(lambda u, s=state, a=action: dense(mdp, u, s, a))(uniforms)
            np.testing.assert_array_equal(ours, theirs)
            assert set(np.unique(ours)) <= set(np.flatnonzero(mdp.transition[state, action]))


def test_keys_draw_what_their_uniform_numbers_draw(instances):
    env = tabular_env(jax.tree.map(lambda x: x[0], instances))
    for key in jax.random.split(KEY, 20):
        uniform = jax.random.uniform(key)
        assert env.init(key) == env.inversion.init(uniform)
        assert env.step(key, 2, 1) == env.inversion.step(uniform, 2, 1)


def test_a_world_carries_its_sizes_its_reward_and_its_arrays(instances):
    mdp = jax.tree.map(lambda x: x[0], instances)
    world = tabular(mdp, horizon=7)
    env = world.env
    assert (env.num_states, env.num_actions, env.action_size, env.horizon) == (5, 3, None, 7)
    assert env.observe(jnp.int32(3)) == 3
    assert world.reward(jnp.int32(3), jnp.int32(1)) == mdp.reward[3, 1]
    assert world.mdp is mdp


@pytest.mark.parametrize("num_successors", [1, 2, 5, None])
def test_random_instances_reach_the_stated_number_of_states(num_successors):
    for key in jax.random.split(KEY, 5):
        mdp = check_mdp(garnet(key, 5, 3, num_successors))
        assert mdp.transition.shape == (5, 3, 5)
        assert np.all(np.sum(np.asarray(mdp.transition) > 0, axis=-1) == (num_successors or 5))


def test_rows_of_vmapped_random_instances_sum_to_one(instances):
    np.testing.assert_allclose(np.sum(np.asarray(instances.initial), axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(np.sum(np.asarray(instances.transition), axis=-1), 1, atol=1e-6)
    assert np.all(np.sum(np.asarray(instances.transition) > 0, axis=-1) == 2)


def test_random_instances_differ_by_key_and_agree_with_one_drawn_alone(instances):
    alone = garnet(KEYS[1], 5, 3, 2)
    for together, single in zip(instances, alone, strict=True):
        np.testing.assert_allclose(together[1], single, atol=1e-6)
        assert not np.allclose(together[0], together[1])


def test_every_state_is_as_likely_a_successor_as_any_other(instances):
    reached = np.sum(np.asarray(instances.transition) > 0, axis=(0, 1, 2))  # of 6000 rows, 2 of 5 each
    assert np.all(np.abs(reached - 2400) < 4 * np.sqrt(6000 * 0.4 * 0.6))


def test_successor_probabilities_are_dirichlet_one_half(instances):
    first = np.asarray(instances.transition).ravel()
    first = first[first > 0]  # of two successors, so each follows the arcsine law, whose variance is 1/8
    assert np.mean(first) == pytest.approx(0.5, abs=1e-6)
    assert abs(np.mean((first - 0.5) ** 2) - 1 / 8) < 4 * np.std((first - 0.5) ** 2) / np.sqrt(len(first) / 2)


def test_rewards_of_random_instances_are_standard_normal(instances):
    assert scipy.stats.kstest(np.asarray(instances.reward).ravel(), "norm").pvalue > 1e-4


def test_instances_may_be_vmapped_through_their_environments(instances):
    def visits(mdp, key):
        env = tabular_env(mdp)

        def body(state, key):
            return env.step(key, state, 0), state

        key_init, key_steps = jax.random.split(key)
        return jax.lax.scan(body, env.init(key_init), jax.random.split(key_steps, 30))[1]

    successor = np.argmax(np.asarray(instances.transition)[:, :, 0], axis=-1)
    certain = instances._replace(transition=jnp.eye(5)[np.argmax(np.asarray(instances.transition), axis=-1)])
    states = np.asarray(jax.jit(jax.vmap(visits))(certain, KEYS))
    assert states.shape == (400, 30)
    for instance in range(400):
        np.testing.assert_array_equal(states[instance, 1:], successor[instance, states[instance, :-1]])


def test_double_precision_is_followed(x64):
    mdp = jax.eval_shape(lambda key: garnet(key, 4, 2), KEY)
    assert {str(array.dtype) for array in mdp} == {"float64"}
    cdf = jnp.linspace(0.001, 1, 1000)
    uniform = jax.random.uniform(KEY)
    assert invert_cdf(uniform, cdf) == int(1000 * uniform)


def test_a_valid_mdp_is_returned_as_it_came():
    mdp = valid()
    assert check_mdp(mdp) is mdp


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transition": np.ones((2, 2)) / 2}, r"transition has shape \(2, 2\); required: \[S, A, S\]"),
        ({"transition": np.ones((2, 1, 3)) / 3}, r"transition has shape \(2, 1, 3\)"),
        ({"transition": np.ones((2, 0, 2))}, r"transition has shape \(2, 0, 2\)"),
        ({"initial": np.ones(3) / 3}, r"initial has shape \(3,\); required: \(2,\)"),
        ({"reward": np.ones((1, 2))}, r"reward has shape \(1, 2\); required: \(2, 1\)"),
        ({"reward": np.array([["a"], ["b"]])}, r"reward has dtype <U1; required: real numbers"),
        ({"reward": np.ones((2, 1), complex)}, r"reward has dtype complex128"),
        ({"reward": np.array([[0.0], [np.nan]])}, r"reward\[1, 0\] is nan; required: finite numbers"),
        ({"initial": np.array([np.inf, 0])}, r"initial\[0\] is inf"),
        ({"initial": np.array([1.5, -0.5])}, r"initial holds the negative probability -0.5"),
        ({"transition": np.array([[[1.0, 0]], [[2, -1]]])}, r"transition holds the negative probability -1"),
        ({"initial": np.array([0.5, 0.4])}, r"initial sums to 0.9; required: 1"),
        ({"transition": np.array([[[0.25, 0.75]], [[1.0, 0.5]]])}, r"transition\[1, 0\] sums to 1.5; required: 1"),
    ],
)
def test_a_mistake_in_the_arrays_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message) as error:
        check_mdp(valid()._replace(**change))
    assert "\n" not in str(error.value)
