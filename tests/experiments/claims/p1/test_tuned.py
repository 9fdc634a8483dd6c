"""P1.tuned: the choice does not flatter, samples are read off by hand, verdicts on planted gaps, and a small run."""

import numpy as np
import pytest

from experiments.claims.claim import Budget, judge, together
from experiments.claims.p1 import tuned, two_states
from experiments.claims.p1.tuned import GAP, Gaps, Runs, Tuned
from experiments.claims.p1.two_states import ESTIMATORS, Assumption, Learned
from experiments.claims.results import describe

SMALL = tuned.Sizes(
    budgets=(5e2, 2e4, 4e4, 8e4),
    counts=((1, 16, 16),),
    sigmas=(1.0,),
    policy_steps=(0.2,),
    reward_steps=(0.0, 1.0),
    num_seeds=8,
    epsilons=(1.0,),
    num_schedule_seeds=2,
)


def test_half_of_the_seeds_choose_and_the_others_judge():
    # 200 lanes of pure noise: what was chosen on a half is no better than the others there, but is on its own half.
    rng = np.random.default_rng(0)
    gap = rng.lognormal(size=(4, 50, 3, 20))
    chosen, judged = tuned.choose(gap)
    assert judged.shape == (3, 10)
    for budget, (i, j) in enumerate(chosen):
        assert gap[i, j, budget, :10].mean() == gap[:, :, budget, :10].mean(axis=-1).min()
        assert (judged[budget] == gap[i, j, budget, 10:]).all()
    assert judged.mean() > 0.6 * gap.mean() > gap[..., :10].mean(axis=-1).min()
    gap[1, 7, 2] /= 100  # and what is better is found, also where others diverged
    gap[0] = np.inf
    assert tuple(tuned.choose(gap)[0][2]) == (1, 7)


def test_samples_for_a_gap_are_read_off_between_the_budgets():
    budgets, gap = (1e2, 1e4, 1e6), np.array([1.0, 0.1, 0.01])
    assert tuned.samples_for(0.1, budgets, gap) == pytest.approx((1e4, 1e4))
    assert tuned.samples_for(np.sqrt(0.001), budgets, gap) == pytest.approx((1e5, 1e5))
    assert tuned.samples_for(0.001, budgets, gap) == (1e6, np.inf)  # and outside of the range what is known
    assert tuned.samples_for(2.0, budgets, gap) == (0.0, 1e2)
    gap[0] = np.inf  # no step yet
    assert tuned.samples_for(0.5, budgets[:1], gap[:1]) == (1e2, np.inf)
    assert tuned.samples_for(0.5, budgets, gap) == (0.0, 1e4)
    assert tuned.samples_for(0.1, budgets, gap) == pytest.approx((1e4, 1e4))


def compared(factor, num_seeds=32, key=0, top=0.03):
    """The claim's numbers where gaps fall from that as samples^(−½), of which the schedule takes a factor more."""
    rng, sizes = np.random.default_rng(key), tuned.Sizes(num_seeds=2 * num_seeds, num_schedule_seeds=num_seeds)

    def gaps(samples):
        spread = rng.lognormal(-0.125, 0.5, (len(samples), num_seeds))  # 1 in the mean
        return top * (np.array(samples) / 1e4)[:, None] ** -0.5 * spread

    def runs():
        judged, schedule = gaps(sizes.budgets), 1e4 * 4.0 ** np.arange(5)
        both = np.concatenate([judged, judged], axis=-1)[None, None]  # one combination, which the first half chooses
        return Runs(both, factor * schedule, gaps(schedule))

    alone = sizes._replace(counts=((1, 16, 16),), sigmas=(1.0,), policy_steps=(0.2,), reward_steps=(0.5,))
    return describe(tuned.CLAIM, tuned.judge(Tuned(alone, {name: runs() for name in ESTIMATORS})))["numbers"]


RATIOS = [*tuned.CLAIM.margins]


@pytest.mark.parametrize(("factor", "expected"), [(4.0, "holds"), (0.25, "fails")])
def test_a_schedule_that_takes_fewer_samples_fails_and_one_that_takes_more_holds(factor, expected):
    numbers = compared(factor)
    assert len(RATIOS) == len(ESTIMATORS)
    for name in RATIOS:
        assert numbers[name]["verdict"] == expected
        assert numbers[name]["interval"][0] < factor < numbers[name]["interval"][1]
        assert numbers[name]["center"] == pytest.approx(factor, rel=0.5)


@pytest.mark.parametrize("key", range(4))
def test_a_tenth_of_the_seeds_decides_nothing_about_samples_and_a_quarter_nothing_wrongly(key):
    for factor, wrong in ((0.8, "holds"), (1.25, "fails")):
        assert {compared(factor, 3, key)[name]["verdict"] for name in RATIOS} == {"not decided"}
        assert wrong not in {compared(factor, 8, key)[name]["verdict"] for name in RATIOS}


@pytest.mark.parametrize("top", [1.0, 0.005])
def test_a_gap_outside_of_the_range_of_the_runs_decides_nothing(top):
    numbers = compared(4.0, top=top)
    assert {numbers[name]["verdict"] for name in RATIOS} == {"not decided"}
    assert "a mean gap of 0.01 lies outside of the range of " in numbers[RATIOS[0]]["undecided"]


BUDGETS = (1e4, 1e5, 1e6)


