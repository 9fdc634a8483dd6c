"""The derivatives that the algorithms take, from samples: policy gradients, and line 7 of Algorithm 1 in three ways.

Dimensions: B trajectories, T steps of a rollout, N pairs, H steps of a segment.
"""

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from bilevel.gradients.types import Critic, Gradients
from bilevel.lookup import bind, over_observations, over_pairs
from bilevel.preferences import NEEDS, Objective, check_objective, log_likelihood
from bilevel.ranges import MOST, Count, Range, check, counts
from bilevel.returns import discount_powers, leave_one_out_mean
from bilevel.rollout import rollout, rollouts
from bilevel.types import (
    Array,
    Behaviour,
    Coefficients,
    Comparison,
    Cost,
    Key,
    Params,
    Problem,
    Trajectory,
)
from envs.base import Env

ESTIMATORS = ("independent", "coupled", "weighted")
BatchSize = Annotated[int, counts(2)]
NumPairs = Annotated[int, Range(f"2 to {MOST}, or 0 for half of batch-size", lambda x: x == 0 or 2 <= x <= MOST)]


class SampleSizes(NamedTuple):
    """How much is sampled for each gradient, and how the difference of line 7 is estimated."""

    batch_size: BatchSize = 64
    """B, trajectories a gradient of J."""
    num_pairs: NumPairs = 0
    """N, labelled pairs a gradient of G; 0: half of an even batch-size, as in the paper."""
    rollout_length: Count = 40
    """T, steps of a rollout for a gradient of J; truncation biases it by gamma^T, relatively."""
    segment_length: Count = 10
    """H, steps of a compared segment: a rollout of its own from the initial distribution, so it may be longer than
    rollout-length, but not than an episode of a world that has episodes."""
    estimator: Literal["weighted", "coupled", "independent"] = "weighted"
    """Estimator of line 7's implicit part: variance O(1), O(1/sigma), or O(1/sigma^2) (the paper's) as sigma falls."""


class LabelledPairs(NamedTuple):
    """Pairs with their labels, and the log-probability of each pair's actions under the policy that drew them."""

    comparison: Comparison  # of segments [N, H]
    log_behaviour: Array  # [N]


def sampled_gradients(
    problem: Problem,
    critic: Critic,
    sizes: SampleSizes,
    coefficients: Coefficients,
    objective: Objective = log_likelihood,
) -> Gradients:
    """Unbiased estimators (up to γ^T, and to the critic): ∇J from rollouts of T steps weighted by γ^t, ∇G from pairs.

    ∇_λ J = E Σ_t γ^t ∇ log π(a_t|s_t) A(s_t, a_t);  ∇_λ G = E (ℓ − b) Σ ∇ log π, b leave-one-out;  ∇_φ G = E ∇ℓ.
    Pairs that another policy drew are reweighted by the ratio of the two policies' probabilities of their actions.

    Raises:
        ValueError: a size is out of range, or the objective needs labels that the annotator does not give.
    """
    check_sizes(sizes)
    env, num_pairs = problem.env, sizes.num_pairs or sizes.batch_size // 2
    labels_per_query = 2 if NEEDS.get(objective) == "second_label" else 1

    def values(pairs, reward_params):
        logits = preference_logits(problem, reward_params, pairs.comparison, coefficients)
        return pairs.comparison.weight * objective(logits, pairs.comparison)

    def centred_gains(pairs, log_policy, reward_params):  # ℓ − b, reweighted to the policy
        ratio = jnp.exp(jax.lax.stop_gradient(log_policy) - pairs.log_behaviour)
        gains = values(pairs, reward_params)
        return jax.lax.stop_gradient(ratio * (gains - leave_one_out_mean(ratio * gains)))

    def preference_in_policy(pairs, policy_params, reward_params):
        def surrogate(params):
            log_policy = log_probability(env, bind(problem.policy, params), pairs.comparison)
            return jnp.mean(centred_gains(pairs, log_policy, reward_params) * log_policy)

        return jax.grad(surrogate)(policy_params)

    def preference_in_reward(pairs, policy, reward_params):
        ratio = jnp.exp(log_probability(env, policy, pairs.comparison) - pairs.log_behaviour)
        return jax.value_and_grad(lambda params: jnp.mean(ratio * values(pairs, params)))(reward_params)

    def preference_through_policy(key, pairs, policy_params, reward_params):
        behave = bind(problem.policy, policy_params)
        weights = centred_gains(pairs, log_probability(env, behave, pairs.comparison), reward_params)
        segments = jax.tree.map(lambda *x: jnp.concatenate(x), pairs.comparison.first, pairs.comparison.second)
        taken, other = follow_ups(env, behave, key, segments, sizes.rollout_length)

        def surrogate(params):
            reward = over_pairs(env, bind(problem.reward, params))
            gaps = reward(taken.obs, taken.action) - reward(other.obs, other.action)
            powers = discount_powers(coefficients.discount, sizes.rollout_length, gaps.dtype)
            responses = gaps @ powers / coefficients.kl_weight
            # One step of each segment stands for all H.
            return jnp.mean(weights * sizes.segment_length * jnp.sum(responses.reshape(2, num_pairs), axis=0))

        return jax.grad(surrogate)(reward_params)

    return Gradients(
        critic.init,
        labelled_pairs(problem, num_pairs, sizes.segment_length, objective),
        lambda pairs: labels_per_query * jnp.sum(pairs.comparison.weight > 0, dtype=jnp.int32),
        preference_in_policy,
        preference_in_reward,
        return_in_policy(problem, critic, sizes, coefficients),
        return_difference(problem, sizes, coefficients),
        preference_through_policy,
        collect_cost=Cost(2 * num_pairs * sizes.segment_length, num_pairs, 0),
        return_cost=critic.cost._replace(transitions=critic.cost.transitions + sizes.batch_size * sizes.rollout_length),
        difference_cost=Cost((1 if sizes.estimator == "weighted" else 2) * sizes.batch_size * sizes.rollout_length),
        through_policy_cost=Cost(4 * num_pairs * sizes.rollout_length),
    )


