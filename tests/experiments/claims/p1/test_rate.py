"""P1.rate: verdicts on gaps whose exponents are planted, and the parts of the gap of a small run."""

import numpy as np
import pytest
from planted_gaps import SAMPLES, planted

from experiments.claims.claim import Budget, judge, together
from experiments.claims.p1 import rate, two_states
from experiments.claims.p1.rate import Ladder, Rate
from experiments.claims.p1.two_states import ESTIMATORS, EXACT, ONE_MAXIMUM, Assumption

EPSILONS = np.array(rate.FULL.epsilons)
ASSUMED = {"best": -0.6, "reached": 1.0, "domination": 0.02, "below": 0, "beyond": 0.04, "start": [0.2, 0.1, 0.3]}


def ladder_of(exponents, num_seeds=64, noise=0.5, floor=0.0, inside=1.0, **refuted) -> Rate:
    """A ladder where gaps fall with those exponents to a floor, in units of the first."""
    gap = {
        arm: planted(exponents.get(arm, 1.0), SAMPLES, 0.02, num_seeds, noise, key, floor)
        for key, arm in enumerate((*ESTIMATORS, EXACT))
    }
    assumed = Assumption(**{name: np.array(x) for name, x in (ASSUMED | refuted).items()})
    of_each = dict.fromkeys(gap, np.full(len(EPSILONS), inside))
    return Rate(EPSILONS, {ONE_MAXIMUM: Ladder(assumed, dict.fromkeys(gap, SAMPLES), gap, 1e-4 / SAMPLES, of_each)})


def verdict_of(data: Rate) -> str:
    """The claim's, whose notes and figure are there whatever it is."""
    found = rate.judge(data)
    assert len(found.notes) >= 2 and len(found.tables[0].rows) == len(EPSILONS)
    assert rate.draw(data).axes[0].get_legend() is not None
    return together(judge(rate.CLAIM, found.numbers))


@pytest.mark.parametrize(
    ("exponents", "expected"),
    [
        ({"independent": 0.6, "weighted": 0.8}, "holds"),
        ({"independent": 0.15, "weighted": 0.8}, "fails"),
        ({"independent": 0.45, "weighted": 0.15}, "fails"),
    ],
)
def test_a_planted_exponent_decides_the_rate(exponents, expected):
    assert verdict_of(ladder_of(exponents)) == expected


def test_a_gap_that_stalls_at_a_floor_fails():
    floor = (SAMPLES[2] / SAMPLES[0]) ** -0.66  # what the power law is at the third level of seven
    assert verdict_of(ladder_of(dict.fromkeys(ESTIMATORS, 0.66), floor=floor)) == "fails"


def test_a_gap_that_meets_its_floor_at_the_last_level_does_not_hold():
    floor = (SAMPLES[-1] / SAMPLES[0]) ** -0.6
    assert verdict_of(ladder_of(dict.fromkeys(ESTIMATORS, 0.6), noise=1.0, floor=floor)) == "not decided"


def test_a_run_without_a_gap_decides_nothing():
    data = ladder_of({"independent": 0.45, "weighted": 0.8})
    data.ladders[ONE_MAXIMUM].gap["weighted"][0, 5] = np.nan
    assert verdict_of(data) == "not decided"
    part = rate.judge(data).numbers[f"gap by optimisation, ε = 1, {ONE_MAXIMUM}"]
    assert part.undecided == "runs without a gap are left out"


def test_where_the_assumption_is_refuted_or_left_behind_the_theorem_is_not_judged():
    exponents = {"independent": 0.15, "weighted": 0.15}
    assert verdict_of(ladder_of(exponents, domination=0.0)) == "not decided"
    away = ladder_of(exponents, inside=0.9)
    assert verdict_of(away) == "not decided"
    number = rate.judge(away).numbers[rate.number_of("weighted")]
    assert number.undecided == "10 % of the runs left the square where the assumption was looked at"


@pytest.mark.parametrize("exponent", [0.15, 0.45])
def test_a_tenth_of_the_seeds_does_not_wrongly_decide_the_rate(exponent):
    wrong = "holds" if exponent < rate.EXPONENT else "fails"
    found = {verdict_of(ladder_of(dict.fromkeys(ESTIMATORS, exponent), 6, x)) for x in (0.5, 1.5)}
    assert wrong not in found


# Small runs -----------------------------------------------------------------------------------------------------------


def test_a_level_is_computed_once_and_its_gaps_are_positive(tmp_path, monkeypatch):
    assumed = Assumption(**{name: np.array(x) for name, x in (ASSUMED | {"best": -0.5875697238505713}).items()})
    monkeypatch.setattr(rate, "assumption", lambda *args: assumed)
    monkeypatch.setattr(rate, "LARGE", rate.LARGE._replace(num_steps=100, num_policy_steps=10))
    sizes = rate.Sizes((1.0,), 4, weights=(ONE_MAXIMUM,))
    said: list[str] = []
    first = rate.measure(Budget(False, tmp_path, said.append), sizes).ladders[ONE_MAXIMUM]
    assert len(said) == 1 and "ε = 1.000" in said[0]
    assert set(first.gap) == {*ESTIMATORS, EXACT}
    assert all(x.shape == (1, 4) and (x > 0).all() and np.isfinite(x).all() for x in first.gap.values())
    assert first.samples["independent"] > first.samples["weighted"] > first.samples[EXACT] == 0
    assert first.bias[0] < first.gap[EXACT].min()  # T and K left more than the proxy's bias
    assert all(x.shape == (1,) and 0 <= x[0] <= 1 for x in first.inside.values())
    parts = rate.parts(first)  # make up the whole
    for arm in ESTIMATORS:
        whole = sum(parts[name][0][0] for name in ("bias", "optimisation", f"noise, {arm}"))
        assert whole == pytest.approx(first.gap[arm].mean())
    monkeypatch.setattr(rate, "learn", lambda *args: pytest.fail("everything is there already"))
    monkeypatch.setattr(rate, "limits", lambda *args: np.zeros((1, 1, 2)))
    again = rate.measure(Budget(False, tmp_path), sizes).ladders[ONE_MAXIMUM]
    assert all((again.gap[arm] == first.gap[arm]).all() for arm in first.gap)


@pytest.mark.slow
def test_a_run_whose_outer_steps_do_not_grow_fails_and_the_honest_one_does_not(tmp_path, monkeypatch):
    fixed = two_states.schedule(1.0)[0].num_steps

    def idle(epsilon):
        counts, numbers = two_states.schedule(epsilon)
        return counts._replace(num_steps=fixed), numbers

    for schedule, expected in ((two_states.schedule, {"holds", "not decided"}), (idle, {"fails"})):
        monkeypatch.setattr(rate, "schedule", schedule)
        data = rate.measure(Budget(True, tmp_path / schedule.__name__, print), rate.QUICK)
        assert together(judge(rate.CLAIM, rate.judge(data).numbers)) in expected
