"""Hypergradients against finite differences of Φ, against each other, sampled against exact, and inside Algorithm 1."""

import functools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import close
from jax.flatten_util import ravel_pytree
from sampling import assert_biased, assert_unbiased, repeat, setting_of

from bilevel import exact, models
from bilevel.algorithms.bilevel_rlhf import BilevelConfig, BilevelHyper, actor_of, bilevel_rlhf, line_7, proxy_of
from bilevel.exact.bilevel import Bilevel, exact_bilevel, tabular_problem
from bilevel.gradients import sampled as sampled_gradients
from bilevel.gradients.critics import monte_carlo_critic
from bilevel.gradients.exact import exact_gradients
from bilevel.gradients.hypergradients import (
    closed_form,
    conjugate_gradients,
    dense_elimination,
    implicit,
    naive,
    unrolled,
)
from bilevel.gradients.sampled import SampleSizes
from bilevel.gradients.types import Gradients
from bilevel.types import Coefficients, Cost, Model, Params, Problem
from envs.base import MDP
from envs.tabular import garnet

dense = partial(implicit, solver=dense_elimination())

# Nothing here is timed, and most of the time of these tests would be spent on optimising machine code.
HASTY = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
compiled = partial(jax.jit, compiler_options=HASTY)


def flat(upper):
    """The hypergradient as one vector."""
    return ravel_pytree(jax.tree.map(jnp.add, upper.direct, upper.implicit))[0]


class Instance(NamedTuple):
    """A random problem with a full softmax table, its exact gradients, and Φ by another way: `exact.optimal_policy`."""

    problem: Problem
    gradients: Gradients
    bilevel: Bilevel
    mdp: MDP
    coefficients: Coefficients
    hyper: BilevelHyper
    reward: Params

    def optimum(self, params: Params):
        """log π*(φ), [S, A]."""
        return jnp.log(exact.optimal_policy(self.bilevel.lower(params)).policy)

    def estimate(self, construct, start):
        """A hypergradient at the policy with logits `start`, [S, A]."""
        case = construct(self.problem, self.gradients, self.hyper)
        return case.estimate(jax.random.key(0), (), self.reward, start, start)


def assemble(mdp, horizon, coefficients, reward, prior, params) -> Instance:
    """The instance of these parts, with steps below 1 over the largest curvature at the optimum, w max d/(1 − γ) · ½ at
    most."""
    problem = tabular_problem(mdp, coefficients, reward, prior)
    given = problem, mdp, horizon, coefficients
    hyper = BilevelHyper(policy_step_size=(1 - coefficients.discount) / coefficients.kl_weight)
    return Instance(problem, exact_gradients(*given), exact_bilevel(*given), mdp, coefficients, hyper, params)


def instance(key, num_states, num_actions, horizon, reward_class, kl_weight=None) -> Instance:
    """A random MDP, features of three numbers, r_φ linear or a network of them, and hyperparameters."""
    key_mdp, key_features, key_prior, key_reward, key_hyper = jax.random.split(key, 5)
    mdp = garnet(key_mdp, num_states, num_actions)
    # Every state is visited: the unrolled ascent would take too many steps in the logits of one that hardly is.
    initial, transition = (0.9 * x + 0.1 / num_states for x in (mdp.initial, mdp.transition))
    mdp = mdp._replace(initial=initial, transition=transition)
    features = jax.random.normal(key_features, (num_states, num_actions, 3))
    make = {"linear": models.linear, "mlp": partial(models.mlp, hidden_sizes=(3,))}[reward_class]
    reward = make(lambda s, a: features[s, a], 3)
    shape = reward.init(key_reward)
    params = jax.tree.map(lambda x: x + 0.5 * jax.random.normal(key_reward, x.shape), shape)
    prior = jax.nn.softmax(0.5 * jax.random.normal(key_prior, (num_states, num_actions)))
    noise = jax.random.uniform(key_hyper, (3,))
    kl_weight, discount = 1.0 + noise[0] if kl_weight is None else kl_weight, 0.5 + 0.4 * noise[1]
    return assemble(mdp, horizon, Coefficients(discount, kl_weight, 0.5 + noise[2]), reward, prior, params)


