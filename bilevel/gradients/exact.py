"""The derivatives that the algorithms take, without sampling: the twin of `sampled_gradients`, on small finite worlds."""

import jax
import jax.numpy as jnp

from bilevel import exact
from bilevel.lookup import bind, pair_table, policy_table
from bilevel.preferences import Objective, check_objective, log_likelihood
from bilevel.types import Gradients, Hyper, Problem
from envs.base import MDP


def exact_gradients(
    problem: Problem, mdp: MDP, segment_length: int, hyper: Hyper, objective: Objective = log_likelihood
) -> Gradients:
    """The same derivatives without sampling, by linear solves and enumeration: small finite worlds only.

    Raises:
        ValueError: the segments are too many to enumerate, or the objective needs labels that the annotator does not give.
    """
    env = problem.env
    segments = exact.enumerate_segments(env.num_states, env.num_actions, segment_length)
    comparisons = exact.exact_comparisons(problem.annotate, segments)
    check_objective(objective, comparisons)
    reference = policy_table(env, problem.reference)

    def reward_of(params):
        return pair_table(env, bind(problem.reward, params))

    def policy_of(params):
        return policy_table(env, bind(problem.policy, params))

    def preference(policy, reward):
        return exact.preference_objective(
            mdp, policy, reward, segments, comparisons, objective, hyper.discount, hyper.rationality
        )

    def lower_of(reward):
        return exact.lower_level(mdp, reward, reference, hyper.discount, hyper.kl_weight)

    def regularised_return(policy, reward):
        return exact.regularised_return(lower_of(reward), policy)

    def preference_in_policy(pairs, policy_params, reward_params):
        return jax.grad(lambda params: preference(policy_of(params), reward_of(reward_params)))(policy_params)

    def preference_in_reward(pairs, policy, reward_params):
        table = policy_table(env, policy)
        return jax.value_and_grad(lambda params: preference(table, reward_of(params)))(reward_params)

    def return_in_policy(key, critic_state, policy_params, reward_params):
        grad = jax.grad(lambda params: regularised_return(policy_of(params), reward_of(reward_params)))(policy_params)
        return grad, critic_state, jnp.zeros(())

    def difference(key, reward_params, policy_params, proxy_params):
        tables = [policy_of(params) for params in (policy_params, proxy_params)]

        def gap(params):
            reward = reward_of(params)
            return (regularised_return(tables[1], reward) - regularised_return(tables[0], reward)) / hyper.sigma

        return jax.grad(gap)(reward_params), None

    def preference_through_policy(key, pairs, policy_params, reward_params):
        policy, reward = policy_of(policy_params), reward_of(reward_params)
        in_log_policy = policy * jax.grad(preference)(policy, reward)

        def response(params):  # its derivative at a fixed policy is that of w log π*
            return jnp.vdot(in_log_policy, exact.advantages(lower_of(reward_of(params)), policy)) / hyper.kl_weight

        return jax.grad(response)(reward_params)

    return Gradients(
        lambda key: (),
        lambda key, behave: (),
        lambda pairs: jnp.int32(0),
        preference_in_policy,
        preference_in_reward,
        return_in_policy,
        difference,
        preference_through_policy,
        differentiable=True,
    )
