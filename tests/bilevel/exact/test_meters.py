"""Meters against closed forms, random instances and planted violations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import near

from bilevel import exact
from bilevel.exact import landscape, meters
from bilevel.exact.bilevel import tabular_problem
from bilevel.types import Coefficients
from envs.base import MDP
from envs.tabular import garnet


def two_arms(reward, kl_weight=0.5):
    """One state, two actions, γ = 0, a uniform reference."""
    mdp = MDP(jnp.ones(1), jnp.ones((1, 2, 1)), jnp.asarray(reward).reshape(1, 2))
    return exact.lower_level(mdp, mdp.reward, jnp.full((1, 2), 0.5), 0.0, kl_weight)


def test_domination_of_a_quadratic_is_its_closed_form(x64):
    # Φ = −½ xᵀDx: ‖∇Φ‖ / (Φ* − Φ) = 2 ‖Dx‖ / xᵀDx.
    curvature = jnp.array([1.0, 4.0])
    points = jnp.array([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    values, norms = -0.5 * points**2 @ curvature, jnp.linalg.norm(points * curvature, axis=1)
    near(meters.domination(values, norms, jnp.zeros(())), 4 / 9)
    near(meters.domination(values[:2], norms[:2], jnp.zeros(())), 4.0)


def test_domination_leaves_out_what_is_not_finite_and_sees_a_planted_stationary_point():
    values, norms = jnp.array([-1.0, jnp.nan, -2.0, 0.0]), jnp.array([1.0, 0.0, jnp.nan, 1.0])
    assert meters.domination(values, norms, 0.0) == 1.0
    assert meters.domination(jnp.append(values, -0.5), jnp.append(norms, 0.0), 0.0) == 0.0
    assert jnp.isinf(meters.domination(values[3:], norms[3:], 0.0))


@pytest.mark.parametrize("kl_weight", [0.3, 2.0])
def test_the_pl_constant_of_two_arms_is_its_closed_form(kl_weight, x64):
    # With p = π(1), p* = sigmoid((r_1 − r_2)/w), Δ = w (logit p* − logit p): ∇J = p(1 − p)Δ (1, −1), J* − J = w KL(p ‖ p*).
    lower = two_arms([1.0, 0.2], kl_weight)
    best = 1 / (1 + np.exp(-0.8 / kl_weight))
    logit = lambda p: np.log(p / (1 - p))  # noqa: E731
    constants = jax.jit(lambda x, tolerance=1e-6: meters.lower_pl(lower, jnp.array([[x, 0.0]]), tolerance))
    for p in (0.05, 0.5, 0.9):
        measured, bound = constants(logit(p))
        gap = kl_weight * (p * np.log(p / best) + (1 - p) * np.log((1 - p) / (1 - best)))
        slope = p * (1 - p) * kl_weight * (logit(best) - logit(p))
        near(measured, slope**2 / gap)
        near(bound, kl_weight * min(p, 1 - p) ** 2)
    beside, _ = constants(logit(best) + 1e-2, 0.0)
    near(beside, 2 * kl_weight * best * (1 - best), 0.02)  # the smallest curvature but that of constants
    assert jnp.isnan(constants(logit(best))[0])


def test_the_pl_bound_holds_on_random_mdps(x64):
    @jax.jit
    @jax.vmap
    def both(key):
        keys = jax.random.split(key, 3)
        mdp = garnet(keys[0], 4, 3)
        prior = jax.random.dirichlet(keys[1], jnp.ones(3), (4,))
        lower = exact.lower_level(mdp, mdp.reward, prior, 0.8, 0.4)
        return meters.lower_pl(lower, 2 * jax.random.normal(keys[2], (4, 3)))

    measured, bound = both(jax.random.split(jax.random.key(0), 200))
    assert (bound > 0).all()
    assert (bound <= measured).all()
    assert np.max(bound / measured) > 1e-4  # not by being next to zero


def test_the_spectral_norm_is_the_largest_absolute_eigenvalue(x64):
    norms = jax.jit(meters.spectral_norm)
    for seed, size in enumerate((1, 2, 7)):
        matrix = jax.random.normal(jax.random.key(seed), (size, size))
        near(norms(matrix + matrix.T), np.abs(np.linalg.eigvalsh(matrix + matrix.T)).max())
    near(norms(jnp.diag(jnp.array([-3.0, 3.0, 1.0]))), 3.0)
    near(norms(jnp.eye(3)), 1.0)
    assert norms(jnp.zeros((2, 2))) == 0


def test_all_meters_by_one_call_agree_with_each_alone(x64):
    mdp, coefficients = garnet(jax.random.key(0), 3, 2), Coefficients(discount=0.9, kl_weight=1.0)
    land = landscape.landscape(tabular_problem(mdp, coefficients), mdp, 2, coefficients)
    points = jax.random.normal(jax.random.key(1), (4, 6))
    logits = jax.random.normal(jax.random.key(2), (4, 3, 2))
    # Beside them a point that is not a number, which counts for nothing.
    nothing = jnp.concatenate([points, jnp.full((1, 6), jnp.nan)]), jnp.concatenate([logits, logits[:1]])
    found = jax.jit(lambda best: meters.measure(land, *nothing, best))
    ours = found(-jnp.inf)
    at = [jax.jit(lambda x: landscape.expand(land, x))(x) for x in points]
    values = np.array([x.value for x in at])
    norms = np.array([np.linalg.norm(x.gradient) for x in at])
    near(ours.smoothness, max(np.abs(np.linalg.eigvalsh(x.hessian)).max() for x in at))
    others = np.arange(4) != values.argmax()
    near(ours.domination, np.min((norms[others] / (values.max() - values[others])) ** 2))
    near(found(1.0).domination, np.min((norms / (1.0 - values)) ** 2))
    lower = [land.lower(x.reshape(3, 2)) for x in points]
    assert 0 < ours.lower_pl_bound <= ours.lower_pl
    near(ours.lower_pl, min(meters.lower_pl(*x)[0] for x in zip(lower, logits, strict=True)))
    cover = np.array([meters.coverage(x, exact.optimal_policy(x).policy) for x in lower])
    near((ours.concentrability, ours.divergence), cover.max(axis=0))


def test_coverage_by_hand(x64):
    lower = two_arms([0.0, 0.0])
    near(meters.coverage(lower, lower.reference), (1.0, 0.0))
    near(meters.coverage(lower, jnp.array([[0.9, 0.1]])), (1.8, 2 * (0.81 + 0.01) - 1))
    near(meters.coverage(lower, jnp.array([[1.0, 0.0]])), (2.0, 1.0))
    unseen = lower._replace(reference=jnp.array([[1.0, 0.0]]))
    assert jnp.isinf(meters.coverage(unseen, jnp.array([[0.9, 0.1]]))[0])


def test_arrays_that_do_not_belong_together_are_refused_with_both_shapes():
    with pytest.raises(AssertionError, match=r"different shapes: \[\(3,\), \(2,\)\]"):
        meters.domination(jnp.zeros(3), jnp.zeros(2), 0.0)
    with pytest.raises(AssertionError, match=r"different shapes: \[\(2, 2\), \(1, 2\)\]"):
        meters.lower_pl(two_arms([1.0, 0.0]), jnp.zeros((2, 2)))