SHAPES = [(2, 2, 3, "linear"), (2, 3, 2, "mlp"), (5, 3, 1, "mlp")]  # S, A, H, class of r_φ: not the references'
SMALL = (3, 2, 3, "linear")
EACH = 7  # instances of every shape, together 21


def differences(value, params, step=1e-5):
    """The gradient of `value` by central differences, one parameter at a time."""
    point, unravel = ravel_pytree(params)
    offsets = step * jnp.concatenate([jnp.eye(len(point)), -jnp.eye(len(point))])
    ends = jax.vmap(lambda offset: value(unravel(point + offset)))(offsets)
    return (ends[: len(point)] - ends[len(point) :]) / (2 * step)


@functools.cache
def solved(number):
    """∇Φ by finite differences, and (gradient, residual) by each way, on the instances of one shape: one program."""

    def solve(key):
        case = instance(key, *SHAPES[number])
        start = case.optimum(case.reward)
        found = {name: case.estimate(construct, start) for name, construct in WAYS.items()}
        # Not from the optimum: it has to get there.
        found["unrolled"] = case.estimate(partial(unrolled, num_steps=10_000), jnp.zeros_like(start))
        return differences(case.bilevel.value, case.reward), {k: (flat(x), x.residual) for k, x in found.items()}

    return compiled(jax.vmap(solve))(jax.random.split(jax.random.key(number), EACH))


WAYS = {"naive": naive, "closed form": closed_form, "conjugate gradients": implicit, "dense": dense}


# Exact ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(SHAPES)))
def test_each_way_but_the_naive_equals_finite_differences_of_the_bilevel_objective(number, x64):
    numeric, found = solved(number)
    for name, tolerance in (("closed form", 1e-7), ("conjugate gradients", 1e-7), ("dense", 1e-7), ("unrolled", 1e-5)):
        close(found[name][0], numeric, tolerance)
    assert jnp.all(jnp.max(jnp.abs(found["naive"][0] - numeric), axis=-1) > 1e-4)
    residuals = jnp.stack([residual for _, residual in found.values()])
    assert jnp.max(residuals) < 1e-8


@pytest.mark.parametrize("number", [1, 2])
def test_each_way_equals_the_references_hypergradient(number, x64):
    setting = setting_of(number)
    problem, hyper = setting.problem, BilevelHyper(policy_step_size=0.5)
    gradients = exact_gradients(problem, setting.reference.mdp, setting.reference.horizon, setting.coefficients)
    # The reference's own optimum is rounded; the proxy's bias is O(σ), and its numbers are tested with line 7.
    start = jnp.log(exact.optimal_policy(setting.reference.lower).policy)
    ways = {"closed form": closed_form, "conjugate gradients": implicit, "dense": dense}
    ways["unrolled"] = partial(unrolled, num_steps=10_000)

    @compiled
    def found():
        made = {name: construct(problem, gradients, hyper) for name, construct in ways.items()}
        return {k: flat(x.estimate(jax.random.key(0), (), setting.reward, start, start)) for k, x in made.items()}

    for gradient in found().values():
        close(gradient, setting.reference.numbers["hypergradient"], 1e-6)


def curvature(case: Instance, logits):
    """−∇²_λ J of a table of logits, [S·A, S·A], by differentiating the return twice."""
    lower = case.bilevel.lower(case.reward)

    def regularised_return(point):
        return exact.regularised_return(lower, jax.nn.softmax(point.reshape(logits.shape)))

    return -jax.hessian(regularised_return)(logits.ravel())


