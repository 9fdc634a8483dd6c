"""Comparisons of segments: the Bradley–Terry model, upper objectives, and simulated annotators."""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import chex
import jax
import jax.numpy as jnp

from bilevel.ranges import Range, Share
from bilevel.returns import discount_powers
from bilevel.types import Array, Comparison, Key, Trajectory

Objective = Callable[[Array, Comparison], Array]


# Upper objectives: (logit, comparison) -> ℓ, elementwise over any batch shape; larger is better -----------------------


def log_likelihood(logit: Array, comparison: Comparison) -> Array:
    """ℓ = y log P_φ(τ⁰≻τ¹) + (1 − y) log P_φ(τ¹≻τ⁰), in nats, ≤ 0: the paper's objective (2410.15610)."""
    label = comparison.label
    chex.assert_equal_shape((logit, label))
    return label * jax.nn.log_sigmoid(logit) + (1 - label) * jax.nn.log_sigmoid(-logit)


def excess_log_likelihood(logit: Array, comparison: Comparison) -> Array:
    """ℓ minus its value at the true label probability; its mean −KL(P* ‖ P_φ) ≤ 0 is 0 at the true reward.

    Unlike ℓ itself, it pays nothing for pairs that are easy to tell apart. Needs `probability`.
    """
    label, truth = comparison.label, comparison.probability
    best = jax.scipy.special.xlogy(label, truth) + jax.scipy.special.xlogy(1 - label, 1 - truth)
    return log_likelihood(logit, comparison) - best


def excess_brier(logit: Array, comparison: Comparison) -> Array:
    """−(y − P_φ)(y′ − P_φ), whose mean over two independent labels is −(P* − P_φ)² ≤ 0. Needs `second_label`."""
    chex.assert_equal_shape((logit, comparison.label, comparison.second_label))
    predicted = jax.nn.sigmoid(logit)
    return -(comparison.label - predicted) * (comparison.second_label - predicted)


NEEDS: dict[Objective, str] = {excess_log_likelihood: "probability", excess_brier: "second_label"}


def check_objective(objective: Objective, comparison: Comparison) -> None:
    """Raises ValueError if `objective` needs a field that the annotator's comparisons do not carry."""
    field = NEEDS.get(objective)
    if field is not None and getattr(comparison, field) is None:
        raise ValueError(
            f"the objective {objective.__name__} needs each comparison's {field}, which this annotator does not give; "
            "use an annotator that does, or the objective log_likelihood"
        )


# Annotators -----------------------------------------------------------------------------------------------------------


AtMostHalf = Annotated[float, Range("a number in [0, 0.5]", lambda x: 0 <= x <= 0.5)]
OrMinusInf = Annotated[float, Range("a number, or -inf", lambda x: x < float("inf"))]


class Teacher(NamedTuple):
    """How an annotator departs from Bradley–Terry (B-Pref, Lee et al. 2111.03026); each departure is off by default."""

    myopia: Share = 1.0
    """Discount of a segment's early steps in the annotator's eyes, in (0, 1]; 1: off."""
    error_rate: AtMostHalf = 0.0
    """Probability that a label is flipped, in [0, 0.5]."""
    skip_below: OrMinusInf = float("-inf")
    """Queries whose segments both return less than this are skipped; -inf: off."""
    tie_within: OrMinusInf = float("-inf")
    """Segments whose returns differ by less than this get the label one half; -inf: off."""


NO_DEPARTURE = Teacher()


def annotator(
    reward: Callable, discount, rationality=1.0, teacher: Teacher = NO_DEPARTURE
) -> Callable[[Key, Trajectory, Trajectory], Comparison]:
    """A simulated annotator of one pair of segments, who sees the true reward: Bradley–Terry, and B-Pref's teachers.

    With the defaults, P(y = 1) = sigmoid(κ (R*(τ⁰) − R*(τ¹))). B-Pref's *myopic*, *mistake*, *skip* and *equal* can be
    combined: step h of H counts myopia^(H−1−h), so that late steps weigh more; a skipped query has weight 0. Two labels are
    drawn, independent given the pair. vmap over keys and pairs.

    Args:
        reward: true reward (state, action) -> [].
        discount: [] γ of the segment returns.
        rationality: [] κ > 0; inf: always the better segment, and a fair coin where both are equal.
        teacher: departures from it; its leaves may be traced.

    Returns:
        (key, first, second) -> Comparison of scalars.
    """

    def annotate(key, first, second):
        rewards = [jax.vmap(reward)(x.state, x.action) for x in (first, second)]
        returns = [_discounted_sum(x, discount) for x in rewards]
        length = rewards[0].shape[0]
        fading = jnp.asarray(teacher.myopia, rewards[0].dtype) ** jnp.arange(length - 1, -1, -1)
        gap = _discounted_sum((rewards[0] - rewards[1]) * fading, discount)
        # κ = inf needs inf · 0 = 0: equal segments are a fair coin.
        probability = jax.nn.sigmoid(jnp.where(gap == 0, 0.0, rationality * gap))
        probability = (1 - teacher.error_rate) * probability + teacher.error_rate * (1 - probability)
        tie = jnp.abs(returns[0] - returns[1]) < teacher.tie_within
        probability = jnp.where(tie, 0.5, probability)
        draws = jax.random.uniform(key, (2,), probability.dtype) < probability
        labels = jnp.where(tie, 0.5, draws.astype(probability.dtype))
        answered = jnp.maximum(returns[0], returns[1]) >= teacher.skip_below
        return Comparison(first, second, labels[0], labels[1], probability, answered.astype(probability.dtype))

    return annotate


def _discounted_sum(values: Array, discount) -> Array:
    return discount_powers(discount, values.shape[0], values.dtype) @ values
