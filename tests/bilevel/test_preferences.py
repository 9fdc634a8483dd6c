"""Comparisons: objectives and annotators by hand, their labels by frequency, and each teacher's habit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import close
from scipy.special import expit

from bilevel.preferences import Teacher, annotator, check_objective, excess_brier, excess_log_likelihood, log_likelihood
from bilevel.ranges import check
from bilevel.types import Comparison, Trajectory

pytestmark = pytest.mark.usefixtures("x64")

GAMMA = 0.5
DRAWS = 20_000


def comparison(label, second_label=None, probability=None):
    values = (label, second_label, probability, 1.0)
    return Comparison(None, None, *(None if x is None else jnp.asarray(x) for x in values))


def segment(*rewards):
    """A segment whose states are its rewards."""
    state = np.asarray(rewards, float)
    return Trajectory(state, state, np.zeros(len(rewards), np.int32))


def state_reward(state, action):
    return state


# Returns at γ = ½: 1 + 1 + 0 = 2 and 0 + 0.5 + 0.5 = 1.
FIRST, SECOND = segment(1.0, 2.0, 0.0), segment(0.0, 1.0, 2.0)


def ask(teacher, first=FIRST, second=SECOND, key=0):
    return jax.jit(teacher)(jax.random.key(key), first, second)


def ask_often(teacher, first=FIRST, second=SECOND):
    keys = jax.random.split(jax.random.key(1), DRAWS)
    return jax.jit(jax.vmap(teacher, in_axes=(0, None, None)))(keys, first, second)


def assert_frequency(draws, probability):
    """The share of ones is within 4 standard errors of the probability."""
    error = np.sqrt(probability * (1 - probability) / len(draws))
    assert abs(float(jnp.mean(draws)) - probability) <= 4 * error


# Objectives -----------------------------------------------------------------------------------------------------------


def test_log_likelihood_by_hand():
    logit = jnp.log(3.0)  # P_φ = ¾
    close(log_likelihood(logit, comparison(1.0)), np.log(0.75))
    close(log_likelihood(logit, comparison(0.0)), np.log(0.25))
    close(log_likelihood(logit, comparison(0.5)), (np.log(0.75) + np.log(0.25)) / 2)
    close(log_likelihood(jnp.array([800.0, -800.0]), comparison([1.0, 1.0])), [0.0, -800.0])


def test_excess_log_likelihood_by_hand():
    logit = jnp.log(3.0)
    close(excess_log_likelihood(logit, comparison(1.0, probability=0.6)), np.log(0.75 / 0.6))
    close(excess_log_likelihood(logit, comparison(0.0, probability=0.6)), np.log(0.25 / 0.4))
    certain = excess_log_likelihood(jnp.full(2, logit), comparison([1.0, 0.0], probability=[1.0, 0.0]))
    close(certain, [np.log(0.75), np.log(0.25)])


def test_excess_brier_by_hand():
    logit = jnp.log(3.0)
    labels = comparison([1.0, 1.0, 0.0, 0.5], [1.0, 0.0, 0.0, 0.5])
    close(excess_brier(jnp.full(4, logit), labels), [-0.0625, 0.1875, -0.5625, -0.0625])


def means(logit, truth):
    """Means of the three objectives over two independent labels with P(y = 1) = truth, by enumeration."""
    total = jnp.zeros(3)
    for label in (0.0, 1.0):
        for second in (0.0, 1.0):
            law = jnp.where(label == 1, truth, 1 - truth) * jnp.where(second == 1, truth, 1 - truth)
            drawn = comparison(label, second, truth)
            values = [x(logit, drawn) for x in (log_likelihood, excess_log_likelihood, excess_brier)]
            total += law * jnp.stack(values)
    return total


@pytest.mark.parametrize("truth", [0.1, 0.5, 0.8])
def test_excess_objectives_have_minus_the_divergence_and_minus_the_squared_gap_as_means(truth):
    for logit in jnp.array([-2.0, 0.0, 0.7]):
        predicted = expit(logit)
        divergence = truth * np.log(truth / predicted) + (1 - truth) * np.log((1 - truth) / (1 - predicted))
        entropy = -truth * np.log(truth) - (1 - truth) * np.log(1 - truth)
        close(means(logit, truth), [-divergence - entropy, -divergence, -((truth - predicted) ** 2)])


@pytest.mark.parametrize("truth", [0.1, 0.5, 0.8])
def test_every_objective_is_greatest_at_the_true_probability(truth):
    at_truth = jnp.log(truth / (1 - truth))
    best = means(at_truth, truth)
    close(best[1:], [0.0, 0.0])
    close(jax.jacobian(means)(at_truth, truth), np.zeros(3))
    others = jax.vmap(means, in_axes=(0, None))(at_truth + jnp.array([-3.0, -0.1, 0.1, 3.0]), truth)
    assert jnp.all(others < best)


def test_the_probability_in_place_of_the_label_gives_the_mean():
    expected = means(jnp.float64(0.3), 0.8)
    exact = comparison(0.8, 0.8, 0.8)
    values = [x(jnp.float64(0.3), exact) for x in (log_likelihood, excess_log_likelihood, excess_brier)]
    close(values, expected)


def test_an_objective_is_refused_without_the_field_that_it_needs():
    check_objective(log_likelihood, comparison(1.0))
    check_objective(excess_log_likelihood, comparison(1.0, probability=0.5))
    check_objective(excess_brier, comparison(1.0, 0.0))
    with pytest.raises(ValueError, match="excess_log_likelihood needs each comparison's probability"):
        check_objective(excess_log_likelihood, comparison(1.0, 0.0))
    with pytest.raises(ValueError, match="excess_brier needs each comparison's second_label"):
        check_objective(excess_brier, comparison(1.0, probability=0.5))


# The annotator --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rationality", [0.3, 1.0, 4.0])
def test_the_probability_is_the_sigmoid_of_the_gap_of_returns(rationality):
    teacher = annotator(state_reward, GAMMA, rationality)
    close(ask(teacher).probability, expit(rationality * 1.0))
    close(ask(teacher, SECOND, FIRST).probability, expit(-rationality * 1.0))
    assert ask(teacher).weight == 1


def test_the_reward_sees_states_and_actions():
    first = Trajectory(jnp.array([1.0, 2.0]), jnp.zeros(2), jnp.array([1, 0]))
    second = first._replace(action=jnp.array([0, 1]))
    teacher = annotator(lambda state, action: state * action, GAMMA)
    close(ask(teacher, first, second).probability, expit(1.0 - 0.5 * 2.0))
    teacher = annotator(lambda state, action: 10.0 * action, GAMMA)
    close(ask(teacher, first, second).probability, expit(10.0 - 5.0))


def test_with_a_discount_of_zero_the_first_step_alone_counts():
    close(ask(annotator(state_reward, 0.0)).probability, expit(1.0))


def test_labels_come_with_their_probability_and_the_two_are_independent():
    answers = ask_often(annotator(state_reward, GAMMA))
    probability = expit(1.0)
    assert set(np.unique(answers.label)) == {0.0, 1.0}
    assert_frequency(answers.label, probability)
    assert_frequency(answers.second_label, probability)
    assert_frequency(answers.label * answers.second_label, probability**2)
    assert abs(jnp.corrcoef(answers.label, answers.second_label)[0, 1]) < 4 / np.sqrt(DRAWS)


def test_a_batch_of_equal_pairs_gets_its_own_labels():
    keys = jax.random.split(jax.random.key(0), 64)
    first, second = (jax.tree.map(lambda x: jnp.broadcast_to(x, (64, *x.shape)), s) for s in (FIRST, SECOND))
    answers = jax.jit(jax.vmap(annotator(state_reward, GAMMA)))(keys, first, second)
    assert len(np.unique(answers.label)) == 2
    assert jnp.ptp(answers.probability) == 0
    again = jax.jit(annotator(state_reward, GAMMA))(keys[5], FIRST, SECOND)
    assert again.label == answers.label[5]


def test_boundless_rationality_prefers_the_better_and_tosses_a_coin_between_equals():
    teacher = annotator(state_reward, GAMMA, jnp.inf)
    assert ask(teacher).probability == 1
    assert ask(teacher, SECOND, FIRST).probability == 0
    assert jnp.all(ask_often(teacher).label == 1)
    equal = ask_often(teacher, segment(2.0, 0.0), segment(1.0, 2.0))
    assert jnp.all(equal.probability == 0.5)
    assert_frequency(equal.label, 0.5)


# B-Pref's teachers ----------------------------------------------------------------------------------------------------


def test_a_myopic_teacher_weighs_late_steps_more():
    # Steps count ¼, ½, 1: the gap of (1, 2, 0) over (0, 1, 2) is ¼·1 + ½·½·1 + 1·¼·(−2) = 0 instead of 1.
    close(ask(annotator(state_reward, GAMMA, teacher=Teacher(myopia=0.5))).probability, 0.5)
    # At a tenth: 0.01·1 + 0.1·½ − ½ = −0.44: the preference is reversed.
    myopic = annotator(state_reward, GAMMA, teacher=Teacher(myopia=0.1))
    close(ask(myopic).probability, expit(-0.44))
    assert_frequency(ask_often(myopic).label, expit(-0.44))
    close(ask(annotator(state_reward, GAMMA, teacher=Teacher(myopia=1.0))).probability, expit(1.0))


def test_a_mistaken_teacher_flips_labels_at_its_rate():
    teacher = annotator(state_reward, GAMMA, teacher=Teacher(error_rate=0.2))
    probability = 0.8 * expit(1.0) + 0.2 * (1 - expit(1.0))
    close(ask(teacher).probability, probability)
    assert_frequency(ask_often(teacher).label, probability)
    sure = annotator(state_reward, GAMMA, jnp.inf, teacher=Teacher(error_rate=0.2))
    assert_frequency(ask_often(sure).label, 0.8)
    assert_frequency(ask_often(annotator(state_reward, GAMMA, teacher=Teacher(error_rate=0.5))).label, 0.5)


def test_a_teacher_skips_a_pair_when_both_returns_are_low():
    better, worse = segment(2.0), segment(0.0)
    asked = [annotator(state_reward, GAMMA, teacher=Teacher(skip_below=threshold)) for threshold in (1.0, 2.0, 2.5)]
    assert [float(ask(teacher, better, worse).weight) for teacher in asked] == [1, 1, 0]
    assert [float(ask(teacher, worse, better).weight) for teacher in asked] == [1, 1, 0]
    assert ask(asked[0], worse, worse).weight == 0
    assert jnp.all(ask_often(asked[2], better, worse).weight == 0)


def test_a_teacher_calls_close_returns_a_tie():
    # The returns differ by 1.
    tied, strict = (annotator(state_reward, GAMMA, teacher=Teacher(tie_within=width)) for width in (1.5, 1.0))
    answers = ask_often(tied)
    assert jnp.all(answers.label == 0.5) and jnp.all(answers.second_label == 0.5)
    assert jnp.all(answers.probability == 0.5)
    assert jnp.all(answers.weight == 1)
    close(ask(strict).probability, expit(1.0))
    assert_frequency(ask_often(strict).label, expit(1.0))


def test_the_teachers_combine():
    def teacher(myopia, tie_within, skip_below):
        return annotator(state_reward, GAMMA, 2.0, Teacher(myopia, 0.1, skip_below, tie_within))

    probability = 0.9 * expit(-0.88) + 0.1 * expit(0.88)
    close(ask(teacher(0.1, 0.5, 1.9)).probability, probability)
    assert_frequency(ask_often(teacher(0.1, 0.5, 1.9)).label, probability)
    tie = ask(teacher(0.1, 1.1, 2.1))
    assert (tie.label, tie.probability, tie.weight) == (0.5, 0.5, 0)


def test_a_teachers_numbers_may_be_traced():
    def probability(rationality, error_rate):
        teacher = annotator(state_reward, GAMMA, rationality, Teacher(error_rate=error_rate))
        return teacher(jax.random.key(0), FIRST, SECOND).probability

    swept = jax.jit(jax.vmap(probability))(jnp.array([1.0, 2.0]), jnp.array([0.0, 0.1]))
    close(swept, [expit(1.0), 0.9 * expit(2.0) + 0.1 * expit(-2.0)])


def test_a_teacher_whose_habits_are_out_of_range_is_refused_by_its_record():
    check(Teacher(0.5, 0.5, -jnp.inf, 0.0))
    for habit in (
        {"myopia": 0.0},
        {"myopia": 1.1},
        {"error_rate": 0.6},
        {"skip_below": jnp.inf},
        {"tie_within": jnp.nan},
    ):
        (name,) = habit
        with pytest.raises(ValueError, match=f"^{name} is .*; required: a number"):
            check(Teacher(**habit))


def test_a_logit_that_is_not_one_a_label_is_refused_with_both_shapes():
    with pytest.raises(AssertionError, match=r"different shapes: \[\(3,\), \(2,\)\]"):
        log_likelihood(jnp.zeros(3), comparison([1.0, 0.0]))
    with pytest.raises(AssertionError, match=r"different shapes: \[\(\), \(2,\), \(2,\)\]"):
        excess_brier(jnp.zeros(()), comparison([1.0, 0.0], [1.0, 0.0]))
