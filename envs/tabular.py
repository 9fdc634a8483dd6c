"""Finite worlds: an `MDP` as an `Env`, its checks, and random (Garnet) instances."""

import jax
import jax.numpy as jnp
import numpy as np

from envs.base import MDP, Array, Env, Inversion, World


def tabular_env(mdp: MDP, horizon: int | None = None) -> Env:
    """An MDP's dynamics as an `Env` whose states and observations are indices ([] int32).

    Draws invert the cumulative distribution with one uniform, so equal keys couple two nearby policies. May be called
    inside a traced function, so that instances can be vmapped.

    Args:
        mdp: arrays of shapes [S], [S, A, S], [S, A].
        horizon: steps of an evaluation episode, see `Env`.
    """
    num_states, num_actions, _ = mdp.transition.shape
    dtype = mdp.transition.dtype
    initial_cdf = jnp.cumsum(mdp.initial)
    successors, transition_cdf = reachable(mdp.transition)

    def first(uniform):
        return invert_cdf(uniform, initial_cdf)

    def successor(uniform, state, action):
        index = invert_cdf(uniform, transition_cdf[state, action])
        return index if successors is None else successors[state, action, index]

    def init(key):
        return first(jax.random.uniform(key, dtype=dtype))

    def step(key, state, action):
        return successor(jax.random.uniform(key, dtype=dtype), state, action)

    return Env(
        init,
        step,
        lambda state: state,
        num_states=num_states,
        num_actions=num_actions,
        horizon=horizon,
        inversion=Inversion(first, successor),
    )


def reachable(transition: Array) -> tuple[Array | None, Array]:
    """(successors [S, A, N], cumulative probabilities [S, A, N]) of the at most N states that a step can reach.

    Where the transitions are traced, N is not known: successors is None, and the cumulative probabilities are [S, A, S].
    The draws are the same either way.
    """
    cdf = jnp.cumsum(transition, axis=-1)
    if isinstance(transition, jax.core.Tracer):
        return None, cdf
    possible = np.asarray(transition) > 0
    order = np.argsort(~possible, axis=-1, kind="stable")[..., : possible.sum(axis=-1).max()]
    padding = ~np.take_along_axis(possible, order, axis=-1)
    return jnp.asarray(order, jnp.int32), jnp.where(padding, cdf[..., -1:], jnp.take_along_axis(cdf, order, axis=-1))


def tabular(mdp: MDP, horizon: int | None = None, features=None, action_features=None) -> World:
    """A finite world: `tabular_env(mdp)` beside its true reward. Call `check_mdp` first on arrays from outside."""
    env = tabular_env(mdp, horizon)
    return World(env, lambda state, action: mdp.reward[state, action], mdp, features, action_features)


def invert_cdf(uniform: Array, cdf: Array) -> Array:
    """The index ([] int32) at which cumulative probabilities `cdf` [N] exceed a uniform number in [0, 1).

    The uniform is scaled by the last entry, so a sum that rounding left below one yields no index of probability zero.
    """
    return jnp.sum(uniform * cdf[-1] >= cdf[:-1], dtype=jnp.int32)


def garnet(key: Array, num_states: int, num_actions: int, num_successors: int | None = None) -> MDP:
    """A random MDP (Archibald et al. 1995): each (s, a) reaches `num_successors` states, rewards are standard normal.

    Successor probabilities and ρ are Dirichlet(½), which makes instances skewed enough to tell policies apart.
    vmap over keys for many instances.

    Args:
        key: PRNG key.
        num_states: S ≥ 1.
        num_actions: A ≥ 1.
        num_successors: states reachable from each (s, a), 1 to S; None: all S.

    Raises:
        ValueError: num_successors is out of range.
    """
    num_successors = num_states if num_successors is None else num_successors
    if not 1 <= num_successors <= num_states:
        raise ValueError(f"num_successors is {num_successors}; required: 1 to num_states = {num_states}")
    key_initial, key_choice, key_weight, key_reward = jax.random.split(key, 4)
    shape = (num_states, num_actions)
    rank = jnp.argsort(jnp.argsort(jax.random.uniform(key_choice, (*shape, num_states)), axis=-1), axis=-1)
    transition = _skewed(key_weight, (*shape, num_states), rank < num_successors)
    initial = _skewed(key_initial, (num_states,), True)
    return MDP(initial, transition, jax.random.normal(key_reward, shape))


def _skewed(key: Array, shape: tuple[int, ...], allowed) -> Array:
    """Dirichlet(½) rows over the allowed entries: normalised squares of normals, which compile faster than gammas."""
    weights = jax.random.normal(key, shape) ** 2
    weights = jnp.where(allowed, jnp.maximum(weights, jnp.finfo(weights.dtype).tiny), 0.0)
    return weights / jnp.sum(weights, axis=-1, keepdims=True)


def check_mdp(mdp: MDP) -> MDP:
    """The same MDP, or a ValueError that names what is wrong with its arrays (host side, before tracing)."""
    initial, transition, reward = (np.asarray(x) for x in mdp)
    if transition.ndim != 3 or transition.shape[0] != transition.shape[2] or 0 in transition.shape:
        raise ValueError(f"transition has shape {transition.shape}; required: [S, A, S] with S, A ≥ 1")
    states, actions, _ = transition.shape
    if initial.shape != (states,):
        raise ValueError(f"initial has shape {initial.shape}; required: ({states},), one probability a state")
    if reward.shape != (states, actions):
        raise ValueError(
            f"reward has shape {reward.shape}; required: ({states}, {actions}), one number a state and action"
        )
    for name, array in zip(mdp._fields, (initial, transition, reward), strict=True):
        if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
            raise ValueError(f"{name} has dtype {array.dtype}; required: real numbers")
        if not np.all(np.isfinite(array)):
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise ValueError(
                f"{name}{list(where)} is {array[where]}; required: finite numbers; repair or drop that entry"
            )
    for name, rows in (("initial", initial[None]), ("transition", transition.reshape(-1, states))):
        if rows.min() < 0:
            raise ValueError(f"{name} holds the negative probability {rows.min():g}; required: entries in [0, 1]")
        sums = rows.sum(axis=-1)
        worst = int(np.argmax(np.abs(sums - 1)))
        if abs(sums[worst] - 1) > 1e-5:
            place = "" if name == "initial" else f"[{worst // actions}, {worst % actions}]"
            raise ValueError(f"{name}{place} sums to {sums[worst]:.6g}; required: 1; divide the row by its sum")
    return mdp
