"""Exact oracles against an independent program's numbers, against each other, and against finite differences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import exact
from bilevel.preferences import annotator, excess_log_likelihood, log_likelihood
from envs.base import MDP
from envs.tabular import garnet, tabular

TOLERANCE = 1e-6


def close(value, expected, tolerance=TOLERANCE):
    np.testing.assert_allclose(np.asarray(value), np.asarray(expected), rtol=0, atol=tolerance)


def value_of_optimum(reference, params, objective=log_likelihood):
    """Φ(φ) = G(φ, π*(φ))."""
    reward = reference.reward_table(params)
    policy = exact.optimal_policy(reference.lower._replace(reward=reward)).policy
    return reference.objective_value(objective, policy, reward)


def test_the_reward_network_is_the_reference_one(reference):
    close(reference.reward_table(reference.params), reference.numbers["learned_reward"], 1e-12)


def test_optimal_policy_and_values_equal_the_reference_numbers(reference):
    solution = exact.optimal_policy(reference.lower)
    close(solution.policy, reference.numbers["optimal_policy"])
    close(exact.state_values(reference.lower, solution.policy), reference.numbers["optimal_value"])
    close(exact.regularised_return(reference.lower, solution.policy), reference.numbers["return_of_optimal"])
    assert solution.residual < 1e-8


def test_values_and_occupancy_of_the_reference_policy_equal_the_reference_numbers(reference):
    policy = reference.lower.reference
    close(exact.regularised_return(reference.lower, policy), reference.numbers["reference_return"])
    close(exact.action_values(reference.lower, policy), reference.numbers["reference_q"])
    close(exact.occupancy(reference.lower, policy), reference.numbers["reference_visitation"])


def test_preference_objective_equals_the_reference_numbers(reference):
    reward = reference.lower.reward
    optimal = jnp.asarray(reference.numbers["optimal_policy"])
    numbers = reference.numbers
    close(reference.objective_value(log_likelihood, optimal, reward), numbers["preference_objective_of_optimal"])
    of_reference = reference.objective_value(log_likelihood, reference.lower.reference, reward)
    close(of_reference, numbers["preference_objective_of_reference"])


def test_hypergradient_equals_the_reference_numbers(reference):
    gradient = jax.grad(lambda params: value_of_optimum(reference, params))(reference.params)
    close(gradient, reference.numbers["hypergradient"])


@pytest.mark.parametrize("sigma", ["0.3", "0.1"])
def test_proxy_equals_the_reference_numbers(reference, sigma):
    numbers = reference.numbers["proxy"][sigma]
    value, gradient, policy = proxy(reference, reference.params, float(sigma))
    close(policy, numbers["penalised_policy"])
    close(value, numbers["value"])
    close(gradient, numbers["gradient"])


def proxy(reference, params, sigma):
    """Φ_σ, ∇Φ_σ and λ*_σ, by theory's formulas."""
    lower = reference.lower._replace(reward=reference.reward_table(params))

    def penalty(policy):
        return reference.objective_value(log_likelihood, policy, lower.reward)

    sigma = jnp.asarray(sigma)  # an argument of the compiled solver, no constant: one program for every σ
    optimal = exact.optimal_policy(lower).policy
    penalised, residual = exact.penalised_policy(lower, penalty, sigma)
    assert residual < 1e-12  # an error of the policy is divided by σ, here down to 1e-3

    def surrogate(params):
        reward = reference.reward_table(params)
        ours = lower._replace(reward=reward)
        gap = exact.regularised_return(ours, optimal) - exact.regularised_return(ours, penalised)
        return reference.objective_value(log_likelihood, penalised, reward) - gap / sigma

    return *jax.value_and_grad(surrogate)(params), penalised


# Identities and limits ------------------------------------------------------------------------------------------------


def test_two_states_by_hand(x64):
    # State 0 moves to state 1 and pays 1; state 1 stays and pays 2: V(1) = 2/(1-γ) = 4, V(0) = 1 + γ 4 = 3 at γ = 1/2.
    mdp = MDP(jnp.array([1.0, 0.0]), jnp.array([[[0.0, 1.0]], [[0.0, 1.0]]]), jnp.array([[1.0], [2.0]]))
    problem = exact.lower_level(mdp, mdp.reward, jnp.ones((2, 1)), 0.5, 0.7)
    policy = jnp.ones((2, 1))
    close(exact.state_values(problem, policy), [3.0, 4.0])
    close(exact.occupancy(problem, policy), [0.5, 0.5])
    close(exact.regularised_return(problem, policy), 3.0)


