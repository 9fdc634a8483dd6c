"""Φ, Φ_σ and their gradients: an independent program's numbers, finite differences, a bandit by hand, and one home."""

import ast
import pathlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import two_arms
from checks import close
from reference_instances import Reference, assemble
from scipy.optimize import brentq
from scipy.special import expit

from bilevel.exact.bilevel import exact_bilevel, tabular_problem
from bilevel.exact.penalised import penalised_policy
from bilevel.lookup import bind, policy_table
from bilevel.preferences import excess_log_likelihood
from bilevel.types import Coefficients, Trajectory
from envs.base import MDP
from envs.tabular import garnet

ROOT = pathlib.Path(__file__).parents[3]
STEP = 1e-5  # of central differences


GIVEN = ("initial", "transition", "true_reward", "reference", "learned_reward", "features", "w1", "w2")
GIVEN += Coefficients._fields


@jax.jit
def objective(given, params):
    """Φ, ∇Φ and λ* of a reference instance; one program for both."""
    exact = assemble({**given, "horizon": 3}).bilevel
    return exact.value(params), exact.gradient(params), exact.optimum(params)


@jax.jit
def excess(given, reward):
    """Φ and ∇Φ of the excess of the log-likelihood, of a reward that is a table."""
    reference = assemble({**given, "horizon": 3})
    problem = tabular_problem(reference.mdp, reference.coefficients, reference=reference.lower.reference)
    exact = exact_bilevel(problem, reference.mdp, 3, reference.coefficients, excess_log_likelihood)
    return exact.value(reward), exact.gradient(reward)


@jax.jit
def proxy(given, params, sigma):
    """Φ_σ, ∇Φ_σ, and λ*_σ with its residual."""
    exact = assemble({**given, "horizon": 3}).bilevel
    solution = penalised_policy(exact.lower(params), lambda policy: exact.preference(params, policy), sigma)
    return exact.proxy_value(params, sigma), exact.proxy_gradient(params, sigma), solution


class Compiled(NamedTuple):
    """A reference instance and its functions, bound to it."""

    reference: Reference
    direction: jax.Array  # in φ
    objective: Callable  # φ -> (Φ, ∇Φ, λ*)
    excess: Callable  # r [S, A] -> (Φ, ∇Φ) of the excess
    proxy: Callable  # (φ, σ) -> (Φ_σ, ∇Φ_σ, Solution)

    def slope(self, function):
        """The derivative of a function of φ at the instance's own φ along the direction, by central differences."""
        ends = [function(self.reference.params + sign * STEP * self.direction) for sign in (1, -1)]
        return (ends[0] - ends[1]) / (2 * STEP)


@pytest.fixture
def compiled(reference):
    assert reference.horizon == 3
    given = {name: jnp.asarray(reference.numbers[name]) for name in GIVEN}
    direction = jax.random.normal(jax.random.key(7), reference.params.shape)
    return Compiled(reference, direction, *(partial(x, given) for x in (objective, excess, proxy)))


# The references -------------------------------------------------------------------------------------------------------


def test_the_reward_and_the_lower_level_are_the_references(compiled):
    reference, numbers = compiled.reference, compiled.reference.numbers
    close(reference.bilevel.table(reference.params), numbers["learned_reward"])
    lower = reference.bilevel.lower(reference.params)
    for ours, given in zip(lower, reference.lower, strict=True):
        close(ours, given)
    of_reference = reference.bilevel.regularised_return(reference.params, lower.reference)
    close(of_reference, numbers["reference_return"], 1e-6)


def test_the_objective_at_the_optimum_and_its_gradient_equal_the_reference_numbers(compiled):
    reference, numbers = compiled.reference, compiled.reference.numbers
    value, gradient, policy = compiled.objective(reference.params)
    close(policy, numbers["optimal_policy"], 1e-6)
    close(value, numbers["preference_objective_of_optimal"], 1e-6)
    close(gradient, numbers["hypergradient"], 1e-6)


