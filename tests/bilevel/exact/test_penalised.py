"""The penalised lower level against grids and closed forms, and where it has no answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import exact
from envs.base import MDP
from envs.tabular import garnet


@jax.jit
def solve(lower, sigma, max_iterations):
    """λ*_σ for G(π) = Σ π³; one program for all tests of one size."""
    return exact.penalised_policy(lower, lambda policy: jnp.sum(policy**3), sigma, max_iterations=max_iterations)


@pytest.fixture
def instance(x64):
    """A random lower level."""
    mdp = garnet(jax.random.key(3), 3, 2)
    return exact.lower_level(mdp, mdp.reward, jnp.full((3, 2), 0.5), 0.9, 1.0)


def test_the_penalised_policy_of_two_actions_is_the_best_of_a_grid_also_at_vertices(x64):
    """G(π) = b π(1) + c Σ π²: concave at c = 0, where the optimum is the Gibbs policy of r + σ b; else of two maxima."""
    mdp, prior = MDP(jnp.ones(1), jnp.ones((1, 2, 1)), jnp.zeros((1, 2))), jnp.full((1, 2), 0.5)
    cases = np.array(
        [  # w, r(0), σ, b, c
            (0.01, 0.3, 1.0, 1.0, 0.0),  # π*(r) is the wrong vertex: the gradient in its logits is 1e-13
            (0.01, 0.3, 0.4, 1.0, 0.0),
            (0.03, 0.9, 0.95, 1.0, 0.0),
            (0.3, 0.3, 1000.0, 1.0, 0.0),  # no policy has a residual below 1e-10 here, by rounding
            (0.0005, 0.3, 1.0, 1.0, 0.0),  # π(0) underflows
            (0.01, 0.0, 1.0, 0.0, 1.0),  # π*(r) is a minimum, by symmetry
            (0.01, 0.05, 1.0, 0.1, 1.0),  # π*(r) is beside a maximum that is not the greatest
            (0.01, 0.05, 0.0, 0.1, 1.0),
        ]
    )

    def solve(w, gap, sigma, b, c):
        problem = exact.lower_level(mdp, jnp.stack([gap, 0.0 * gap])[None], prior, 0.0, w)

        def penalty(policy):
            return b * policy[0, 1] + c * jnp.sum(policy**2)

        def value(policy):
            return exact.regularised_return(problem, policy) + sigma * penalty(policy)

        share = jnp.linspace(0, 1, 1001)
        grid = jnp.stack([share, 1 - share], axis=-1)[:, None]
        policy, residual = exact.penalised_policy(problem, penalty, sigma)
        return policy[0], residual, value(policy), jnp.max(jax.vmap(value)(grid))

    policy, residual, value, best = jax.jit(jax.vmap(solve))(*cases.T)
    w, gap, sigma, b, c = cases.T
    assert (residual <= 1e-13 * (1 + sigma)).all()
    assert (value >= best - 1e-12 * (1 + sigma)).all()
    logit = (sigma * b - gap) / w
    expected = np.exp(-np.logaddexp(0, np.stack([logit, -logit], axis=1)))
    np.testing.assert_allclose(policy[c == 0], expected[c == 0], rtol=1e-9, atol=1e-300)


def test_a_solver_that_does_not_converge_returns_nan(instance):
    assert jnp.isfinite(solve(instance, 5.0, 100).policy).all()
    unsolved = solve(instance, 5.0, 1)
    assert jnp.isnan(unsolved.policy).all()
    assert unsolved.residual > 1e-6


def test_a_penalised_policy_where_no_maximum_is_found_is_nan(x64):
    # At γ = 0 the return does not see state 1, so nothing holds its policy from a vertex, which G wants.
    mdp = MDP(jnp.array([1.0, 0.0]), jnp.ones((2, 2, 2)) / 2, jnp.zeros((2, 2)))
    problem = exact.lower_level(mdp, mdp.reward, jnp.full((2, 2), 0.5), 0.0, 0.5)
    solution = jax.jit(lambda lower: exact.penalised_policy(lower, lambda policy: policy[1, 0], 1.0))(problem)
    assert jnp.isnan(solution.policy).all()


def test_a_negative_sigma_has_no_optimum(instance):
    assert np.isfinite(solve(instance, 0.1, 100).policy).all()
    assert np.isnan(solve(instance, -0.1, 100).policy).all()


def test_the_solver_does_not_call_lapack_where_devices_share_threads(instance):
    # Its batched calls wait for threads of the pool that runs them: on several CPU devices that can be for ever.
    assert "lapack" not in solve.lower(instance, 0.1, 100).as_text()