def test_at_the_optimum_the_curvature_is_the_weighted_fisher_information(x64):
    @compiled
    def both(key):
        case = instance(key, *SHAPES[1])
        start = case.optimum(case.reward)
        policy = jax.nn.softmax(start)
        discount, kl_weight, _ = case.coefficients
        visits = exact.occupancy(case.bilevel.lower(case.reward), policy) * kl_weight / (1 - discount)
        blocks = jax.vmap(lambda p, d: d * (jnp.diag(p) - jnp.outer(p, p)))(policy, visits)
        return curvature(case, start), jax.scipy.linalg.block_diag(*blocks)

    close(*both(jax.random.key(0)), 1e-9)


def test_what_unrolling_leaves_out_is_what_its_steps_leave_of_each_direction_of_curvature(x64):
    # From λ*, with H = −∇²_λ J: ∂λ_K/∂φ = (I − (I − τ H)^K) H^† ∂_φ ∇_λ J.
    counts = (1, 5, 20)

    @compiled
    def found(key):
        case = instance(key, *SMALL)
        start = case.optimum(case.reward)

        def slope(params):
            lower = case.bilevel.lower(params)
            return jax.grad(lambda point: exact.regularised_return(lower, jax.nn.softmax(point)))(start).ravel()

        exactly = flat(case.estimate(closed_form, start))
        errors = [flat(case.estimate(partial(unrolled, num_steps=count), start)) - exactly for count in counts]
        given = case.gradients.preference_in_policy((), start, case.reward).ravel()
        return errors, curvature(case, start), jax.jacobian(slope)(case.reward), given, case.hyper.policy_step_size

    errors, matrix, mixed, given, step_size = jax.tree.map(np.asarray, found(jax.random.key(5)))
    for count, error in zip(counts, errors, strict=True):
        left = np.linalg.matrix_power(np.eye(6) - step_size * matrix, count)
        close(error, -mixed.T @ left @ np.linalg.pinv(matrix, rcond=1e-10) @ given, 1e-9)
        assert np.linalg.norm(error) > 1e-6


def test_small_kl_weights_are_ill_conditioned_and_what_did_not_converge_is_reported(x64):
    ways = {
        "dense": dense,
        "converged": implicit,
        "stopped": partial(implicit, solver=conjugate_gradients(3)),
        "accepted": partial(implicit, solver=conjugate_gradients(3), tolerance=jnp.inf),
    }

    @compiled
    @jax.vmap
    def sweep(kl_weight):
        case = instance(jax.random.key(3), 5, 3, 1, "linear", kl_weight)
        start = case.optimum(case.reward)
        response = jax.jacobian(case.optimum)(case.reward)
        response -= jnp.mean(response, axis=1, keepdims=True)  # ∂λ*/∂φ without the shifts of each state's logits
        given = jnp.linalg.norm(case.gradients.preference_in_policy((), start, case.reward))
        found = {name: case.estimate(construct, start) for name, construct in ways.items()}
        exactly = flat(case.estimate(closed_form, start))
        numeric = differences(case.bilevel.value, case.reward)
        errors = {name: jnp.linalg.norm(flat(x) - exactly) for name, x in found.items()}
        residuals = {name: x.residual for name, x in found.items()}
        return exactly - numeric, errors, residuals, given, response.reshape(-1, 3), curvature(case, start)

    gap, errors, residuals, given, response, curvatures = sweep(jnp.array([1.0, 0.3, 0.1, 0.05]))
    close(gap, 0.0, 1e-5)
    # One null direction a state, its shift; the others are the worse conditioned, the smaller w.
    spectra = np.linalg.eigvalsh(curvatures[:3])[:, 5:]
    assert np.all(np.diff(np.log10(spectra[:, -1] / spectra[:, 0])) > 1)
    for name in ("dense", "converged"):
        assert jnp.max(residuals[name]) < 1e-8
        assert jnp.max(errors[name]) < 1e-8
    assert jnp.min(residuals["stopped"]) > 1e-8
    assert jnp.all(jnp.isnan(errors["stopped"]))
    # What a residual leaves is no more than the response to it, however bad the conditioning.
    steepness = np.linalg.norm(response, 2, axis=(1, 2))
    assert jnp.all(errors["accepted"] <= 1.001 * steepness * given * residuals["accepted"])
    assert jnp.max(errors["accepted"]) > 1e-3


