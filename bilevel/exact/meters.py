"""Meters: the constants that the convergence theorem assumes (2410.15610), measured on one finite instance.

A rate may fail because its assumptions do, and then these numbers say which. A minimum over points is an upper estimate of
a constant that has to be positive: it can refute the assumption and never prove it.

Dimensions: P points, S states, A actions. Pure functions, to be jitted and vmapped over instances; meant for float64.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from bilevel import exact
from bilevel.exact.landscape import Landscape, expand
from bilevel.types import Array


class Meters(NamedTuple):
    """The constants at a set of points, all []; see `measure`.

    Attributes:
        domination: μ̂₁ over the points, an upper estimate of μ₁, in 1/(unit of φ)².
        smoothness: largest ‖∇²Φ‖ (spectral) at the points, a lower estimate of L, in units of Φ a (unit of φ)².
        lower_pl: smallest ‖∇_λ J‖²/(2 (J* − J)) over points and logits, units of reward; an upper estimate.
        lower_pl_bound: smallest of its lower bounds there.
        concentrability: largest dπ*/(d_ref π_ref) of the optimal policies, ≥ 1; and
        divergence: largest χ²(dπ* ‖ d_ref π_ref), ≥ 0.
    """

    domination: Array
    smoothness: Array
    lower_pl: Array
    lower_pl_bound: Array
    concentrability: Array
    divergence: Array


def measure(land: Landscape, params: Array, logits: Array, best: Array | float = -jnp.inf) -> Meters:
    """All meters of a finite instance, such as along a run or over random points; those where Φ is NaN are left out.

    Args:
        land: from `landscape.landscape`; its policies are tables.
        params: [P, D] φ.
        logits: [P, S, A] of policies, at which the lower level under each φ is measured.
        best: [] Φ* if it is known; the best of the points counts if it is larger.
    """

    def at(params, logits):
        found = expand(land, params)
        lower = land.lower(land.table(params))
        levels = lower_pl(lower, logits), coverage(lower, exact.optimal_policy(lower).policy)
        return found.value, jnp.linalg.norm(found.gradient), spectral_norm(found.hessian), *levels

    values, norms, curvatures, (pl, bound), (worst, chi) = jax.lax.map(lambda x: at(*x), (params, logits))
    constant = domination(values, norms, jnp.fmax(best, jnp.nanmax(values)))
    return Meters(
        constant, jnp.nanmax(curvatures), jnp.nanmin(pl), jnp.nanmin(bound), jnp.nanmax(worst), jnp.nanmax(chi)
    )


def spectral_norm(matrix: Array, num_squarings: int = 30) -> Array:
    """‖M‖ of a symmetric matrix [D, D], []: lim ‖Mᴺ‖_F^(1/N), N = 2ᵏ, normalised on the way.

    From above: it exceeds ‖M‖ by at most the factor D^(1/2N), which the identity attains.
    """

    def square(_, carry):
        power, log_norm, share = carry
        size = jnp.linalg.norm(power)
        power = power / jnp.where(size > 0, size, 1.0)
        return power @ power, log_norm + share * jnp.log(size), share / 2

    one = jnp.ones_like(matrix[0, 0])
    power, log_norm, share = jax.lax.fori_loop(0, num_squarings, square, (matrix, 0.0 * one, one))
    return jnp.exp(log_norm + share * jnp.log(jnp.linalg.norm(power)))


def domination(values: Array, norms: Array, best: Array, tolerance: float = 1e-5) -> Array:
    """μ̂₁, []: the largest μ₁ with √μ₁ (Φ* − Φ) ≤ ‖∇Φ‖ at all points, min (‖∇Φ‖/(Φ* − Φ))², in 1/(unit of φ)².

    Args:
        values: [P] Φ; points where it is not finite are left out.
        norms: [P] ‖∇Φ‖.
        best: [] Φ*, or the best value found: where that is too small μ̂₁ is too large, an upper estimate either way.
        tolerance: points whose gap Φ* − Φ is at most this are left out; inf where none remains.
    """
    chex.assert_equal_shape((values, norms))
    gap = best - values
    counted = (gap > tolerance) & jnp.isfinite(norms)
    return jnp.min(jnp.where(counted, (norms / jnp.where(counted, gap, 1.0)) ** 2, jnp.inf))


def lower_pl(lower: exact.LowerLevel, logits: Array, tolerance: float = 1e-6) -> tuple[Array, Array]:
    """The Polyak–Łojasiewicz constant of J in the logits [S, A] of a table at this policy, and a lower bound, both [].

    Measured: ‖∇_λ J‖²/(2 (J* − J)), units of reward; NaN where J* − J is at most the tolerance. Bound:

        μ(λ) = w/(1 − γ) · min_s d(s)² min_a π(a|s)² / d*(s)

    since J* − J ≤ Σ_s d*(s) max_a A(s, a)² / (2w (1 − γ)), by the performance difference and Hoeffding's lemma,
    max_p E_p A − w KL(p ‖ π) = w log E_π e^(A/w) ≤ max_a A²/(2w) where E_π A = 0, and ∂J/∂λ(s, a) =
    d(s) π(a|s) A(s, a)/(1 − γ): the argument of Mei et al. 2020 (2005.06392, Lemma 15), kept in d, d* and
    w KL(π ‖ π_ref). It vanishes as π approaches a vertex: no constant holds for all λ.
    """
    chex.assert_equal_shape((logits, lower.reward))
    policy = jax.nn.softmax(logits, axis=-1)
    optimal = exact.optimal_policy(lower).policy
    slope = jax.grad(lambda x: exact.regularised_return(lower, jax.nn.softmax(x, axis=-1)))(logits)
    gap = exact.regularised_return(lower, optimal) - exact.regularised_return(lower, policy)
    visits, visits_of_optimum = exact.occupancy(lower, policy), exact.occupancy(lower, optimal)
    tiny = jnp.finfo(policy.dtype).tiny
    share = (visits * jnp.min(policy, axis=-1)) ** 2 / jnp.maximum(visits_of_optimum, tiny)
    measured = jnp.where(gap > tolerance, jnp.sum(slope**2) / (2 * jnp.maximum(gap, tolerance)), jnp.nan)
    return measured, lower.kl_weight / (1 - lower.discount) * jnp.min(share)


def coverage(lower: exact.LowerLevel, policy: Array) -> tuple[Array, Array]:
    """How far the reference's visits cover a policy's [S, A]: max of dπ/(d_ref π_ref), ≥ 1, and χ²(dπ ‖ d_ref π_ref)."""
    law = exact.occupancy(lower, policy)[:, None] * policy
    reference = exact.occupancy(lower, lower.reference)[:, None] * lower.reference
    ratio = jnp.where(law > 0, law / jnp.where(law > 0, reference, 1.0), 0.0)
    return jnp.max(ratio), jnp.sum(law * ratio) - 1.0
