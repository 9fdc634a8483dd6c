"""Algorithm 1: bilevel online RLHF by a first-order penalty method (Gaur et al., arXiv 2410.15610).

Upper level: maximise Φ(φ) = G(φ, λ*(φ)) in the reward parameters φ. Lower level: λ*(φ) ∈ argmax_λ J(λ, φ). The proxy
Φ_σ(φ) = max_λ { G(φ, λ) − (J(λ*(φ), φ) − J(λ, φ))/σ } has a gradient without second derivatives (line 7), taken at
λ*(φ) and at λ*_σ(φ) ∈ argmax_λ { J + σ G }. The line numbers in the margin are the algorithm's; what a line calls stands
below `bilevel_rlhf`, in the order of use.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel.ascent import Level, Optimizer, ascend
from bilevel.gradients.hypergradients import Construct, solved
from bilevel.gradients.types import Gradients, Hypergradient, UpperGradient
from bilevel.lookup import bind
from bilevel.ranges import Count, Positive, check
from bilevel.types import Algorithm, Array, Cost, Learned, Params, Problem, total_cost


def line_7(problem: Problem, gradients: Gradients, hyper: "BilevelHyper") -> Hypergradient:
    """∇Φ_σ(φ) = ∇_φ G(φ, λ′) + (∇_φ J(λ′, φ) − ∇_φ J(λ, φ))/σ, at λ* and λ*_σ: line 7 of Algorithm 1 (2410.15610).

    First-order only; its distance from ∇Φ is O(σ). `bilevel.gradients.hypergradients` has others to put in its place.
    """

    def estimate(key, pairs, reward_params, policy_params, proxy_params):
        value, direct = gradients.preference_in_reward(pairs, bind(problem.policy, proxy_params), reward_params)
        difference, share = gradients.return_difference(key, reward_params, policy_params, proxy_params)
        implicit = jax.tree.map(lambda x: x / hyper.sigma, difference)
        return UpperGradient(value, direct, implicit, solved(value), share)

    return Hypergradient(estimate, total_cost((1, Cost(gradient_evaluations=2)), (1, gradients.difference_cost)))


class BilevelConfig(NamedTuple):
    """Algorithm 1's counts and optimizers: one of both lower-level iterates, one of the upper level; and what line 7
    computes, the paper's or another of `bilevel.gradients.hypergradients`."""

    num_policy_steps: Count = 10
    """K, inner (policy) steps an outer step."""
    reuse_labels: bool = False
    """One batch of labels an outer step, reweighted as the policy moves; otherwise fresh ones at every inner step."""
    policy_optimizer: Optimizer = optax.sgd
    reward_optimizer: Optimizer = optax.adam
    hypergradient: Construct = line_7


class BilevelHyper(NamedTuple):
    """Algorithm 1's real numbers; every leaf may be traced."""

    sigma: Positive = 0.1
    """sigma, weight of G in the penalised lower level, above 0; the proxy's bias is O(sigma)."""
    policy_step_size: Positive = 0.1
    """tau, step size of the policy."""
    reward_step_size: Positive = 0.003
    """eta, step size of the reward."""
    proxy_step_ratio: Positive = 1.0
    """tau'/tau, step size of lambda' over that of lambda."""


class BilevelState(NamedTuple):
    """φ, and both lower-level iterates on a leading axis of two: λ, then λ′."""

    reward: Level
    lower: Level


