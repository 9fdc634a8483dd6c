"""Φ of a finite instance to second order, in closed form, and a search for its stationary points.

Dimensions: D reward parameters as one vector φ, S states, A actions, N segments. Meant for float64 and small D: Hessians
are dense, and nothing calls LAPACK (see `bilevel.linear`). Searches stop when they arrive, so map over lanes with
`jax.lax.map`: a vmap would keep all of them at it until the slowest is there.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel import exact
from bilevel.exact.bilevel import enumerated
from bilevel.linear import is_positive, solve_dominant
from bilevel.lookup import bind, pair_table, policy_table
from bilevel.preferences import Objective, log_likelihood
from bilevel.returns import discount_powers
from bilevel.types import Array, Coefficients, Model, Params, Problem
from envs.base import MDP

RESIDUAL = 1e-10  # largest ‖∇Φ‖ of a stationary point
MARGIN = 1e-5  # smallest probability at one: where policies or labels saturate ∇Φ falls too, and plateaus look alike
STEP = 1e-3  # largest last step of a search at one: on a plateau steps stay long while ∇Φ falls


class Expansion(NamedTuple):
    """A function at a point to second order: value [], gradient [D], hessian [D, D]."""

    value: Array
    gradient: Array
    hessian: Array


class Landscape(NamedTuple):
    """The bilevel problem as functions: Φ(φ) = G(φ, λ*(φ)).

    Attributes:
        table: φ [D] -> r_φ [S, A].
        lower: r [S, A] -> the lower-level problem, w > 0.
        upper: r [S, A] -> Φ to second order in the S·A rewards.
    """

    table: Callable[[Array], Array]
    lower: Callable[[Array], exact.LowerLevel]
    upper: Callable[[Array], Expansion]


class Stationary(NamedTuple):
    """Where a search ended; leading axes are batch axes. `is_stationary` tells whether it is a stationary point.

    Attributes:
        params: [D] φ.
        value: [] Φ(φ), in the objective's unit (nats for likelihoods).
        gradient_norm: [] ‖∇Φ(φ)‖.
        margin: [] how far from saturation; see `margin`.
        step: [] length of the last step taken, in units of φ.
        is_peak: [] bool, no direction up to second order: the largest eigenvalue of ∇²Φ is at most 1e-6 of its norm.
    """

    params: Array
    value: Array
    gradient_norm: Array
    margin: Array
    step: Array
    is_peak: Array


# The landscape --------------------------------------------------------------------------------------------------------


def landscape(
    problem: Problem, mdp: MDP, segment_length: int, coefficients: Coefficients, objective: Objective = log_likelihood
) -> Landscape:
    """The problem's Φ, exactly: optimal policies by linear solves, preferences by enumeration. Policies are tables.

    Raises:
        ValueError: w is 0, the segments are too many to enumerate, or the objective needs labels that the annotator does
            not give.
    """
    exact.require_kl(coefficients.kl_weight)
    env, (_, unravel) = problem.env, flat(problem.reward)
    segments, comparisons = enumerated(problem, segment_length, objective)
    reference = policy_table(env, problem.reference)
    visited = jax.nn.one_hot(segments.state * env.num_actions + segments.action, reference.size, dtype=reference.dtype)
    visits = jnp.sum(visited, axis=1)  # [N, S·A], and with weights γ^h:
    discounted = jnp.einsum(
        "nhx,h->nx", visited, discount_powers(coefficients.discount, segment_length, reference.dtype)
    )

    def lower(reward):
        return exact.lower_level(mdp, reward, reference, coefficients.discount, coefficients.kl_weight)

    def preferences(logits):
        """ℓ [N, N] with its first and second derivatives in the logits."""
        along = jnp.ones_like(logits)
        once = lambda x: jax.jvp(lambda y: comparisons.weight * objective(y, comparisons), (x,), (along,))  # noqa: E731
        (value, slope), (_, bend) = jax.jvp(once, (logits,), (along,))
        return value, slope, bend

    def upper(reward):
        # G = pᵀ ℓ p, p the law of segments: log p changes by `visits` · log π*, R by `discounted` · r.
        problem = lower(reward)
        policy = exact.optimal_policy(problem).policy
        law = exact.segment_law(mdp, policy, segments)
        returns = coefficients.rationality * discounted @ reward.ravel()
        value, slope, bend = preferences(returns[:, None] - returns[None, :])
        # Either order of a pair is as likely: only these parts count.
        value, slope, bend = (value + value.T) / 2, (slope - slope.T) / 2, (bend + bend.T) / 2
        log_policy = log_policy_derivatives(problem, policy)
        in_law, in_returns = visits @ log_policy.jacobian, coefficients.rationality * discounted
        by_law, by_slope, by_bend = (2 * law * (x @ law) for x in (value, slope, bend))
        x, y = law[:, None] * in_law, law[:, None] * in_returns
        mixed = in_law.T @ (by_slope[:, None] * in_returns) - 2 * x.T @ slope @ y
        hessian = (
            in_law.T @ (by_law[:, None] * in_law)
            + in_returns.T @ (by_bend[:, None] * in_returns)
            + 2 * (x.T @ value @ x - y.T @ bend @ y)
            + (mixed + mixed.T)
            + log_policy.curvature(by_law @ visits)
        )
        return Expansion(law @ value @ law, by_law @ in_law + by_slope @ in_returns, hessian)

    return Landscape(lambda params: pair_table(env, bind(problem.reward, unravel(params))), lower, upper)


class LogPolicy(NamedTuple):
    """Derivatives of log π*(r), as a vector of S·A numbers, in the S·A rewards.

    Attributes:
        jacobian: [S·A, S·A].
        curvature: weights [S·A] -> ∇²⟨weights, log π*(r)⟩ [S·A, S·A].
    """

    jacobian: Array
    curvature: Callable[[Array], Array]


def log_policy_derivatives(lower: exact.LowerLevel, policy: Array) -> LogPolicy:
    """At π* = `policy` [S, A], derived: with M = (I − γ P_π*)⁻¹ and, along a change u of the reward,

    ∂_u V* = M E_π* u,    A_u = ∂_u Q* − ∂_u V*,    ∂_u log π* = A_u/w    (HPGD 2406.01575),
    ∂_u ∂_v V* = M E_π*[A_u A_v]/w,    ∂_u ∂_v log π* = (γ P − 1) ∂_u ∂_v V*/w.
    """
    states, actions = policy.shape
    chain = jnp.einsum("sa,sat->st", policy, lower.transition)
    identity = jnp.eye(states, dtype=policy.dtype)
    resolvent = jax.vmap(solve_dominant, (None, 1), 1)(identity - lower.discount * chain, identity)
    values = (resolvent[:, :, None] * policy).reshape(states, -1)  # ∂V*
    expected = lower.discount * jnp.einsum("sat,tx->sax", lower.transition, values) - values[:, None]
    advantages = jnp.eye(policy.size, dtype=policy.dtype) + expected.reshape(policy.size, -1)

    def curvature(weights):
        weights = weights.reshape(states, actions)
        pushed = lower.discount * jnp.einsum("sa,sat->t", weights, lower.transition) - jnp.sum(weights, axis=1)
        share = (pushed @ resolvent)[:, None] * policy / lower.kl_weight**2
        return advantages.T @ (share.ravel()[:, None] * advantages)

    return LogPolicy(advantages / lower.kl_weight, curvature)


def flat(model: Model) -> tuple[int, Callable[[Array], Params]]:
    """D, and the function from φ [D] to the model's parameters."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    zeros, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
    return zeros.size, unravel