@pytest.mark.parametrize("sigma", ["0.3", "0.1"])
def test_the_proxy_and_its_gradient_equal_the_reference_numbers(compiled, sigma):
    numbers = compiled.reference.numbers["proxy"][sigma]
    value, gradient, solution = compiled.proxy(compiled.reference.params, float(sigma))
    assert solution.residual < 1e-12  # an error of the policy is divided by σ
    close(solution.policy, numbers["penalised_policy"], 1e-6)
    close(value, numbers["value"], 1e-6)
    close(gradient, numbers["gradient"], 1e-6)


def test_both_gradients_equal_finite_differences(compiled):
    params, direction = compiled.reference.params, compiled.direction
    numeric = compiled.slope(lambda x: compiled.objective(x)[0])
    close(jnp.vdot(compiled.objective(params)[1], direction), numeric, 1e-8)
    numeric = compiled.slope(lambda x: compiled.proxy(x, 0.1)[0])
    close(jnp.vdot(compiled.proxy(params, 0.1)[1], direction), numeric, 1e-8)


def test_the_proxy_lies_above_the_objective_and_its_bias_falls_like_sigma(compiled):
    params = compiled.reference.params
    found = [compiled.proxy(params, sigma) for sigma in (0.002, 0.001)]
    errors = np.array([float(value - compiled.objective(params)[0]) for value, *_ in found])
    assert all(solution.residual < 1e-12 for *_, solution in found)
    assert (errors > 0).all()
    assert abs(np.log2(errors[0] / errors[1]) - 1) < 0.005


def test_the_excess_objective_is_greatest_at_the_true_reward(compiled):
    reference = compiled.reference
    value, gradient = compiled.excess(reference.mdp.reward)
    close(value, 0.0)
    close(gradient, jnp.zeros((3, 2)), 1e-10)
    other = reference.mdp.reward + jax.random.normal(jax.random.key(0), (3, 2))
    assert compiled.excess(other)[0] < -1e-3


# By hand --------------------------------------------------------------------------------------------------------------

WEIGHT, PHI = 0.5, 0.4


def bandit(kl_weight=WEIGHT):
    """The exact functions of the bandit of two arms."""
    problem, mdp, coefficients = two_arms.two_arms(kl_weight)
    return exact_bilevel(problem, mdp, 1, coefficients)


def test_the_objective_of_a_bandit_and_its_gradient_by_hand(x64):
    exact, p = bandit(), expit(PHI / WEIGHT)
    policy, value, gradient = jax.jit(lambda phi: (exact.optimum(phi), exact.value(phi), exact.gradient(phi)))(PHI)
    close(policy, [[p, 1 - p]])
    close(value, two_arms.preference(PHI, p))
    through_policy = two_arms.preference_in_policy(PHI, p) * p * (1 - p) / WEIGHT  # ∂λ*/∂φ = p(1 − p)/w
    close(gradient, through_policy + two_arms.preference_in_reward(PHI, p))


def test_the_proxy_of_a_bandit_and_its_gradient_by_hand(x64):
    exact, sigma, best = bandit(), 0.3, expit(PHI / WEIGHT)
    functions = exact.penalised, exact.proxy_value, exact.proxy_gradient
    policy, value, gradient = jax.jit(lambda *point: [x(*point) for x in functions])(PHI, sigma)

    def slope(p):  # of J + σ G
        return two_arms.return_in_policy(PHI, p, WEIGHT) + sigma * two_arms.preference_in_policy(PHI, p)

    p = brentq(slope, 0.01, 0.99, xtol=1e-15)
    assert abs(p - best) > 1e-3
    close(policy, [[p, 1 - p]])
    gap = two_arms.regularised_return(PHI, best, WEIGHT) - two_arms.regularised_return(PHI, p, WEIGHT)
    close(value, two_arms.preference(PHI, p) - gap / sigma)
    close(gradient, two_arms.preference_in_reward(PHI, p) + (p - best) / sigma)  # ∂J/∂φ = p


