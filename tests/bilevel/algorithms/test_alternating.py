"""Alternating RLHF by hand on a bandit of two arms, with exact gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import two_arms
from checks import close
from scipy.special import expit

from bilevel.algorithms.alternating import AlternatingConfig, AlternatingHyper, alternating
from bilevel.gradients.exact import exact_gradients

WEIGHT, START = 0.5, 0.4
HYPER = AlternatingHyper(policy_step_size=0.8, reward_step_size=0.3)


def algorithm(start=START, num_policy_steps=2):
    """Two policy steps an outer step, from φ = 0.4 and the uniform policy."""
    problem, mdp, coefficients = two_arms.two_arms(WEIGHT)
    problem = problem._replace(reward=problem.reward._replace(init=lambda key: jnp.asarray(start)))
    gradients = exact_gradients(problem, mdp, 1, coefficients)
    config = AlternatingConfig(num_policy_steps, reward_optimizer=optax.sgd)
    return alternating(problem, gradients, config, HYPER)


def test_an_outer_step_by_hand_moves_the_policy_twice_and_then_the_reward_at_the_new_policy(x64):
    made = algorithm()
    state, info = jax.jit(lambda key: made.step(key, made.init(key)))(jax.random.key(0))
    logit, slopes = 0.0, []  # of both arms, up and down
    for _ in range(2):
        p = expit(2 * logit)
        slopes.append(p * (1 - p) * two_arms.return_in_policy(START, p, WEIGHT))
        logit += 0.8 * slopes[-1]
    p = expit(2 * logit)
    learned = made.params(state)
    close(learned.policy, [[logit, -logit]])
    slope = two_arms.preference_in_reward(START, p)
    close(learned.reward, START + 0.3 * slope)
    close(info["upper_objective"], two_arms.preference(START, p))
    close(info["gradient_norm"], slope)
    close(info["policy_gradient_norm"], slopes[-1] * np.sqrt(2))
    costs = {name: int(info[name]) for name in ("transitions", "queries", "labels", "gradient_evaluations")}
    assert costs == {"transitions": 0, "queries": 0, "labels": 0, "gradient_evaluations": 3}


def test_the_reward_does_not_feel_that_the_policy_follows_it(x64):
    # Where the direct gradient vanishes, at φ = 1, the reward rests, though Φ still rises with φ through the policy.
    made = algorithm(start=1.0)
    state, _ = jax.jit(lambda key: made.step(key, made.init(key)))(jax.random.key(0))
    close(made.params(state).reward, 1.0)
    assert made.params(state).policy[0, 0] > 0.1


def test_no_policy_step_is_refused():
    with pytest.raises(ValueError, match="num_policy_steps is 0; required: a whole number, at least 1"):
        algorithm(num_policy_steps=0)
