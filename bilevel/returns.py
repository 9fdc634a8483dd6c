"""Sums along a trajectory."""

import chex
import jax
import jax.numpy as jnp

from bilevel.types import Array


def discount_powers(discount, length: int, dtype=float) -> Array:
    """(1, γ, γ², …), [length]; 0⁰ = 1, so a bandit's discount of 0 keeps the first step."""
    return jnp.asarray(discount, dtype) ** jnp.arange(length)


def returns_to_go(rewards: Array, discount) -> Array:
    """Σ_{k≥t} γ^{k−t} r_k for every t, along the last axis; nothing follows the last step."""

    def body(following, reward):
        total = reward + discount * following
        return total, total

    chex.assert_axis_dimension_gt(rewards, -1, 0)
    start = jnp.zeros_like(rewards[..., 0])
    _, totals = jax.lax.scan(body, start, jnp.moveaxis(rewards, -1, 0), reverse=True)
    return jnp.moveaxis(totals, 0, -1)


def leave_one_out_mean(values: Array) -> Array:
    """For each row of [N, ...], the mean of the others: a baseline that leaves an estimator unbiased. N ≥ 2."""
    chex.assert_axis_dimension_gt(values, 0, 1)
    count = values.shape[0]
    return (jnp.sum(values, axis=0) - values) / (count - 1)