def labelled_pairs(problem: Problem, num_pairs: int, segment_length: int, objective: Objective) -> Callable:
    """The function (key, behave) -> `LabelledPairs`: N pairs of independent segments of a policy, with their labels."""

    def collect(key, behave):
        key_rollout, key_label = jax.random.split(key)
        segments = rollouts(problem.env, behave, key_rollout, 2 * num_pairs, segment_length)
        first, second = (jax.tree.map(lambda x, i=i: x[i * num_pairs : (i + 1) * num_pairs], segments) for i in (0, 1))
        comparison = jax.vmap(problem.annotate)(jax.random.split(key_label, num_pairs), first, second)
        check_objective(objective, comparison)
        log_behaviour = log_probability(problem.env, behave, comparison)
        return LabelledPairs(comparison, jax.lax.stop_gradient(log_behaviour))

    return collect


def return_in_policy(problem: Problem, critic: Critic, sizes: SampleSizes, coefficients: Coefficients) -> Callable:
    """An estimator of ∇_λ J = E Σ_t γ^t ∇ log π(a_t|s_t) A(s_t, a_t) by the critic, fitted to π first; see `Gradients`."""
    env = problem.env

    def estimate(key, critic_state, policy_params, reward_params):
        key_fit, key_rollout, key_advantage = jax.random.split(key, 3)
        critic_state, loss = critic.fit(key_fit, critic_state, policy_params, reward_params)
        behave = bind(problem.policy, policy_params)
        trajectories = rollouts(env, behave, key_rollout, sizes.batch_size, sizes.rollout_length)
        advantage = critic.advantage(key_advantage, critic_state, policy_params, reward_params, trajectories)
        weights = advantage * discount_powers(coefficients.discount, sizes.rollout_length, advantage.dtype)

        def surrogate(params):
            log_prob = log_probabilities(env, bind(problem.policy, params), trajectories)
            return jnp.sum(weights * log_prob) / sizes.batch_size

        return jax.grad(surrogate)(policy_params), critic_state, loss

    return estimate


def return_difference(problem: Problem, sizes: SampleSizes, coefficients: Coefficients) -> Callable:
    """An estimator of ∇_φ J(λ′, φ) − ∇_φ J(λ, φ), where ∇_φ J = E Σ_t γ^t ∇_φ r_φ(s_t, a_t); see `Gradients`.

    With λ′ − λ = O(σ), its variance stays O(1) with independent rollouts, is O(σ) with coupled ones, whose actions and next
    states are driven by the same uniforms, and O(σ²) when one rollout of λ is weighted: its step h counts
    Π_{j≤h} π_λ′(a_j|s_j)/π_λ(a_j|s_j) − 1. Line 7 divides by σ.
    """
    env, size, length = problem.env, sizes.batch_size, sizes.rollout_length

    def reward_gradient(reward_params, trajectories, weights):
        def total(params):
            rewards = over_pairs(env, bind(problem.reward, params))(trajectories.obs, trajectories.action)
            return jnp.sum(weights * rewards) / size

        return jax.grad(total)(reward_params)

    def powers():
        return discount_powers(coefficients.discount, length)

    def weighted(key, reward_params, policy_params, proxy_params):
        policy, proxy = (bind(problem.policy, params) for params in (policy_params, proxy_params))
        trajectories = rollouts(env, policy, key, size, length)
        log_ratio = log_probabilities(env, proxy, trajectories) - log_probabilities(env, policy, trajectories)
        log_products = jnp.cumsum(log_ratio, axis=-1)
        weights = powers() * jnp.expm1(log_products)
        return reward_gradient(reward_params, trajectories, weights), effective_share(log_products, powers())

    def two_rollouts(key, reward_params, policy_params, proxy_params):
        keys = (key, key) if sizes.estimator == "coupled" else jax.random.split(key)
        gradients = [
            reward_gradient(reward_params, rollouts(env, bind(problem.policy, params), key, size, length), powers())
            for key, params in zip(keys, (policy_params, proxy_params), strict=True)
        ]
        return jax.tree.map(lambda x, y: y - x, *gradients), None

    return weighted if sizes.estimator == "weighted" else two_rollouts


