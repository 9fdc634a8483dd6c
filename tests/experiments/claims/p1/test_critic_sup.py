"""P1.critic_sup on a world of four cells: what a pass keeps, what follows from it, and verdicts on planted factors."""

import numpy as np
import pytest

from experiments.claims.claim import Budget, judge
from experiments.claims.p1 import critic_errors, critic_sup
from experiments.claims.p1.critic_errors import TABLE, Sizes
from experiments.claims.p1.critic_sup import CLAIM, DISCOUNT, SUP, Data

SMALL = Sizes(layout="..\n.G", num_targets=16, transitions=(512, 2048, 8192))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return critic_sup.measure(Budget(True, tmp_path_factory.mktemp("critic_sup")), SMALL)


def test_a_pass_keeps_the_share_of_the_error_that_a_loop_of_sgd_in_the_mean_does(data):
    learner = critic_errors.learners(data.known, SMALL)[TABLE]
    chance, iterate, mean = np.asarray(data.known.weights, float).reshape(2, -1), 1.0, 0.0
    num_steps = learner.transitions[-1] // learner.chains[-1]
    for _ in range(num_steps):
        iterate = iterate * (1 - learner.step_size * chance)
        mean = mean + iterate / num_steps
    np.testing.assert_allclose(critic_sup.share(data.renewals), mean, rtol=0.1, atol=2 / num_steps)


def test_measured_passes_keep_that_share_and_leave_the_errors_that_follow_from_it(data):
    for p in range(2):
        kept, expected = critic_sup.measured_share(data, p), critic_sup.share(data.renewals[p])
        mean, error = kept.mean(axis=0), kept.std(axis=0, ddof=1) / np.sqrt(len(kept))
        assert np.mean(np.abs(mean - expected) < 3 * error + 0.02) > 0.9
        errors = data.errors[p].mean(axis=0).reshape(SMALL.num_targets, -1)
        np.testing.assert_allclose(critic_sup.expected(data, p), errors, atol=0.05 * np.abs(errors[0]).max())


def test_the_sup_norm_over_all_pairs_shrinks_by_less_than_gamma_asks_where_pairs_are_rarely_visited(data):
    for p in range(2):
        (factor, by_formula, _, why), norms = critic_sup.contraction(data, p), critic_sup.sup_norm(data, p)
        assert why == "" and factor.low > DISCOUNT
        assert abs(factor.center - by_formula) < 0.03
        np.testing.assert_array_equal(norms[3], [np.max(np.abs(x)) for x in data.errors[p, :, 3]])
    critic_sup.draw(data)


def test_the_claim_on_the_sup_norm_judges_and_explains_itself(data):
    measured = critic_sup.judge(data)
    for policy, p in (("random", 0), ("optimised", 1)):
        factor, *_ = critic_sup.contraction(data, p)
        assert measured.numbers[SUP + policy][:3] == tuple(x / DISCOUNT for x in factor)
    assert set(judge(CLAIM, measured.numbers)) == set(CLAIM.margins)
    assert measured.cost["transitions"] == 2 * SMALL.num_seeds * 16 * SMALL.transitions[-1]
    assert all("renews" in note and "without noise" in note for note in measured.notes) and len(measured.notes) == 2


@pytest.mark.parametrize(("factor", "expected"), [(0.97, "holds"), (1.0, "not decided"), (1.03, "fails")])
def test_a_planted_factor_decides_the_contraction_in_the_sup_norm(factor, expected):
    known, n = critic_errors.known_exactly("..\n.G", 24), Sizes().transitions[-1]
    rng, updates = np.random.default_rng(0), np.arange(1, 25)
    sizes_of_errors = (factor * DISCOUNT) ** updates * np.exp(0.02 * rng.normal(size=(2, 16, 24)))
    errors = sizes_of_errors[..., None, None] * rng.uniform(-0.9, 0.9, (2, 16, 24, *known.values.shape[1:]))
    errors[..., 0, 0] = sizes_of_errors  # the largest
    data = Data(known, n, np.asarray(known.weights, float).reshape(2, -1), errors)
    assert set(judge(CLAIM, critic_sup.judge(data).numbers).values()) == {expected}
    few = data._replace(errors=errors[:, :3])
    assert set(judge(CLAIM, critic_sup.judge(few).numbers).values()) == {"not decided"}
