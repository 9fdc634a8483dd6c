"""What claims know of an MDP: its true lower level, and returns between the reference policy's and the maximum."""

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import exact
from bilevel.types import Coefficients
from envs.tabular import garnet
from experiments.claims.instances import relative_return, true_lower_level


def test_the_lower_level_has_the_true_reward_and_a_uniform_reference(x64):
    mdp = garnet(jax.random.key(0), 3, 2)
    lower = true_lower_level(mdp, Coefficients(0.8, 0.3))
    np.testing.assert_array_equal(lower.reward, mdp.reward)
    np.testing.assert_array_equal(lower.reference, np.full((3, 2), 0.5))
    assert (lower.discount, lower.kl_weight) == (0.8, 0.3)


def test_the_reference_is_worth_0_the_optimum_1_and_every_policy_at_most_that(x64):
    lower = true_lower_level(garnet(jax.random.key(1), 3, 2), Coefficients(0.8, 0.3))
    best = exact.optimal_policy(lower).policy
    policies = jnp.concatenate(
        [lower.reference[None], best[None], jax.nn.softmax(jax.random.normal(jax.random.key(2), (20, 3, 2)))]
    )
    found = jax.vmap(lambda policy: relative_return(lower, policy))(policies)
    np.testing.assert_allclose(found[:2], [0.0, 1.0], atol=1e-12)
    assert np.all(found[2:] < 1)


def test_a_bandit_s_optimum_is_by_hand(x64):
    # At γ = 0 the optimum is E_x w log E_ref exp(r/w) above the reference's E_x E_ref r.
    mdp, w = garnet(jax.random.key(3), 2, 3), 0.5
    lower = true_lower_level(mdp, Coefficients(0.0, w))
    reward, initial = np.asarray(mdp.reward), np.asarray(mdp.initial)
    greedy = np.eye(3)[reward.argmax(axis=1)]
    lowest, best = initial @ reward.mean(axis=1), initial @ (w * np.log(np.mean(np.exp(reward / w), axis=1)))
    value = initial @ (reward.max(axis=1) - w * np.log(3))
    np.testing.assert_allclose(
        relative_return(lower, jnp.asarray(greedy)), (value - lowest) / (best - lowest), atol=1e-12
    )
