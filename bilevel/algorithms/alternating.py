"""Alternating RLHF: the upper gradient without its implicit term, the loop that most systems run.

The reward follows ∇_φ G alone (maximum likelihood on pairs of the current policy), as if the policy did not depend on it.
"""

from typing import NamedTuple

import jax
import optax

from bilevel.ascent import Level, Optimizer, ascend
from bilevel.gradients.types import Gradients
from bilevel.lookup import bind
from bilevel.ranges import Count, Positive, check
from bilevel.types import Algorithm, Cost, Learned, Problem, total_cost


class AlternatingConfig(NamedTuple):
    """Counts and optimizers of alternating RLHF; the policy and the reward have an optimizer each."""

    num_policy_steps: Count = 10
    """K, policy gradient steps an outer step."""
    policy_optimizer: Optimizer = optax.sgd
    reward_optimizer: Optimizer = optax.adam


class AlternatingHyper(NamedTuple):
    """The real numbers of alternating RLHF; every leaf may be traced."""

    policy_step_size: Positive = 0.1
    """tau, step size of the policy."""
    reward_step_size: Positive = 0.003
    """eta, step size of the reward."""


class AlternatingState(NamedTuple):
    """The reward and the policy."""

    reward: Level
    actor: Level


def alternating(
    problem: Problem, gradients: Gradients, config: AlternatingConfig, hyper: AlternatingHyper
) -> Algorithm:
    """K policy gradient steps on J(·, φ), then one step of the reward up ∇_φ G at the new policy.

    Raises:
        ValueError: a count is not positive, or one step costs more than can be counted.
    """
    check(config)
    policy_optimizer = config.policy_optimizer(hyper.policy_step_size)
    reward_optimizer = config.reward_optimizer(hyper.reward_step_size)
    steps = config.num_policy_steps
    cost = total_cost(
        (1, Cost(gradient_evaluations=steps + 1)), (steps, gradients.return_cost), (1, gradients.collect_cost)
    )

    def init(key):
        key_reward, key_policy, key_critic = jax.random.split(key, 3)
        reward, policy = problem.reward.init(key_reward), problem.policy.init(key_policy)
        actor = Level(policy, policy_optimizer.init(policy), gradients.init(key_critic))
        return AlternatingState(Level(reward, reward_optimizer.init(reward)), actor)

    def step(key, state):
        key_lower, key_labels = jax.random.split(key)
        reward_params = state.reward.params

        def lower_step(actor, key):
            grad, critic, loss = gradients.return_in_policy(key, actor.critic, actor.params, reward_params)
            return ascend(policy_optimizer, actor._replace(critic=critic), grad), (loss, optax.tree.norm(grad))

        actor, (losses, norms) = jax.lax.scan(lower_step, state.actor, jax.random.split(key_lower, steps))
        policy = bind(problem.policy, actor.params)
        pairs = gradients.collect(key_labels, policy)
        value, grad = gradients.preference_in_reward(pairs, policy, reward_params)
        info = {
            "upper_objective": value,
            "gradient_norm": optax.tree.norm(grad),
            "policy_gradient_norm": norms[-1],
            "critic_loss": losses[-1],
            "labels": gradients.labels(pairs),
            **cost.as_info(),
        }
        return AlternatingState(ascend(reward_optimizer, state.reward, grad), actor), info

    return Algorithm(init, step, lambda state: Learned(state.reward.params, state.actor.params))
