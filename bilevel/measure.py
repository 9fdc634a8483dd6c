"""What a learner's state is worth, seen with the true reward: exactly on finite worlds, from rollouts elsewhere."""

import jax
import jax.numpy as jnp

from bilevel import exact
from bilevel.lookup import bind, over_observations, over_pairs, pair_table, policy_table
from bilevel.returns import discount_powers
from bilevel.rollout import rollouts
from bilevel.run import Measure
from bilevel.types import Hyper, Problem
from envs.base import MDP, World


def exact_measure(problem: Problem, mdp: MDP, hyper: Hyper) -> Measure:
    """Exact measurements on a finite world.

    `true_return` and `learned_return`: E Σ_t γ^t r under r* and under r_φ, without the KL term; `kl_to_reference` and
    `policy_entropy`: in nats, averaged over the discounted occupancy.
    """
    env = problem.env
    reference = policy_table(env, problem.reference)

    def measure(key, learned):
        policy = policy_table(env, bind(problem.policy, learned.policy))
        truth = exact.lower_level(mdp, mdp.reward, reference, hyper.discount, 0.0)
        ours = truth._replace(reward=pair_table(env, bind(problem.reward, learned.reward)))
        entropy = -jnp.sum(jax.scipy.special.xlogy(policy, policy), axis=-1)
        return {
            "true_return": exact.regularised_return(truth, policy),
            "learned_return": exact.regularised_return(ours, policy),
            "kl_to_reference": exact.divergence(truth, policy),
            "policy_entropy": exact.occupancy(truth, policy) @ entropy,
        }

    return measure


def sampled_measure(problem: Problem, world: World, hyper: Hyper, num_rollouts: int, length: int) -> Measure:
    """The same from rollouts of `length` steps, with weights γ^t; where the world has a horizon, `true_score` too: the
    undiscounted sum of r* over that many steps, or over `length` where that is fewer. Its transitions are not counted.
    """
    env = world.env
    scored = None if env.horizon is None else min(env.horizon, length)

    def measure(key, learned):
        behave = bind(problem.policy, learned.policy)
        paths = rollouts(env, behave, key, num_rollouts, length)
        truth = jax.vmap(jax.vmap(world.reward))(paths.state, paths.action)
        ours = over_pairs(env, bind(problem.reward, learned.reward))(paths.obs, paths.action)
        policy, reference = (over_observations(env, x)(paths.obs) for x in (behave, problem.reference))
        powers = discount_powers(hyper.discount, length, truth.dtype)
        occupancy = powers / jnp.sum(powers)
        measured = {
            "true_return": jnp.mean(truth @ powers),
            "learned_return": jnp.mean(ours @ powers),
            "kl_to_reference": jnp.mean(policy.kl_divergence(reference) @ occupancy),
            "policy_entropy": jnp.mean(policy.entropy() @ occupancy),
        }
        return measured if scored is None else measured | {"true_score": jnp.mean(jnp.sum(truth[:, :scored], axis=1))}

    return measure
