"""Φ to second order, searches and meters against closed forms, finite differences and planted violations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import exact, models
from bilevel.exact import landscape, meters
from bilevel.linear import is_positive
from bilevel.preferences import Teacher, annotator, excess_brier, log_likelihood
from bilevel.types import Coefficients, Problem
from envs.base import MDP
from envs.tabular import garnet, tabular


def close(value, expected, tolerance=1e-9):
    np.testing.assert_allclose(np.asarray(value), np.asarray(expected), rtol=tolerance, atol=tolerance)


def two_arms(reward, kl_weight=0.5):
    """One state, two actions, γ = 0, a uniform reference."""
    mdp = MDP(jnp.ones(1), jnp.ones((1, 2, 1)), jnp.asarray(reward).reshape(1, 2))
    return exact.lower_level(mdp, mdp.reward, jnp.full((1, 2), 0.5), 0.0, kl_weight)


def problem_of(mdp, reward, reference=None):
    world = tabular(mdp)
    reference = models.uniform_reference(world.env) if reference is None else models.given_reference(reference)
    policy = models.table_policy(*mdp.reward.shape)
    return Problem(world.env, annotator(world.reward, 0.9, teacher=Teacher(skip_below=-0.5)), reward, policy, reference)


# Φ to second order ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [log_likelihood, excess_brier])
def test_the_closed_form_agrees_with_the_oracles_and_their_differences(objective, x64):
    # Nothing symmetric: a reference that is not uniform, a learner of another rationality, an annotator who skips.
    mdp, coefficients = garnet(jax.random.key(0), 3, 2), Coefficients(kl_weight=0.4, discount=0.9, rationality=1.3)
    prior = jnp.array([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]])
    problem = problem_of(mdp, models.table(3, 2), prior)
    segments = exact.enumerate_segments(3, 2, 2)
    comparisons = exact.exact_comparisons(problem.annotate, segments)
    assert jnp.any(comparisons.weight == 0)

    def oracle(reward):
        policy = exact.optimal_policy(exact.lower_level(mdp, reward, prior, 0.9, 0.4)).policy
        return exact.preference_objective(mdp, policy, reward, segments, comparisons, objective, 0.9, 1.3)

    reward = jax.random.normal(jax.random.key(1), (3, 2))
    at = jax.jit(landscape.landscape(problem, mdp, 2, coefficients, objective).upper)(reward)
    both = jax.jit(jax.value_and_grad(oracle))
    value, gradient = both(reward)
    close(at.value, value)
    close(at.gradient, gradient.ravel())
    moves = 1e-5 * np.eye(6).reshape(6, 3, 2)
    close(at.hessian, [(both(reward + x)[1] - both(reward - x)[1]).ravel() / 2e-5 for x in moves], 1e-7)
    assert np.abs(at.hessian).max() > 0.05


def planted(function, size):
    """A landscape of the "rewards" [1, size] of a bandit with a table: any function of them."""

    def upper(reward):
        flat = reward.ravel()
        return landscape.Expansion(function(flat), jax.grad(function)(flat), jax.hessian(function)(flat))

    return landscape.Landscape(lambda params: params.reshape(1, size), two_arms, upper)


def test_an_expansion_is_the_chain_rule_to_second_order(x64):
    outer = lambda x: jnp.sum(jnp.sin(x) * x[0])  # noqa: E731
    inner = lambda params: jnp.stack([params**2, jnp.exp(params) * params[0]])  # noqa: E731
    point = jnp.array([0.3, -0.7, 1.1])
    at = landscape.expand(planted(outer, 6)._replace(table=inner), point)
    whole = lambda x: outer(inner(x).ravel())  # noqa: E731
    close(at.value, whole(point))
    close(at.gradient, jax.grad(whole)(point))
    close(at.hessian, jax.hessian(whole)(point))


def test_zero_is_a_stationary_point_of_every_tanh_network_and_not_of_an_affine_function(x64):
    mdp = garnet(jax.random.key(3), 3, 2)
    for hidden, stationary in (((2, 2), True), ((), False)):
        problem = problem_of(mdp, models.mlp(*models.pair_features(tabular(mdp)), hidden))
        land = landscape.landscape(problem, mdp, 2, Coefficients(kl_weight=1.0, discount=0.9))
        size, _ = landscape.flat(problem.reward)
        norm = jax.jit(lambda x, land=land: jnp.linalg.norm(landscape.expand(land, x).gradient))
        assert (norm(jnp.zeros(size)) < 1e-12) == stationary
        assert norm(0.5 * jax.random.normal(jax.random.key(1), (size,))) > 1e-2


def test_too_many_segments_and_a_zero_kl_weight_are_refused():
    mdp = garnet(jax.random.key(0), 3, 2)
    problem = problem_of(mdp, models.table(3, 2))
    for zero in (0.0, jnp.zeros(())):
        with pytest.raises(ValueError, match="kl_weight is 0"):
            landscape.landscape(problem, mdp, 2, Coefficients(kl_weight=zero))
    with pytest.raises(ValueError, match="7776 segments"):
        landscape.landscape(problem, mdp, 5, Coefficients())


# Searches -------------------------------------------------------------------------------------------------------------


def searched(function, starts, climb, max_steps=60):
    """Where searches on a plain function of two numbers end."""
    land = planted(function, 2)
    return jax.jit(lambda x: jax.lax.map(lambda y: landscape.search(land, y, climb, max_steps), x))(jnp.array(starts))


def test_a_search_uphill_ends_in_the_maximum_of_a_concave_function(x64):
    centre = jnp.array([1.0, -2.0])
    found = searched(lambda x: -jnp.sum(jnp.cosh(x - centre)), [[4.0, 3.0], [-6.0, 0.0]], True)
    close(found.params, [centre, centre], 1e-8)
    close(found.value, -2.0)
    assert (landscape.is_stationary(found) & found.is_peak & ~landscape.runs_away(found)).all()
    policy = jax.nn.softmax(centre / 0.5)
    close(found.margin, jnp.min(policy))


def test_a_lower_maximum_and_a_saddle_are_found_and_told_apart(x64):
    # −(x² − 1)² + 0.3 x − y²: a maximum on each side, the left one lower, and between them a saddle near 0.
    function = lambda x: -((x[0] ** 2 - 1) ** 2) + 0.3 * x[0] - x[1] ** 2  # noqa: E731
    roots = np.sort(np.roots([-4, 0, 4, 0.3]).real)
    uphill = searched(function, [[-1.4, 0.5], [1.4, -0.5]], True)
    close(uphill.params[:, 0], roots[[0, 2]], 1e-8)
    assert (landscape.is_stationary(uphill) & uphill.is_peak).all()
    assert uphill.value[0] < uphill.value[1] - 0.5
    anywhere = searched(function, [[0.1, 0.5]], False)
    close(anywhere.params[0], [roots[1], 0.0], 1e-8)
    assert landscape.is_stationary(anywhere).all()
    assert not anywhere.is_peak.any()


def test_what_did_not_arrive_or_saturates_is_not_called_stationary(x64):
    assert not landscape.is_stationary(searched(lambda x: -jnp.sum(jnp.cosh(x)), [[0.5, 3.0]], True, 3)).any()
    # Where ‖∇f‖ = √(1 + x²) has its minimum there is no stationary point.
    found = searched(lambda x: 0.5 * x[0] ** 2 + x[1], [[0.7, 0.0]], False)
    close(found.gradient_norm, 1.0)
    assert not landscape.is_stationary(found).any()
    # Up tanh, ∇f → 0 on the way to infinity.
    found = searched(lambda x: jnp.sum(jnp.tanh(x)), [[0.5, 0.1]], True, 200)
    assert landscape.runs_away(found).all()
    assert not landscape.is_stationary(found).any()


def test_positive_matrices_are_those_with_positive_eigenvalues(x64):
    for seed, size in enumerate((1, 2, 7)):
        matrix = jax.random.normal(jax.random.key(seed), (size, size))
        least = np.linalg.eigvalsh(matrix + matrix.T)[0]
        for shift in (-1e-6, 1e-6):
            shifted = matrix + matrix.T + (shift - least) * jnp.eye(size)
            assert is_positive(shifted) == (shift > 0)


# Meters ---------------------------------------------------------------------------------------------------------------


def test_domination_of_a_quadratic_is_its_closed_form(x64):
    # Φ = −½ xᵀDx: ‖∇Φ‖ / (Φ* − Φ) = 2 ‖Dx‖ / xᵀDx.
    curvature = jnp.array([1.0, 4.0])
    points = jnp.array([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    values, norms = -0.5 * points**2 @ curvature, jnp.linalg.norm(points * curvature, axis=1)
    close(meters.domination(values, norms, jnp.zeros(())), 4 / 9)
    close(meters.domination(values[:2], norms[:2], jnp.zeros(())), 4.0)


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
        close(measured, slope**2 / gap)
        close(bound, kl_weight * min(p, 1 - p) ** 2)
    near, _ = constants(logit(best) + 1e-2, 0.0)
    close(near, 2 * kl_weight * best * (1 - best), 0.02)  # the smallest curvature but that of constants
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
        close(norms(matrix + matrix.T), np.abs(np.linalg.eigvalsh(matrix + matrix.T)).max())
    close(norms(jnp.diag(jnp.array([-3.0, 3.0, 1.0]))), 3.0)
    close(norms(jnp.eye(3)), 1.0)
    assert norms(jnp.zeros((2, 2))) == 0


def test_all_meters_by_one_call_agree_with_each_alone(x64):
    mdp, coefficients = garnet(jax.random.key(0), 3, 2), Coefficients(kl_weight=1.0, discount=0.9)
    land = landscape.landscape(problem_of(mdp, models.table(3, 2)), mdp, 2, coefficients)
    points = jax.random.normal(jax.random.key(1), (4, 6))
    logits = jax.random.normal(jax.random.key(2), (4, 3, 2))
    # Beside them a point that is not a number, which counts for nothing.
    nothing = jnp.concatenate([points, jnp.full((1, 6), jnp.nan)]), jnp.concatenate([logits, logits[:1]])
    found = jax.jit(lambda best: meters.measure(land, *nothing, best))
    ours = found(-jnp.inf)
    at = [jax.jit(lambda x: landscape.expand(land, x))(x) for x in points]
    values = np.array([x.value for x in at])
    norms = np.array([np.linalg.norm(x.gradient) for x in at])
    close(ours.smoothness, max(np.abs(np.linalg.eigvalsh(x.hessian)).max() for x in at))
    others = np.arange(4) != values.argmax()
    close(ours.domination, np.min((norms[others] / (values.max() - values[others])) ** 2))
    close(found(1.0).domination, np.min((norms / (1.0 - values)) ** 2))
    lower = [land.lower(x.reshape(3, 2)) for x in points]
    assert 0 < ours.lower_pl_bound <= ours.lower_pl
    close(ours.lower_pl, min(meters.lower_pl(*x)[0] for x in zip(lower, logits, strict=True)))
    cover = np.array([meters.coverage(x, exact.optimal_policy(x).policy) for x in lower])
    close((ours.concentrability, ours.divergence), cover.max(axis=0))


def test_coverage_by_hand(x64):
    lower = two_arms([0.0, 0.0])
    close(meters.coverage(lower, lower.reference), (1.0, 0.0))
    close(meters.coverage(lower, jnp.array([[0.9, 0.1]])), (1.8, 2 * (0.81 + 0.01) - 1))
    close(meters.coverage(lower, jnp.array([[1.0, 0.0]])), (2.0, 1.0))
    unseen = lower._replace(reference=jnp.array([[1.0, 0.0]]))
    assert jnp.isinf(meters.coverage(unseen, jnp.array([[0.9, 0.1]]))[0])
