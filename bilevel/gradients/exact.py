"""The derivatives that the algorithms take, without sampling: the twin of `gradients.sampled`, on small finite worlds."""

import jax
import jax.numpy as jnp

from bilevel import exact
from bilevel.exact.bilevel import exact_bilevel
from bilevel.gradients.types import Gradients
from bilevel.lookup import bind, policy_table
from bilevel.preferences import Objective, log_likelihood
from bilevel.types import Coefficients, Problem
from envs.base import MDP


def exact_gradients(
    problem: Problem,
    mdp: MDP,
    segment_length: int,
    coefficients: Coefficients,
    objective: Objective = log_likelihood,
) -> Gradients:
    """The same derivatives without sampling, by linear solves and enumeration: small finite worlds only.

    Raises:
        ValueError: the segments are too many to enumerate, or the objective needs labels that the annotator does not give.
    """
    env, instance = problem.env, exact_bilevel(problem, mdp, segment_length, coefficients, objective)

    def policy_of(params):
        return policy_table(env, bind(problem.policy, params))

    def preference_in_policy(pairs, policy_params, reward_params):
        return jax.grad(lambda params: instance.preference(reward_params, policy_of(params)))(policy_params)

    def preference_in_reward(pairs, policy, reward_params):
        return jax.value_and_grad(instance.preference)(reward_params, policy_table(env, policy))

    def return_in_policy(key, critic_state, policy_params, reward_params):
        grad = jax.grad(lambda params: instance.regularised_return(reward_params, policy_of(params)))(policy_params)
        return grad, critic_state, jnp.zeros(())

    def return_difference(key, reward_params, policy_params, proxy_params):
        policy, proxy = policy_of(policy_params), policy_of(proxy_params)

        def gap(params):
            return instance.regularised_return(params, proxy) - instance.regularised_return(params, policy)

        return jax.grad(gap)(reward_params), None

    def preference_through_policy(key, pairs, policy_params, reward_params):
        policy = policy_of(policy_params)
        in_log_policy = policy * jax.grad(instance.preference, argnums=1)(reward_params, policy)

        def response(params):  # its derivative at a fixed policy is that of w log π*
            return jnp.vdot(in_log_policy, exact.advantages(instance.lower(params), policy)) / coefficients.kl_weight

        return jax.grad(response)(reward_params)

    return Gradients(
        lambda key: (),
        lambda key, behave: (),
        lambda pairs: jnp.int32(0),
        preference_in_policy,
        preference_in_reward,
        return_in_policy,
        return_difference,
        preference_through_policy,
        differentiable=True,
    )
