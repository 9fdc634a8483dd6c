"""Adapter to the JAX environments of gymnax 1.x, which is imported only when asked for."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.base import Array, Env, Original, World


class GymnaxState(NamedTuple):
    """A game between two steps.

    Attributes:
        game: the environment's own state.
        obs: [D − 1] its observation, flattened; kept because some games draw it at random.
        done: [] bool, whether a terminal state was reached.
    """

    game: Any
    obs: Array
    done: Array


def gymnax_world(name: str, parameters: Mapping[str, Any] | None = None) -> World:
    """A gymnax environment as a world without auto-reset and without time limit.

    A terminal state is absorbing, pays 0, and is visible: the observation [D] is the game's own, flattened, with the
    done flag appended. The game's time limit becomes the horizon of evaluation and ends nothing. Continuous actions
    are clipped to the game's bounds. The reward of (s, a) is the game's at a fixed key: exact where the game moves
    deterministically, one draw where its reward depends on a random next state.

    Args:
        name: one of `gymnax.registered_envs`, such as "Pendulum-v1".
        parameters: values that replace some of the game's default parameters.

    Raises:
        ImportError: if gymnax is not installed.
        ValueError: on an unknown name or parameter, or an action space that is neither Discrete nor Box.
    """
    game, params = make_game(name, parameters or {})
    space = game.action_space(params)
    discrete = hasattr(space, "n")
    if not discrete and not hasattr(space, "low"):
        raise ValueError(f"{name} has the action space {space}; required: Discrete or Box; choose another environment")
    action_size = None if discrete else math.prod(space.shape)

    def legal(action):
        return action if discrete else jnp.clip(action.reshape(space.shape), space.low, space.high)

    # Fresh and stepped states may differ in dtype or weak type, which a scan refuses: both are cast to one.
    first = jax.eval_shape(lambda key: game.reset_env(key, params)[1], jax.random.key(0))
    action = jnp.zeros(space.shape, space.dtype)
    second = jax.eval_shape(lambda key, state: game.step_env(key, state, action, params)[1], jax.random.key(0), first)
    dtypes = jax.tree.map(lambda a, b: jnp.result_type(a.dtype, b.dtype), first, second)

    def settle(obs, state, done):
        obs = jnp.ravel(obs).astype(float_dtype())
        return GymnaxState(jax.tree.map(jnp.asarray, state, dtypes), obs, jnp.asarray(done, bool).reshape(()))

    def init(key):
        return settle(*game.reset_env(key, params), False)

    def step(key, state, action):
        obs, moved, _, done, _ = game.step_env(key, state.game, legal(action), params)
        return jax.tree.map(lambda old, new: jnp.where(state.done, old, new), state, settle(obs, moved, done))

    def reward(state, action):
        paid = game.step_env(jax.random.key(0), state.game, legal(action), params)[2]
        return jnp.where(state.done, 0, jnp.asarray(paid, float_dtype()).reshape(()))

    num_actions = int(space.n) if discrete else None
    horizon = int(params.max_steps_in_episode)
    env = Env(init, step, observe, num_actions=num_actions, action_size=action_size, horizon=horizon)
    shape = jax.eval_shape(lambda key: game.reset_env(key, params)[0], jax.random.key(0)).shape
    return World(env, reward, original=Original(shape, lambda obs: jnp.append(obs, 0), legal))


def observe(state: GymnaxState) -> Array:
    """The game's observation with the done flag appended ([D])."""
    return jnp.append(state.obs, state.done.astype(state.obs.dtype))


def make_game(name: str, parameters: Mapping[str, Any]):
    """The gymnax environment and its parameters, or one clear line on what is missing or misspelt."""
    try:
        import gymnax
    except ImportError as error:
        raise ImportError("gymnax is not installed; install it with: pip install 'bilevel-rlhf[control]'") from error
    if name not in gymnax.registered_envs:
        close = difflib.get_close_matches(name, gymnax.registered_envs, n=1, cutoff=0)[0]
        raise ValueError(
            f"gymnax has no environment {name!r}; required: a name in gymnax.registered_envs; nearest: {close!r}"
        )
    game, params = gymnax.make(name)
    known = [field.name for field in fields(params)]
    for parameter in parameters:
        if parameter not in known:
            close = difflib.get_close_matches(parameter, known, n=1, cutoff=0)[0]
            raise ValueError(
                f"{name} has no parameter {parameter!r}; required: one of {', '.join(known)}; nearest: {close!r}"
            )
    return game, params.replace(**parameters)


def float_dtype():
    """float64 where it is enabled, float32 elsewhere."""
    return jax.dtypes.canonicalize_dtype(float)
