"""A problem with the points at which its derivatives are estimated, and what unbiased means of estimates."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference_instances import Reference, load_reference

from bilevel.algorithms.bilevel_rlhf import BilevelHyper, line_7
from bilevel.gradients import sampled as sampled_gradients
from bilevel.gradients.critics import monte_carlo_critic
from bilevel.gradients.exact import exact_gradients
from bilevel.gradients.sampled import SampleSizes
from bilevel.gradients.types import Gradients
from bilevel.lookup import bind
from bilevel.preferences import log_likelihood
from bilevel.types import Coefficients, Params, Problem

# Cutting a rollout after T steps loses 0.9^T of it: 3e-5 at T = 100. The difference is an eighth of line 7's norm, so
# T = 60 loses 2e-4 of that. Both are far below the standard errors.
SIZES = SampleSizes(batch_size=512, rollout_length=100, segment_length=3)
LINE_7_SIZES = SampleSizes(batch_size=2048, rollout_length=60, segment_length=3)


class Setting(NamedTuple):
    """A problem on a reference instance, and the points at which derivatives are taken."""

    problem: Problem
    reference: Reference
    coefficients: Coefficients
    sigma: float
    reward: Params  # φ
    policy: Params  # log π_ref
    other: Params  # a policy that is none of the others
    optimal: Params  # λ*(φ)
    proxy: Params  # λ*_σ(φ)

    def exact(self, function, objective=log_likelihood):
        """`function` of the exact gradients, compiled whole."""
        mdp, horizon = self.reference.mdp, self.reference.horizon
        return jax.jit(lambda: function(exact_gradients(self.problem, mdp, horizon, self.coefficients, objective)))()

    def exact_return(self) -> Params:
        """∇_λ J at the other policy (at π_ref the KL has no gradient)."""
        return self.exact(lambda gradients: gradients.return_in_policy(None, (), self.other, self.reward)[0])

    def exact_preference(self, params: Params) -> dict[str, Params]:
        """∇_λ G and ∇_φ G at policy parameters."""
        return self.exact(lambda gradients: self.preference(gradients, (), params))

    def preference(self, gradients: Gradients, pairs, params: Params) -> dict[str, Params]:
        """∇_λ G and ∇_φ G at policy parameters, from pairs."""
        return {
            "policy": gradients.preference_in_policy(pairs, params, self.reward),
            "reward": gradients.preference_in_reward(pairs, bind(self.problem.policy, params), self.reward)[1],
        }

    def sampled(self, sizes=SIZES, critic=None, objective=log_likelihood) -> Gradients:
        """Sampled gradients; by the Monte Carlo critic where none is given."""
        critic = monte_carlo_critic(self.problem, self.coefficients) if critic is None else critic
        return sampled_gradients.sampled_gradients(self.problem, critic, sizes, self.coefficients, objective)

    def line_7(self, key, *ways: Gradients) -> list[Params]:
        """What Algorithm 1 adds up in line 7: ∇_φ G at λ*_σ, then the difference over σ by each of the gradients."""
        key_labels, key_difference = jax.random.split(key)
        pairs = ways[0].collect(key_labels, bind(self.problem.policy, self.proxy))
        made = [line_7(self.problem, gradients, BilevelHyper(self.sigma)) for gradients in ways]
        found = [x.estimate(key_difference, pairs, self.reward, self.optimal, self.proxy) for x in made]
        return [found[0].direct, *(x.implicit for x in found)]

    def exact_line_7(self) -> Params:
        """∇Φ_σ."""
        return sum(self.exact(lambda gradients: self.line_7(jax.random.key(0), gradients)))


@functools.cache
def setting_of(number) -> Setting:
    """Reference instance 1 or 2 at σ = 0.1, in float64."""
    reference = load_reference(number)
    numbers = reference.numbers
    optimal, proxy = (jnp.asarray(x) for x in (numbers["optimal_policy"], numbers["proxy"]["0.1"]["penalised_policy"]))
    other = jax.random.normal(jax.random.key(0), (3, 2))
    policies = jnp.log(reference.lower.reference), other, jnp.log(optimal), jnp.log(proxy)
    return Setting(reference.problem, reference, reference.coefficients, 0.1, reference.params, *policies)


@functools.cache
def proxy_solver():
    """σ -> logits of λ*_σ(φ) on instance 1."""
    reference = load_reference(1)
    return jax.jit(lambda sigma: jnp.log(reference.bilevel.penalised(reference.params, sigma)))


def repeat(function, repetitions, at_once=1):
    """`function` of `repetitions` keys, one compiled loop; every leaf gets a leading axis."""
    keys = jax.random.split(jax.random.key(0), repetitions)
    return jax.jit(lambda keys: jax.lax.map(function, keys, batch_size=at_once))(keys)


def assert_unbiased(samples, expected, precision=0.02):
    """The mean of the samples [R, ...] is within 4 standard errors of `expected` in every coordinate, and the standard
    errors are small enough to tell: their norm is at most `precision` of the norm of `expected`."""
    samples, expected = np.asarray(samples), np.asarray(expected)
    assert samples.shape[1:] == expected.shape
    error = np.std(samples, axis=0, ddof=1) / np.sqrt(len(samples))
    score = np.abs(np.mean(samples, axis=0) - expected) / np.maximum(error, 1e-12 * np.linalg.norm(expected))
    assert np.max(score) <= 4, f"biased: {np.max(score):.1f} standard errors from the exact value"
    relative = np.linalg.norm(error) / np.linalg.norm(expected)
    assert relative <= precision, f"imprecise: the standard error is {relative:.4f} of the norm"


def assert_biased(samples, expected):
    assert np.all(np.isfinite(samples))
    with pytest.raises(AssertionError, match="biased: "):
        assert_unbiased(samples, expected)
