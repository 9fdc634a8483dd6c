"""Functions of observations and actions over batches, evaluated once per state where the world is finite.

A network then costs S (or S·A) evaluations, however many visits look its values up; gradients flow through the lookup.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from bilevel.types import Array, Behaviour, Model, Params
from envs.base import Env


def over_observations(env: Env, function: Callable) -> Callable:
    """A function of one observation as a function of any batch of them, [...] indices or [..., D] floats."""
    if env.num_states is not None:
        values = jax.vmap(function)(_states(env))
        return lambda obs: jax.tree.map(lambda x: x[obs], values)

    def batched(obs):
        values = jax.vmap(function)(obs.reshape(-1, obs.shape[-1]))
        return jax.tree.map(lambda x: x.reshape(obs.shape[:-1] + x.shape[1:]), values)

    return batched


def over_pairs(env: Env, function: Callable[..., Array]) -> Callable[..., Array]:
    """A function of one (observation, action) to [] as a function of any batch of them."""
    if env.num_states is not None:
        values = pair_table(env, function)
        return lambda obs, action: values[obs, action]

    def batched(obs, action):
        batch = obs.shape[:-1]
        flat_action = action.reshape(-1, *action.shape[len(batch) :])
        return jax.vmap(function)(obs.reshape(-1, obs.shape[-1]), flat_action).reshape(batch)

    return batched


def pair_table(env: Env, function: Callable[..., Array]) -> Array:
    """A function of one (observation, action) on a finite world, [S, A]."""
    actions = jnp.arange(env.num_actions, dtype=jnp.int32)
    return jax.vmap(lambda obs: jax.vmap(lambda action: function(obs, action))(actions))(_states(env))


def policy_table(env: Env, behave: Behaviour) -> Array:
    """A policy on a finite world as probabilities [S, A]."""
    return jax.vmap(lambda obs: behave(obs).probs)(_states(env))


def bind(model: Model, params: Params) -> Callable:
    """The model's function with its parameters bound."""
    return lambda *inputs: model.apply(params, *inputs)


def _states(env: Env) -> Array:
    return jnp.arange(env.num_states, dtype=jnp.int32)
