"""The derivatives without sampling: the exact functions differentiated, the references' proxy gradient, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_instances import load_reference

from bilevel import exact, models
from bilevel.gradients.exact import exact_gradients
from bilevel.lookup import bind
from bilevel.preferences import annotator, excess_brier, excess_log_likelihood, log_likelihood
from bilevel.types import Cost, Hyper, Model, Problem
from envs.base import MDP
from envs.tabular import tabular


def close(value, expected, tolerance):
    np.testing.assert_allclose(np.asarray(value), np.asarray(expected), rtol=0, atol=tolerance)


@functools.cache
def instance(number):
    """A reference instance, with its problem and hyperparameters."""
    reference = load_reference(number)
    numbers = reference.numbers
    reward = Model(lambda key: reference.params, lambda params, s, a: reference.reward_table(params)[s, a])
    annotate = annotator(reference.world.reward, numbers["discount"], numbers["rationality"])
    prior = models.given_reference(reference.lower.reference)
    problem = Problem(reference.world.env, annotate, reward, models.table_policy(3, 2), prior)
    hyper = Hyper(**{name: numbers[name] for name in ("kl_weight", "discount", "rationality")})
    return reference, problem, hyper


@pytest.fixture(params=[1, 2])
def given(request, x64):
    return instance(request.param)


def point(seed=0):
    """Policy parameters (logits) away from any special point."""
    return jax.random.normal(jax.random.key(seed), (3, 2))


def slope(function, params, direction, step=1e-5):
    """The derivative of `function` along `direction`, by central differences."""
    return (function(params + step * direction) - function(params - step * direction)) / (2 * step)


def direction_like(params):
    return jax.random.normal(jax.random.key(9), params.shape)


def test_return_gradient_equals_finite_differences_of_the_exact_return(given):
    reference, problem, hyper = given

    @jax.jit
    def regularised_return(params):
        return exact.regularised_return(reference.lower, jax.nn.softmax(params))

    gradients = exact_gradients(problem, reference.mdp, 3, hyper)
    gradient, state, loss = gradients.return_in_policy(None, "untouched", point(), reference.params)
    direction = direction_like(point())
    close(jnp.vdot(gradient, direction), slope(regularised_return, point(), direction), 1e-8)
    assert (state, loss) == ("untouched", 0)


def test_return_gradient_is_zero_at_the_optimum_and_only_there(given):
    reference, problem, hyper = given
    gradients = exact_gradients(problem, reference.mdp, 3, hyper)
    optimal = jnp.log(jnp.asarray(reference.numbers["optimal_policy"]))
    close(gradients.return_in_policy(None, (), optimal, reference.params)[0], jnp.zeros((3, 2)), 1e-6)
    assert jnp.linalg.norm(gradients.return_in_policy(None, (), point(), reference.params)[0]) > 0.1


@pytest.mark.parametrize(
    ("number", "objective"), [(1, log_likelihood), (2, log_likelihood), (1, excess_log_likelihood), (2, excess_brier)]
)
def test_preference_gradients_equal_finite_differences_of_the_exact_objective(number, objective, x64):
    reference, problem, hyper = instance(number)

    @jax.jit
    def value(policy_params, reward_params):
        reward = reference.reward_table(reward_params)
        return reference.objective_value(objective, jax.nn.softmax(policy_params), reward)

    gradients = exact_gradients(problem, reference.mdp, 3, hyper, objective)

    @jax.jit
    def derivatives(policy_params, reward_params):
        in_policy = gradients.preference_in_policy((), policy_params, reward_params)
        return in_policy, *gradients.preference_in_reward((), bind(problem.policy, policy_params), reward_params)

    in_policy, total, in_reward = derivatives(point(), reference.params)
    close(total, value(point(), reference.params), 1e-12)
    direction = direction_like(point())
    numeric = slope(lambda params: value(params, reference.params), point(), direction)
    close(jnp.vdot(in_policy, direction), numeric, 1e-8)
    direction = direction_like(reference.params)
    numeric = slope(lambda params: value(point(), params), reference.params, direction)
    close(jnp.vdot(in_reward, direction), numeric, 1e-8)


def test_the_difference_equals_finite_differences_over_sigma(given):
    reference, problem, hyper = given
    first, second = point(1), point(2)

    @jax.jit
    def gap(params):
        lower = reference.lower._replace(reward=reference.reward_table(params))
        first_return, second_return = (exact.regularised_return(lower, jax.nn.softmax(x)) for x in (first, second))
        return (second_return - first_return) / 0.3

    gradients = exact_gradients(problem, reference.mdp, 3, hyper._replace(sigma=0.3))
    gradient = gradients.return_difference(None, reference.params, first, second)[0]
    direction = direction_like(reference.params)
    close(jnp.vdot(gradient, direction), slope(gap, reference.params, direction), 1e-7)
    opposite = gradients.return_difference(None, reference.params, second, first)[0]
    close(gradient, -opposite, 1e-10)


@pytest.mark.parametrize("sigma", ["0.3", "0.1"])
def test_line_7_equals_the_references_proxy_gradient(given, sigma):
    reference, problem, hyper = given
    numbers = reference.numbers["proxy"][sigma]
    optimal = jnp.log(jnp.asarray(reference.numbers["optimal_policy"]))
    proxy = jnp.log(jnp.asarray(numbers["penalised_policy"]))
    gradients = exact_gradients(problem, reference.mdp, 3, hyper._replace(sigma=float(sigma)))
    _, direct = gradients.preference_in_reward((), bind(problem.policy, proxy), reference.params)
    line_7 = direct + gradients.return_difference(None, reference.params, optimal, proxy)[0]
    close(line_7, numbers["gradient"], 1e-6)
    assert jnp.linalg.norm(direct - jnp.asarray(numbers["gradient"])) > 1e-2


def test_a_bandit_of_two_actions_by_hand(x64):
    # One state, γ = 0, w = 0, π = (½, ½), r = (φ, 0), r* = (1, 0). Pairs (a, a′) with a ≠ a′ have probability ½:
    # G = ½ log ½ + ½ (p log q + (1 − p) log(1 − q)) with p = sigmoid(1), q = sigmoid(φ), so ∂G/∂φ = (p − q)/2.
    # J = φ/2, ∂J/∂logits = φ/4 (1, −1). With π′ = (¾, ¼) the difference over σ is (¾ − ½)/σ.
    mdp = MDP(jnp.ones(1), jnp.ones((1, 2, 1)), jnp.array([[1.0, 0.0]]))
    world = tabular(mdp)
    reward = Model(lambda key: jnp.float64(0.4), lambda params, s, a: jnp.where(a == 0, params, 0.0))
    prior = models.given_reference(jnp.full((1, 2), 0.5))
    problem = Problem(world.env, annotator(world.reward, 0.0), reward, models.table_policy(1, 2), prior)
    logits, other = jnp.zeros((1, 2)), jnp.log(jnp.array([[3.0, 1.0]]))

    @jax.jit
    def derivatives(params):
        gradients = exact_gradients(problem, mdp, 1, Hyper(sigma=0.2, kl_weight=0.0, discount=0.0))
        return (
            *gradients.preference_in_reward((), bind(problem.policy, logits), params),
            gradients.return_in_policy(None, (), logits, params)[0],
            gradients.return_difference(None, params, logits, other)[0],
        )

    value, in_reward, in_policy, difference = derivatives(jnp.float64(0.4))
    p, q = 1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(-0.4))
    close(value, 0.5 * np.log(0.5) + 0.5 * (p * np.log(q) + (1 - p) * np.log(1 - q)), 1e-12)
    close(in_reward, (p - q) / 2, 1e-12)
    close(in_policy, [[0.1, -0.1]], 1e-12)
    close(difference, 0.25 / 0.2, 1e-12)


def test_nothing_is_sampled_and_nothing_costs(given):
    reference, problem, hyper = given
    gradients = exact_gradients(problem, reference.mdp, 3, hyper)
    assert gradients.init(jax.random.key(0)) == ()
    pairs = gradients.collect(jax.random.key(0), bind(problem.policy, point()))
    assert (pairs, gradients.labels(pairs)) == ((), 0)
    assert {gradients.collect_cost, gradients.return_cost, gradients.difference_cost} == {Cost(0, 0, 0)}


def test_the_derivatives_are_those_of_a_traced_sweep_over_hyperparameters(x64):
    reference, problem, hyper = instance(1)
    weights, sigmas = jnp.array([0.5, 1.0]), jnp.array([0.1, 0.2])

    def derivatives(kl_weight, sigma):
        gradients = exact_gradients(problem, reference.mdp, 3, hyper._replace(kl_weight=kl_weight, sigma=sigma))
        in_policy = gradients.return_in_policy(None, (), point(), reference.params)[0]
        return in_policy, gradients.return_difference(None, reference.params, point(1), point(2))[0]

    together = jax.jit(jax.vmap(derivatives))(weights, sigmas)
    for i, (weight, sigma) in enumerate(zip(weights, sigmas, strict=True)):
        for ours, alone in zip(together, derivatives(weight, sigma), strict=True):
            close(ours[i], alone, 1e-10)
    assert not jnp.allclose(*together[0], atol=1e-2)


def test_too_long_segments_are_refused(x64):
    reference, problem, hyper = instance(1)
    with pytest.raises(ValueError, match="7776 segments"):
        exact_gradients(problem, reference.mdp, 5, hyper)


def test_an_objective_whose_field_is_missing_is_refused_before_tracing(x64):
    reference, problem, hyper = instance(1)

    def terse(key, first, second):
        return problem.annotate(key, first, second)._replace(probability=None)

    with pytest.raises(ValueError, match="gives no label probability"):
        exact_gradients(problem._replace(annotate=terse), reference.mdp, 3, hyper, excess_log_likelihood)
