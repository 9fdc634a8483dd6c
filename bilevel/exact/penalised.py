"""The penalised lower level: λ*_σ ∈ argmax_λ J + σ G on a finite MDP, by Newton's method and mirror ascent."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bilevel.exact.values import (
    LowerLevel,
    Solution,
    action_values,
    occupancy,
    optimal_policy,
    regularised_return,
    tolerance_of,
)
from bilevel.linear import solve_definite
from bilevel.types import Array

# Of the steps that a line search tries; the first, none, and the second, the full step, have a part of their own in it.
NEWTON_SIZES = (0.0, 1.0, 0.5, 0.25, 1 / 16, 1 / 256)
MIRROR_SIZES = (16.0, 4.0, 1.0, 0.5, 0.25, 1 / 16, 1 / 256)


def penalised_policy(
    problem: LowerLevel, penalty: Callable[[Array], Array], sigma, tolerance: float | None = None, max_iterations=100
) -> Solution:
    """λ*_σ ∈ argmax_π F(π), F = J + σ G: a local maximum at least; NaN where none was found.

    A policy is stationary where it is the Gibbs policy π_ref exp(q/w) of its own scores, those of F made linear there:

        q(s, a) = Q(s, a) + σ (1 − γ) ∂G/∂π(a|s) / d(s),    ∂F/∂logit(s, a) = d(s) π(a|s) A_q(s, a) / (1 − γ)

    with A_q = q − w log π/π_ref less its mean. The residual is w max |log π − log π_q|, in units of reward: unlike the
    gradient it does not vanish with π(a|s) or d(s). From each of three starts (π*(r), π_ref and one without symmetry) steps
    are Newton's on q = q(π), with pivots made positive, or of mirror ascent, whichever raises F most; they go on below the
    tolerance for as long as the residual halves, which is to rounding. The stationary point with the largest F is returned.

    What is certain: it is stationary to the residual, and no direction there ascends to second order (pivots of the
    Hessian). That is the maximum where F has no other local maximum, as where G is concave in the occupancy or σ is small
    beside w; where it has several, one of them, which need not be the largest. Dense: S·A up to a few hundred. Not
    differentiable (the envelope theorem makes that unnecessary for ∇Φ_σ).

    Args:
        problem: needs w > 0.
        penalty: policy [S, A] -> G, [], differentiable; it must not depend on the policy in states that J never
            visits, which no KL holds: NaN.
        sigma: [] σ ≥ 0; NaN for another.
        tolerance: largest residual accepted, relative to (1 + max|r| + w)/(1 − γ) + max|q|; None: min(1, σ) times 1e-10
            in float64, 1e-4 in float32, and no less than 256 roundings, since ∇Φ_σ divides errors by σ.
        max_iterations: Newton or mirror steps at most, from each start.
    """
    shape, dtype = problem.reward.shape, problem.reward.dtype
    eps = jnp.finfo(dtype).eps
    if tolerance is None:
        tolerance = jnp.maximum(tolerance_of(problem.reward, None) * jnp.minimum(1.0, sigma), 256 * eps)
    size = (1.0 + jnp.max(jnp.abs(problem.reward)) + problem.kl_weight) / (1 - problem.discount)

    def value(scores):
        policy = jnp.exp(_log_gibbs(problem, scores))
        return regularised_return(problem, policy) + sigma * penalty(policy)

    def linear(scores):
        """q of the Gibbs policy of these scores, less its mean; and again, for `has_aux`."""
        policy = jnp.exp(_log_gibbs(problem, scores))
        slopes, visits = jax.grad(penalty)(policy), occupancy(problem, policy)[:, None]
        slopes = (1 - problem.discount) * slopes / jnp.where((visits == 0) & (slopes == 0), 1.0, visits)
        own = action_values(problem, policy) + sigma * slopes
        own = own - jnp.sum(jax.lax.stop_gradient(policy) * own, axis=1, keepdims=True)
        return own, own

    def unsolved(carry):
        _, reached, previous, iteration = carry
        return ((reached.error > tolerance) | (reached.error < previous / 2)) & (iteration < max_iterations)

    def ascend(carry):
        scores, reached, _, iteration = carry
        derivative, own = jax.jacfwd(linear, has_aux=True)(scores)
        gap = jnp.max(jnp.abs(_log_gibbs(problem, own) - _log_gibbs(problem, scores))) * problem.kl_weight
        matrix = jnp.eye(scores.size, dtype=dtype) - derivative.reshape(scores.size, scores.size)
        newton, pivot = solve_definite(matrix, (own - scores).ravel())
        searches = (NEWTON_SIZES, newton.reshape(shape)), (MIRROR_SIZES, own - scores)
        candidates = scores + jnp.concatenate([jnp.array(x, dtype)[:, None, None] * step for x, step in searches])
        values = jax.vmap(value)(candidates)
        ranks = jnp.where(jnp.isfinite(values), values, -jnp.inf)
        scale = size + jnp.max(jnp.abs(own))
        # Close to the solution values differ by rounding alone; then the full step is the right one.
        level = ranks[1] >= jnp.max(ranks) - 8 * eps * scale / (1 - problem.discount)
        close = (pivot > 0) & (gap < jnp.cbrt(eps) * scale)
        best = jnp.where(level | close, 1, jnp.argmax(ranks))
        found = _Reached(scores, ranks[0], gap, jnp.where(pivot > -jnp.sqrt(eps), gap / scale, jnp.inf))
        return candidates[best], found, reached.error, iteration + 1

    def from_start(scores):
        far = jnp.full((), jnp.inf, dtype)
        carry = (scores, _Reached(scores, -far, far, far), far, jnp.int32(0))
        return jax.lax.while_loop(unsolved, ascend, carry)[1]

    optimal = action_values(problem, optimal_policy(problem).policy)
    uneven = jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)
    starts = jnp.stack([optimal, 0.0 * optimal, problem.kl_weight * uneven])
    found = jax.vmap(from_start)(starts)
    found = jax.tree.map(lambda x: jnp.where(jnp.isnan(x), jnp.inf, x), found)
    # Of the starts that end equally high, the one that ends most exactly.
    highest = jnp.max(found.value)
    level = found.value >= highest - 64 * eps * (size + jnp.abs(highest))
    best = jnp.argmin(jnp.where(level, found.error, jnp.inf))
    scores, _, residual, error = jax.tree.map(lambda x: x[best], found)
    policy = jnp.exp(_log_gibbs(problem, scores))
    return Solution(jnp.where((error <= tolerance) & (sigma >= 0), policy, jnp.nan), residual)


class _Reached(NamedTuple):
    """Where an ascent stands: the scores [S, A], their F, the residual, and that over its scale; inf at no maximum."""

    scores: Array
    value: Array
    residual: Array
    error: Array


def _log_gibbs(problem: LowerLevel, scores: Array) -> Array:
    """log π_ref + q/w, normalised, [S, A]."""
    return jax.nn.log_softmax(jnp.log(problem.reference) + scores / problem.kl_weight, axis=-1)