def test_the_bandit_optimum_is_the_gibbs_policy(x64):
    mdp = MDP(jnp.ones(1), jnp.ones((1, 3, 1)), jnp.array([[0.0, 1.0, 2.0]]))
    prior = jnp.array([[0.5, 0.25, 0.25]])
    problem = exact.lower_level(mdp, mdp.reward, prior, 0.0, 0.5)
    weights = np.array([0.5, 0.25, 0.25]) * np.exp(np.array([0.0, 1.0, 2.0]) / 0.5)
    close(exact.optimal_policy(problem).policy, [weights / weights.sum()], 1e-12)


@pytest.fixture
def instance(x64):
    """A random lower level of another size than the references'."""
    mdp = garnet(jax.random.key(3), 7, 3, 2)
    prior = jax.random.dirichlet(jax.random.key(4), jnp.ones(3), (7,))
    return exact.lower_level(mdp, mdp.reward, prior, 0.8, 0.4)


def test_the_return_is_the_reward_under_the_occupancy(instance):
    policy = jax.random.dirichlet(jax.random.key(5), jnp.ones(3), (7,))
    visits = exact.occupancy(instance, policy)
    close(visits.sum(), 1.0, 1e-12)
    reward = exact.regularised_reward(instance, policy)
    expected = visits @ jnp.sum(policy * reward, axis=-1) / (1 - instance.discount)
    close(exact.regularised_return(instance, policy), expected, 1e-10)
    plain = visits @ jnp.sum(policy * instance.reward, axis=-1) / (1 - instance.discount)
    penalty = instance.kl_weight * exact.divergence(instance, policy) / (1 - instance.discount)
    close(exact.regularised_return(instance, policy), plain - penalty, 1e-10)


def test_the_optimum_is_stationary_and_no_policy_beats_it(instance):
    optimal = exact.optimal_policy(instance).policy
    close(exact.advantages(instance, optimal), jnp.zeros((7, 3)), 1e-8)
    best = exact.regularised_return(instance, optimal)
    for seed in range(20):
        other = jax.random.dirichlet(jax.random.key(seed), jnp.ones(3), (7,))
        assert exact.regularised_return(instance, other) < best


def test_a_large_kl_weight_gives_the_reference_policy(instance):
    policy = exact.optimal_policy(instance._replace(kl_weight=1e7)).policy
    close(policy, instance.reference, 1e-6)


def test_a_constant_added_to_the_reward_changes_no_policy(instance):
    shifted = exact.optimal_policy(instance._replace(reward=instance.reward + 3.0)).policy
    close(shifted, exact.optimal_policy(instance).policy, 1e-9)


def test_the_optimal_policy_differentiates_like_finite_differences(instance):
    def probe(reward):
        return jnp.sum(exact.optimal_policy(instance._replace(reward=reward)).policy ** 2)

    direction = jax.random.normal(jax.random.key(6), instance.reward.shape)
    step = 1e-5
    numeric = (probe(instance.reward + step * direction) - probe(instance.reward - step * direction)) / (2 * step)
    close(jnp.vdot(jax.grad(probe)(instance.reward), direction), numeric, 1e-7)


def test_the_hypergradient_equals_finite_differences_of_the_objective(reference):
    direction = jax.random.normal(jax.random.key(7), reference.params.shape)
    step = 1e-5
    ends = [value_of_optimum(reference, reference.params + sign * step * direction) for sign in (1, -1)]
    gradient = jax.grad(lambda params: value_of_optimum(reference, params))(reference.params)
    close(jnp.vdot(gradient, direction), (ends[0] - ends[1]) / (2 * step), 1e-8)


def test_the_excess_objective_is_greatest_at_the_true_reward(reference):
    def excess(reward):
        policy = exact.optimal_policy(reference.lower._replace(reward=reward)).policy
        return reference.objective_value(excess_log_likelihood, policy, reward)

    close(excess(reference.mdp.reward), 0.0, 1e-12)
    close(jax.grad(excess)(reference.mdp.reward), jnp.zeros((3, 2)), 1e-10)
    assert excess(reference.mdp.reward + jax.random.normal(jax.random.key(0), (3, 2))) < -1e-3


def test_the_proxy_lies_above_the_objective_and_its_bias_falls_like_sigma(reference):
    value = value_of_optimum(reference, reference.params)
    errors = np.array([float(proxy(reference, reference.params, sigma)[0] - value) for sigma in (0.002, 0.001)])
    assert (errors > 0).all()
    assert abs(np.log2(errors[0] / errors[1]) - 1) < 0.005


def test_a_solver_that_does_not_converge_returns_nan(instance):
    assert jnp.isnan(exact.optimal_policy(instance, max_iterations=1).policy).all()
    unsolved = exact.penalised_policy(instance, lambda policy: jnp.sum(policy**3), 5.0, max_iterations=1)
    assert jnp.isnan(unsolved.policy).all()
    assert unsolved.residual > 1e-6


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


