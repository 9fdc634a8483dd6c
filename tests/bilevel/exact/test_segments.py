"""Segments and the preference objective against an independent program's numbers, and by hand."""

import checks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel import exact
from bilevel.preferences import Teacher, annotator, log_likelihood
from bilevel.types import Comparison
from envs.base import MDP


def test_the_objective_equals_the_reference_numbers(reference):
    numbers, objective = reference.numbers, jax.jit(reference.bilevel.preference)
    optimal = jnp.asarray(numbers["optimal_policy"])
    checks.close(objective(reference.params, optimal), numbers["preference_objective_of_optimal"], 1e-6)
    of_reference = objective(reference.params, reference.lower.reference)
    checks.close(of_reference, numbers["preference_objective_of_reference"], 1e-6)


def two_arms(length=2):
    """One state, two actions, their segments, and their returns at γ = ½ under the reward (1, 0)."""
    mdp = MDP(jnp.ones(1), jnp.ones((1, 2, 1)), jnp.array([[1.0, 0.0]]))
    return mdp, exact.enumerate_segments(1, 2, length)


def test_segments_their_law_and_returns_by_hand():
    mdp, segments = two_arms()
    assert segments.action.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert segments.state.dtype == jnp.int32 and not jnp.any(segments.state)
    checks.close(exact.segment_law(mdp, jnp.array([[0.75, 0.25]]), segments), [9 / 16, 3 / 16, 3 / 16, 1 / 16])
    checks.close(exact.segment_returns(mdp.reward, segments, 0.5), [1.5, 1.0, 0.5, 0.0])


def test_the_law_of_segments_sums_to_one(reference):
    segments = exact.enumerate_segments(3, 2, reference.horizon)
    assert segments.state.shape == (6**reference.horizon, reference.horizon)
    checks.close(exact.segment_law(reference.mdp, reference.lower.reference, segments).sum(), 1.0)


def test_the_objective_by_hand_counts_a_skipped_pair_as_zero(x64):
    # One step: pairs (0, 0), (0, 1), (1, 0), (1, 1) under (¾, ¼). A pair of equals gives log ½; a pair of unequals,
    # of both orders together 6/16, p log q + (1 − p) log(1 − q) with p = sigmoid(1), q = sigmoid(κ r).
    mdp, segments = two_arms(1)
    policy, reward = jnp.array([[0.75, 0.25]]), jnp.array([[0.4, 0.0]])
    p, q = 1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(-2 * 0.4))
    unequal = 6 / 16 * (p * np.log(q) + (1 - p) * np.log(1 - q))

    @jax.jit
    def objective(skip_below):
        annotate = annotator(lambda s, a: mdp.reward[s, a], 0.9, teacher=Teacher(skip_below=skip_below))
        comparisons = exact.exact_comparisons(annotate, segments)
        return exact.preference_objective(mdp, policy, reward, segments, comparisons, log_likelihood, 0.9, 2.0)

    checks.close(objective(-np.inf), 10 / 16 * np.log(0.5) + unequal)
    checks.close(objective(0.5), 9 / 16 * np.log(0.5) + unequal)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 2, 0), "length of the segments is 0; required"),
        ((3, 2, -1), "length of the segments is -1"),
        ((0, 2, 3), "num_states of the segments is 0"),
        ((3, -2, 3), "num_actions of the segments is -2"),
    ],
)
def test_segments_of_no_size_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        exact.enumerate_segments(*sizes)


def test_too_many_segments_are_refused_with_their_number():
    with pytest.raises(ValueError, match="10000 segments"):
        exact.enumerate_segments(5, 2, 4)


def test_a_number_of_segments_beyond_all_digits_is_refused_in_one_line():
    with pytest.raises(ValueError, match="\\(40·4\\)\\^5000 segments; exact"):
        exact.enumerate_segments(40, 4, 5000)


def test_an_annotator_without_a_probability_is_refused():
    def terse(key, first, second):
        return Comparison(first, second, jnp.zeros(()), None, None, jnp.ones(()))

    with pytest.raises(ValueError, match=r"gives no label probability, .*; use sampled gradients"):
        exact.exact_comparisons(terse, exact.enumerate_segments(1, 2, 1))


def test_tables_of_the_wrong_shape_are_refused_with_both_shapes():
    mdp, segments = two_arms(1)
    comparisons = exact.exact_comparisons(annotator(lambda s, a: mdp.reward[s, a], 0.9), segments)
    with pytest.raises(AssertionError, match=r"has shape \(2, 1\) but expected \(1, 2\)"):
        exact.segment_law(mdp, jnp.full((2, 1), 0.5), segments)
    with pytest.raises(AssertionError, match=r"different shapes: \[\(1, 2\), \(2, 1\), \(1, 2\)\]"):
        policy, reward = jnp.full((1, 2), 0.5), jnp.zeros((2, 1))
        exact.preference_objective(mdp, policy, reward, segments, comparisons, log_likelihood, 0.9)
