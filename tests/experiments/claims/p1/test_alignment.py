"""P1.alignment on a few MDPs: the ordering of the methods at w = 0.5, measures by hand, and verdicts on planted runs."""

from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from experiments.claims.claim import Budget
from experiments.claims.p1 import alignment, methods
from experiments.claims.p1.alignment import ABOVE, BELOW, CONVERGED, GAIN, MARGINS, Alignment
from experiments.claims.p1.methods import (
    ALTERNATING,
    EXCESS,
    MISSPECIFIED,
    PAPER,
    REALISABLE,
    Ends,
    converged,
    relative,
)
from experiments.claims.results import describe

SMALL = methods.Sizes(num_seeds=6, kl_weights=(0.5,), num_steps=300, num_reward_steps=500, num_sampled_steps=2)
ONE = SMALL._replace(kinds=(REALISABLE,))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    budget = Budget(True, tmp_path_factory.mktemp("kept"))
    table = alignment.measure(budget, ONE._replace(methods=(ALTERNATING, PAPER)))
    other = alignment.measure(budget, SMALL._replace(kinds=(MISSPECIFIED,), methods=(ALTERNATING,)))
    return Alignment(SMALL, table.ends | other.ends)


def test_alternating_ends_at_the_optimal_policy_where_the_class_holds_the_true_reward(data):
    share = relative(data.ends[REALISABLE, ALTERNATING])
    assert (share > 0.97).all() and np.median(share) > 0.99 and (share <= 1 + 1e-9).all()


def test_the_papers_objective_ends_below_it(data):
    paper, other = (data.ends[REALISABLE, x] for x in (PAPER, ALTERNATING))
    assert (relative(paper) < relative(other) - 0.01).all()
    assert (relative(paper) < 0.9).sum() >= len(paper.plain[0]) / 2
    # Where it ended at a higher Φ than the true reward's, that was no better policy.
    assert ((paper.upper > paper.upper_truth + 0.01) & (relative(paper) < 0.97)).any()


def test_a_class_without_the_true_reward_costs_return(data):
    assert (relative(data.ends[MISSPECIFIED, ALTERNATING]) < 0.99).all()


def test_a_large_w_is_not_overshot(x64):
    # Of the 64 MDPs the one where J curves most at w = 3: with τ = 0.2 every method ended far below the reference there.
    key = jax.random.split(jax.random.key(0), 64)[31]
    sizes = SMALL._replace(num_steps=200)
    ends = jax.jit(lambda key, w: methods.climb(key, w, ALTERNATING, REALISABLE, sizes))(key, 3.0)
    assert converged(ends) and relative(ends) == pytest.approx(1)


def test_relative_returns_and_convergence_by_hand():
    one = np.ones((1, 1))
    ends = Ends(3 * one, 6 * one, one, np.array([[[5.0, 11.0]]]), *[0 * one] * 6, np.zeros((1, 1), bool))
    assert relative(ends) == 0.5
    assert relative(ends, plain=True) == 0.5
    assert converged(ends)
    for changed in ({"upper_gradient": 0.1 * one}, {"lower_gradient": 0.1 * one}, {"diverged": one > 0}):
        assert not converged(ends._replace(**changed))


def test_numbers_are_means_and_shares_of_the_runs(data):
    found = alignment.judge(data)
    ((_, rows),) = found.tables
    assert [(row["class"], row["method"], row["w"]) for row in rows] == [(*pair, 0.5) for pair in data.ends]
    share = relative(data.ends[REALISABLE, PAPER])[0]
    for label, center in (
        (f"mean {GAIN}", share.mean()),
        (f"interquartile mean {GAIN}", np.sort(share)[1:-1].mean()),
        (BELOW, (share < 0).mean()),
        (CONVERGED, converged(data.ends[REALISABLE, PAPER]).mean()),
    ):
        number = found.numbers[alignment.name(label, REALISABLE, PAPER, 0.5)]
        assert number.low <= number.center <= number.high
        assert number.center == pytest.approx(center)


# Planted runs ---------------------------------------------------------------------------------------------------------


def ends_of(share, above):
    """Runs [w, seed] with those shares of the gain, which is 2 over a reference of 1, and that Φ(φ) − Φ(r*)."""
    share, above = np.broadcast_arrays(share, above)
    zero = np.zeros(share.shape)
    best = 3 * np.ones((*share.shape, 2))
    return Ends(1 + 2 * share, zero, 1 + zero, best, above - 0.5, zero - 0.5, zero, zero, zero, zero, zero > 0)


def described(planted, **sizes):
    """The claim on planted runs, by method, on a table of rewards."""
    ends = {(REALISABLE, method): of for method, of in planted.items()}
    return describe(alignment.CLAIM, alignment.judge(Alignment(methods.Sizes(**sizes), ends)))


def verdicts(num_seeds=64, alternating=1.0, failing=0.0, paper=-0.4, above=0.02, key=0):
    """The claim where those are the means, and a share of alternating's runs ends at −1 instead."""
    rng = np.random.default_rng(key)
    shape = len(alignment.FULL.kl_weights), num_seeds
    fails = rng.random(shape) < failing
    planted = {
        ALTERNATING: ends_of(np.where(fails, -1.0, alternating - 0.002 * rng.random(shape)), 0.0),
        PAPER: ends_of(rng.normal(paper, 0.5, shape), rng.normal(above, 0.03, shape)),
    }
    return described(planted, num_seeds=num_seeds)


GAINS = [name for name in MARGINS if ALTERNATING in name]
PAPERS, ABOVES = (name for name in MARGINS if PAPER in name)