def test_the_implicit_gradient_follows_a_restricted_policy_and_the_closed_form_does_not(x64):
    # One probability for all states: no policy of the class is the Gibbs policy, which the closed form differentiates.
    full = instance(jax.random.key(0), *SMALL)
    policy = Model(lambda key: jnp.zeros(()), lambda params, obs: models.Categorical(jnp.stack([params, -params])))
    problem, given = full.problem._replace(policy=policy), full.bilevel
    case = full._replace(problem=problem, gradients=exact_gradients(problem, full.mdp, SMALL[2], full.coefficients))

    def table(logit):
        return jnp.tile(jax.nn.softmax(jnp.stack([logit, -logit])), (3, 1))

    def best(params):
        slope = jax.grad(lambda logit: given.regularised_return(params, table(logit)))
        newton = lambda logit, _: (logit - slope(logit) / jax.grad(slope)(logit), None)  # noqa: E731
        logit, _ = jax.lax.scan(newton, jnp.zeros(()), length=12)
        return logit, slope(logit)

    def value(params):
        return given.preference(params, table(best(params)[0]))

    @compiled
    def found():
        logit, slope = best(case.reward)
        ways = [flat(case.estimate(construct, logit)) for construct in (implicit, dense, closed_form)]
        return slope, differences(value, case.reward), *ways

    slope, numeric, by_products, by_elimination, closed = found()
    close(slope, 0.0, 1e-12)
    close(by_products, numeric, 1e-7)
    close(by_elimination, numeric, 1e-7)
    assert jnp.linalg.norm(closed - numeric) > 1e-2


def test_single_precision_is_kept_and_agrees_with_double():
    @compiled
    def found():
        case = instance(jax.random.key(1), *SMALL)
        start = case.optimum(case.reward)
        ways = [case.estimate(way, start) for way in (naive, line_7, closed_form, implicit, dense, unrolled)]
        return [flat(x) for x in ways], [x.residual for x in ways]

    singles, residuals = found()
    assert {x.dtype for x in singles + residuals} == {jnp.dtype("float32")}
    assert max(residuals) < 1e-3
    _, _, closed, by_products, by_elimination, _ = singles
    close(by_products, closed, 1e-4)
    close(by_elimination, closed, 1e-4)


def test_no_hypergradient_calls_lapack_where_devices_share_threads():
    # Its batched calls wait for threads of the pool that runs them: on several CPU devices that can be for ever.
    def every(key):
        case = instance(key, *SMALL)
        ways = (naive, line_7, closed_form, implicit, dense, partial(unrolled, num_steps=2))
        return [flat(case.estimate(way, jnp.zeros((3, 2)))) for way in ways]

    keys = jax.random.split(jax.random.key(0), 2)
    assert "lapack" not in jax.jit(jax.vmap(every)).lower(keys).as_text()
    spectrum = jax.jit(lambda key: jnp.linalg.eigvalsh(jax.random.normal(key, (2, 2))))
    assert "lapack" in spectrum.lower(keys[0]).as_text()


# Solvers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [conjugate_gradients(40), dense_elimination()], ids=["products", "elimination"])
@pytest.mark.parametrize("rank", [0, 1, 5, 8])
def test_solvers_solve_singular_systems(solver, rank, x64):
    factor = jax.random.normal(jax.random.key(rank), (8, rank))
    matrix = factor @ factor.T
    right = matrix @ jax.random.normal(jax.random.key(9), (8,))
    solution = jax.jit(lambda right: solver.solve(lambda x: matrix @ x, right))(right)
    close(matrix @ solution, right, 1e-9)
    assert jnp.all(jnp.isfinite(solution))