def test_one_run_without_a_gap_decides_nothing_and_is_not_said_to_leave_a_range():
    near = np.array([0.1, 0.001, 0.001])[:, None] * np.ones(16)
    lost = near.copy()
    lost[1, 4] = np.nan
    for judged, schedule, whose in ((lost, near, "the tuned"), (near, lost, "the schedule's")):
        found = tuned.saved(0.01, BUDGETS, judged, Runs(np.empty(0), np.array(BUDGETS), schedule))
        assert found.undecided == f"of {whose} runs, 1 of 16 runs at level 2 of 3 ended with a gap that is no number"
        assert np.isnan(found[:3]).all()


def test_an_interval_reaches_as_far_as_seeds_leave_the_range():
    # At the last budget half of the seeds are far above: many resamples never get there, or only at the end.
    far = np.where(np.arange(16) % 2, 0.001, 0.018)
    far, near = np.stack([0.1 * np.ones(16)] * 2 + [far]), np.array([0.1, 0.001, 0.001])[:, None] * np.ones(16)
    found = tuned.saved(0.01, BUDGETS, far, Runs(np.empty(0), np.array(BUDGETS), near))
    assert found.low == 0 and 0 < found.high < 1
    found = tuned.saved(0.01, BUDGETS, near, Runs(np.empty(0), np.array(BUDGETS), far))
    assert found.low > 1 and found.high == np.inf


def test_the_ratio_s_interval_is_that_of_a_loop_over_resamples():
    rng = np.random.default_rng(0)
    fall = 0.1 * (np.array(BUDGETS) / BUDGETS[0])[:, None] ** -0.5
    judged, scheduled = (fall * rng.lognormal(0, 0.2, (3, num)) for num in (16, 12))
    found = tuned.saved(0.02, BUDGETS, judged, Runs(np.empty(0), 3 * np.array(BUDGETS), scheduled))
    ratios = [
        tuned.samples_for(0.02, 3 * np.array(BUDGETS), scheduled[:, rng.integers(12, size=12)].mean(axis=1))[0]
        / tuned.samples_for(0.02, BUDGETS, judged[:, rng.integers(16, size=16)].mean(axis=1))[0]
        for _ in range(4000)
    ]
    quantile = 0.0196  # 2.5 % expanded for 12 seeds
    low, high = np.quantile(ratios, [quantile / 2, 1 - quantile / 2])
    assert found.low == pytest.approx(low, rel=0.05) and found.high == pytest.approx(high, rel=0.05)


def test_runs_are_looked_at_when_they_have_used_each_budget():
    best = -0.5875697238505713  # Φ* there, by ascent
    gap, taken = tuned.gaps(SMALL.counts[0], "weighted", best, SMALL)
    assert gap.shape == (2, 4, 8)
    assert taken[0] == 0 and np.isinf(gap[:, 0]).all()  # the first budget does not pay for a step
    assert (np.diff(taken) > 0).all() and 4 * taken[1] <= taken[3] <= 4 * taken[1] + 4
    still, moving = gap
    assert (still[1:] == still[1]).all() and (still[1:] > 0).all()  # η = 0
    assert moving[3].mean() < 0.5 * still[3].mean()
    assert moving[3].mean() < moving[1].mean()


def test_numbers_notes_and_figure_from_what_was_kept(tmp_path, monkeypatch):
    rng, budget = np.random.default_rng(0), Budget(False, tmp_path)
    shape = len(tuned.lanes_of(SMALL)), len(SMALL.budgets), SMALL.num_seeds
    fall = 0.1 * (np.array(SMALL.budgets) / SMALL.budgets[0]) ** -0.5
    for name in ESTIMATORS:
        gap = np.array([3.0, 1.0])[:, None, None] * fall[:, None] * rng.lognormal(0, 0.1, shape)
        budget.keep(f"{name} K=1 n=16 B=16", Gaps, lambda gap=gap: Gaps(gap, np.arange(4)))
        budget.keep(f"{name} schedule 1.0000", Learned, lambda: Learned(np.zeros((2, 2)), np.float64(3e4)))
    assumed = Assumption(*map(np.array, (-0.5, 1.0, 0.1, 0, 0.0, [0.2] * 3)))
    monkeypatch.setattr(two_states, "assumption", lambda *args: assumed)
    monkeypatch.setattr(two_states, "learn", lambda *args: pytest.fail("everything is there already"))
    monkeypatch.setattr(tuned, "gaps", lambda *args: pytest.fail("everything is there already"))
    data = tuned.measure(budget, SMALL)
    found = tuned.judge(data)
    exponent = found.numbers["exponent, weighted line 7, tuned"]
    assert exponent.center == pytest.approx(0.5, abs=0.05) and exponent.low < 0.5 < exponent.high
    assert found.numbers[RATIOS[0]].undecided.endswith("the range of the schedule's runs")  # which are at one ε
    assert together(judge(tuned.CLAIM, found.numbers)) == "not decided"
    assert all((tuned.choose(runs.gap)[0] == [0, 1]).all() for runs in data.runs.values())
    assert "0.05 takes" in found.notes[0] and "reward_step 1" in found.notes[0]
    left, right = tuned.draw(data).axes
    assert any(f"gap {GAP:g} outside of a range" in text.get_text() for text in left.get_legend().get_texts())
    assert len(right.lines) == 3 * len(ESTIMATORS)
