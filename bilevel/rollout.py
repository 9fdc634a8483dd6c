"""Sampling: trajectories from ρ, and the restart chain whose stationary law is the discounted occupancy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel.lookup import over_observations
from bilevel.types import Array, Behaviour, Key, Trajectory
from envs.base import Action, Env, Observation, State


class Transition(NamedTuple):
    """One step (s, a, s′, a′) of a policy's own chain; leading axes are batch axes."""

    obs: Observation
    action: Action
    next_obs: Observation
    next_action: Action


def rollout(env: Env, behave: Behaviour, key: Key, length: int) -> Trajectory:
    """One trajectory of `length` steps from ρ. Equal keys couple the rollouts of two policies: the same uniforms drive
    their actions and next states."""
    key_init, key_steps = jax.random.split(key)

    def body(state, key_step):
        key_action, key_next = jax.random.split(key_step)
        obs = env.observe(state)
        action = behave(obs).sample(seed=key_action)
        return env.step(key_next, state, action), Trajectory(state, obs, action)

    _, trajectory = jax.lax.scan(body, env.init(key_init), jax.random.split(key_steps, length))
    return trajectory


def rollouts(env: Env, behave: Behaviour, key: Key, num_rollouts: int, length: int) -> Trajectory:
    """Independent trajectories, [num_rollouts, length]; see `rollout`."""
    behave = over_observations(env, behave)
    return jax.vmap(lambda key: rollout(env, behave, key, length))(jax.random.split(key, num_rollouts))


def restart_chain(
    env: Env, behave: Behaviour, key: Key, state: State, length: int, discount: Array
) -> tuple[State, Transition]:
    """`length` transitions of the chain that restarts from ρ with probability 1 − γ at every step, and its last state.

    Its stationary law is the occupancy d; from s_0 ~ ρ, the law after t steps is off by γ^t at most. A restart only
    chooses the next s: the s′ of a transition always comes from P(· | s, a).
    """

    def body(state, key_step):
        key_action, key_next, key_next_action, key_restart, key_init = jax.random.split(key_step, 5)
        obs = env.observe(state)
        action = behave(obs).sample(seed=key_action)
        successor = env.step(key_next, state, action)
        next_obs = env.observe(successor)
        next_action = behave(next_obs).sample(seed=key_next_action)
        go_on = jax.random.uniform(key_restart) < discount
        state = jax.tree.map(lambda x, y: jnp.where(go_on, x, y), successor, env.init(key_init))
        return state, Transition(obs, action, next_obs, next_action)

    return jax.lax.scan(body, state, jax.random.split(key, length))