def test_conjugate_gradients_return_the_shortest_solution(x64):
    factor = jax.random.normal(jax.random.key(0), (8, 5))
    matrix = factor @ factor.T
    right = matrix @ jax.random.normal(jax.random.key(9), (8,))
    solution = conjugate_gradients(40).solve(lambda x: matrix @ x, right)
    close(solution, np.linalg.pinv(matrix, rcond=1e-10) @ right, 1e-9)


# Sampled --------------------------------------------------------------------------------------------------------------


SAMPLED = SampleSizes(batch_size=4096, rollout_length=14, segment_length=2)  # 0.5^14 = 6e-5 of ∇_φ J is cut off
REPETITIONS = 160


@functools.cache
def small_instance() -> Instance:
    """One whose implicit part is as large as its direct one, with little to come after a step: γ = ½."""
    case = instance(jax.random.key(0), 3, 2, 2, "linear", 0.2)
    coefficients = case.coefficients._replace(discount=0.5, rationality=2.0)
    prior = case.bilevel.lower(case.reward).reference
    return assemble(case.mdp, 2, coefficients, case.problem.reward, prior, case.reward)


def parts(case: Instance, gradients: Gradients, key):
    """∇_φ G and the closed form's implicit part at λ*, from pairs of another policy, λ′."""
    policy = case.optimum(case.reward)
    other = policy + 0.2 * jax.random.normal(jax.random.key(8), policy.shape)
    key_pairs, key_estimate = jax.random.split(key)
    pairs = gradients.collect(key_pairs, lambda obs: case.problem.policy.apply(other, obs))
    made = [construct(case.problem, gradients, case.hyper) for construct in (naive, closed_form)]
    alone, upper = (x.estimate(key_estimate, pairs, case.reward, policy, other) for x in made)
    return alone.direct, upper.direct, upper.implicit


def sampled_parts(case: Instance):
    """`parts` from samples, many times."""
    critic = monte_carlo_critic(case.problem, case.coefficients)
    gradients = sampled_gradients.sampled_gradients(case.problem, critic, SAMPLED, case.coefficients)
    return repeat(lambda key: parts(case, gradients, key), REPETITIONS)


@functools.cache
def exact_parts():
    case = small_instance()
    return compiled(lambda: parts(case, case.gradients, jax.random.key(0)))()


def test_sampled_naive_and_closed_form_are_unbiased_and_with_the_wrong_sign_biased(x64):
    alone, direct, response = sampled_parts(small_instance())
    exactly, _, expected = exact_parts()
    assert_unbiased(alone, exactly)
    np.testing.assert_array_equal(alone, direct)
    assert_unbiased(response, expected)
    assert_unbiased(direct + response, exactly + expected)
    assert_biased(-response, expected)


def test_a_dropped_discount_of_the_follow_ups_is_seen(x64, monkeypatch):
    honest = sampled_gradients.discount_powers

    def dropped(discount, length, dtype=float):
        return jnp.ones(length, dtype) if length == SAMPLED.rollout_length else honest(discount, length, dtype)

    monkeypatch.setattr(sampled_gradients, "discount_powers", dropped)
    _, _, response = sampled_parts(small_instance())
    assert_biased(response, exact_parts()[2])


def test_follow_ups_start_at_a_visited_pair_and_at_another_action_there(x64):
    setting = setting_of(1)
    gradients = setting.sampled(SAMPLED)
    collect = compiled(
        lambda key: gradients.collect(key, lambda obs: setting.problem.policy.apply(setting.optimal, obs))
    )
    pairs = collect(jax.random.key(0))
    behave, segments = models.uniform_reference(setting.problem.env), pairs.comparison.first
    for length in (1, 4):
        follow = partial(sampled_gradients.follow_ups, setting.problem.env, behave, length=length)
        taken, other = compiled(follow)(jax.random.key(1), segments)
        assert taken.obs.shape == other.action.shape == (2048, length)
        visited = (segments.obs == taken.obs[:, :1]) & (segments.action == taken.action[:, :1])
        assert jnp.all(jnp.any(visited, axis=1))
        np.testing.assert_array_equal(taken.obs[:, 0], other.obs[:, 0])
        assert abs(jnp.mean(other.action[:, 0]) - 0.5) < 4 * 0.5 / 2048**0.5
        same = jnp.all(taken.action[:, :1] == other.action[:, :1], axis=1)
        assert jnp.all(taken.obs[same] == other.obs[same])  # coupled


