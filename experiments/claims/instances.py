"""What is known exactly of a finite MDP under its true reward, the reference policy being uniform."""

import jax.numpy as jnp

from bilevel import exact
from bilevel.types import Array, Coefficients
from envs.base import MDP


def true_lower_level(mdp: MDP, coefficients: Coefficients) -> exact.LowerLevel:
    """The problem max_π J(π) with the true reward."""
    uniform = jnp.full(mdp.reward.shape, 1 / mdp.reward.shape[1])
    return exact.lower_level(mdp, mdp.reward, uniform, coefficients.discount, coefficients.kl_weight)


def relative_return(lower: exact.LowerLevel, policy: Array) -> Array:
    """J of a policy [S, A], [], where 0 is the reference policy's and 1 the maximum."""
    policies = policy, exact.optimal_policy(lower).policy, lower.reference
    reached, best, lowest = (exact.regularised_return(lower, x) for x in policies)
    return (reached - lowest) / (best - lowest)