def test_a_penalised_policy_where_no_maximum_is_found_is_nan(x64):
    # At γ = 0 the return does not see state 1, so nothing holds its policy from a vertex, which G wants.
    mdp = MDP(jnp.array([1.0, 0.0]), jnp.ones((2, 2, 2)) / 2, jnp.zeros((2, 2)))
    problem = exact.lower_level(mdp, mdp.reward, jnp.full((2, 2), 0.5), 0.0, 0.5)
    assert jnp.isnan(exact.penalised_policy(problem, lambda policy: policy[1, 0], 1.0).policy).all()


@pytest.mark.parametrize("discount", [0.0, 0.9, 0.9999, 0.99999])
def test_the_best_return_is_the_best_of_all_deterministic_policies(discount, x64):
    mdp = garnet(jax.random.key(0), 3, 2)
    transition, reward = np.asarray(mdp.transition), np.asarray(mdp.reward)

    def value(actions):
        chain = transition[range(3), actions]
        return np.asarray(mdp.initial) @ np.linalg.solve(np.eye(3) - discount * chain, reward[range(3), actions])

    expected = max(value(list(actions)) for actions in itertools.product(range(2), repeat=3))
    found = exact.best_return(exact.lower_level(mdp, mdp.reward, jnp.full((3, 2), 0.5), jnp.asarray(discount), 0.0))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_best_return_that_is_not_found_is_nan(instance):
    assert jnp.isnan(exact.best_return(instance._replace(discount=1.0)))
    assert jnp.isnan(exact.best_return(instance, max_iterations=1))


def test_an_optimal_policy_outside_its_domain_is_nan_with_an_infinite_residual(instance):
    def solve(discount, kl_weight):
        return exact.optimal_policy(instance._replace(discount=discount, kl_weight=kl_weight))

    discounts = jnp.array([0.8, 1.0, 1.1, -0.1, jnp.nan, 0.8, 0.8, 0.8])
    policy, residual = jax.vmap(solve)(discounts, jnp.array([0.4, 0.4, 0.4, 0.4, 0.4, 0.0, -1.0, jnp.nan]))
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


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 2, 0), "length of the segments is 0; required"),
        ((3, 2, -1), "length of the segments is -1"),
        ((0, 2, 3), "num_states of the segments is 0"),
        ((3, -2, 3), "num_actions of the segments is -2"),
    ],
)
def test_segments_of_no_size_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        exact.enumerate_segments(*sizes)


@pytest.mark.parametrize(
    ("classes", "length", "message"),
    [
        ([[0, 1]], 0, "length of the segments is 0; required: at least 1"),
        ([[-1, 0]], 2, "classes run from -1 to 0, 2 of them in use; required"),
        ([[0, 2]], 2, "classes run from 0 to 2, 2 of them in use; required"),
        ([0, 1], 2, r"shape \(2,\); required"),
        (np.zeros((0, 2), int), 2, r"shape \(0, 2\); required"),
        ([[0.0, 1.0]], 2, "classes are float64 .* required: integers"),
    ],
)
def test_classes_that_number_no_pairs_are_refused(classes, length, message):
    with pytest.raises(ValueError, match=message):
        exact.enumerate_classes(classes, length)


def test_the_law_of_segments_sums_to_one(reference):
    close(exact.segment_law(reference.mdp, reference.lower.reference, reference.segments).sum(), 1.0, 1e-12)


def test_too_many_segments_are_refused_with_their_number():
    with pytest.raises(ValueError, match="10000 segments"):
        exact.enumerate_segments(5, 2, 4)


def test_segments_by_reward_classes_give_the_enumerated_objective_and_its_derivatives(x64):
    # Two classes of the true reward, two of the learned one's features: together C = 3 of 6 pairs.
    mdp = garnet(jax.random.key(0), 3, 2)
    features = np.array([[0, 1], [0, 0], [1, 1]])
    mdp = mdp._replace(reward=jnp.array([[1.0, 1.0], [1.0, 1.0], [-0.5, -0.5]]))
    classes = exact.reward_classes(mdp.reward, features)
    assert classes.max() == 2 and len({classes[0, 1], classes[0, 0], classes[2, 0]}) == 3
    assert classes[0, 0] == classes[1, 0] == classes[1, 1] and classes[2, 0] == classes[2, 1]
    annotate = annotator(tabular(mdp).reward, 0.9, skip_below=-1.0)
    whole, (grouped, law) = exact.enumerate_segments(3, 2, 3), exact.enumerate_classes(classes, 3)
    assert grouped.state.shape == (27, 3)

    def objective(values, policy, segments, law):
        comparisons = exact.exact_comparisons(annotate, segments)
        reward = values[features]
        return exact.preference_objective(mdp, policy, reward, segments, comparisons, log_likelihood, 0.9, 1.3, law)

    both = jax.value_and_grad(objective, (0, 1))
    policy = jax.random.dirichlet(jax.random.key(1), jnp.ones(2), (3,))
    values = jnp.array([0.3, -0.7])
    (ours, slopes), (theirs, expected) = (
        both(values, policy, grouped, law),
        both(values, policy, whole, exact.segment_law),
    )
    close(ours, theirs, 1e-12)
    for x, y in zip(slopes, expected, strict=True):
        close(x, y, 1e-12)


