"""Measurements by hand: a table policy exactly and by estimate, a Gaussian one, and what is measured only where it is."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import close

from bilevel import models
from bilevel.measure import divergence, entropy, exact_measure, sampled_measure
from bilevel.types import Coefficients, Learned, Model, Problem
from envs.base import MDP, Env, World
from envs.tabular import tabular

pytestmark = pytest.mark.usefixtures("x64")

# State 0 leads to state 1, which stays; both pay 1 for the first action. At γ = ½ half of the occupancy is in each, and
# the discounted sum of a constant is 2. r_φ pays 3 for the first action and −1 for the second.
CHAIN = MDP(np.array([1.0, 0.0]), np.tile([0.0, 1.0], (2, 2, 1)), np.array([[1.0, 0.0], [1.0, 0.0]]))
POLICY = np.array([[0.75, 0.25], [0.2, 0.8]])
BELIEVED = np.array([[3.0, -1.0], [3.0, -1.0]])
COEFFICIENTS = Coefficients(discount=0.5, kl_weight=0.3)
BY_HAND = {
    "true_return": 0.75 + 0.2,  # 0.75 now, 0.2 (½ + ¼ + …) later
    "learned_return": (3 * 0.75 - 0.25) + (3 * 0.2 - 0.8),
    "kl_to_reference": np.mean([p @ np.log(2 * p) for p in POLICY]),
    "policy_entropy": np.mean([-p @ np.log(p) for p in POLICY]),
}
LEARNED = Learned(BELIEVED, np.log(POLICY))


def chain_problem(horizon=None) -> tuple[Problem, World]:
    """Tables on the chain, with a uniform reference."""
    world = tabular(jax.tree.map(jnp.asarray, CHAIN), horizon)
    reference = models.uniform_reference(world.env)
    return Problem(world.env, None, models.table(2, 2), models.table_policy(2, 2), reference), world


def test_exact_measurements_of_a_table_policy_by_hand():
    problem, world = chain_problem()
    measure = jax.jit(exact_measure(problem, world.mdp, COEFFICIENTS))
    measured = measure(jax.random.key(0), LEARNED)
    assert measured.keys() == BY_HAND.keys()
    for name, value in BY_HAND.items():
        close(measured[name], value)


def sampled(horizon, length=20, num_rollouts=4000):
    """Measurements of `LEARNED` on the chain from rollouts; ½²⁰ = 1e-6 is cut off."""
    measure = sampled_measure(*chain_problem(horizon), COEFFICIENTS, num_rollouts, length)
    return jax.jit(measure)(jax.random.key(0), LEARNED)


def test_sampled_measurements_are_the_exact_ones_but_for_their_noise():
    measured = sampled(horizon=None)
    assert measured.keys() == BY_HAND.keys()
    # The first reward varies by p(1 − p), later ones by ¼ · 4/3 · p(1 − p); the learned reward is 4 r* − 1.
    error = np.sqrt((0.75 * 0.25 + 0.2 * 0.8 / 3) / 4000)
    assert abs(measured["true_return"] - BY_HAND["true_return"]) < 4 * error
    close(measured["learned_return"], 4 * measured["true_return"] - 2, 1e-5)
    # Where every rollout is in which state is certain, so these have no noise at all.
    close(measured["kl_to_reference"], BY_HAND["kl_to_reference"], 1e-5)
    close(measured["policy_entropy"], BY_HAND["policy_entropy"], 1e-5)


@pytest.mark.parametrize(("horizon", "steps"), [(3, 3), (50, 20)])
def test_a_score_is_the_plain_sum_of_rewards_up_to_the_horizon_or_as_far_as_the_rollout_goes(horizon, steps):
    error = np.sqrt((0.75 * 0.25 + 0.2 * 0.8 * (steps - 1)) / 4000)
    assert abs(sampled(horizon)["true_score"] - (0.75 + 0.2 * (steps - 1))) < 4 * error


def test_without_a_learned_reward_there_is_no_learned_return():
    problem, world = chain_problem()
    blind = problem._replace(reward=None)
    for measure in (
        exact_measure(blind, world.mdp, COEFFICIENTS),
        sampled_measure(blind, world, COEFFICIENTS, 2, 3),
    ):
        measured = jax.eval_shape(measure, jax.random.key(0), Learned(None, LEARNED.policy))
        assert measured.keys() == BY_HAND.keys() - {"learned_return"}


# A Gaussian -----------------------------------------------------------------------------------------------------------

MEAN, STD, COUNT = 0.4, 0.6, 20_000
GAUSSIAN_KL = (STD**2 + MEAN**2 - 1) / 2 - np.log(STD)  # of N(m, s²) from N(0, 1)
GAUSSIAN_ENTROPY = 0.5 * np.log(2 * np.pi * np.e * STD**2)


def test_measurements_of_a_gaussian_policy_by_hand():
    # One state, r*(a) = −(a − 1)², r_φ = −(a − φ)² at φ = 0: the returns at γ = 0 are −(m − 1)² − s² and −m² − s², and
    # (a − c)² has variance 2s⁴ + 4(m − c)²s².
    env = Env(lambda key: jnp.zeros(1), lambda key, state, action: state, lambda state: state, action_size=1)
    policy = Model(None, lambda params, obs: models.gaussian(params[:1], params[1:]))
    reward = Model(None, lambda params, obs, action: -((action[0] - params) ** 2))
    problem = Problem(env, None, reward, policy, models.uniform_reference(env))
    world = World(env, lambda state, action: -((action[0] - 1.0) ** 2))
    measure = sampled_measure(problem, world, Coefficients(discount=0.0), COUNT, 1)
    learned = Learned(jnp.zeros(()), jnp.array([MEAN, STD]))
    measured = jax.jit(measure)(jax.random.key(0), learned)
    close(measured["kl_to_reference"], GAUSSIAN_KL)
    close(measured["policy_entropy"], GAUSSIAN_ENTROPY)
    for name, centre in (("true_return", 1.0), ("learned_return", 0.0)):
        error = np.sqrt((2 * STD**4 + 4 * (MEAN - centre) ** 2 * STD**2) / COUNT)
        assert abs(measured[name] + (MEAN - centre) ** 2 + STD**2) < 4 * error


class Bare(NamedTuple):
    """A distribution that has a density and no closed forms."""

    log_prob: object


class Refusing(Bare):
    """One that says so."""

    def kl_divergence(self, other):
        raise NotImplementedError

    def entropy(self):
        raise NotImplementedError


def laws(kind):
    """A policy, its reference, `COUNT` actions of the policy, its KL and its entropy."""
    if kind == "gaussian":
        policy, reference = (
            models.gaussian(jnp.array([MEAN]), jnp.array([STD])),
            models.gaussian(jnp.zeros(1), jnp.ones(1)),
        )
        divergence, entropy = GAUSSIAN_KL, GAUSSIAN_ENTROPY
    else:
        policy, reference = models.Categorical(jnp.log(POLICY[0])), models.Categorical(jnp.zeros(2))
        divergence, entropy = POLICY[0] @ np.log(2 * POLICY[0]), -POLICY[0] @ np.log(POLICY[0])
    return policy, reference, policy.sample(seed=jax.random.key(1), sample_shape=(COUNT,)), divergence, entropy


@pytest.mark.parametrize("kind", ["gaussian", "table"])
def test_divergence_and_entropy_are_in_closed_form_where_there_is_one(kind):
    policy, reference, action, kl, own = laws(kind)
    close(divergence(policy, reference, action[0]), kl)
    close(entropy(policy, action[0]), own)


@pytest.mark.parametrize("bare", [Bare, Refusing])
@pytest.mark.parametrize("kind", ["gaussian", "table"])
def test_divergence_and_entropy_without_a_closed_form_are_unbiased_estimates_at_the_policy_s_actions(kind, bare):
    policy, reference, action, kl, own = laws(kind)
    estimates = divergence(bare(policy.log_prob), reference, action), entropy(bare(policy.log_prob), action)
    for samples, expected in zip(estimates, (kl, own), strict=True):
        assert samples.shape == (COUNT,) and np.std(samples) > 0.1
        assert abs(np.mean(samples) - expected) < 4 * np.std(samples) / np.sqrt(COUNT)