def test_the_cost_of_the_sampled_closed_form_is_that_of_its_follow_ups(x64):
    # Two follow-ups of 14 steps for each of 4096 segments.
    gradients = setting_of(1).sampled(SAMPLED)
    assert gradients.through_policy_cost == Cost(2 * 4096 * 14, 0, 0)


@pytest.mark.parametrize("construct", [implicit, unrolled])
def test_sampled_gradients_are_refused_where_they_would_be_differentiated(construct, x64):
    setting = setting_of(1)
    with pytest.raises(ValueError, match=f"{construct.__name__} differentiates .* use exact gradients, or closed_form"):
        construct(setting.problem, setting.sampled(), BilevelHyper())


def test_counts_out_of_range_are_refused(x64):
    setting = setting_of(1)
    gradients = exact_gradients(setting.problem, setting.reference.mdp, 3, setting.coefficients)
    with pytest.raises(ValueError, match="num_steps is 0; required: at least 1"):
        unrolled(setting.problem, gradients, BilevelHyper(), num_steps=0)
    with pytest.raises(ValueError, match="num_iterations is 0; required: at least 1"):
        conjugate_gradients(0)


# Inside Algorithm 1 ---------------------------------------------------------------------------------------------------


# By hand, n = 6 logits: a product with a second derivative is two evaluations. Implicit: the solve's products, one for
# its residual, one for ∂_φ ∇_λ J, then ∇_φ G and ∇_λ G. Unrolled: 7 steps there, 7 products back, and the same two.
EVALUATIONS = {
    "naive": (naive, 1),
    "line 7": (line_7, 2),
    "closed form": (closed_form, 2),
    "conjugate gradients": (partial(implicit, solver=conjugate_gradients(9)), 2 * (9 + 2) + 2),
    "dense": (dense, 2 * (6 + 2) + 2),
    "unrolled": (partial(unrolled, num_steps=7), 7 + 2 * 7 + 2),
}


def test_the_outer_step_ascends_the_hypergradient_it_was_given_and_counts_its_cost(x64):
    case = small_instance()
    problem = case.problem._replace(reward=case.problem.reward._replace(init=lambda key: case.reward))
    hyper = case.hyper._replace(sigma=0.3, reward_step_size=0.7, policy_step_size=0.5)

    @compiled
    def steps(key):
        gradients = exact_gradients(problem, case.mdp, 2, case.coefficients)
        results = {}
        for name, (construct, _) in EVALUATIONS.items():
            config = BilevelConfig(num_policy_steps=20, reward_optimizer=optax.sgd, hypergradient=construct)
            algorithm = bilevel_rlhf(problem, gradients, config, hyper)
            state, info = algorithm.step(key, algorithm.init(key))
            points = case.reward, actor_of(state.lower.params), proxy_of(state.lower.params)
            upper = construct(problem, gradients, hyper).estimate(key, (), *points)
            results[name] = state.reward.params - case.reward, flat(upper), info
        return results

    moved = {}
    for name, (change, expected, info) in steps(jax.random.key(0)).items():
        close(change, 0.7 * expected, 1e-12)
        assert info["gradient_evaluations"] == 3 * 20 + EVALUATIONS[name][1]
        close(info["gradient_norm"], jnp.linalg.norm(expected), 1e-12)
        moved[name] = change
    # Twenty steps from the start λ is not λ*: each of the five is its own estimate; the two solvers agree.
    close(moved.pop("dense"), moved["conjugate gradients"], 1e-6)
    names = list(moved)
    gaps = [jnp.linalg.norm(moved[x] - moved[y]) for i, x in enumerate(names) for y in names[:i]]
    assert min(gaps) > 1e-3
