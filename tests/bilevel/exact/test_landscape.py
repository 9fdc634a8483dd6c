"""Φ to second order against closed forms and finite differences, and searches for its stationary points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import near

from bilevel import exact, models
from bilevel.exact import landscape
from bilevel.exact.bilevel import enumerated, exact_bilevel, tabular_problem
from bilevel.preferences import Teacher, annotator, excess_brier, log_likelihood
from bilevel.types import Coefficients
from envs.base import MDP
from envs.tabular import garnet, tabular

# Φ to second order ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [log_likelihood, excess_brier])
def test_the_closed_form_agrees_with_the_oracles_and_their_differences(objective, x64):
    # Nothing symmetric: a reference that is not uniform, a learner of another rationality, an annotator who skips.
    mdp, coefficients = garnet(jax.random.key(0), 3, 2), Coefficients(discount=0.9, kl_weight=0.4, rationality=1.3)
    prior = jnp.array([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]])
    annotate = annotator(lambda s, a: mdp.reward[s, a], 0.9, teacher=Teacher(skip_below=-0.5))
    problem = tabular_problem(mdp, coefficients, reference=prior)._replace(annotate=annotate)
    _, comparisons = enumerated(problem, 2, objective)
    assert jnp.any(comparisons.weight == 0)
    oracle = exact_bilevel(problem, mdp, 2, coefficients, objective)
    reward = jax.random.normal(jax.random.key(1), (3, 2))
    at = jax.jit(landscape.landscape(problem, mdp, 2, coefficients, objective).upper)(reward)
    both = jax.jit(lambda reward: (oracle.value(reward), oracle.gradient(reward)))
    value, gradient = both(reward)
    near(at.value, value)
    near(at.gradient, gradient.ravel())
    moves = 1e-5 * np.eye(6).reshape(6, 3, 2)
    near(at.hessian, [(both(reward + x)[1] - both(reward - x)[1]).ravel() / 2e-5 for x in moves], 1e-7)
    assert np.abs(at.hessian).max() > 0.05


def planted(function, size):
    """A landscape of the "rewards" [1, size] of a bandit with a table: any function of them."""

    def lower(reward):
        mdp = MDP(jnp.ones(1), jnp.ones((1, size, 1)), reward)
        return exact.lower_level(mdp, reward, jnp.full((1, size), 1 / size), 0.0, 0.5)

    def upper(reward):
        flat = reward.ravel()
        return landscape.Expansion(function(flat), jax.grad(function)(flat), jax.hessian(function)(flat))

    return landscape.Landscape(lambda params: params.reshape(1, size), lower, upper)


def test_an_expansion_is_the_chain_rule_to_second_order(x64):
    outer = lambda x: jnp.sum(jnp.sin(x) * x[0])  # noqa: E731
    inner = lambda params: jnp.stack([params**2, jnp.exp(params) * params[0]])  # noqa: E731
    point = jnp.array([0.3, -0.7, 1.1])
    at = landscape.expand(planted(outer, 6)._replace(table=inner), point)
    whole = lambda x: outer(inner(x).ravel())  # noqa: E731
    near(at.value, whole(point))
    near(at.gradient, jax.grad(whole)(point))
    near(at.hessian, jax.hessian(whole)(point))


def test_zero_is_a_stationary_point_of_every_tanh_network_and_not_of_an_affine_function(x64):
    mdp = garnet(jax.random.key(3), 3, 2)
    for hidden, stationary in (((2, 2), True), ((), False)):
        coefficients = Coefficients(discount=0.9, kl_weight=1.0)
        problem = tabular_problem(mdp, coefficients, models.mlp(*models.pair_features(tabular(mdp)), hidden))
        land = landscape.landscape(problem, mdp, 2, coefficients)
        size, _ = landscape.flat(problem.reward)
        norm = jax.jit(lambda x, land=land: jnp.linalg.norm(landscape.expand(land, x).gradient))
        assert (norm(jnp.zeros(size)) < 1e-12) == stationary
        assert norm(0.5 * jax.random.normal(jax.random.key(1), (size,))) > 1e-2


def test_too_many_segments_and_a_zero_kl_weight_are_refused():
    mdp = garnet(jax.random.key(0), 3, 2)
    problem = tabular_problem(mdp, Coefficients())
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
    near(found.params, [centre, centre], 1e-8)
    near(found.value, -2.0)
    assert (landscape.is_stationary(found) & found.is_peak & ~landscape.runs_away(found)).all()
    policy = jax.nn.softmax(centre / 0.5)
    near(found.margin, jnp.min(policy))


def test_a_lower_maximum_and_a_saddle_are_found_and_told_apart(x64):
    # −(x² − 1)² + 0.3 x − y²: a maximum on each side, the left one lower, and between them a saddle near 0.
    function = lambda x: -((x[0] ** 2 - 1) ** 2) + 0.3 * x[0] - x[1] ** 2  # noqa: E731
    roots = np.sort(np.roots([-4, 0, 4, 0.3]).real)
    uphill = searched(function, [[-1.4, 0.5], [1.4, -0.5]], True)
    near(uphill.params[:, 0], roots[[0, 2]], 1e-8)
    assert (landscape.is_stationary(uphill) & uphill.is_peak).all()
    assert uphill.value[0] < uphill.value[1] - 0.5
    anywhere = searched(function, [[0.1, 0.5]], False)
    near(anywhere.params[0], [roots[1], 0.0], 1e-8)
    assert landscape.is_stationary(anywhere).all()
    assert not anywhere.is_peak.any()


def test_what_did_not_arrive_or_saturates_is_not_called_stationary(x64):
    assert not landscape.is_stationary(searched(lambda x: -jnp.sum(jnp.cosh(x)), [[0.5, 3.0]], True, 3)).any()
    # Where ‖∇f‖ = √(1 + x²) has its minimum there is no stationary point.
    found = searched(lambda x: 0.5 * x[0] ** 2 + x[1], [[0.7, 0.0]], False)
    near(found.gradient_norm, 1.0)
    assert not landscape.is_stationary(found).any()
    # Up tanh, ∇f → 0 on the way to infinity.
    found = searched(lambda x: jnp.sum(jnp.tanh(x)), [[0.5, 0.1]], True, 200)
    assert landscape.runs_away(found).all()
    assert not landscape.is_stationary(found).any()


def test_a_search_that_starts_from_no_vector_is_refused():
    with pytest.raises(AssertionError, match=r"input 0 has rank 2 .* expected 1"):
        landscape.search(planted(jnp.sum, 2), jnp.zeros((1, 2)), True, 1)
