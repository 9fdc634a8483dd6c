"""What errors of critics are measured against, by hand on a world of four cells."""

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import exact
from bilevel.gradients.critics import TDSizes
from envs.gridworld import gridworld
from experiments.claims.p1 import critic_errors
from experiments.claims.p1.critic_errors import FIXED, TABLE

DISCOUNT, KL_WEIGHT = critic_errors.COEFFICIENTS[:2]
LAYOUT = "..\n.G"


def test_the_oracles_are_what_loops_and_samples_give(x64):
    mdp = gridworld(LAYOUT)
    lower = exact.lower_level(mdp, mdp.reward, jnp.full((4, 4), 0.25), DISCOUNT, KL_WEIGHT)
    policy = jax.nn.softmax(jax.random.normal(jax.random.key(3), (4, 4)))
    values, weights, bias, limit = map(np.asarray, critic_errors.oracle(lower, policy, 30))
    np.testing.assert_allclose(values, exact.action_values(lower, policy), atol=1e-12)
    assert abs(weights.sum() - 1) < 1e-12
    penalty = KL_WEIGHT * np.log(4 * np.asarray(policy))

    def target(table):  # r + γ E[Q(s′, a′) − w log π/π_ref], the mean over s′ and a′
        after = np.sum(np.asarray(policy) * (table - penalty), axis=1)
        return np.asarray(mdp.reward) + DISCOUNT * np.asarray(mdp.transition) @ after

    def error(table):
        return np.sqrt(np.sum(weights * (table - values) ** 2))

    table = np.zeros((4, 4))
    for expected in bias:
        table = target(table)
        assert abs(error(table) - expected) < 1e-12

    # Sample means of n d targets at every pair, from Q_0 = Q: their noise alone, in the limit of many updates.
    rng, n, errors = np.random.default_rng(0), 100_000, []
    counts = np.round(n * weights).astype(int)
    moves = np.asarray(mdp.transition)[..., None] * np.asarray(policy)  # [S, A, S, A]
    for _ in range(60):
        table = values
        for _ in range(25):
            after = (table - penalty).ravel()
            means = [
                rng.multinomial(k, q.ravel()) @ after / k
                for k, q in zip(counts.flat, moves.reshape(16, 4, 4), strict=True)
            ]
            table = np.asarray(mdp.reward) + DISCOUNT * np.reshape(means, (4, 4))
        errors.append(error(table))
    assert abs(np.sqrt(np.mean(np.square(errors)) * n) / limit - 1) < 0.15


def test_exact_target_updates_contract_by_gamma_in_the_sup_norm_and_by_its_root_in_the_occupancys(x64):
    mdp = gridworld("...\n.#.\n..G")
    size = mdp.reward.size
    lower = exact.lower_level(mdp, mdp.reward, jnp.full(mdp.reward.shape, 0.25), DISCOUNT, KL_WEIGHT)
    oracle = jax.jit(critic_errors.oracle, static_argnums=2)
    for key in jax.random.split(jax.random.key(4), 20):
        policy = jax.nn.softmax(3 * jax.random.normal(key, mdp.reward.shape))
        moves = np.reshape(np.asarray(mdp.transition)[..., None] * np.asarray(policy), (size, size))
        values, weights, bias, _ = oracle(lower, policy, 30)
        tables = [np.ravel(values)]  # Q_0 − Q, up to its sign
        for _ in range(30):
            tables.append(DISCOUNT * moves @ tables[-1])
        largest = np.max(np.abs(tables), axis=1)
        assert np.all(largest[1:] <= DISCOUNT * largest[:-1] + 1e-12)
        rms = np.sqrt(np.square(tables) @ np.ravel(weights))
        np.testing.assert_allclose(rms[1:], bias, atol=1e-12)
        assert np.all(rms[1:] <= np.sqrt(DISCOUNT) * rms[:-1] + 1e-12)


def test_chains_grow_like_the_root_of_the_transitions_and_divide_them():
    sizes = critic_errors.Sizes()
    known = critic_errors.known_exactly(LAYOUT, 2)
    found = critic_errors.learners(known, sizes)
    assert set(found) == {TABLE, FIXED, "affine", "2", "2×2", "8", "8×8"}
    for name, learner in found.items():
        for n, chains in zip(learner.transitions, learner.chains, strict=True):
            assert n % TDSizes(1, n, chains).num_chains == 0
            if name != FIXED:
                assert chains**2 / n == learner.chains[0] ** 2 / learner.transitions[0]
