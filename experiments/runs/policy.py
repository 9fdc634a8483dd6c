"""The policy that a run has learned, to act with anywhere: in gymnasium's environments as in our worlds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.lookup import bind
from bilevel.types import Distribution, Params
from envs.base import Env, Original
from experiments.runs.driver import load_params
from experiments.settings.config import Config, read_config
from experiments.settings.job import arithmetic, resolve
from experiments.settings.options import OptionError


class Policy(NamedTuple):
    """A learned policy: functions of what the environment shows, compiled when they are first called.

    An observation is the environment's own, as an array or a list: the four numbers of gymnasium's CartPole-v1 (of a run
    with `--cells` too), those of gymnax's and brax's environments, the index of the state on a finite world. Leading batch
    axes are allowed, and the results have them too. An action is one that the environment's `step` takes: an int where
    actions are discrete, otherwise an array of floats within the environment's bounds. Equal inputs give equal results.
    An observation that does not fit raises an OptionError, one line that says what is required.

    Attributes:
        sample: (observation, rng) -> an action drawn from the policy, which is how it was trained and scored; rng is a
            `numpy.random.Generator`, which moves on, or a JAX key. `policy(observation, rng)` is the same.
        greedy: observation -> the action of highest probability, or density.
        distribution: observation -> the law of the action, from distrax: `probs` (of discrete actions),
            `log_prob(action)`, `entropy()`; of continuous actions before bounds clip them.
    """

    sample: Callable[..., Any]
    greedy: Callable[..., Any]
    distribution: Callable[..., Distribution]

    def __call__(self, observation: Any, rng: Any) -> Any:
        """The action that `sample` draws."""
        return self.sample(observation, rng)


def load_policy(path: str | Path, seed: int, point: int = 0) -> Policy:
    """The policy of one seed of a run, from its newest whole checkpoint; seed, point and what is raised are as in
    `load_params`."""
    params = load_params(path, seed, point).policy
    return policy_of(read_config(Path(path)), params)


def policy_of(config: Config, params: Params) -> Policy:
    """The policy of a configuration with the parameters [...] of one seed."""
    with arithmetic(config):
        job, params = resolve(config), jax.tree.map(jnp.asarray, params)
        model, env = job.problem(job.points[0]).policy, job.world.env
        original = job.world.original or itself(env)
    num_states = None if job.world.original else env.num_states
    behave, act = bind(model, params), original.act or (lambda action: action)

    def compiled(function):
        """(law of the action, key …) -> a result, as a function of observations."""
        once = jax.jit(over_batches(lambda obs, *key: function(behave(original.observe(obs)), *key), original.shape))

        def call(observation, *key):
            obs = check_observation(observation, original.shape, num_states)
            with arithmetic(config):
                return once(obs, *key)

        return call

    draw = compiled(lambda law, key: act(law.sample(seed=key)))
    best = compiled(lambda law: act(law.mode()))
    law = compiled(lambda law: law)
    return Policy(
        lambda observation, rng: plain(draw(observation, key_of(rng))),
        lambda observation: plain(best(observation)),
        # Its methods compute later, in the caller's precision: its numbers are given in that.
        lambda observation: jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), law(observation)),
    )


def itself(env: Env) -> Original:
    """A world that restates no other, as an environment that shows what models see."""
    spec = jax.eval_shape(lambda key: env.observe(env.init(key)), jax.random.key(0))
    return Original(spec.shape, lambda obs: obs)


def over_batches(function: Callable, shape: tuple[int, ...]) -> Callable:
    """A function of one observation of that shape, and perhaps a key, as one of any batch and one key for all."""

    def batched(obs, *key):
        batch, many = obs.shape[: obs.ndim - len(shape)], function
        for _ in batch:
            many = jax.vmap(many)
        return many(obs, *(jax.random.split(x, batch) for x in key))

    return batched


def check_observation(observation, shape: tuple[int, ...], num_states: int | None) -> np.ndarray:
    """The observation, numbers nested in lists to any depth, as an array of the shape of one behind batch axes, or an
    OptionError for what is wrong with it. Entries are whole numbers below `num_states`, where that is None any finite
    numbers."""
    try:
        array = np.asarray(observation)
    except ValueError as error:  # lists of different lengths
        raise OptionError(
            f"the observation is no array ({error}); required: shape {shape}, or that behind batch axes"
        ) from error
    if array.dtype.kind not in "fiu":
        raise OptionError(f"the observation has dtype {array.dtype}; required: numbers")
    if array.ndim < len(shape) or array.shape[array.ndim - len(shape) :] != shape:
        raise OptionError(f"the observation has shape {array.shape}; required: {shape}, or that behind batch axes")
    if num_states is None:
        if not np.all(np.isfinite(array)):
            raise OptionError(f"the observation is {array.tolist()}; required: finite numbers")
        return array.astype(float)
    if not np.all((array >= 0) & (array < num_states) & (array % 1 == 0)):
        raise OptionError(f"the observation is {array.tolist()}; required: whole numbers from 0 to {num_states - 1}")
    return array.astype(np.int32)


def key_of(rng) -> jax.Array:
    """A JAX key as it is, or one that a NumPy generator draws."""
    if isinstance(rng, np.random.Generator):
        return jax.random.key(rng.integers(2**32, dtype=np.uint32))
    if isinstance(rng, jax.Array) and rng.shape == () and jnp.issubdtype(rng.dtype, jax.dtypes.prng_key):
        return rng
    if isinstance(rng, jax.Array) and rng.shape == (2,) and rng.dtype == jnp.uint32:  # of jax.random.PRNGKey
        return jax.random.wrap_key_data(rng)
    raise OptionError(f"rng is {rng!r}; required: a numpy.random.Generator, as default_rng(0) is, or a JAX key")


def plain(action: jax.Array) -> int | np.ndarray:
    """One discrete action as an int, others as NumPy arrays."""
    return np.asarray(action) if action.ndim or action.dtype.kind == "f" else int(action)
