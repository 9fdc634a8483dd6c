"""Two-stage RLHF by hand on a bandit of two arms, with exact gradients."""

import jax
import numpy as np
import optax
import pytest
import two_arms
from checks import close
from scipy.special import expit

from bilevel.algorithms.two_stage import TwoStageConfig, TwoStageHyper, two_stage
from bilevel.gradients.exact import exact_gradients

WEIGHT = 0.5
HYPER = TwoStageHyper(policy_step_size=0.8, reward_step_size=0.3)


def algorithm(**counts):
    """Three steps of the reward on two batches, then one policy step an outer step; from φ = 0 and the uniform policy."""
    problem, mdp, coefficients = two_arms.two_arms(WEIGHT)
    counts = dict(num_batches=2, num_reward_steps=3, num_policy_steps=1) | counts
    config = TwoStageConfig(**counts, reward_optimizer=optax.sgd)
    return two_stage(problem, exact_gradients(problem, mdp, 1, coefficients), config, HYPER)


def test_the_first_stage_by_hand_fits_the_reward_at_the_reference_and_then_it_rests(x64):
    ours = algorithm()

    @jax.jit
    def three_states(key):
        start = ours.init(key)
        first, info = ours.step(key, start)
        second, later = ours.step(key, first)
        return (start, first, second), (info, later)

    states, infos = three_states(jax.random.key(0))
    phi = 0.0
    for _ in range(3):
        phi += 0.3 * two_arms.preference_in_reward(phi, 0.5)
    logit, path = 0.0, [0.0]
    for _ in range(2):
        p = expit(2 * logit)
        logit += 0.8 * p * (1 - p) * two_arms.return_in_policy(phi, p, WEIGHT)
        path.append(logit)
    for state, logit in zip(states, path, strict=True):
        close(ours.params(state).reward, phi)
        close(ours.params(state).policy, [[logit, -logit]])
    for info, logit in zip(infos, path[:-1], strict=True):
        p = expit(2 * logit)
        close(info["upper_objective"], two_arms.preference(phi, 0.5))  # of the reference, on whose pairs it was fitted
        close(info["gradient_norm"], np.sqrt(2) * p * (1 - p) * two_arms.return_in_policy(phi, p, WEIGHT))
    # Two batches for each of three steps are reported once, with the first policy step.
    assert [int(info["gradient_evaluations"]) for info in infos] == [2 * 3 + 1, 1]


@pytest.mark.parametrize("name", TwoStageConfig._fields[:3])
def test_a_count_below_one_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0; required: a whole number, at least 1"):
        algorithm(**{name: 0})