def expand(land: Landscape, params: Array) -> Expansion:
    """Φ to second order in φ [D]: ∇² = Jᵀ Φ″ J + ∇²⟨Φ′, r_φ⟩ by the chain rule, with J = ∂r_φ/∂φ."""
    at = land.upper(land.table(params))
    jacobian = jax.jacobian(land.table)(params).reshape(at.gradient.size, params.size)
    own = jax.hessian(lambda x: at.gradient @ land.table(x).ravel())(params)
    return Expansion(at.value, at.gradient @ jacobian, jacobian.T @ at.hessian @ jacobian + own)


# Stationary points -----------------------------------------------------------------------------------------------------


def margin(land: Landscape, params: Array) -> Array:
    """The smallest probability in Φ, []: of an action, min π*(a|s), or of a label of one step, sigmoid(min r − max r).

    A label of H steps may be less likely still; both go to zero together. Where this does, so does ∇Φ in some direction,
    and φ is on its way to infinity instead of a stationary point.
    """
    reward = land.table(params)
    policy = exact.optimal_policy(land.lower(reward)).policy
    return jnp.minimum(jnp.min(policy), jax.nn.sigmoid(jnp.min(reward) - jnp.max(reward)))


def is_stationary(found: Stationary) -> Array:
    """Whether ∇Φ vanishes there, at a point instead of along a plateau, [...] bool."""
    return (found.gradient_norm <= RESIDUAL) & ~_on_plateau(found)


