"""Algorithm 1: bilevel online RLHF by a first-order penalty method (Gaur et al., arXiv 2410.15610).

Upper level: maximise Φ(φ) = G(φ, λ*(φ)) in the reward parameters φ. Lower level: λ*(φ) ∈ argmax_λ J(λ, φ). The proxy
Φ_σ(φ) = max_λ { G(φ, λ) − (J(λ*(φ), φ) − J(λ, φ))/σ } has a gradient without second derivatives (line 7), taken at λ*(φ) and at
λ*_σ(φ) ∈ argmax_λ { J + σ G }. The line numbers in the margin are the algorithm's.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel.ascent import Level, Optimizer, ascend
from bilevel.lookup import bind
from bilevel.types import Algorithm, Cost, Gradients, Hyper, Learned, Problem, total_cost


class BilevelConfig(NamedTuple):
    """Algorithm 1's counts and optimizers.

    Attributes:
        num_policy_steps: K ≥ 1, inner steps an outer step.
        reuse_labels: one batch of pairs an outer step, reweighted as λ′ moves; otherwise a fresh one at every inner step
            and for line 7, as in the paper.
        policy_optimizer: of both lower-level iterates.
        reward_optimizer: of the upper level.
    """

    num_policy_steps: int = 10
    reuse_labels: bool = False
    policy_optimizer: Optimizer = optax.sgd
    reward_optimizer: Optimizer = optax.sgd


class BilevelState(NamedTuple):
    """φ, λ and λ′."""

    reward: Level
    actor: Level
    proxy: Level


def bilevel_rlhf(problem: Problem, gradients: Gradients, config: BilevelConfig, hyper: Hyper) -> Algorithm:
    """Algorithm 1. Its state is φ, λ, λ′ with their optimizers and critics, all warm-started from step to step.

    Both lower-level iterates see the same keys: the noise that they share cancels in line 7, which divides their
    difference by σ; each alone follows the paper's law.

    Raises:
        ValueError: a count is not positive, or one step costs more than can be counted.
    """
    policy_optimizer = config.policy_optimizer(hyper.policy_step_size)
    reward_optimizer = config.reward_optimizer(hyper.reward_step_size)
    cost = step_cost(gradients, config)

    def init(key):  # 1  φ_0, λ_0, λ′_0
        key_reward, key_policy, key_critic = jax.random.split(key, 3)
        reward, policy = problem.reward.init(key_reward), problem.policy.init(key_policy)
        actor = Level(policy, policy_optimizer.init(policy), gradients.init(key_critic))
        return BilevelState(Level(reward, reward_optimizer.init(reward)), actor, actor)

    def step(key, state):  # 2  for t
        key_labels, key_lower, key_labels_upper, key_upper = jax.random.split(key, 4)
        reward_params = state.reward.params
        kept = collect(key_labels, state.proxy) if config.reuse_labels else None

        def lower_step(levels, key):  # 3  for k
            key_pairs, key_return = jax.random.split(key)
            actor, proxy = levels
            pairs = kept if config.reuse_labels else collect(key_pairs, proxy)
            grad, critic, loss = return_gradient(key_return, actor, reward_params)  # 4–5  d
            grad_proxy, critic_proxy, _ = return_gradient(key_return, proxy, reward_params)  # 4–5  d′
            penalty = gradients.preference_in_policy(pairs, proxy.params, reward_params)
            grad_proxy = jax.tree.map(lambda j, g: j + hyper.sigma * g, grad_proxy, penalty)
            actor = ascend(policy_optimizer, actor._replace(critic=critic), grad)  # 6  λ
            proxy = ascend(policy_optimizer, proxy._replace(critic=critic_proxy), grad_proxy)  # 6  λ′
            fresh_labels = jnp.int32(0) if config.reuse_labels else gradients.labels(pairs)
            return (actor, proxy), (loss, optax.tree.norm(grad), optax.tree.norm(grad_proxy), fresh_labels)

        keys = jax.random.split(key_lower, config.num_policy_steps)
        (actor, proxy), (losses, norms, proxy_norms, labels) = jax.lax.scan(
            lower_step, (state.actor, state.proxy), keys
        )

        pairs = kept if config.reuse_labels else collect(key_labels_upper, proxy)
        policy = bind(problem.policy, proxy.params)
        value, direct = gradients.preference_in_reward(pairs, policy, reward_params)  # 7  g
        difference = gradients.return_difference(key_upper, reward_params, actor.params, proxy.params)
        grad = jax.tree.map(jnp.add, direct, difference)
        reward = ascend(reward_optimizer, state.reward, grad)  # 8  φ_{t+1}
        info = {
            "upper_objective": value,
            "gradient_norm": optax.tree.norm(grad),
            "implicit_gradient_norm": optax.tree.norm(difference),
            "policy_gradient_norm": norms[-1],
            "proxy_gradient_norm": proxy_norms[-1],
            "critic_loss": losses[-1],
            "labels": jnp.sum(labels) + gradients.labels(pairs),
            **cost.as_info(),
        }
        return BilevelState(reward, actor, proxy), info

    def collect(key, proxy):
        return gradients.collect(key, bind(problem.policy, proxy.params))

    def return_gradient(key, level, reward_params):
        return gradients.return_in_policy(key, level.critic, level.params, reward_params)

    return Algorithm(init, step, lambda state: Learned(state.reward.params, state.actor.params))


def step_cost(gradients: Gradients, config: BilevelConfig) -> Cost:
    """The exact cost of one outer step; labels are counted as they come."""
    steps = config.num_policy_steps
    if steps < 1:
        raise ValueError(f"num_policy_steps is {steps}; required: at least 1")
    # A gradient for each iterate's return, one for the penalty, and at the upper level those of G and of the difference.
    ours = Cost(gradient_evaluations=3 * steps + 2)
    batches = 1 if config.reuse_labels else steps + 1
    return total_cost(
        (1, ours), (2 * steps, gradients.return_cost), (batches, gradients.collect_cost), (1, gradients.difference_cost)
    )
