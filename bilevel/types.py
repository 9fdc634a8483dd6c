"""The nouns that every method shares: records of functions, records of arrays, no logic."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bilevel.ranges import BelowOne, NotNegative, Positive
from envs.base import Action, Env, Observation, State

Array = jax.Array
Key = jax.Array
Params = Any  # a pytree of arrays
Distribution = Any  # a distrax distribution: sample(seed=), log_prob, kl_divergence, entropy
Behaviour = Callable[[Observation], Distribution]  # a policy with its parameters bound


class Algorithm(NamedTuple):
    """An algorithm is a value: two pure functions, which jit, scan, vmap, sharding and checkpoints act on from outside.

    Attributes:
        init: key -> state, a NamedTuple of arrays (no function, Python number or key in it).
        step: (key, state) -> (state, info), one outer step; info is a dict of scalar arrays that holds at least the step's
            exact costs as int32: `transitions`, `queries`, `labels`, `gradient_evaluations`; `gradient_norm`, of the outer
            step, where there is one: without it no run is said to have converged. Same keys and dtypes every step.
        params: state -> `Learned`, what is measured, saved and reported.
    """

    init: Callable[[Key], Any]
    step: Callable[[Key, Any], tuple[Any, dict[str, Array]]]
    params: Callable[[Any], "Learned"]


class Learned(NamedTuple):
    """What an algorithm has learned so far: parameters of r_φ, None where it learns a policy alone, and of π_λ."""

    reward: Params | None
    policy: Params


class Model(NamedTuple):
    """A parametrised function. A reward maps (params, observation, action) -> [], a policy (params, observation) ->
    distribution, a critic (params, observation, action) -> []."""

    init: Callable[[Key], Params]
    apply: Callable[..., Any]


class Trajectory(NamedTuple):
    """H steps of one rollout; leading axes are batch axes.

    Attributes:
        state: [H, ...] hidden states, for annotators and measurements alone; None in data without them.
        obs: [H] int32 on a finite world, [H, D] otherwise.
        action: [H] int32, or [H, action_size] float.
    """

    state: State
    obs: Observation
    action: Action


class Comparison(NamedTuple):
    """A labelled pair of segments; leading axes are batch axes.

    Attributes:
        first: segment τ⁰.
        second: segment τ¹.
        label: [] 1 if the first is preferred, 0 if the second, ½ for a tie; the probability itself where exact
            expectations over labels are taken.
        second_label: [] a second label, independent of the first given the pair; None where there is none.
        probability: [] the annotator's P*(τ⁰ ≻ τ¹); None where it is unknown.
        weight: [] 0 for a skipped query, 1 otherwise.
    """

    first: Trajectory | None
    second: Trajectory | None
    label: Array
    second_label: Array | None
    probability: Array | None
    weight: Array


class Problem(NamedTuple):
    """All that an algorithm may touch: functions, no true reward.

    Attributes:
        env: the dynamics.
        annotate: (key, first, second) -> Comparison, for one pair of segments.
        reward: r_φ, a Model (params, observation, action) -> []; None for algorithms that fit no reward.
        policy: π_λ, a Model (params, observation) -> Distribution.
        reference: observation -> Distribution, π_ref.
    """

    env: Env
    annotate: Callable[[Key, Trajectory, Trajectory], Comparison]
    reward: Model | None
    policy: Model
    reference: Behaviour


class Coefficients(NamedTuple):
    """The real numbers that define a problem. Every leaf may be traced, so that a sweep is a vmap over them."""

    discount: BelowOne = 0.9
    """γ of values and of segment returns, in (0, 1); 0 for a bandit."""
    kl_weight: NotNegative = 0.5
    """w, weight of KL(π ‖ π_ref), in units of reward; the exact oracles of π*(φ) need w > 0."""
    rationality: Positive = 1.0
    """κ of the Bradley–Terry annotator, and of the model that the learner fits, 1/reward."""


class Cost(NamedTuple):
    """What a computation costs, in exact Python ints: known before it runs.

    Attributes:
        transitions: environment transitions; the *samples* of the paper.
        queries: pairs shown to the annotator (a skipped query yields no label; labels are counted as they come).
        gradient_evaluations: stochastic or exact gradients computed, one for each minibatch.
    """

    transitions: int = 0
    queries: int = 0
    gradient_evaluations: int = 0

    def as_info(self) -> dict[str, Array]:
        """The counts as the int32 scalars that a step reports."""
        return {name: jnp.int32(count) for name, count in self._asdict().items()}


def total_cost(*terms: tuple[int, Cost]) -> Cost:
    """The sum of `count × cost` over the terms.

    Raises:
        ValueError: one step would cost 2³¹ or more of anything, which an int32 could not report.
    """
    total = Cost(*(sum(count * getattr(cost, field) for count, cost in terms) for field in Cost._fields))
    for field, value in zip(Cost._fields, total, strict=True):
        if value >= 2**31:
            raise ValueError(f"one outer step would take {value} {field}; required: below 2^31; reduce its counts")
    return total
