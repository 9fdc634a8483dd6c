"""Algorithm 1 by hand on a bandit of two arms, and where it ends: at the maximum of Φ, up to O(σ)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import two_arms
from checks import close
from scipy.special import expit

from bilevel.algorithms import bilevel_rlhf as algorithm_1
from bilevel.algorithms.bilevel_rlhf import BilevelConfig, BilevelHyper, bilevel_rlhf
from bilevel.ascent import maximise
from bilevel.exact.bilevel import exact_bilevel, tabular_problem
from bilevel.gradients.exact import exact_gradients
from bilevel.run import run, start
from bilevel.types import Coefficients
from envs.tabular import garnet

WEIGHT, START = 0.5, 0.4
HYPER = BilevelHyper(sigma=0.3, policy_step_size=0.8, reward_step_size=0.2, proxy_step_ratio=0.5)


def algorithm(num_policy_steps=2, reuse_labels=False):
    """Two inner steps an outer step, from φ = 0.4 and the uniform policy."""
    problem, mdp, coefficients = two_arms.two_arms(WEIGHT)
    problem = problem._replace(reward=problem.reward._replace(init=lambda key: jnp.asarray(START)))
    config = BilevelConfig(num_policy_steps, reuse_labels, reward_optimizer=optax.sgd)
    return bilevel_rlhf(problem, exact_gradients(problem, mdp, 1, coefficients), config, HYPER)


@pytest.mark.parametrize("reuse_labels", [False, True])  # with exact gradients no pair is drawn
def test_an_outer_step_by_hand_follows_the_lines_of_the_paper(reuse_labels, x64):
    made = algorithm(reuse_labels=reuse_labels)
    state, info = jax.jit(lambda key: made.step(key, made.init(key)))(jax.random.key(0))
    actor = proxy = 0.0  # logits of the first arm; the second's are the opposite
    for _ in range(2):  # lines 3 to 6
        p, q = expit(2 * actor), expit(2 * proxy)
        d = p * (1 - p) * two_arms.return_in_policy(START, p, WEIGHT)
        d_proxy = q * (1 - q) * two_arms.return_in_policy(START, q, WEIGHT)
        d_proxy += 0.3 * q * (1 - q) * two_arms.preference_in_policy(START, q)
        actor, proxy = actor + 0.8 * d, proxy + 0.4 * d_proxy
    p, q = expit(2 * actor), expit(2 * proxy)
    implicit = (q - p) / 0.3  # ∂J/∂φ is the probability of the first arm
    gradient = two_arms.preference_in_reward(START, q) + implicit  # line 7
    learned = made.params(state)
    close(learned.reward, START + 0.2 * gradient)  # line 8
    close(learned.policy, [[actor, -actor]])
    close(algorithm_1.proxy_of(state.lower.params), [[proxy, -proxy]])
    close(info["upper_objective"], two_arms.preference(START, q))
    close(info["gradient_norm"], abs(gradient))
    close(info["implicit_gradient_norm"], abs(implicit))
    close(info["policy_gradient_norm"], np.sqrt(2) * abs(d))
    close(info["proxy_gradient_norm"], np.sqrt(2) * abs(d_proxy))
    costs = {name: int(info[name]) for name in ("transitions", "queries", "labels", "gradient_evaluations")}
    assert costs == {"transitions": 0, "queries": 0, "labels": 0, "gradient_evaluations": 2 * 3 + 2}


def test_no_inner_step_is_refused():
    with pytest.raises(ValueError, match="num_policy_steps is 0; required: a whole number, at least 1"):
        algorithm(num_policy_steps=0)


# Where it ends --------------------------------------------------------------------------------------------------------

SIGMAS = (0.4, 0.2, 0.1)


@pytest.fixture(scope="module")
def ends():
    """σ and a sign of the implicit part -> how far from the maximiser of Φ Algorithm 1 with exact gradients ends."""
    with jax.enable_x64(True):
        mdp, coefficients = garnet(jax.random.key(1), 3, 2), Coefficients(kl_weight=1.5)
        problem = tabular_problem(mdp, coefficients)
        phi = exact_bilevel(problem, mdp, 2, coefficients)
        gradients = exact_gradients(problem, mdp, 2, coefficients)
        best = jax.jit(lambda first: maximise(phi.value, optax.sgd(2.0), first, 300))(jnp.zeros((3, 2)))
        assert optax.tree.norm(jax.jit(phi.gradient)(best)) < 1e-6

        @jax.jit
        @jax.vmap
        def distance(sigma, sign):
            def flipped(*inputs):
                difference, share = gradients.return_difference(*inputs)
                return jax.tree.map(lambda x: sign * x, difference), share

            hyper = BilevelHyper(sigma, policy_step_size=0.2, reward_step_size=3.0)
            config = BilevelConfig(10, reward_optimizer=optax.sgd)
            made = bilevel_rlhf(problem, gradients._replace(return_difference=flipped), config, hyper)
            key = jax.random.key(0)
            state, _ = run(made, key, start(made, key), 150)
            difference = made.params(state.algorithm).reward - best
            return optax.tree.norm(difference - jnp.mean(difference))  # Φ does not see a constant

        signs = jnp.repeat(jnp.array([1.0, -1.0]), len(SIGMAS))
        return np.asarray(distance(jnp.array(SIGMAS * 2), signs)).reshape(2, -1)


def test_with_exact_gradients_the_distance_to_the_maximiser_over_sigma_is_constant(ends):
    over_sigma = ends[0] / np.array(SIGMAS)
    assert np.max(over_sigma) / np.min(over_sigma) < 1.2


def test_a_wrong_sign_in_line_seven_is_seen(ends):
    # Were the difference subtracted, it would end elsewhere: the check above can fail.
    over_sigma = ends[1] / np.array(SIGMAS)
    assert np.max(over_sigma) / np.min(over_sigma) > 1.2