def test_a_problem_of_tables_has_a_uniform_reference_a_zero_reward_and_the_labels_of_bradley_and_terry(x64):
    mdp = MDP(jnp.ones(1), jnp.ones((1, 2, 1)), jnp.array([[1.0, 0.0]]))
    problem = tabular_problem(mdp, Coefficients(discount=0.5, rationality=3.0))
    close(policy_table(problem.env, problem.reference), [[0.5, 0.5]])
    close(problem.reward.init(jax.random.key(0)), [[0.0, 0.0]])
    close(policy_table(problem.env, bind(problem.policy, jnp.log(jnp.array([[3.0, 1.0]])))), [[0.75, 0.25]])
    # Returns of 1 and of ½: the first is preferred with probability sigmoid(3 · ½).
    first, second = (Trajectory(*jnp.array([[0, 0], [0, 0], actions])) for actions in ([0, 1], [1, 0]))
    close(problem.annotate(jax.random.key(0), first, second).probability, expit(1.5))
    given = tabular_problem(mdp, Coefficients(), reference=jnp.array([[0.9, 0.1]]))
    close(policy_table(given.env, given.reference), [[0.9, 0.1]])


# Where there is no optimum --------------------------------------------------------------------------------------------


def test_without_kl_values_of_given_policies_remain_and_what_needs_the_optimum_is_refused(x64):
    exact, policy = bandit(kl_weight=0.0), jnp.array([[0.75, 0.25]])
    close(exact.preference(PHI, policy), two_arms.preference(PHI, 0.75))
    close(exact.regularised_return(PHI, policy), 0.75 * PHI)
    for refused in (
        lambda: exact.optimum(PHI),
        lambda: exact.value(PHI),
        lambda: exact.gradient(PHI),
        lambda: exact.penalised(PHI, 0.1),
        lambda: exact.proxy_value(PHI, 0.1),
        lambda: exact.proxy_gradient(PHI, 0.1),
    ):
        with pytest.raises(ValueError, match=r"kl_weight is 0.0; exact oracles .* need kl_weight > 0"):
            refused()


def test_a_sweep_over_traced_weights_is_nan_where_there_is_no_optimum(x64):
    values = jax.jit(jax.vmap(lambda weight: bandit(weight).value(PHI)))(jnp.array([WEIGHT, 0.0]))
    close(values[0], two_arms.preference(PHI, expit(PHI / WEIGHT)))
    assert jnp.isnan(values[1])


def test_segments_that_are_too_many_are_refused_with_their_number():
    mdp = garnet(jax.random.key(0), 3, 2)
    with pytest.raises(ValueError, match="7776 segments"):
        exact_bilevel(tabular_problem(mdp, Coefficients()), mdp, 5, Coefficients())


# One home -------------------------------------------------------------------------------------------------------------

PARTS = {"enumerate_segments", "exact_comparisons", "preference_objective"}
HOME = ROOT / "bilevel" / "exact"
PASSING = [ROOT / "experiments" / name for name in ("studies", "verify")]  # they give way to claims


def parts_of_the_objective(source: str) -> set[str]:
    """The names among `PARTS` that a source file imports or reaches as an attribute."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
    return found & PARTS


def test_the_objective_is_assembled_in_one_place():
    files = [path for package in ("bilevel", "experiments") for path in (ROOT / package).rglob("*.py")]
    files = [path for path in files if not {HOME, *PASSING} & {*path.parents}]
    assert len(files) > 30
    assert {str(path): parts for path in files if (parts := parts_of_the_objective(path.read_text()))} == {}


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("from bilevel import exact\nG = exact.preference_objective(mdp, policy)", "preference_objective"),
        ("from bilevel.exact.segments import exact_comparisons as pairs", "exact_comparisons"),
        ("def f():\n    from bilevel.exact import enumerate_segments", "enumerate_segments"),
    ],
)
def test_an_objective_assembled_elsewhere_would_be_seen(source, part):
    assert parts_of_the_objective(source) == {part}
