"""π_ref from what a user gives: the uniform policy, a table, or a fit to demonstrations; and the checks on such files."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bilevel import models
from bilevel.ascent import maximise
from bilevel.lookup import bind
from bilevel.types import Model
from envs.base import World
from experiments.settings.options import OptionError
from experiments.settings.worlds import load_arrays

FIT_STEPS, FIT_STEP_SIZE = 500, 0.01  # of the supervised fit


def build_reference(path: str, seed: int, world: World, policy: Model | None):
    """π_ref of a world, and the policy model, from `uniform` or the path of an .npz file: where the reference was
    fitted to demonstrations, with that seed, the policy starts from it. Raises OptionError where the file does not fit
    the world."""
    env = world.env
    if path == "uniform":
        return models.uniform_reference(env), policy
    if not path.endswith(".npz"):
        raise OptionError(f"--reference is {path!r}; required: uniform, or the path of an .npz file")
    data = load_arrays("reference", path, ("obs", "action"), "policy" if env.num_states is not None else None)
    if "policy" in data:
        return models.given_reference(check_policy(path, data["policy"], env)), policy
    obs, action = check_demonstrations(path, data, world)
    if policy is None:
        raise OptionError(
            f"--reference {path} holds demonstrations, and the algorithm brings a policy of its own, which is not fitted to "
            "them; required: uniform, or an .npz file with policy [S, A]"
        )
    params = fit_policy(policy, jax.random.key(seed), obs, action)
    return bind(policy, params), models.started_at(policy, params)


def fit_policy(policy: Model, key, obs, action) -> Any:
    """Parameters of maximum likelihood on demonstrations, obs [N] or [N, D] and action [N] or [N, action_size], started
    by the key: supervised fine-tuning, the first stage of RLHF."""

    def likelihood(params):
        return jnp.mean(jax.vmap(lambda o, a: policy.apply(params, o).log_prob(a))(obs, action))

    fit = jax.jit(lambda params: maximise(likelihood, optax.adam(FIT_STEP_SIZE), params, FIT_STEPS))
    return fit(policy.init(key))


def check_policy(path: str, table: np.ndarray, env) -> jax.Array:
    """The table as an array, or an OptionError for what is wrong with it."""
    shape = (env.num_states, env.num_actions)
    if table.shape != shape:
        raise OptionError(f"--reference {path}: policy has shape {table.shape}; required: {shape}, [S, A]")
    _check_real(path, "policy", table)
    if not np.all(np.isfinite(table)) or table.min() <= 0:
        raise OptionError(f"--reference {path}: policy has the entry {table.min()}; required: probabilities above 0")
    worst = np.abs(table.sum(axis=1) - 1).argmax()
    if abs(table[worst].sum() - 1) > 1e-5:
        raise OptionError(f"--reference {path}: policy[{worst}] sums to {table[worst].sum():.6g}; required: 1")
    return jnp.asarray(table, float)


def check_demonstrations(path: str, data: dict[str, np.ndarray], world: World) -> tuple[jax.Array, jax.Array]:
    """Observations [N, …] and actions [N, …], or an OptionError for what does not fit the world."""
    env = world.env
    spec = jax.eval_shape(lambda key: env.observe(env.init(key)), jax.random.key(0))
    shapes = {"obs": spec.shape, "action": () if env.num_actions else (env.action_size,)}
    limits = {"obs": env.num_states, "action": env.num_actions}
    for name, shape in shapes.items():
        array = data[name]
        if array.ndim != len(shape) + 1 or array.shape[1:] != shape or not 0 < len(array) == len(data["obs"]):
            raise OptionError(
                f"--reference {path}: {name} has shape {array.shape}; required: (N, {', '.join(map(str, shape))}), N ≥ 1"
            )
        _check_real(path, name, array)
        if not np.all(np.isfinite(array)):
            raise OptionError(f"--reference {path}: {name} has entries that are not finite; required: finite numbers")
        if limits[name] and (array.min() < 0 or array.max() >= limits[name] or np.any(array != array.astype(int))):
            bad = array.min() if array.min() < 0 else array.max()
            raise OptionError(
                f"--reference {path}: {name} holds {bad}; required: whole numbers, 0 to {limits[name] - 1}"
            )
    return tuple(jnp.asarray(data[n], jnp.int32 if limits[n] else float) for n in ("obs", "action"))


def _check_real(path: str, name: str, array: np.ndarray) -> None:
    if array.dtype.kind not in "fiu":
        raise OptionError(f"--reference {path}: {name} has dtype {array.dtype}; required: real numbers")
