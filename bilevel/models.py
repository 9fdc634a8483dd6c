"""Parametrisations of rewards, critics and policies, each a `Model(init, apply)`; the one file that imports distrax.

A reward r_φ and a critic Q_θ are the same kind of function, (observation, action) -> []. Parameters have the default float
type: float32, or float64 where it is enabled.
"""

import warnings
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from bilevel.types import Array, Distribution, Model, Params
from envs.base import Env, World

with warnings.catch_warnings():  # distrax's own dependency warns about NumPy and JAX names that it no longer needs
    warnings.simplefilter("ignore")
    import distrax


class Categorical(distrax.Categorical):
    """distrax's categorical over actions, drawn by inverting its cumulative distribution with one uniform.

    So equal keys couple the draws of two nearby policies, and a table of such distributions (one a state) holds the
    cumulative sums, which are then computed once a state instead of once a visit.
    """

    def __init__(self, logits: Array):
        super().__init__(logits=logits)
        self.cumulative = jnp.cumsum(jax.nn.softmax(logits, axis=-1), axis=-1)

    def _sample_n(self, key, n):
        inner, total = self.cumulative[..., :-1], self.cumulative[..., -1:]
        uniform = jax.random.uniform(key, (n, *total.shape), total.dtype) * total
        return jnp.sum(uniform >= inner, axis=-1, dtype=jnp.int32)


# Rewards and critics --------------------------------------------------------------------------------------------------


def table(num_states: int, num_actions: int) -> Model:
    """One number for each state and action, [S, A], initially zero."""

    def init(key):
        return jnp.zeros((num_states, num_actions))

    return Model(init, lambda params, obs, action: params[obs, action])


def linear(features: Callable[..., Array], size: int) -> Model:
    """⟨params, features(obs, action)⟩, params [size], initially zero; features maps to [size]."""

    def init(key):
        return jnp.zeros(size)

    return Model(init, lambda params, obs, action: features(obs, action) @ params)


def mlp(features: Callable[..., Array], size: int, hidden_sizes: Sequence[int], bound: float | None = None) -> Model:
    """A tanh network of any width and depth on features(obs, action) [size].

    Args:
        features: (observation, action) -> [size].
        size: length of the features.
        hidden_sizes: widths of the hidden layers; () is an affine function.
        bound: the output is bound · tanh(output / bound), so it lies in (−bound, bound); None: unbounded.
    """
    network = _Network((*hidden_sizes, 1))

    def apply(params, obs, action):
        value = network.apply(params, features(obs, action))[0]
        return value if bound is None else bound * jnp.tanh(value / bound)

    return Model(lambda key: network.init(key, jnp.zeros(size)), apply)


# Policies -------------------------------------------------------------------------------------------------------------


def table_policy(num_states: int, num_actions: int) -> Model:
    """Softmax of a table of logits [S, A], initially uniform."""

    def init(key):
        return jnp.zeros((num_states, num_actions))

    return Model(init, lambda params, obs: Categorical(params[obs]))


def mlp_policy(features: Callable[..., Array], size: int, num_actions: int, hidden_sizes: Sequence[int]) -> Model:
    """Softmax of a tanh network's outputs, initially close to uniform; features maps an observation to [size]."""
    network = _Network((*hidden_sizes, num_actions), output_scale=0.01)

    def apply(params, obs):
        return Categorical(network.apply(params, features(obs)))

    return Model(lambda key: network.init(key, jnp.zeros(size)), apply)


def gaussian_policy(
    features: Callable[..., Array], size: int, action_size: int, hidden_sizes: Sequence[int], initial_std: float = 1.0
) -> Model:
    """A Gaussian over actions [action_size]: the mean a tanh network of features(obs), one learned log deviation each.

    With hidden_sizes = () the mean is affine in the features: the linear-Gaussian policies of a regulator.
    """
    network = _Network((*hidden_sizes, action_size), output_scale=0.01)

    def init(key):
        log_std = jnp.full(action_size, jnp.log(initial_std))
        return {"mean": network.init(key, jnp.zeros(size)), "log_std": log_std}

    def apply(params, obs):
        return gaussian(network.apply(params["mean"], features(obs)), jnp.exp(params["log_std"]))

    return Model(init, apply)


def gaussian(mean: Array, std: Array) -> Distribution:
    """The Gaussian with independent coordinates, mean [D] and standard deviation [D]."""
    # Not distrax's MultivariateNormalDiag: stacked by vmap, it keeps the batch shape of a single one.
    return distrax.Independent(distrax.Normal(mean, jnp.broadcast_to(std, mean.shape)), reinterpreted_batch_ndims=1)


def started_at(model: Model, params: Params) -> Model:
    """The same model, initialised at `params` whatever the key: a policy that starts at its fine-tuned reference."""
    return model._replace(init=lambda key: params)


# Reference policies ---------------------------------------------------------------------------------------------------


def uniform_reference(env: Env) -> Callable[..., Distribution]:
    """observation -> the uniform policy; where actions are continuous, the standard normal one."""
    if env.num_actions is None:
        return lambda obs: gaussian(jnp.zeros(env.action_size), jnp.ones(env.action_size))
    return lambda obs: Categorical(jnp.zeros(env.num_actions))


def given_reference(probabilities: Array) -> Callable[..., Distribution]:
    """observation -> row of a table of positive probabilities [S, A]."""
    logits = jnp.log(probabilities)
    return lambda obs: Categorical(logits[obs])


# Features -------------------------------------------------------------------------------------------------------------


def state_features(world: World) -> tuple[Callable[..., Array], int]:
    """observation -> [size] and size: the world's own features, or one-hot states, or the observation as it is."""
    features, env = world.features, world.env
    if features is None and env.num_states is not None:
        features = lambda obs: jax.nn.one_hot(obs, env.num_states, dtype=float)  # noqa: E731
    elif features is None:
        features = lambda obs: obs  # noqa: E731
    return features, _size(features, _observation(env))


def pair_features(world: World) -> tuple[Callable[..., Array], int]:
    """(observation, action) -> [size] and size: the world's own, or features of the state and the action side by side."""
    env, features = world.env, world.action_features
    action = jnp.int32(0) if env.num_actions is not None else jnp.zeros(env.action_size)
    if features is None:
        of_state, _ = state_features(world)

        def features(obs, action):
            if env.num_actions is not None:
                action = jax.nn.one_hot(action, env.num_actions, dtype=float)
            return jnp.concatenate([of_state(obs), action])

    return features, _size(features, _observation(env), action)


def _observation(env: Env):
    return jax.eval_shape(lambda key: env.observe(env.init(key)), jax.random.key(0))


def _size(features, *inputs) -> int:
    return jax.eval_shape(features, *inputs).shape[0]


class _Network(nn.Module):
    """A tanh network; `output_scale` shrinks the last layer's initial weights."""

    sizes: tuple[int, ...]
    output_scale: float = 1.0

    @nn.compact
    def __call__(self, x):
        dtype = jnp.result_type(float)
        for size in self.sizes[:-1]:
            x = nn.tanh(nn.Dense(size, param_dtype=dtype)(x))
        last = nn.initializers.variance_scaling(self.output_scale**2, "fan_in", "truncated_normal")
        return nn.Dense(self.sizes[-1], param_dtype=dtype, kernel_init=last)(x)
