"""A bandit of two arms by hand: one state, γ = 0, κ = 1, arms that pay 1 and 0, a uniform reference, one step a segment.

r_φ pays (φ, 0), and p is the probability of the first arm. Of two segments half the pairs are unequal; the label of such a
pair is right with probability P = sigmoid(1), and r_φ foresees q = sigmoid(φ). So

    G(φ, p) = log ½ + 2p(1 − p) (ℓ − log ½),    ℓ = P log q + (1 − P) log(1 − q),
    J(p, φ) = φ p − w KL(p ‖ ½),    λ*(φ) = sigmoid(φ/w).
"""

import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from bilevel.exact.bilevel import tabular_problem
from bilevel.types import Coefficients, Model, Problem
from envs.base import MDP

TRUTH = expit(1.0)  # P


def two_arms(kl_weight) -> tuple[Problem, MDP, Coefficients]:
    """The bandit, with policies that are tables of two logits; φ and the logits start at zero."""
    mdp = MDP(jnp.ones(1), jnp.ones((1, 2, 1)), jnp.array([[1.0, 0.0]]))
    coefficients = Coefficients(discount=0.0, kl_weight=kl_weight)
    reward = Model(lambda key: jnp.zeros(()), lambda params, s, a: jnp.where(a == 0, params, 0.0))
    return tabular_problem(mdp, coefficients, reward), mdp, coefficients


def gain(phi):
    """ℓ − log ½, what an unequal pair pays more than an equal one."""
    return TRUTH * np.log(expit(phi)) + (1 - TRUTH) * np.log(expit(-phi)) - np.log(0.5)


def preference(phi, p):
    """G(φ, p)."""
    return np.log(0.5) + 2 * p * (1 - p) * gain(phi)


def preference_in_reward(phi, p):
    """∂G/∂φ."""
    return 2 * p * (1 - p) * (TRUTH - expit(phi))


def preference_in_policy(phi, p):
    """∂G/∂p."""
    return 2 * (1 - 2 * p) * gain(phi)


def regularised_return(phi, p, kl_weight):
    """J(p, φ)."""
    return phi * p - kl_weight * (p * np.log(2 * p) + (1 - p) * np.log(2 * (1 - p)))


def return_in_policy(phi, p, kl_weight):
    """∂J/∂p; times p(1 − p) it is the derivative in the first logit, and minus that in the second."""
    return phi - kl_weight * np.log(p / (1 - p))
