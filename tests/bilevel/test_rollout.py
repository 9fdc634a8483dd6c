"""Rollouts and the restart chain against their laws, and drawn by their keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import exact, models
from bilevel.rollout import restart_chain, rollout, rollouts
from envs.base import MDP
from envs.tabular import tabular_env

pytestmark = pytest.mark.usefixtures("x64")

GAMMA = 0.8


def assert_frequencies(counts, probabilities):
    """Counts [..., N] are within 4 standard errors of what the probabilities [..., N] foresee."""
    counts, probabilities = np.asarray(counts), np.asarray(probabilities)
    total = counts.sum(axis=-1, keepdims=True)
    error = np.sqrt(total * probabilities * (1 - probabilities))
    assert np.all(np.abs(counts - total * probabilities) <= 4 * error)


# Rollouts -------------------------------------------------------------------------------------------------------------


def finite():
    """A finite world and a policy [S, A] on it, drawn at random."""
    rng = np.random.default_rng(0)
    laws = (rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(4), (4, 2)), rng.normal(size=(4, 2)))
    policy = jnp.asarray(rng.dirichlet(np.ones(2), 4))
    return MDP(*map(jnp.asarray, laws)), policy, models.given_reference(policy)


def test_rollouts_follow_the_chain():
    mdp, policy, behave = finite()
    env = tabular_env(mdp)
    count, length = 5000, 6
    drawn = jax.jit(lambda key: rollouts(env, behave, key, count, length))(jax.random.key(0))
    assert drawn.state.shape == drawn.action.shape == (count, length)
    assert jnp.array_equal(drawn.obs, drawn.state)
    states, actions = np.asarray(drawn.state), np.asarray(drawn.action)
    law = np.asarray(mdp.initial)
    chain = np.einsum("sa,sat->st", policy, mdp.transition)
    for t in range(length):
        assert_frequencies(np.bincount(states[:, t], minlength=4), law)
        law = law @ chain
    visits = np.zeros((4, 2))
    np.add.at(visits, (states, actions), 1)
    assert_frequencies(visits, policy)
    moves = np.zeros((4, 2, 4))
    np.add.at(moves, (states[:, :-1], actions[:, :-1], states[:, 1:]), 1)
    assert_frequencies(moves, mdp.transition)


def test_rollouts_equal_single_ones_by_their_keys():
    mdp, _, behave = finite()
    env = tabular_env(mdp)
    together = jax.jit(lambda key: rollouts(env, behave, key, 5, 8))(jax.random.key(0))
    alone = jax.jit(lambda key: rollout(env, behave, key, 8))(jax.random.split(jax.random.key(0), 5)[3])
    for ours, theirs in zip(together, alone, strict=True):
        assert jnp.array_equal(ours[3], theirs)
    assert len(np.unique(together.action, axis=0)) > 1


def test_a_rollout_does_not_end_in_an_absorbing_state():
    mdp = MDP(jnp.array([1.0, 0.0]), jnp.array([[[0.0, 1.0]], [[0.0, 1.0]]]), jnp.zeros((2, 1)))
    drawn = rollout(tabular_env(mdp), lambda obs: models.Categorical(jnp.zeros(1)), jax.random.key(0), 4)
    assert drawn.state.tolist() == [0, 1, 1, 1]


# The restart chain ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chains():
    """A finite world, and 4000 chains of 60 steps on it, [chains, steps]; 0.8^60 is 2e-6."""
    with jax.enable_x64(True):
        mdp, policy, behave = finite()
        env = tabular_env(mdp)

        def draw(key):
            key_init, key_chain = jax.random.split(key)
            return restart_chain(env, behave, key_chain, env.init(key_init), 60, GAMMA)

        last, transitions = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 4000))
        return mdp, policy, last, transitions


def test_the_stationary_law_of_the_restart_chain_is_the_occupancy(chains):
    mdp, policy, last, _ = chains
    lower = exact.lower_level(mdp, mdp.reward, jnp.full((4, 2), 0.5), GAMMA, 0.0)
    occupancy = exact.occupancy(lower, policy)
    counts = np.bincount(last, minlength=4)
    assert_frequencies(counts, occupancy)
    # Without restarts the chain would be somewhere else.
    stationary = np.linalg.matrix_power(np.einsum("sa,sat->st", policy, mdp.transition), 200)[0]
    with pytest.raises(AssertionError):
        assert_frequencies(counts, stationary)


def test_the_law_after_t_steps_is_off_by_at_most_the_power_of_the_discount(chains):
    mdp, policy, _, transitions = chains
    lower = exact.lower_level(mdp, mdp.reward, jnp.full((4, 2), 0.5), GAMMA, 0.0)
    occupancy = np.asarray(exact.occupancy(lower, policy))
    obs = np.asarray(transitions.obs)
    for t in (0, 2, 5, 10, 40):
        shares = np.bincount(obs[:, t], minlength=4) / len(obs)
        noise = 4 * np.sqrt(occupancy * (1 - occupancy) / len(obs)).sum() / 2
        assert 0.5 * np.abs(shares - occupancy).sum() <= GAMMA**t + noise


def test_actions_come_from_the_policy_and_successors_from_the_transition_law(chains):
    mdp, policy, _, transitions = chains
    obs, action, next_obs, next_action = (np.asarray(x) for x in transitions)
    for state, drawn in ((obs, action), (next_obs, next_action)):
        counts = np.zeros((4, 2))
        np.add.at(counts, (state, drawn), 1)
        assert_frequencies(counts, policy)
    moves = np.zeros((4, 2, 4))
    np.add.at(moves, (obs, action, next_obs), 1)
    assert_frequencies(moves, mdp.transition)


def test_a_restart_changes_the_next_state_and_never_the_successor():
    # On a ring that starts in 0 every s′ is s + 1, and every next s is that s′ or 0.
    ring = jnp.roll(jnp.eye(5), 1, axis=1)[:, None]
    mdp = MDP(jnp.eye(5)[0], ring, jnp.zeros((5, 1)))
    env = tabular_env(mdp)

    @jax.jit
    def draw(key, discount):
        return restart_chain(env, lambda obs: models.Categorical(jnp.zeros(1)), key, jnp.int32(2), 5000, discount)

    last, transitions = draw(jax.random.key(0), 0.9)
    obs = np.append(transitions.obs, last)
    assert obs[0] == 2
    assert np.array_equal(transitions.next_obs, (obs[:-1] + 1) % 5)
    went_on = obs[1:] == transitions.next_obs
    assert np.all(went_on | (obs[1:] == 0))
    elsewhere = np.asarray(transitions.next_obs) != 0
    restarted = np.sum(~went_on[elsewhere])
    assert_frequencies([restarted, np.sum(elsewhere) - restarted], [0.1, 0.9])
    _, bandit = draw(jax.random.key(0), 0.0)
    assert np.all(bandit.obs[1:] == 0)
