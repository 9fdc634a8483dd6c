"""Algorithm 1: bilevel online RLHF by a first-order penalty method (Gaur et al., arXiv 2410.15610).

Upper level: maximise Φ(φ) = G(φ, λ*(φ)) in the reward parameters φ. Lower level: λ*(φ) ∈ argmax_λ J(λ, φ). The proxy
Φ_σ(φ) = max_λ { G(φ, λ) − (J(λ*(φ), φ) − J(λ, φ))/σ } has a gradient without second derivatives (line 7), taken at
λ*(φ) and at λ*_σ(φ) ∈ argmax_λ { J + σ G }. The line numbers in the margin are the algorithm's.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel.ascent import Level, Optimizer, ascend
from bilevel.gradients import hypergradients
from bilevel.lookup import bind
from bilevel.types import Algorithm, Cost, Gradients, Hyper, Hypergradient, Learned, Problem, total_cost


class BilevelConfig(NamedTuple):
    """Algorithm 1's counts and optimizers.

    Attributes:
        num_policy_steps: K ≥ 1, inner steps an outer step.
        reuse_labels: one batch of pairs an outer step, reweighted as λ′ moves; otherwise a fresh one at every inner step
            and for line 7, as in the paper.
        policy_optimizer: of both lower-level iterates.
        reward_optimizer: of the upper level.
        hypergradient: what line 7 computes: the paper's, or another of `bilevel.gradients.hypergradients`.
    """

    num_policy_steps: int = 10
    reuse_labels: bool = False
    policy_optimizer: Optimizer = optax.sgd
    reward_optimizer: Optimizer = optax.sgd
    hypergradient: hypergradients.Construct = hypergradients.proxy


class BilevelState(NamedTuple):
    """φ, and both lower-level iterates on a leading axis of two: λ, then λ′."""

    reward: Level
    lower: Level


def bilevel_rlhf(problem: Problem, gradients: Gradients, config: BilevelConfig, hyper: Hyper) -> Algorithm:
    """Algorithm 1. Its state is φ, λ, λ′ with their optimizers and critics, all warm-started from step to step.

    Both lower-level iterates see the same keys: the noise that they share cancels in line 7, which divides their
    difference by σ; each alone follows the paper's law.

    Raises:
        ValueError: a count is not positive, or one step costs more than can be counted.
    """
    policy_optimizer = config.policy_optimizer(hyper.policy_step_size)
    reward_optimizer = config.reward_optimizer(hyper.reward_step_size)
    step_sizes = hyper.policy_step_size * jnp.array([1.0, hyper.proxy_step_ratio])  # τ, τ′
    hypergradient = config.hypergradient(problem, gradients, hyper)
    cost = step_cost(gradients, config, hypergradient)

    def init(key):  # 1  φ_0, λ_0, λ′_0
        key_reward, key_policy, key_critic = jax.random.split(key, 3)
        reward, policy = problem.reward.init(key_reward), problem.policy.init(key_policy)
        actor = Level(policy, policy_optimizer.init(policy), gradients.init(key_critic))
        both = jax.tree.map(lambda x: jnp.stack([x, x]), actor)
        return BilevelState(Level(reward, reward_optimizer.init(reward)), both)

    def step(key, state):  # 2  for t = 0 … T−1
        key_labels, key_lower, key_upper = jax.random.split(key, 3)
        reward_params = state.reward.params
        kept = collect(key_labels, state.lower) if config.reuse_labels else None

        def return_gradient(key, level):
            return gradients.return_in_policy(key, level.critic, level.params, reward_params)

        def policy_step(step_size, level, grads):
            return ascend(config.policy_optimizer(step_size), level, grads)

        def lower_step(lower, key):  # 3  for k = 0 … K−1
            key_pairs, key_return = jax.random.split(key)
            grads, critics, losses = jax.vmap(return_gradient, in_axes=(None, 0))(key_return, lower)  # 4–5  ∇_λ J
            pairs = kept if config.reuse_labels else collect(key_pairs, lower)
            penalty = gradients.preference_in_policy(pairs, proxy_of(lower.params), reward_params)
            grads = jax.tree.map(lambda d, g: d.at[1].add(hyper.sigma * g), grads, penalty)  # 5  d′ = … + σ ∇_λ G
            lower = jax.vmap(policy_step)(step_sizes, lower._replace(critic=critics), grads)  # 6
            fresh_labels = 0 if config.reuse_labels else gradients.labels(pairs)
            return lower, (losses[0], jax.vmap(optax.tree.norm)(grads), jnp.int32(fresh_labels))

        keys = jax.random.split(key_lower, config.num_policy_steps)
        lower, (losses, norms, labels) = jax.lax.scan(lower_step, state.lower, keys)

        pairs = kept if config.reuse_labels else collect(key_labels, lower)
        # 7  ∇_φ G(φ, λ′) + (∇_φ J(λ′, φ) − ∇_φ J(λ, φ))/σ: the proxy's direct and implicit part
        upper = hypergradient.estimate(key_upper, pairs, reward_params, actor_of(lower.params), proxy_of(lower.params))
        grad = jax.tree.map(jnp.add, upper.direct, upper.implicit)
        reward = ascend(reward_optimizer, state.reward, grad)  # 8
        info = {
            "upper_objective": upper.value,
            "gradient_norm": optax.tree.norm(grad),
            "implicit_gradient_norm": optax.tree.norm(upper.implicit),
            "policy_gradient_norm": norms[-1, 0],
            "proxy_gradient_norm": norms[-1, 1],
            "critic_loss": losses[-1],
            "labels": jnp.sum(labels, dtype=jnp.int32) + gradients.labels(pairs),
            **({} if upper.weight_ess is None else {"weight_ess": upper.weight_ess}),
            **cost.as_info(),
        }
        return BilevelState(reward, lower), info

    def collect(key, lower):
        return gradients.collect(key, bind(problem.policy, proxy_of(lower.params)))

    return Algorithm(init, step, lambda state: Learned(state.reward.params, actor_of(state.lower.params)))


def actor_of(both):
    """λ's part of a pair."""
    return jax.tree.map(lambda x: x[0], both)


def proxy_of(both):
    """λ′'s part of a pair."""
    return jax.tree.map(lambda x: x[1], both)


def step_cost(gradients: Gradients, config: BilevelConfig, hypergradient: Hypergradient) -> Cost:
    """The exact cost of one outer step; labels are counted as they come."""
    steps = config.num_policy_steps
    if steps < 1:
        raise ValueError(f"num_policy_steps is {steps}; required: at least 1")
    # A gradient for each iterate's return and one for the penalty; the upper level's are its hypergradient's.
    ours = Cost(gradient_evaluations=3 * steps)
    batches = 1 if config.reuse_labels else steps + 1
    return total_cost(
        (1, ours), (2 * steps, gradients.return_cost), (batches, gradients.collect_cost), (1, hypergradient.cost)
    )
