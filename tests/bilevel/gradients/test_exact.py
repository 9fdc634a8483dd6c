"""The derivatives without sampling: finite differences of the exact functions, line 7 of the references, refusals."""

import functools

import chex
import jax
import jax.numpy as jnp
import pytest
import two_arms
from checks import close
from reference_instances import load_reference
from scipy.special import expit

from bilevel import exact
from bilevel.algorithms.bilevel_rlhf import BilevelHyper, line_7
from bilevel.gradients.exact import exact_gradients
from bilevel.lookup import bind
from bilevel.preferences import excess_brier, excess_log_likelihood, log_likelihood
from bilevel.types import Cost


def gradients_of(reference, objective=log_likelihood, **changes):
    """The exact gradients of a reference instance, with other coefficients where they are given."""
    coefficients = reference.coefficients._replace(**changes)
    return exact_gradients(reference.problem, reference.mdp, reference.horizon, coefficients, objective)


@functools.cache
def compiled(number):
    """A reference instance's gradients, compiled: (∇_λ J, critic state, loss) and (∇_φ J(λ′) − ∇_φ J(λ), share)."""
    gradients = gradients_of(load_reference(number))
    in_policy = jax.jit(lambda *points: gradients.return_in_policy(None, (), *points))
    return in_policy, jax.jit(lambda *points: gradients.return_difference(None, *points))


@pytest.fixture(params=[1, 2])
def given(request, x64):
    return load_reference(request.param), *compiled(request.param)


def point(seed=0):
    """Policy parameters (logits) away from any special point."""
    return jax.random.normal(jax.random.key(seed), (3, 2))


def slope(function, params, direction, step=1e-5):
    """The derivative of `function` along `direction`, by central differences."""
    return (function(params + step * direction) - function(params - step * direction)) / (2 * step)


def direction_like(params):
    return jax.random.normal(jax.random.key(9), params.shape)


def test_return_gradient_equals_finite_differences_of_the_exact_return(given):
    reference, return_in_policy, _ = given
    regularised_return = jax.jit(lambda params: exact.regularised_return(reference.lower, jax.nn.softmax(params)))
    gradient, state, loss = return_in_policy(point(), reference.params)
    direction = direction_like(point())
    close(jnp.vdot(gradient, direction), slope(regularised_return, point(), direction), 1e-8)
    assert (state, loss) == ((), 0)


def test_return_gradient_is_zero_at_the_optimum_and_only_there(given):
    reference, return_in_policy, _ = given
    optimal = jnp.log(jnp.asarray(reference.numbers["optimal_policy"]))
    close(return_in_policy(optimal, reference.params)[0], jnp.zeros((3, 2)), 1e-6)
    assert jnp.linalg.norm(return_in_policy(point(), reference.params)[0]) > 0.1


@pytest.mark.parametrize(
    ("number", "objective"), [(1, log_likelihood), (2, log_likelihood), (1, excess_log_likelihood), (2, excess_brier)]
)
def test_preference_gradients_equal_finite_differences_of_the_exact_objective(number, objective, x64):
    reference = load_reference(number)
    instance, gradients = reference.exact(objective), gradients_of(reference, objective)
    value = jax.jit(lambda policy_params, params: instance.preference(params, jax.nn.softmax(policy_params)))

    @jax.jit
    def derivatives(policy_params, params):
        in_policy = gradients.preference_in_policy((), policy_params, params)
        return in_policy, *gradients.preference_in_reward((), bind(reference.problem.policy, policy_params), params)

    in_policy, total, in_reward = derivatives(point(), reference.params)
    close(total, value(point(), reference.params))
    direction = direction_like(point())
    numeric = slope(lambda params: value(params, reference.params), point(), direction)
    close(jnp.vdot(in_policy, direction), numeric, 1e-8)
    direction = direction_like(reference.params)
    numeric = slope(lambda params: value(point(), params), reference.params, direction)
    close(jnp.vdot(in_reward, direction), numeric, 1e-8)


