"""Values, occupancy and optima against an independent program's numbers, closed forms and finite differences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import close

from bilevel import exact
from envs.base import MDP
from envs.tabular import garnet

# Compiled whole, and once for all tests of one size.
optimum = jax.jit(exact.optimal_policy, static_argnames="max_iterations")
expected_return = jax.jit(exact.regularised_return)
visitation = jax.jit(exact.occupancy)
best = jax.jit(exact.best_return, static_argnames="max_iterations")


def test_optimal_policy_and_values_equal_the_reference_numbers(reference):
    solution = optimum(reference.lower)
    close(solution.policy, reference.numbers["optimal_policy"], 1e-6)
    close(exact.state_values(reference.lower, solution.policy), reference.numbers["optimal_value"], 1e-6)
    close(expected_return(reference.lower, solution.policy), reference.numbers["return_of_optimal"], 1e-6)
    assert solution.residual < 1e-8


def test_values_and_occupancy_of_the_reference_policy_equal_the_reference_numbers(reference):
    policy = reference.lower.reference
    close(expected_return(reference.lower, policy), reference.numbers["reference_return"], 1e-6)
    close(exact.action_values(reference.lower, policy), reference.numbers["reference_q"], 1e-6)
    close(visitation(reference.lower, policy), reference.numbers["reference_visitation"], 1e-6)


# Identities and limits ------------------------------------------------------------------------------------------------


def test_two_states_by_hand(x64):
    # State 0 moves to state 1 and pays 1; state 1 stays and pays 2: V(1) = 2/(1-γ) = 4, V(0) = 1 + γ 4 = 3 at γ = 1/2.
    mdp = MDP(jnp.array([1.0, 0.0]), jnp.array([[[0.0, 1.0]], [[0.0, 1.0]]]), jnp.array([[1.0], [2.0]]))
    problem = exact.lower_level(mdp, mdp.reward, jnp.ones((2, 1)), 0.5, 0.7)
    policy = jnp.ones((2, 1))
    close(exact.state_values(problem, policy), [3.0, 4.0])
    close(visitation(problem, policy), [0.5, 0.5])
    close(expected_return(problem, policy), 3.0)


def test_the_bandit_optimum_is_the_gibbs_policy(x64):
    mdp = MDP(jnp.ones(1), jnp.ones((1, 3, 1)), jnp.array([[0.0, 1.0, 2.0]]))
    prior = jnp.array([[0.5, 0.25, 0.25]])
    problem = exact.lower_level(mdp, mdp.reward, prior, 0.0, 0.5)
    weights = np.array([0.5, 0.25, 0.25]) * np.exp(np.array([0.0, 1.0, 2.0]) / 0.5)
    close(optimum(problem).policy, [weights / weights.sum()], 1e-12)


@pytest.fixture
def instance(x64):
    """A random lower level of another size than the references'."""
    mdp = garnet(jax.random.key(3), 7, 3, 2)
    prior = jax.random.dirichlet(jax.random.key(4), jnp.ones(3), (7,))
    return exact.lower_level(mdp, mdp.reward, prior, 0.8, 0.4)


def test_the_return_is_the_reward_under_the_occupancy(instance):
    policy = jax.random.dirichlet(jax.random.key(5), jnp.ones(3), (7,))
    visits = visitation(instance, policy)
    close(visits.sum(), 1.0, 1e-12)
    reward = exact.regularised_reward(instance, policy)
    expected = visits @ jnp.sum(policy * reward, axis=-1) / (1 - instance.discount)
    close(expected_return(instance, policy), expected, 1e-10)
    plain = visits @ jnp.sum(policy * instance.reward, axis=-1) / (1 - instance.discount)
    penalty = instance.kl_weight * exact.divergence(instance, policy) / (1 - instance.discount)
    close(expected_return(instance, policy), plain - penalty, 1e-10)


def test_the_optimum_is_stationary_and_no_policy_beats_it(instance):
    optimal = optimum(instance).policy
    close(exact.advantages(instance, optimal), jnp.zeros((7, 3)), 1e-8)
    highest = expected_return(instance, optimal)
    for seed in range(20):
        other = jax.random.dirichlet(jax.random.key(seed), jnp.ones(3), (7,))
        assert expected_return(instance, other) < highest


def test_a_large_kl_weight_gives_the_reference_policy(instance):
    policy = optimum(instance._replace(kl_weight=1e7)).policy
    close(policy, instance.reference, 1e-6)


def test_a_constant_added_to_the_reward_changes_no_policy(instance):
    shifted = optimum(instance._replace(reward=instance.reward + 3.0)).policy
    close(shifted, optimum(instance).policy, 1e-9)


def test_the_optimal_policy_differentiates_like_finite_differences(instance):
    @jax.jit
    def probe(reward):
        return jnp.sum(optimum(instance._replace(reward=reward)).policy ** 2)

    direction = jax.random.normal(jax.random.key(6), instance.reward.shape)
    step = 1e-5
    numeric = (probe(instance.reward + step * direction) - probe(instance.reward - step * direction)) / (2 * step)
    close(jnp.vdot(jax.jit(jax.grad(probe))(instance.reward), direction), numeric, 1e-7)