def bilevel_rlhf(problem: Problem, gradients: Gradients, config: BilevelConfig, hyper: BilevelHyper) -> Algorithm:
    """Algorithm 1. Its state is φ, λ, λ′ with their optimizers and critics, all warm-started from step to step.

    Both lower-level iterates see the same keys: the noise that they share cancels in line 7, which divides their
    difference by σ; each alone follows the paper's law.

    Raises:
        ValueError: a count is not positive, or one step costs more than can be counted.
    """
    check(config)
    reward_optimizer = config.reward_optimizer(hyper.reward_step_size)
    hypergradient = config.hypergradient(problem, gradients, hyper)
    cost = step_cost(gradients, config, hypergradient)

    def init(key):  # 1  φ_0, λ_0 = λ′_0
        key_reward, key_policy, key_critic = jax.random.split(key, 3)
        reward, policy = problem.reward.init(key_reward), problem.policy.init(key_policy)
        actor = Level(policy, config.policy_optimizer(hyper.policy_step_size).init(policy), gradients.init(key_critic))
        return BilevelState(Level(reward, reward_optimizer.init(reward)), both(actor))

    def step(key, state):  # 2  for t = 0 … T−1
        key_labels, key_lower, key_upper = jax.random.split(key, 3)
        reward_params = state.reward.params
        kept = collect(key_labels, state.lower) if config.reuse_labels else None

        def lower_step(lower, key):  # 3  for k = 0 … K−1
            key_pairs, key_return = jax.random.split(key)
            # 4  d = ∇_λ J(λ, φ), d′ = ∇_λ J(λ′, φ)
            directions, critics, losses = return_gradients(gradients, key_return, lower, reward_params)
            # 5  d′ ← d′ + σ ∇_λ G(φ, λ′)
            pairs = kept if config.reuse_labels else collect(key_pairs, lower)
            penalty = gradients.preference_in_policy(pairs, proxy_of(lower.params), reward_params)
            directions = add_to_proxy(directions, jax.tree.map(lambda g: hyper.sigma * g, penalty))
            # 6  λ ← λ + τ d, λ′ ← λ′ + τ′ d′
            lower = ascend_both(config, hyper, lower._replace(critic=critics), directions)
            labels = 0 if config.reuse_labels else gradients.labels(pairs)
            return lower, (losses[0], jax.vmap(optax.tree.norm)(directions), jnp.int32(labels))

        keys = jax.random.split(key_lower, config.num_policy_steps)
        lower, (losses, norms, labels) = jax.lax.scan(lower_step, state.lower, keys)

        # 7  ∇Φ_σ = ∇_φ G(φ, λ′) + (∇_φ J(λ′, φ) − ∇_φ J(λ, φ))/σ, by `line_7`: the direct and the implicit part
        pairs = kept if config.reuse_labels else collect(key_labels, lower)
        upper = hypergradient.estimate(key_upper, pairs, reward_params, actor_of(lower.params), proxy_of(lower.params))
        gradient = jax.tree.map(jnp.add, upper.direct, upper.implicit)
        # 8  φ ← φ + η ∇Φ_σ
        reward = ascend(reward_optimizer, state.reward, gradient)
        info = {
            "upper_objective": upper.value,
            "gradient_norm": optax.tree.norm(gradient),
            "implicit_gradient_norm": optax.tree.norm(upper.implicit),
            "policy_gradient_norm": norms[-1, 0],
            "proxy_gradient_norm": norms[-1, 1],
            "critic_loss": losses[-1],
            "labels": jnp.sum(labels, dtype=jnp.int32) + gradients.labels(pairs),
            **({} if upper.weight_ess is None else {"weight_ess": upper.weight_ess}),
            **cost.as_info(),
        }
        return BilevelState(reward, lower), info

    def collect(key, lower):  # pairs drawn from π_λ′ and labelled
        return gradients.collect(key, bind(problem.policy, proxy_of(lower.params)))

    return Algorithm(init, step, lambda state: Learned(state.reward.params, actor_of(state.lower.params)))


def step_cost(gradients: Gradients, config: BilevelConfig, hypergradient: Hypergradient) -> Cost:
    """The exact cost of one outer step; labels are counted as they come."""
    steps = config.num_policy_steps
    # A gradient for each iterate's return and one for the penalty; the upper level's are its hypergradient's.
    own = Cost(gradient_evaluations=3 * steps)
    batches = 1 if config.reuse_labels else steps + 1
    return total_cost(
        (1, own), (2 * steps, gradients.return_cost), (batches, gradients.collect_cost), (1, hypergradient.cost)
    )


def both(actor: Level) -> Level:
    """λ and λ′ at the same point, on a leading axis of two."""
    return jax.tree.map(lambda x: jnp.stack([x, x]), actor)


def return_gradients(gradients: Gradients, key, lower: Level, reward_params: Params) -> tuple[Params, Params, Array]:
    """∇_λ J at λ and at λ′, with the critics' states and losses, each on a leading axis of two; from the same key."""

    def at(critic, params):
        return gradients.return_in_policy(key, critic, params, reward_params)

    return jax.vmap(at)(lower.critic, lower.params)


def add_to_proxy(directions: Params, penalty: Params) -> Params:
    """d and d′ + penalty."""
    return jax.tree.map(lambda d, g: d.at[1].add(g), directions, penalty)


def ascend_both(config: BilevelConfig, hyper: BilevelHyper, lower: Level, directions: Params) -> Level:
    """λ after a step of size τ up d, λ′ after one of size τ′ up d′."""
    step_sizes = hyper.policy_step_size * jnp.array([1.0, hyper.proxy_step_ratio])
    return jax.vmap(lambda size, level, d: ascend(config.policy_optimizer(size), level, d))(
        step_sizes, lower, directions
    )


def actor_of(pair: Params) -> Params:
    """λ's part of a pair."""
    return jax.tree.map(lambda x: x[0], pair)


def proxy_of(pair: Params) -> Params:
    """λ′'s part of a pair."""
    return jax.tree.map(lambda x: x[1], pair)
