"""Two-stage RLHF: the reward fitted once on pairs of the reference policy, then the policy optimised against it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bilevel.ascent import Level, Optimizer, ascend
from bilevel.gradients.types import Gradients
from bilevel.ranges import Count, Positive, check
from bilevel.types import Algorithm, Array, Cost, Learned, Problem, total_cost


class TwoStageConfig(NamedTuple):
    """Counts and optimizers of two-stage RLHF; the policy and the reward have an optimizer each."""

    num_batches: Count = 10
    """Batches of pairs (num-pairs each) collected from the reference policy at the start."""
    num_reward_steps: Count = 200
    """Full-gradient steps of the reward on them."""
    num_policy_steps: Count = 10
    """K, policy gradient steps an outer step."""
    policy_optimizer: Optimizer = optax.sgd
    reward_optimizer: Optimizer = optax.adam


class TwoStageHyper(NamedTuple):
    """The real numbers of two-stage RLHF; every leaf may be traced."""

    policy_step_size: Positive = 0.1
    """tau, step size of the policy."""
    reward_step_size: Positive = 0.003
    """eta, step size of the reward."""


class TwoStageState(NamedTuple):
    """The fitted reward with its data, the policy, and whether the first stage has been reported."""

    reward: Level
    actor: Level
    pairs: Any  # of the reference policy, [num_batches, ...]
    reported: Array  # [] bool


def two_stage(problem: Problem, gradients: Gradients, config: TwoStageConfig, hyper: TwoStageHyper) -> Algorithm:
    """The first stage is `init`: the reward's maximum likelihood on reference pairs. A step is K policy gradient steps.

    The cost of the first stage is reported with the first step. `gradient_norm` is the policy's, since the reward rests.

    Raises:
        ValueError: a count is not positive, or one step costs more than can be counted.
    """
    check(config)
    policy_optimizer = config.policy_optimizer(hyper.policy_step_size)
    reward_optimizer = config.reward_optimizer(hyper.reward_step_size)
    steps, batches = config.num_policy_steps, config.num_batches
    fit_cost = total_cost((batches, gradients.collect_cost), (batches * config.num_reward_steps, Cost(0, 0, 1)))
    cost = total_cost((steps, gradients.return_cost), (steps, Cost(gradient_evaluations=1)))
    total_cost((1, fit_cost), (1, cost))  # the first step reports both

    def reward_gradient(pairs, reward_params):
        def of_batch(batch):
            return gradients.preference_in_reward(batch, problem.reference, reward_params)

        return jax.tree.map(lambda x: jnp.mean(x, axis=0), jax.vmap(of_batch, axis_size=batches)(pairs))

    def init(key):
        key_reward, key_policy, key_critic, key_labels = jax.random.split(key, 4)
        collect = jax.vmap(lambda key: gradients.collect(key, problem.reference))
        pairs = collect(jax.random.split(key_labels, batches))
        params = problem.reward.init(key_reward)

        def fit(level, _):
            return ascend(reward_optimizer, level, reward_gradient(pairs, level.params)[1]), None

        start = Level(params, reward_optimizer.init(params))
        reward, _ = jax.lax.scan(fit, start, length=config.num_reward_steps)
        policy = problem.policy.init(key_policy)
        actor = Level(policy, policy_optimizer.init(policy), gradients.init(key_critic))
        return TwoStageState(reward, actor, pairs, jnp.bool_(False))

    def step(key, state):
        reward_params = state.reward.params

        def policy_step(actor, key):
            grad, critic, loss = gradients.return_in_policy(key, actor.critic, actor.params, reward_params)
            return ascend(policy_optimizer, actor._replace(critic=critic), grad), (loss, optax.tree.norm(grad))

        actor, (losses, norms) = jax.lax.scan(policy_step, state.actor, jax.random.split(key, steps))
        value, _ = reward_gradient(state.pairs, reward_params)
        first = jnp.where(state.reported, 0, 1)
        labels = jnp.sum(jax.vmap(gradients.labels, axis_size=batches)(state.pairs), dtype=jnp.int32)
        info = {
            "upper_objective": value,
            "gradient_norm": norms[-1],
            "policy_gradient_norm": norms[-1],
            "critic_loss": losses[-1],
            "labels": first * labels,
            **jax.tree.map(lambda now, once: now + first * once, cost.as_info(), fit_cost.as_info()),
        }
        return TwoStageState(state.reward, actor, state.pairs, jnp.bool_(True)), info

    return Algorithm(init, step, lambda state: Learned(state.reward.params, state.actor.params))