@pytest.mark.parametrize("discount", [0.0, 0.9, 0.9999, 0.99999])
def test_the_best_return_is_the_best_of_all_deterministic_policies(discount, x64):
    mdp = garnet(jax.random.key(0), 3, 2)
    transition, reward = np.asarray(mdp.transition), np.asarray(mdp.reward)

    def return_of(actions):
        chain = transition[range(3), actions]
        return np.asarray(mdp.initial) @ np.linalg.solve(np.eye(3) - discount * chain, reward[range(3), actions])

    expected = max(return_of(list(actions)) for actions in itertools.product(range(2), repeat=3))
    found = best(exact.lower_level(mdp, mdp.reward, jnp.full((3, 2), 0.5), jnp.asarray(discount), 0.0))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_instances_are_solved_in_one_vmap(x64):
    mdps = jax.jit(jax.vmap(lambda key: garnet(key, 4, 2)))(jax.random.split(jax.random.key(0), 5))

    def lower(mdp):
        return exact.lower_level(mdp, mdp.reward, jnp.full((4, 2), 0.5), 0.9, 0.3)

    together = jax.jit(jax.vmap(lambda mdp: exact.optimal_policy(lower(mdp)).policy))(mdps)
    close(together[2], optimum(lower(jax.tree.map(lambda x: x[2], mdps))).policy, 1e-9)


def test_no_oracle_calls_lapack_where_devices_share_threads():
    # Its batched calls wait for threads of the pool that runs them: on several CPU devices that can be for ever.
    mdp = garnet(jax.random.key(0), 4, 2)
    lower = exact.lower_level(mdp, mdp.reward, jnp.full((4, 2), 0.5), 0.9, 0.5)
    for oracle in (exact.state_values, exact.occupancy, exact.regularised_return, exact.divergence):
        assert "lapack" not in jax.jit(oracle).lower(lower, lower.reference).as_text(), oracle.__name__
    assert "lapack" not in optimum.lower(lower).as_text()
    assert "lapack" in jax.jit(jnp.linalg.solve).lower(jnp.eye(2), jnp.ones(2)).as_text()


# What is no answer, and what is refused -------------------------------------------------------------------------------


def test_an_optimum_that_is_not_reached_is_nan(instance):
    assert jnp.isnan(optimum(instance, max_iterations=1).policy).all()


def test_a_best_return_that_is_not_found_is_nan(instance):
    assert jnp.isnan(best(instance._replace(discount=1.0)))
    assert jnp.isnan(best(instance, max_iterations=1))


def test_an_optimal_policy_outside_its_domain_is_nan_with_an_infinite_residual(instance):
    def solve(discount, kl_weight):
        return optimum(instance._replace(discount=discount, kl_weight=kl_weight))

    discounts = jnp.array([0.8, 1.0, 1.1, -0.1, jnp.nan, 0.8, 0.8, 0.8])
    policy, residual = jax.jit(jax.vmap(solve))(discounts, jnp.array([0.4, 0.4, 0.4, 0.4, 0.4, 0.0, -1.0, jnp.nan]))
    assert jnp.isfinite(policy[0]).all() and residual[0] < 1e-8
    assert jnp.isnan(policy[1:]).all() and jnp.isinf(residual[1:]).all()


@pytest.mark.parametrize(
    ("discount", "kl_weight", "message"),
    [
        (1.0, 0.5, "discount is 1.0; required"),
        (-0.1, 0.5, "discount is -0.1"),
        (np.nan, 0.5, "discount is nan"),
        (0.9, -1, "kl_weight is -1; required"),
        (0.9, np.float32(np.inf), "kl_weight is inf"),
        (jnp.array(1.5), 0.5, "discount is 1.5"),
        (0.9, jnp.array([0.5, -1.0]), "kl_weight is"),
    ],
)
def test_a_lower_level_out_of_range_is_refused(discount, kl_weight, message):
    mdp = garnet(jax.random.key(0), 3, 2)
    with pytest.raises(ValueError, match=message):
        exact.lower_level(mdp, mdp.reward, jnp.full((3, 2), 0.5), discount, kl_weight)


@pytest.mark.parametrize("kl_weight", [0.0, -1.0, jnp.array([0.5, 0.0]), np.nan])
def test_an_optimum_needs_a_kl_weight_above_zero(kl_weight):
    with pytest.raises(ValueError, match=r"kl_weight is .*; exact oracles of the optimal policy need kl_weight > 0"):
        exact.require_kl(kl_weight)
    exact.require_kl(0.1)
    jax.eval_shape(exact.require_kl, 0.0)  # traced: nothing is known of it


def test_tables_of_the_wrong_shape_are_refused_with_both_shapes(instance):
    mdp = garnet(jax.random.key(0), 3, 2)
    with pytest.raises(AssertionError, match=r"has shape \(2, 3\) but expected \(3, 2\)"):
        exact.lower_level(mdp, mdp.reward.T, jnp.full((3, 2), 0.5), 0.9, 0.5)
    for function in (exact.state_values, exact.regularised_return, exact.advantages, exact.divergence):
        with pytest.raises(AssertionError, match=r"different shapes: \[\(7, 2\), \(7, 3\)\]"):
            function(instance, jnp.full((7, 2), 0.5))
