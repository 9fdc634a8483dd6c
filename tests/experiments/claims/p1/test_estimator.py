"""P1.estimator: a biased estimator and a variance of another order are noticed, and few estimates decide nothing wrongly."""

import numpy as np
import pytest

from experiments.claims.claim import Budget, judge
from experiments.claims.p1 import estimator
from experiments.claims.p1.estimator import CLAIM, COEFFICIENTS, DERIVATIVES, OFF_BY

OFF = {name: margin for name, margin in CLAIM.margins.items() if "off" in name}
SLOPES = {name: margin for name, margin in CLAIM.margins.items() if name not in OFF}


def judge_means(found):
    """The verdicts on the means."""
    return judge(CLAIM._replace(margins=OFF), estimator.deviations(found))


def test_a_biased_estimator_is_noticed_and_few_samples_decide_nothing_wrongly():
    assert len(OFF) == len(DERIVATIVES)
    planted = judge_means(estimator.means(320, discount=0.8 * COEFFICIENTS.discount))
    assert planted == dict.fromkeys(OFF, "fails")
    assert "fails" not in judge_means(estimator.means(40)).values()


def line_seven(num_batches, bends=0.0):
    """Squares of synthetic estimates of line 7 that follow the prediction; the coupled ones jump, rarely.

    The variance of weighted ones grows `bends` times as fast as σ falls, at the last two levels.
    """
    rng, sigmas = np.random.default_rng(0), np.array(estimator.SIGMAS)[:, None, None]
    size = len(sigmas), num_batches, 6
    jumps = rng.poisson(32 * sigmas, size) - rng.poisson(32 * sigmas, size)  # of 64 rollouts, of size 1/σ
    rise = np.maximum(sigmas[-3] / sigmas, 1.0) ** (bends / 2)
    samples = {
        "independent": rng.normal(size=size) / sigmas,
        "coupled": jumps / (8 * sigmas),
        "weighted": rng.normal(size=size) * rise,
    }
    return {name: estimator.squared_distances(x) for name, x in samples.items()}


def judge_slopes(squares):
    """The verdicts on the slopes of the estimators' variance."""
    return judge(CLAIM._replace(margins=SLOPES), estimator.slopes(squares))


def mistaken(squares):
    """The same estimates, each taken for another estimator's."""
    names = list(squares)
    return {name: squares[names[i - 1]] for i, name in enumerate(names)}


def test_a_variance_of_another_order_is_noticed_and_few_estimates_decide_nothing_wrongly():
    found = line_seven(4000)
    assert judge_slopes(found) == dict.fromkeys(SLOPES, "holds")
    assert judge_slopes(mistaken(found)) == dict.fromkeys(SLOPES, "fails")
    assert estimator.slopes(found)["slope of variance in σ, independent"].over.endswith("to 0.0047 in σ")
    for num_batches in (400, 40):
        assert "fails" not in judge_slopes(line_seven(num_batches)).values()
    assert judge_slopes(line_seven(4)) == dict.fromkeys(SLOPES, "not decided")
    assert judge_slopes(line_seven(4000, bends=1.0))["slope of variance in σ, weighted"] != "holds"


def test_the_figure_shows_each_estimators_variance_with_its_interval():
    found = line_seven(400)
    of = estimator.variance(found["independent"])
    np.testing.assert_allclose(of.center * np.array(estimator.SIGMAS) ** 2, 6, rtol=0.1)  # six normal dimensions
    assert np.all((of.low < of.center) & (of.center < of.high))
    panel = CLAIM.draw(estimator.Data(400, {}, found)).axes[0]
    assert [text.get_text().partition(":")[0] for text in panel.get_legend().get_texts()] == list(found)


@pytest.mark.slow
def test_the_estimators_are_unbiased_and_their_variances_are_told_apart(tmp_path):
    found = CLAIM.measure(Budget(True, tmp_path))
    verdicts = judge(CLAIM, CLAIM.judge(found).numbers)
    assert "fails" not in verdicts.values()  # a quick run is too vague for the means of the noisier derivatives
    sure = ("∇_λ J", "∇_φ G", "line 7, coupled", "line 7, weighted")
    assert {verdicts[name + OFF_BY] for name in sure} == {"holds"}
    for name in ("independent", "weighted"):
        assert verdicts[f"slope of variance in σ, {name}"] == "holds"
    assert judge_slopes(mistaken(found.squares)) == dict.fromkeys(SLOPES, "fails")
    assert "fails" not in judge_slopes(estimator.squares(40)).values()
