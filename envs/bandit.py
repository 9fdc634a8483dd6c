"""Contextual bandits with a linear reward, as finite worlds of horizon one."""

import jax
import jax.numpy as jnp

from envs.base import MDP, Array, World
from envs.tabular import tabular


def linear_bandit(
    key: Array,
    num_contexts: int,
    num_actions: int,
    dimension: int,
    norm_bound: float = 1.0,
    initial: Array | None = None,
) -> tuple[MDP, Array]:
    """A random contextual bandit with features in the unit ball and a linear reward.

        r*(x, a) = ⟨θ*, φ(x, a)⟩,   φ(x, a) uniform in {‖φ‖ ≤ 1},   θ* uniform on {‖θ*‖ = B},   x ~ d_0

    so |r*| ≤ B. States are contexts; whatever the action, the next context is drawn afresh from d_0, so that a long
    rollout is a stream of independent contexts. vmap over keys for many instances.

    Args:
        key: PRNG key.
        num_contexts: X ≥ 1.
        num_actions: A ≥ 1.
        dimension: d ≥ 1, length of φ and θ*.
        norm_bound: B ≥ 0, the norm of θ*; may be traced.
        initial: [X] probabilities d_0 of the contexts; None: uniform.

    Returns:
        The MDP with X states (transition [X, A, X]), and the features φ [X, A, d]. θ* is not kept: it is what a least
        squares fit of `reward` on the features gives back when they span d dimensions.

    Raises:
        ValueError: if a size is below one or `initial` has another length than X.
    """
    for name, size in (("num_contexts", num_contexts), ("num_actions", num_actions), ("dimension", dimension)):
        if size < 1:
            raise ValueError(f"{name} is {size}; required: at least 1")
    if initial is None:
        initial = jnp.full(num_contexts, 1 / num_contexts)
    if initial.shape != (num_contexts,):
        raise ValueError(f"initial has shape {initial.shape}; required: ({num_contexts},), one probability a context")
    key_direction, key_radius, key_theta = jax.random.split(key, 3)
    shape = (num_contexts, num_actions)
    radius = jax.random.uniform(key_radius, (*shape, 1), initial.dtype) ** (1 / dimension)
    features = radius * unit_vectors(key_direction, (*shape, dimension), initial.dtype)
    theta = norm_bound * unit_vectors(key_theta, (dimension,), initial.dtype)
    transition = jnp.broadcast_to(initial, (num_contexts, num_actions, num_contexts))
    return MDP(initial, transition, features @ theta), features


def unit_vectors(key: Array, shape: tuple[int, ...], dtype) -> Array:
    """Vectors along the last axis, uniform on the unit sphere (the direction of a standard normal vector)."""
    normal = jax.random.normal(key, shape, dtype)
    return normal / jnp.linalg.norm(normal, axis=-1, keepdims=True)


def bandit(mdp: MDP, features: Array) -> World:
    """A contextual bandit as a world of horizon one, whose reward models see φ(x, a).

    Args:
        mdp: contexts as states, as `linear_bandit` returns.
        features: φ [X, A, d].

    Raises:
        ValueError: if the features are not one vector for each context and action of `mdp`.
    """
    if features.ndim != 3 or features.shape[:2] != mdp.reward.shape:
        required = "({}, {}, d)".format(*mdp.reward.shape)
        raise ValueError(f"features have shape {features.shape}; required: {required}, a vector a context and action")
    return tabular(mdp, horizon=1, action_features=lambda context, action: features[context, action])
