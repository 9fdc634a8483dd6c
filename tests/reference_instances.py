"""The reference instances: problems whose numbers an independent brute-force program computed."""

import functools
import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bilevel import exact
from bilevel.exact.bilevel import Bilevel, exact_bilevel, tabular_problem
from bilevel.types import Coefficients, Model, Problem
from envs.base import MDP

FOLDER = pathlib.Path(__file__).parent / "reference"


class Reference(NamedTuple):
    """One instance of `tests/reference`, computed by an independent brute-force program in float64.

    Attributes:
        numbers: everything that the program wrote.
        mdp, problem, coefficients: the same instance for the code under test; its policies are tables of logits.
        params: φ of the reward network, w1 row-major, then w2.
        lower: the lower level under r_φ, with the program's own r_φ [S, A].
        bilevel: the exact functions of φ, with the log-likelihood.
    """

    numbers: dict
    mdp: MDP
    problem: Problem
    coefficients: Coefficients
    params: jax.Array
    lower: exact.LowerLevel
    bilevel: Bilevel

    @property
    def horizon(self) -> int:
        """H, steps of a segment."""
        return self.numbers["horizon"]

    def exact(self, objective) -> Bilevel:
        """The exact functions of φ with another objective."""
        return exact_bilevel(self.problem, self.mdp, self.horizon, self.coefficients, objective)


@functools.cache
def load_reference(number: int) -> Reference:
    """Reference instance 1 or 2; call it under float64."""
    return assemble(json.loads((FOLDER / f"bilevel_mdp_{number}.json").read_text()))


def assemble(numbers: dict) -> Reference:
    """The instance of these numbers, of which all but the horizon may be traced."""
    mdp = MDP(*(jnp.asarray(numbers[name]) for name in ("initial", "transition", "true_reward")))
    coefficients = Coefficients(*(numbers[name] for name in Coefficients._fields))
    features, first, second = (jnp.asarray(numbers[name]) for name in ("features", "w1", "w2"))
    params = jnp.concatenate([first.ravel(), second])

    def reward(params, state, action):  # tanh(features·w1)·w2
        hidden = jnp.tanh(features[state, action] @ params[: first.size].reshape(first.shape))
        return hidden @ params[first.size :]

    reference = jnp.asarray(numbers["reference"])
    problem = tabular_problem(mdp, coefficients, Model(lambda key: params, reward), reference)
    learned = jnp.asarray(numbers["learned_reward"])
    lower = exact.lower_level(mdp, learned, reference, coefficients.discount, coefficients.kl_weight)
    instance = exact_bilevel(problem, mdp, numbers["horizon"], coefficients)
    return Reference(numbers, mdp, problem, coefficients, params, lower, instance)