def runs_away(found: Stationary) -> Array:
    """Whether ∇Φ is small because something saturates: the search leaves for infinity along a plateau, [...] bool."""
    return (found.gradient_norm <= 1e4 * RESIDUAL) & _on_plateau(found)


def _on_plateau(found: Stationary) -> Array:
    return (found.margin < MARGIN) | (found.step > STEP)


def search(land: Landscape, start: Array, climb: Array | bool, max_steps: Array | int) -> Stationary:
    """A stationary point near start [D], by Levenberg–Marquardt: Newton's method, damped until it gets better.

    Args:
        land: Φ.
        start: [D].
        climb: [] bool. True: steps on −∇²Φ that raise Φ, to a local maximum uphill. False: steps that lower ‖∇Φ‖, to a
            stationary point of any kind (or to a local minimum of ‖∇Φ‖, which `is_stationary` refuses).
        max_steps: [] expansions of Φ at most; with 1 it stays at its start.
    """
    chex.assert_rank(start, 1)
    identity, tiny = jnp.eye(start.size, dtype=start.dtype), jnp.finfo(start.dtype).tiny

    def better(new, old):
        # Close to a maximum Φ changes by rounding alone, and the gradient decides. NaN is never better.
        closer = _norm(new) < _norm(old)
        level = new.value >= old.value - 1e-14 * (1 + jnp.abs(old.value))
        return jnp.where(climb, (new.value > old.value) | (level & closer), closer) | ~jnp.isfinite(old.value)

    def going(state):
        arrived = (_norm(state.at) <= RESIDUAL / 10) & (state.count > 0)
        return (state.count < max_steps) & ~arrived & (state.damping < 1e8)

    def body(old):
        matrix = jnp.where(climb, -old.at.hessian, old.at.hessian @ old.at.hessian)
        right = jnp.where(climb, old.at.gradient, -old.at.hessian @ old.at.gradient)
        # Positive definite once damped enough, so that no pivots are needed; what comes of it before that is refused.
        shift = jnp.maximum(old.damping * jnp.linalg.norm(matrix), tiny)
        move = solve_dominant(matrix + shift * identity, right)
        at = expand(land, old.params + move)
        accept = better(at, old.at)
        new, kept = (old.params + move, at, jnp.linalg.norm(move)), (old.params, old.at, old.step)
        damping = jnp.maximum(old.damping * jnp.where(accept, 0.2, 4.0), 1e-13)
        return _Search(*jax.tree.map(lambda x, y: jnp.where(accept, x, y), new, kept), damping, old.count + 1)

    # The first step goes nowhere, and looks there: one copy of the costly function to compile.
    unknown = Expansion(jnp.full_like(start[0], jnp.nan), jnp.zeros_like(start), 0.0 * identity)
    one = jnp.ones_like(start[0])
    end = jax.lax.while_loop(going, body, _Search(start, unknown, one, one, jnp.int32(0)))
    shifted = 1e-6 * jnp.linalg.norm(end.at.hessian) * identity - end.at.hessian
    return Stationary(end.params, end.at.value, _norm(end.at), margin(land, end.params), end.step, is_positive(shifted))


class _Search(NamedTuple):
    params: Array  # [D]
    at: Expansion
    step: Array  # [] length of the last one taken
    damping: Array  # [], relative to the norm of the matrix
    count: Array  # [] of expansions


def _norm(at: Expansion) -> Array:
    return jnp.linalg.norm(at.gradient)
