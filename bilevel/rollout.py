"""Sampling: trajectories from ρ, and the restart chain whose stationary law is the discounted occupancy."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel.lookup import over_observations
from bilevel.types import Array, Behaviour, Distribution, Key, Trajectory
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
    key_init, key_action, key_next = jax.random.split(key, 3)
    moves = env.inversion or env

    def body(state, noise):
        for_action, for_next = noise
        obs = env.observe(state)
        action = choose(behave(obs), for_action)
        return moves.step(for_next, state, action), Trajectory(state, obs, action)

    # Drawn for all steps at once: inside the loop the same random bits take five times as long.
    noise = action_noise(env, key_action, length), state_noise(env, key_next, length)
    _, trajectory = jax.lax.scan(body, env.init(key_init), noise)
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
    key_action, key_next, key_next_action, key_restart, key_init = jax.random.split(key, 5)
    moves = env.inversion or env

    def body(state, noise):
        for_action, for_next, for_next_action, go_on, for_init = noise
        obs = env.observe(state)
        action = choose(behave(obs), for_action)
        successor = moves.step(for_next, state, action)
        next_obs = env.observe(successor)
        next_action = choose(behave(next_obs), for_next_action)
        state = jax.tree.map(lambda x, y: jnp.where(go_on, x, y), successor, moves.init(for_init))
        return state, Transition(obs, action, next_obs, next_action)

    noise = (
        action_noise(env, key_action, length),
        state_noise(env, key_next, length),
        action_noise(env, key_next_action, length),
        jax.random.uniform(key_restart, (length,)) < discount,
        state_noise(env, key_init, length),
    )
    return jax.lax.scan(body, state, noise)


def action_noise(env: Env, key: Key, length: int) -> Array:
    """What `choose` takes, for `length` steps: uniform numbers where actions are discrete, keys otherwise."""
    return (jax.random.split if env.num_actions is None else jax.random.uniform)(key, (length,))


def choose(policy: Distribution, noise: Array) -> Action:
    """An action: by inverting the cumulative distribution at a uniform number, or from a key where it is continuous."""
    if jnp.issubdtype(noise.dtype, jax.dtypes.prng_key):
        return policy.sample(seed=noise)
    cumulative = policy.cumulative if hasattr(policy, "cumulative") else jnp.cumsum(policy.probs, axis=-1)
    return jnp.sum(noise * cumulative[-1] >= cumulative[:-1], dtype=jnp.int32)


def state_noise(env: Env, key: Key, length: int) -> Array:
    """What moves the state, for `length` steps: uniform numbers where the world inverts its laws, keys otherwise."""
    return (jax.random.split if env.inversion is None else jax.random.uniform)(key, (length,))
