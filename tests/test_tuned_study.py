"""The study of tuned budgets: the choice does not flatter, samples are read off by hand, and a small run."""

import json

import numpy as np
import pytest

from experiments.files import write_arrays
from experiments.studies import complexity, tuned
from experiments.studies.complexity import ESTIMATORS
from experiments.verify import p1_tuned
from experiments.verify.claims import Budget, judge, together

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
    budgets, gap = (1e2, 1e4, 1e6), np.array([1.0, 0.1, 0.01])[:, None] * np.ones(4)
    assert tuned.samples_for(0.1, budgets, gap) == pytest.approx(1e4)
    assert tuned.samples_for(np.sqrt(0.001), budgets, gap) == pytest.approx(1e5)
    assert tuned.samples_for(0.001, budgets, gap) is tuned.samples_for(2.0, budgets, gap) is None
    gap[0] = np.inf  # no step yet
    assert tuned.samples_for(0.5, budgets, gap[:1]) is None


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
    def never(*args):
        raise AssertionError("everything is there already")

    rng = np.random.default_rng(0)
    shape = len(SMALL.lanes), len(SMALL.budgets), SMALL.num_seeds
    fall = 0.1 * (np.array(SMALL.budgets) / SMALL.budgets[0]) ** -0.5
    for name in ESTIMATORS:
        gap = np.array([3.0, 1.0])[:, None, None] * fall[:, None] * rng.lognormal(0, 0.1, shape)
        write_arrays(tmp_path, f"{name} K=1 n=16 B=16.npz", {"gap": gap, "taken": np.arange(4)})
        schedule = {"params": np.zeros((2, 2)), "transitions": np.float64(3e4)}
        write_arrays(tmp_path, f"{name} schedule 1.0000.npz", schedule)
    found = complexity.Assumption(*map(np.array, (-0.5, 1.0, 0.1, 0, 0.0, [0.2] * 3)))
    monkeypatch.setattr(complexity, "assumption", lambda *args: found)
    monkeypatch.setattr(complexity, "learn", never)
    monkeypatch.setattr(tuned, "gaps", never)
    measured = p1_tuned.measure(Budget(False, tmp_path), SMALL)
    exponent = measured.numbers["exponent, weighted line 7, tuned"]
    assert exponent.center == pytest.approx(0.5, abs=0.05) and exponent.low < 0.5 < exponent.high
    assert together(judge(p1_tuned.CLAIM, measured.numbers)) == "reported"
    results = tuned.study(SMALL, tmp_path)
    assert all((x.chosen == [0, 1]).all() for x in results.values())
    json.dumps(tuned.summarise(results, SMALL))
    assert "0.05 takes" in measured.notes[0] and "reward_step 1" in measured.notes[0]
    assert measured.figure is not None