def test_a_planted_violation_of_each_statement_fails_and_what_is_predicted_holds():
    assert len(GAINS) == len(alignment.FULL.kl_weights) and "w = 0.5" in PAPERS and f"mean {ABOVE}" in ABOVES
    assert verdicts()["verdict"] == "holds"
    for planted, wrong in (
        ({"alternating": 0.98}, GAINS),
        ({"failing": 0.25}, GAINS),  # of which an interquartile mean hardly knows
        ({"paper": 0.8}, [PAPERS]),
        ({"above": -0.02}, [ABOVES]),
    ):
        found = verdicts(**planted)["numbers"]
        assert {name: found[name]["verdict"] for name in MARGINS} == {
            name: "fails" if name in wrong else "holds" for name in MARGINS
        }


def test_failures_that_an_interquartile_mean_hides_keep_the_mean_from_holding():
    numbers = verdicts(failing=0.04)["numbers"]
    for name in GAINS:
        assert numbers[name]["verdict"] != "holds"
        assert numbers[name.replace("mean share", "interquartile mean share")]["center"] > 0.99
        assert 0 < numbers[name.replace(f"mean {GAIN}", BELOW)]["center"] < 0.2


@pytest.mark.parametrize("key", range(5))
def test_a_quarter_of_the_mdps_decides_nothing_and_all_but_a_few_nothing_wrongly(key):
    wrong = {"alternating": 0.985, "paper": 0.6, "above": -0.005}
    for planted in (wrong, {}):  # also where no run shows a failure, and the interval has no length
        few = verdicts(num_seeds=16, key=key, **planted)["numbers"]
        assert {few[name]["verdict"] for name in MARGINS} == {"not decided"}
        assert "16 MDPs are too few" in few[PAPERS]["undecided"]
    for planted, bad in ((wrong, "holds"), ({"failing": 0.25, "paper": 0.6}, "holds"), ({}, "fails")):
        names = GAINS if "failing" in planted else MARGINS
        found = verdicts(num_seeds=60, key=key, **planted)["numbers"]
        assert bad not in {found[name]["verdict"] for name in names}


def test_runs_without_a_return_are_counted_and_decide_nothing():
    share = np.ones((5, 80))
    share[1, 3:7] = np.nan
    numbers = described({ALTERNATING: ends_of(share, 0.0)}, num_seeds=80)["numbers"]
    assert [numbers[name]["verdict"] for name in GAINS] == ["holds", "not decided", "holds", "holds", "holds"]
    assert numbers[GAINS[1]]["undecided"] == "4 of 80 runs ended without a return and are left out"
    assert numbers[GAINS[1].replace(f"mean {GAIN}", BELOW)]["center"] == 0.05


def test_the_claim_says_which_failures_its_intervals_cannot_know_of():
    assert (1 - alignment.unseen(64)) ** 64 == pytest.approx(0.025)
    notes = described({PAPER: ends_of(np.ones((5, 64)), 0.0)})["notes"]
    assert any("64 MDPs may all miss one that 5.6% of MDPs would show" in note for note in notes)


@pytest.mark.parametrize("num_classes", [1, 2])
def test_the_figure_names_every_method_inside_its_edges_and_cuts_no_run_off(num_classes):
    ends = ends_of(np.array([[0.5, 1.0, -40.0, 1.0]]), np.array([[0.2, 0.0, -7000.0, 0.01]]))
    drawn = {(kind, method): ends for kind in methods.CLASSES[:num_classes] for method in methods.METHODS}
    figure = alignment.draw(Alignment(SMALL._replace(num_seeds=4), drawn))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert {*methods.METHODS, "one MDP"} < {text.get_text() for text in legend.get_texts()}
    whole = figure.bbox
    for box in (legend.get_window_extent(), figure._suptitle.get_window_extent()):
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1
    for panel, values in zip(
        figure.axes[: 2 * num_classes : num_classes], (relative(ends), ends.upper - ends.upper_truth), strict=True
    ):
        low, high = panel.get_ylim()
        assert low < values.min() and values.max() < high
    assert "better" not in figure.get_suptitle()


# Runs -----------------------------------------------------------------------------------------------------------------


def test_an_interrupted_claim_goes_on_from_the_pairs_that_are_kept(tmp_path, data, monkeypatch):
    calls, planted, quick = [], data.ends[REALISABLE, ALTERNATING], alignment.QUICK.methods

    def climb_all(kind, method, sizes, say):
        calls.append(method)
        if calls == [*quick]:
            raise KeyboardInterrupt
        return planted

    monkeypatch.setattr(alignment, "ThreadPoolExecutor", lambda _: ThreadPoolExecutor(1))  # one after the other
    monkeypatch.setattr(alignment, "climb_all", climb_all)
    sizes = ONE._replace(methods=quick)
    with pytest.raises(KeyboardInterrupt):
        alignment.measure(Budget(True, tmp_path), sizes)
    for _ in range(2):
        for ends in alignment.measure(Budget(True, tmp_path), sizes).ends.values():
            jax.tree.map(np.testing.assert_array_equal, ends, planted)
    assert calls == [*quick, EXCESS]
    assert {path.stem for path in tmp_path.iterdir()} == {f"{REALISABLE}, {method}" for method in quick}


@pytest.mark.parametrize("method", sorted({*methods.METHODS} - {ALTERNATING, PAPER}))
def test_the_other_methods_run_on_a_class_without_the_true_reward(method, tmp_path):
    tiny = methods.Sizes(2, (1.0,), num_steps=2, num_reward_steps=2, kinds=(MISSPECIFIED,), methods=(method,))
    (ends,) = alignment.measure(Budget(True, tmp_path), tiny).ends.values()
    assert all(np.isfinite(x).all() for x in ends)
    assert (relative(ends) <= 1).all()
