"""What a learner's state is worth, seen with the true reward: exactly on finite worlds, from rollouts elsewhere.

A quantity is measured where it exists: without a learned reward there is no `learned_return`.
"""

import jax
import jax.numpy as jnp

from bilevel import exact
from bilevel.lookup import bind, over_observations, over_pairs, pair_table, policy_table
from bilevel.returns import discount_powers
from bilevel.rollout import rollouts
from bilevel.run import Measure
from bilevel.types import Array, Coefficients, Distribution, Problem
from envs.base import MDP, Action, World


def exact_measure(problem: Problem, mdp: MDP, coefficients: Coefficients) -> Measure:
    """Exact measurements on a finite world.

    `true_return` and `learned_return`: E Σ_t γ^t r under r* and under r_φ, without the KL term; `kl_to_reference` and
    `policy_entropy`: in nats, averaged over the discounted occupancy.
    """
    env = problem.env
    reference = policy_table(env, problem.reference)

    def measure(key, learned):
        policy = policy_table(env, bind(problem.policy, learned.policy))
        truth = exact.lower_level(mdp, mdp.reward, reference, coefficients.discount, 0.0)
        entropy = -jnp.sum(jax.scipy.special.xlogy(policy, policy), axis=-1)
        measured = {"true_return": exact.regularised_return(truth, policy)}
        if learned.reward is not None:
            believed = truth._replace(reward=pair_table(env, bind(problem.reward, learned.reward)))
            measured["learned_return"] = exact.regularised_return(believed, policy)
        measured["kl_to_reference"] = exact.divergence(truth, policy)
        measured["policy_entropy"] = exact.occupancy(truth, policy) @ entropy
        return measured

    return measure


def sampled_measure(
    problem: Problem, world: World, coefficients: Coefficients, num_rollouts: int, length: int
) -> Measure:
    """The same from rollouts of `length` steps, with weights γ^t; where the world has a horizon, `true_score` too: the
    undiscounted sum of r* over that many steps, or over `length` where that is fewer. Its transitions are not counted.
    """
    env = world.env
    scored = None if env.horizon is None else min(env.horizon, length)

    def measure(key, learned):
        behave = bind(problem.policy, learned.policy)
        paths = rollouts(env, behave, key, num_rollouts, length)
        truth = jax.vmap(jax.vmap(world.reward))(paths.state, paths.action)
        policy, reference = (over_observations(env, x)(paths.obs) for x in (behave, problem.reference))
        powers = discount_powers(coefficients.discount, length, truth.dtype)
        occupancy = powers / jnp.sum(powers)
        measured = {"true_return": jnp.mean(truth @ powers)}
        if learned.reward is not None:
            believed = over_pairs(env, bind(problem.reward, learned.reward))(paths.obs, paths.action)
            measured["learned_return"] = jnp.mean(believed @ powers)
        measured["kl_to_reference"] = jnp.mean(divergence(policy, reference, paths.action) @ occupancy)
        measured["policy_entropy"] = jnp.mean(entropy(policy, paths.action) @ occupancy)
        if scored is not None:
            measured["true_score"] = jnp.mean(jnp.sum(truth[:, :scored], axis=1))
        return measured

    return measure


def divergence(policy: Distribution, reference: Distribution, action: Action) -> Array:
    """KL(π ‖ π_ref) in closed form; where distributions have none, its unbiased estimate log π/π_ref at π's actions."""
    try:
        return policy.kl_divergence(reference)
    except (AttributeError, NotImplementedError):
        return policy.log_prob(action) - reference.log_prob(action)


def entropy(policy: Distribution, action: Action) -> Array:
    """The entropy of π in closed form; where it has none, its unbiased estimate −log π at π's actions."""
    try:
        return policy.entropy()
    except (AttributeError, NotImplementedError):
        return -policy.log_prob(action)