def test_many_states_of_few_rewards_are_affordable_and_many_rewards_refused_with_their_number(x64):
    mdp = garnet(jax.random.key(0), 300, 4)
    classes = np.arange(1200).reshape(300, 4) % 3
    segments, law = exact.enumerate_classes(classes, 7)
    probability = jax.jit(law)(mdp, jnp.full((300, 4), 0.25), segments)
    close(probability.sum(), 1.0, 1e-12)
    # The first class alone, by hand.
    step = np.where(classes == 0, 0.25, 0.0)
    reached = np.asarray(mdp.initial)
    for _ in range(7):
        reached = np.einsum("s,sa,sat->t", reached, step, np.asarray(mdp.transition))
    close(probability[0], reached.sum(), 1e-12)
    with pytest.raises(ValueError, match="3\\^8 = 6561 sequences"):
        exact.enumerate_classes(classes, 8)


def test_a_negative_sigma_has_no_optimum(x64):
    mdp = garnet(jax.random.key(0), 3, 2)
    lower = exact.lower_level(mdp, mdp.reward, jnp.full((3, 2), 0.5), 0.9, 1.0)
    solved = jax.jit(lambda sigma: exact.penalised_policy(lower, lambda policy: jnp.sum(policy**2), sigma).policy)
    assert np.isfinite(solved(0.1)).all() and np.isnan(solved(-0.1)).all()


def test_a_number_of_segments_beyond_all_digits_is_refused_in_one_line():
    with pytest.raises(ValueError, match="\\(40·4\\)\\^5000 segments; exact"):
        exact.enumerate_segments(40, 4, 5000)


def test_instances_are_solved_in_one_vmap(x64):
    mdps = jax.vmap(lambda key: garnet(key, 4, 2))(jax.random.split(jax.random.key(0), 5))

    def solve(mdp):
        return exact.optimal_policy(exact.lower_level(mdp, mdp.reward, jnp.full((4, 2), 0.5), 0.9, 0.3)).policy

    together = jax.vmap(solve)(mdps)
    close(together[2], solve(jax.tree.map(lambda x: x[2], mdps)), 1e-9)


@pytest.mark.parametrize("size", [1, 2, 25, 60])
def test_elimination_without_pivots_solves_what_lapack_solves(size, x64):
    chain = jax.random.dirichlet(jax.random.key(size), jnp.full(size, 0.3), (size,))
    matrix, right = jnp.eye(size) - 0.99 * chain, jax.random.normal(jax.random.key(0), (size,))
    np.testing.assert_allclose(exact.solve_dominant(matrix, right), np.linalg.solve(matrix, right), rtol=1e-10)
    np.testing.assert_allclose(exact.solve_dominant(matrix.T, right), np.linalg.solve(matrix.T, right), rtol=1e-10)

    def through(solve):
        return jax.grad(lambda m, b: jnp.sum(jnp.sin(solve(m, b))), (0, 1))(matrix, right)

    for ours, theirs in zip(through(exact.solve_dominant), through(jnp.linalg.solve), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-8)


def test_no_oracle_calls_lapack_where_devices_share_threads():
    # Its batched calls wait for threads of the pool that runs them: on several CPU devices that can be for ever.
    mdp = garnet(jax.random.key(0), 4, 2)
    lower = exact.lower_level(mdp, mdp.reward, jnp.full((4, 2), 0.5), 0.9, 0.5)
    for oracle in (exact.state_values, exact.occupancy, exact.regularised_return, exact.divergence):
        text = jax.jit(oracle).lower(lower, lower.reference).compile().as_text()
        assert 'custom_call_target="lapack' not in text, oracle.__name__
    assert 'custom_call_target="lapack' not in jax.jit(exact.optimal_policy).lower(lower).compile().as_text()
    solver = jax.jit(lambda lower: exact.penalised_policy(lower, lambda policy: jnp.sum(policy**3), 0.1))
    assert "lapack" not in solver.lower(lower).as_text()