def test_the_difference_equals_finite_differences(given):
    reference, _, return_difference = given
    first, second = point(1), point(2)

    @jax.jit
    def gap(params):
        values = [reference.bilevel.regularised_return(params, jax.nn.softmax(x)) for x in (first, second)]
        return values[1] - values[0]

    gradient, share = return_difference(reference.params, first, second)
    assert share is None
    direction = direction_like(reference.params)
    close(jnp.vdot(gradient, direction), slope(gap, reference.params, direction), 1e-7)
    close(gradient, -return_difference(reference.params, second, first)[0], 1e-10)


@pytest.mark.parametrize("sigma", ["0.3", "0.1"])
def test_line_7_equals_the_references_proxy_gradient(given, sigma):
    reference, numbers = given[0], given[0].numbers["proxy"][sigma]
    policies = (jnp.log(jnp.asarray(x)) for x in (reference.numbers["optimal_policy"], numbers["penalised_policy"]))
    gradients = gradients_of(reference)
    ours = line_7(reference.problem, gradients, BilevelHyper(sigma=float(sigma)))
    upper = jax.jit(lambda *points: ours.estimate(None, (), *points))(reference.params, *policies)
    close(upper.direct + upper.implicit, numbers["gradient"], 1e-6)
    assert jnp.linalg.norm(upper.implicit) > 1e-2
    assert upper.residual == 0 and upper.weight_ess is None


def test_a_bandit_of_two_actions_by_hand(x64):
    # At w = 0 and π = (½, ½): ∂J/∂logits = φ/4 (1, −1). With π′ = (¾, ¼) the difference is ¾ − ½, ∂J/∂φ being p.
    problem, mdp, coefficients = two_arms.two_arms(0.0)
    logits, other = jnp.zeros((1, 2)), jnp.log(jnp.array([[3.0, 1.0]]))

    @jax.jit
    def derivatives(params):
        gradients = exact_gradients(problem, mdp, 1, coefficients)
        return (
            *gradients.preference_in_reward((), bind(problem.policy, logits), params),
            gradients.return_in_policy(None, (), logits, params)[0],
            gradients.return_difference(None, params, logits, other)[0],
        )

    value, in_reward, in_policy, difference = derivatives(jnp.float64(0.4))
    close(value, two_arms.preference(0.4, 0.5))
    close(in_reward, (two_arms.TRUTH - expit(0.4)) / 2)
    close(in_policy, [[0.1, -0.1]])
    close(difference, 0.25)


def test_nothing_is_sampled_and_nothing_costs(x64):
    reference = load_reference(1)
    gradients = gradients_of(reference)
    assert gradients.init(jax.random.key(0)) == ()
    pairs = gradients.collect(jax.random.key(0), bind(reference.problem.policy, point()))
    assert (pairs, gradients.labels(pairs)) == ((), 0)
    assert {gradients.collect_cost, gradients.return_cost, gradients.difference_cost} == {Cost(0, 0, 0)}


def test_the_derivatives_are_those_of_a_traced_sweep_over_coefficients(x64):
    reference = load_reference(1)
    weights, discounts = jnp.array([0.5, 1.0]), jnp.array([0.9, 0.8])

    def derivatives(kl_weight, discount):
        gradients = gradients_of(reference, kl_weight=kl_weight, discount=discount)
        in_policy = gradients.return_in_policy(None, (), point(), reference.params)[0]
        return in_policy, gradients.return_difference(None, reference.params, point(1), point(2))[0]

    together = jax.jit(jax.vmap(derivatives))(weights, discounts)
    for i, given in enumerate(zip(weights, discounts, strict=True)):
        alone = jax.jit(derivatives)(*given)
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], together), alone, rtol=0, atol=1e-10)
    for swept in together:
        assert not jnp.allclose(*swept, atol=1e-2)


def test_too_long_segments_are_refused(x64):
    reference = load_reference(1)
    with pytest.raises(ValueError, match="7776 segments"):
        exact_gradients(reference.problem, reference.mdp, 5, reference.coefficients)


def test_an_objective_whose_field_is_missing_is_refused_before_tracing(x64):
    reference = load_reference(1)

    def terse(key, first, second):
        return reference.problem.annotate(key, first, second)._replace(probability=None)

    problem = reference.problem._replace(annotate=terse)
    with pytest.raises(ValueError, match="gives no label probability"):
        exact_gradients(problem, reference.mdp, 3, reference.coefficients, excess_log_likelihood)
