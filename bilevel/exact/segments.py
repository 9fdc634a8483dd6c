"""Segments by enumeration: their law, their returns, and the preference objective G, without sampling.

Dimensions: S states, A actions, H steps of a segment, N = (S·A)^H segments.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from bilevel.returns import discount_powers
from bilevel.types import Array, Comparison, Trajectory
from envs.base import MDP

MAX_SEGMENTS = 4096  # pairs are enumerated: 4096² numbers are 134 MB in float64


def enumerate_segments(num_states: int, num_actions: int, length: int) -> Trajectory:
    """All N = (S·A)^H segments, as a Trajectory of int32 [N, H]; of use up to N = 4096 (say S=3, A=2, H=4).

    Raises:
        ValueError: a number is below 1, or N is above `MAX_SEGMENTS`; the message says how large it is.
    """
    for name, number in (("num_states", num_states), ("num_actions", num_actions), ("length", length)):
        if number < 1:
            raise ValueError(f"{name} of the segments is {number}; required: at least 1")
    count = (num_states * num_actions) ** length
    if count > MAX_SEGMENTS:
        raise ValueError(
            f"(S·A)^H = ({num_states}·{num_actions})^{length}{_about(count)} segments; exact preference objectives "
            f"enumerate pairs of at most {MAX_SEGMENTS}; shorten the segments, or use sampled gradients"
        )
    pairs = np.indices((num_states * num_actions,) * length).reshape(length, -1).T
    states, actions = (jnp.asarray(x, jnp.int32) for x in np.divmod(pairs, num_actions))
    return Trajectory(states, states, actions)


def _about(count: int) -> str:
    """A count, unless it has too many digits to help."""
    return f" = {count}" if count < 10**12 else ""


def segment_law(mdp: MDP, policy: Array, segments: Trajectory) -> Array:
    """Probability of each segment, ρ(s_0) Π_h π(a_h|s_h) Π_h P(s_{h+1}|s_h, a_h), [N]."""
    chex.assert_shape(policy, mdp.reward.shape)
    state, action = segments.state, segments.action
    moves = mdp.transition[state[:, :-1], action[:, :-1], state[:, 1:]]
    return mdp.initial[state[:, 0]] * jnp.prod(policy[state, action], axis=1) * jnp.prod(moves, axis=1)


def segment_returns(reward: Array, segments: Trajectory, discount) -> Array:
    """R(τ) = Σ_{h<H} γ^h r(s_h, a_h), [N]."""
    powers = discount_powers(discount, segments.state.shape[1], reward.dtype)
    return reward[segments.state, segments.action] @ powers


def exact_comparisons(annotate: Callable, segments: Trajectory) -> Comparison:
    """Every pair of segments [N, N] with the annotator's probability in place of both labels: exact expectations.

    Raises:
        ValueError: the annotator does not give its probability.
    """
    key = jax.random.key(0)  # the probability of a label does not depend on how the label is drawn
    probe = jax.vmap(jax.vmap(annotate, in_axes=(None, None, 0)), in_axes=(None, 0, None))(key, segments, segments)
    probability = probe.probability
    if probability is None:
        raise ValueError(
            "this annotator gives no label probability, which exact expectations need; use sampled gradients"
        )
    return Comparison(None, None, probability, probability, probability, probe.weight)


def preference_objective(
    mdp: MDP,
    policy: Array,
    reward: Array,
    segments: Trajectory,
    comparisons: Comparison,
    objective: Callable[[Array, Comparison], Array],
    discount,
    rationality=1.0,
) -> Array:
    """G(φ, λ) = E_{τ⁰,τ¹~π, y}[ℓ], [], by enumeration; skipped queries count 0. Differentiable in policy and reward.

    Args:
        mdp: arrays; only its dynamics are used.
        policy: [S, A].
        reward: [S, A], r_φ.
        segments: from `enumerate_segments`.
        comparisons: [N, N] from `exact_comparisons`.
        objective: (logit, comparison) -> ℓ, from `bilevel.preferences`.
        discount: [] γ of the segment returns.
        rationality: [] κ of the learner's Bradley–Terry model.
    """
    chex.assert_equal_shape((policy, reward, mdp.reward))
    probability = segment_law(mdp, policy, segments)
    returns = segment_returns(reward, segments, discount)
    logits = rationality * (returns[:, None] - returns[None, :])
    return probability @ (comparisons.weight * objective(logits, comparisons)) @ probability