def effective_share(log_products: Array, powers: Array) -> Array:
    """(Σ_b c_b)² / (B Σ_b c_b²) of c_b = Σ_t γ^t W_bt, []: 1 where all B rollouts count alike, 1/B where one alone counts.

    Args:
        log_products: log W_bt [B, T], the ratio of two policies' probabilities of all actions up to step t.
        powers: γ^t [T], 1 at t = 0.
    """
    chex.assert_shape(log_products, (None, len(powers)))
    # In logarithms: the square of a weight overflows where the weight itself does not.
    log_counts = jax.nn.logsumexp(log_products + jnp.log(powers), axis=-1)
    log_ess = 2 * jax.nn.logsumexp(log_counts) - jax.nn.logsumexp(2 * log_counts)
    return jnp.exp(log_ess) / len(log_products)


def follow_ups(
    env: Env, behave: Behaviour, key: Key, segments: Trajectory, length: int
) -> tuple[Trajectory, Trajectory]:
    """`length` steps that follow (s, a), and as many that follow (s, a′), at one step of each segment drawn uniformly.

    a is the segment's own action, a′ another draw of the policy at s, so that for sums R along the two
    E[∂R(s, a) − ∂R(s, a′)] = ∂Q(s, a) − ∂V(s) (as in HPGD, 2406.01575). The segment's own later steps will
    not do: ℓ depends on them. Equal keys couple the two. Needs a world that can be set to a state that was visited.

    Args:
        env: the dynamics.
        behave: the policy.
        key: PRNG key.
        segments: [N, H], with their hidden states.
        length: T ≥ 1 steps.

    Returns:
        Two trajectories [N, T].
    """
    behave = over_observations(env, behave)

    def follow(key, state, action):
        key_first, key_rest = jax.random.split(key)
        successor = env.step(key_first, state, action)
        rest = rollout(env._replace(init=lambda key: successor), behave, key_rest, length - 1)
        return jax.tree.map(
            lambda x, y: jnp.concatenate([x[None], y]), Trajectory(state, env.observe(state), action), rest
        )

    def both(key, segment):
        key_step, key_other, key_follow = jax.random.split(key, 3)
        step = jax.random.randint(key_step, (), 0, len(segment.action))
        state, action = jax.tree.map(lambda x: x[step], (segment.state, segment.action))
        other = behave(env.observe(state)).sample(seed=key_other)
        return follow(key_follow, state, action), follow(key_follow, state, other)

    return jax.vmap(both)(jax.random.split(key, len(segments.action)), segments)


def log_probabilities(env, behave: Behaviour, trajectories: Trajectory) -> Array:
    """log π(a_t|s_t) at every step of trajectories [..., T]."""
    log_prob = over_pairs(env, lambda obs, action: behave(obs).log_prob(action))
    return log_prob(trajectories.obs, trajectories.action)


def log_probability(env, behave: Behaviour, comparison: Comparison) -> Array:
    """Σ_i Σ_h log π(a_h^i|s_h^i) of each pair, [N]."""
    return sum(jnp.sum(log_probabilities(env, behave, x), axis=-1) for x in (comparison.first, comparison.second))


def preference_logits(
    problem: Problem, reward_params: Params, comparison: Comparison, coefficients: Coefficients
) -> Array:
    """κ (R_φ(τ⁰) − R_φ(τ¹)) of each pair, [N]: the log-odds that the first segment is preferred under r_φ."""
    reward = over_pairs(problem.env, bind(problem.reward, reward_params))
    first, second = (reward(x.obs, x.action) for x in (comparison.first, comparison.second))
    powers = discount_powers(coefficients.discount, first.shape[-1], first.dtype)
    return coefficients.rationality * ((first - second) @ powers)


def check_sizes(sizes: SampleSizes) -> None:
    """Raises ValueError if a size is out of range."""
    check(sizes)
    if not sizes.num_pairs and (sizes.batch_size < 4 or sizes.batch_size % 2):
        raise ValueError(
            f"batch_size is {sizes.batch_size}; required: an even number, at least 4 (two pairs), unless num_pairs is given"
        )
    if sizes.estimator not in ESTIMATORS:
        raise ValueError(f"estimator is {sizes.estimator!r}; required: one of {', '.join(ESTIMATORS)}")
