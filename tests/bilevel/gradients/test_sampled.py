"""Sampled derivatives against exact ones: unbiased, precise enough to tell, and the check sees planted errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling import LINE_7_SIZES, SIZES, assert_biased, assert_unbiased, proxy_solver, repeat, setting_of

from bilevel import models
from bilevel.gradients import sampled as sampled_gradients
from bilevel.gradients.critics import exact_critic, monte_carlo_critic
from bilevel.gradients.sampled import ESTIMATORS, LabelledPairs, SampleSizes
from bilevel.lookup import bind
from bilevel.preferences import Teacher, annotator, excess_brier, excess_log_likelihood, log_likelihood
from bilevel.types import Coefficients, Comparison, Cost, Model, Problem
from envs.base import Env

# Unbiased -------------------------------------------------------------------------------------------------------------


def test_policy_gradients_of_the_return_are_unbiased_and_with_the_wrong_sign_of_the_kl_biased(x64):
    setting = setting_of(1)
    reversed_kl = setting.coefficients._replace(kl_weight=-setting.coefficients.kl_weight)
    critics = {
        "exact": exact_critic(setting.problem, setting.reference.mdp, setting.coefficients),
        "Monte Carlo": monte_carlo_critic(setting.problem, setting.coefficients),
        "wrong": monte_carlo_critic(setting.problem, reversed_kl),
    }

    def estimates(key):
        ours = {name: setting.sampled(critic=critic) for name, critic in critics.items()}
        return {name: g.return_in_policy(key, (), setting.other, setting.reward)[0] for name, g in ours.items()}

    samples = repeat(estimates, 100)
    expected = setting.exact_return()
    assert_unbiased(samples["exact"], expected)
    assert_unbiased(samples["Monte Carlo"], expected)
    assert_biased(samples["wrong"], expected)


def test_preference_gradients_are_unbiased_from_fresh_pairs_and_reweighted_ones_of_another_policy(x64):
    setting = setting_of(2)
    gradients = setting.sampled(SIZES._replace(batch_size=4096))

    def estimates(key):
        pairs = gradients.collect(key, bind(setting.problem.policy, setting.policy))
        other = bind(setting.problem.policy, setting.other)
        log_other = sampled_gradients.log_probability(setting.problem.env, other, pairs.comparison)
        return {
            "fresh": setting.preference(gradients, pairs, setting.policy),
            "reused": setting.preference(gradients, pairs, setting.other),
            "ratio dropped": setting.preference(gradients, pairs._replace(log_behaviour=log_other), setting.other),
        }

    samples = repeat(estimates, 160)
    fresh, reused = (setting.exact_preference(params) for params in (setting.policy, setting.other))
    for name in ("policy", "reward"):
        assert_unbiased(samples["fresh"][name], fresh[name])
        assert_unbiased(samples["reused"][name], reused[name])
        assert_biased(samples["ratio dropped"][name], reused[name])


def test_line_7_is_unbiased_from_coupled_and_from_weighted_rollouts_and_with_the_wrong_sign_biased(x64):
    setting = setting_of(1)
    ways = [setting.sampled(LINE_7_SIZES._replace(estimator=name)) for name in ("coupled", "weighted")]
    direct, coupled, weighted = repeat(lambda key: setting.line_7(key, *ways), 36)
    expected = setting.reference.numbers["proxy"]["0.1"]["gradient"]
    _, difference = setting.exact(lambda gradients: setting.line_7(jax.random.key(0), gradients))
    # Most of line 7 is ∇_φ G, in whose noise an error of the difference could hide: so the difference alone as well.
    for samples, precision in ((coupled, 0.08), (weighted, 0.02)):
        assert_unbiased(direct + samples, expected)
        assert_unbiased(samples, difference, precision)
        assert_biased(direct - samples, expected)


def test_line_7_is_unbiased_from_independent_rollouts(x64):
    # This estimator divides its noise by σ: at the σ = 0.1 of the other two it would need a hundred times the rollouts.
    setting = setting_of(1)
    setting = setting._replace(sigma=1.0, proxy=proxy_solver()(1.0))
    gradients = setting.sampled(LINE_7_SIZES._replace(estimator="independent"))
    direct, difference = repeat(lambda key: setting.line_7(key, gradients), 60)
    assert_unbiased(direct + difference, setting.exact_line_7())


def test_excess_objectives_are_unbiased_under_a_teacher_who_errs_skips_and_ties(x64):
    setting = setting_of(2)
    truth, teacher = setting.reference.mdp.reward, Teacher(error_rate=0.2, skip_below=0.0, tie_within=0.5)
    annotate = annotator(lambda s, a: truth[s, a], setting.coefficients.discount, teacher=teacher)
    problem = setting.problem._replace(annotate=annotate)
    setting = setting._replace(problem=problem)
    behave = bind(problem.policy, setting.policy)
    sizes = SIZES._replace(batch_size=4096)
    objectives = (excess_log_likelihood, excess_brier)
    sampled = [setting.sampled(sizes, objective=objective) for objective in objectives]

    def estimates(key):
        pairs = sampled[0].collect(key, behave)
        weight, probability = pairs.comparison.weight, pairs.comparison.probability
        shares = jnp.array([jnp.mean(weight == 0), jnp.mean(probability == 0.5)])
        return shares, [gradients.preference_in_reward(pairs, behave, setting.reward) for gradients in sampled]

    shares, samples = repeat(estimates, 50)
    assert jnp.all((shares > 0.05) & (shares < 0.9))
    for objective, (values, derivatives) in zip(objectives, samples, strict=True):
        value, derivative = setting.exact(
            lambda gradients: gradients.preference_in_reward((), behave, setting.reward), objective
        )
        assert_unbiased(values, value)
        assert_unbiased(derivatives, derivative)


def one_step_world():
    """One state, an action in R; everything about it can be computed by hand."""
    return Env(lambda key: jnp.zeros(1), lambda key, state, action: state, lambda state: state, action_size=1)


def test_a_gaussian_bandit_has_the_gradients_computed_by_hand(x64):
    # r_φ(a) = −(a − φ)², a ~ N(m, 0.5²): J = −(m − φ)² − 0.5², ∂J/∂m = 2(φ − m), ∂J/∂φ = 2(m − φ), so that the
    # difference is 2(m′ − m).
    reward = Model(lambda key: jnp.float64(1.5), lambda params, obs, action: -jnp.sum((action - params) ** 2))
    policy = Model(lambda key: jnp.zeros(1), lambda params, obs: models.gaussian(params, jnp.array([0.5])))
    problem = Problem(one_step_world(), None, reward, policy, bind(policy, jnp.zeros(1)))
    coefficients = Coefficients(discount=0.0, kl_weight=0.0)
    mean, proxy = jnp.array([0.3]), jnp.array([0.6])

    def gradients(estimator):
        sizes = SampleSizes(batch_size=256, rollout_length=1, segment_length=1, estimator=estimator)
        critic = monte_carlo_critic(problem, coefficients)
        return sampled_gradients.sampled_gradients(problem, critic, sizes, coefficients)

    def estimates(key):
        ours = {name: gradients(name).return_difference(key, jnp.float64(1.5), mean, proxy)[0] for name in ESTIMATORS}
        in_policy, _, _ = gradients("weighted").return_in_policy(key, (), mean, jnp.float64(1.5))
        return {"policy": in_policy, **ours}

    samples = repeat(estimates, 400)
    assert_unbiased(samples["policy"], jnp.array([2.4]))
    for name in ("independent", "weighted"):
        assert_unbiased(samples[name], jnp.float64(0.6))
    # Coupled actions differ by m′ − m whatever the noise, so the difference has none.
    np.testing.assert_allclose(samples["coupled"], 0.6, rtol=1e-10)


# The check sees errors ------------------------------------------------------------------------------------------------


def test_a_dropped_discount_is_seen(x64, monkeypatch):
    setting = setting_of(1)
    monkeypatch.setattr(
        sampled_gradients, "discount_powers", lambda discount, length, dtype=float: jnp.ones(length, dtype)
    )
    gradients = setting.sampled()

    def estimates(key):
        in_policy = gradients.return_in_policy(key, (), setting.other, setting.reward)[0]
        return in_policy, *setting.line_7(key, gradients)

    in_policy, direct, difference = repeat(estimates, 40)
    assert_biased(in_policy, setting.exact_return())
    assert_biased(direct, setting.exact_preference(setting.proxy)["reward"])
    assert_biased(direct + difference, setting.exact_line_7())


def preference_in_policy(setting, batch_size, repetitions, at_once):
    """Samples of ∇_λ G."""
    gradients = setting.sampled(SIZES._replace(batch_size=batch_size))
    policy = bind(setting.problem.policy, setting.policy)

    def estimate(key):
        return gradients.preference_in_policy(gradients.collect(key, policy), setting.policy, setting.reward)

    return repeat(estimate, repetitions, at_once)


def test_a_baseline_that_contains_its_own_sample_is_seen(x64, monkeypatch):
    setting = setting_of(2)
    expected = setting.exact_preference(setting.policy)["policy"]
    of_two_pairs = functools.partial(preference_in_policy, setting, 4, 12_000, at_once=12_000)
    assert_unbiased(of_two_pairs(), expected, precision=0.1)
    monkeypatch.setattr(sampled_gradients, "leave_one_out_mean", lambda values: jnp.mean(values, axis=0))
    assert_biased(of_two_pairs(), expected)


def test_a_missing_baseline_is_seen_in_the_precision(x64, monkeypatch):
    setting = setting_of(2)
    monkeypatch.setattr(sampled_gradients, "leave_one_out_mean", jnp.zeros_like)
    with pytest.raises(AssertionError, match="imprecise: "):
        assert_unbiased(
            preference_in_policy(setting, 4096, 160, at_once=1), setting.exact_preference(setting.policy)["policy"]
        )


# The variance of the difference ---------------------------------------------------------------------------------------


SIGMAS = (0.3, 0.1, 0.03, 0.01, 0.003)


SHORT = SampleSizes(batch_size=64, rollout_length=30, segment_length=3)


@functools.cache
def differences():
    """Samples [R, 6, D] of ∇_φ J(λ′) − ∇_φ J(λ) by each estimator: at every σ, and between two equal policies."""
    setting = setting_of(1)
    # A constant added to a state's logits changes the parameters and not the policy.
    proxies = jnp.stack([*map(proxy_solver(), SIGMAS), setting.optimal + 1.0])

    def estimates(key):
        def difference(proxy):
            ours = {name: setting.sampled(SHORT._replace(estimator=name)) for name in ESTIMATORS}
            points = setting.reward, setting.optimal, proxy
            return {name: g.return_difference(key, *points)[0] for name, g in ours.items()}

        return jax.vmap(difference)(proxies)

    return repeat(estimates, 400)


@pytest.mark.parametrize(("estimator", "order"), [("independent", 0), ("coupled", 1), ("weighted", 2)])
def test_the_variance_of_the_difference_falls_with_its_order_in_sigma(estimator, order, x64):
    variances = np.var(differences()[estimator][:, :-1], axis=0, ddof=1).sum(axis=-1)
    slope, _ = np.polyfit(np.log(SIGMAS), np.log(variances), 1)
    assert abs(slope - order) < 0.15


def test_equal_policies_differ_in_nothing_unless_their_rollouts_are_independent(x64):
    coupled, weighted, independent = (differences()[name][:, -1] for name in ("coupled", "weighted", "independent"))
    assert max(jnp.max(jnp.abs(coupled)), jnp.max(jnp.abs(weighted))) < 1e-12
    assert jnp.min(jnp.linalg.norm(independent, axis=-1)) > 0.01


def test_the_effective_share_is_one_for_equal_weights_and_of_one_rollout_where_one_outweighs_all():
    share, powers = sampled_gradients.effective_share, jnp.array([1.0, 0.5, 0.25])
    np.testing.assert_allclose(share(jnp.full((8, 3), -2.0), powers), 1.0, rtol=1e-6)
    one = jnp.zeros((8, 3)).at[5].set(60.0)  # exp(60)² is above all float32
    np.testing.assert_allclose(share(one, powers), 1 / 8, rtol=1e-6)
    weights = np.array([[1.0, 2.0], [3.0, 0.5], [1.0, 1.0]])
    counts = weights @ [1.0, 0.9]
    expected = counts.sum() ** 2 / (3 * (counts**2).sum())
    np.testing.assert_allclose(share(jnp.log(weights), jnp.array([1.0, 0.9])), expected, rtol=1e-6)
    late = jnp.zeros((8, 3)).at[0, 1:].set(9.0)  # a bandit's discount of 0 counts the first step alone
    np.testing.assert_allclose(share(late, jnp.array([1.0, 0.0, 0.0])), 1.0, rtol=1e-6)


def test_log_weights_that_are_not_one_a_step_are_refused():
    with pytest.raises(AssertionError, match=r"has shape \(8, 3\) but expected \(None, 2\)"):
        sampled_gradients.effective_share(jnp.zeros((8, 3)), jnp.ones(2))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_only_weighted_rollouts_have_an_effective_share(estimator, x64):
    setting = setting_of(1)
    gradients = setting.sampled(SHORT._replace(estimator=estimator))
    _, same = gradients.return_difference(jax.random.key(0), setting.reward, setting.optimal, setting.optimal)
    _, apart = gradients.return_difference(jax.random.key(0), setting.reward, setting.optimal, setting.proxy)
    if estimator == "weighted":
        assert same == pytest.approx(1.0) and 1 / 64 < apart < 1
    else:
        assert same is None and apart is None


# Counts and refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("objective", "labels"), [(log_likelihood, 3), (excess_log_likelihood, 3), (excess_brier, 6)])
def test_labels_are_counted_without_the_skipped_and_twice_where_two_are_needed(objective, labels, x64):
    setting = setting_of(1)
    gradients = setting.sampled(objective=objective)
    comparison = Comparison(None, None, None, None, None, weight=jnp.array([1.0, 0.0, 1.0, 1.0, 0.0]))
    count = gradients.labels(LabelledPairs(comparison, None))
    assert (count, count.dtype) == (labels, jnp.int32)


def test_costs_are_the_transitions_and_queries_made(x64):
    setting = setting_of(1)
    critic = monte_carlo_critic(setting.problem, setting.coefficients)._replace(cost=Cost(1000, 0, 7))
    for estimator, rollouts_drawn in (("independent", 2), ("coupled", 2), ("weighted", 1)):
        sizes = SampleSizes(batch_size=8, rollout_length=20, segment_length=3, estimator=estimator)
        gradients = setting.sampled(sizes, critic)
        assert gradients.collect_cost == Cost(8 * 3, 4, 0)
        assert gradients.return_cost == Cost(1000 + 8 * 20, 0, 7)
        assert gradients.difference_cost == Cost(rollouts_drawn * 8 * 20, 0, 0)


def test_pairs_are_counted_apart_from_trajectories_where_asked(x64):
    setting = setting_of(1)
    gradients = setting.sampled(SampleSizes(batch_size=7, num_pairs=5, rollout_length=20, segment_length=3))
    pairs = gradients.collect(jax.random.key(0), bind(setting.problem.policy, setting.policy))
    assert pairs.comparison.first.obs.shape == (5, 3)
    assert gradients.collect_cost == Cost(5 * 2 * 3, 5, 0)
    assert gradients.labels(pairs) == 5
    assert gradients.return_cost.transitions == gradients.difference_cost.transitions == 7 * 20


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (SampleSizes(batch_size=2), "batch_size is 2; required: an even number, at least 4"),
        (SampleSizes(batch_size=7), "batch_size is 7; required: an even number"),
        (SampleSizes(batch_size=1, num_pairs=4), "batch_size is 1; required: a whole number, at least 2"),
        (SampleSizes(num_pairs=1), "num_pairs is 1; required: 2 to 1048576, or 0 for half of batch-size"),
        (SampleSizes(rollout_length=0), "rollout_length is 0; required: a whole number, at least 1"),
        (SampleSizes(segment_length=0), "segment_length is 0; required: a whole number, at least 1"),
        (SampleSizes(estimator="paired"), "estimator is 'paired'; required: one of independent, coupled, weighted"),
    ],
)
def test_sizes_out_of_range_are_refused(sizes, message, x64):
    with pytest.raises(ValueError, match=message):
        setting_of(1).sampled(sizes)


@pytest.mark.parametrize(
    ("objective", "field"), [(excess_log_likelihood, "probability"), (excess_brier, "second_label")]
)
def test_an_objective_whose_field_is_missing_is_refused_before_anything_is_sampled(objective, field, x64):
    setting = setting_of(1)

    def terse(key, first, second) -> Comparison:
        comparison = setting.problem.annotate(key, first, second)
        return comparison._replace(**{field: None})

    problem = setting.problem._replace(annotate=terse)
    with pytest.raises(ValueError, match=f"{objective.__name__} needs each comparison's {field}"):
        gradients = setting._replace(problem=problem).sampled(objective=objective)
        jax.eval_shape(lambda key: gradients.collect(key, bind(problem.policy, setting.policy)), jax.random.key(0))
