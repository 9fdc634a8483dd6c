"""The alignment study on a few MDPs: its ordering at w = 0.5, and its measures by hand."""

import json
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from experiments.studies import alignment
from experiments.verify import p1_alignment
from experiments.verify.claims import Budget
from experiments.verify.runner import describe

SMALL = alignment.Sizes(num_seeds=6, kl_weights=(0.5,), num_steps=300, num_reward_steps=500, num_sampled_steps=2)
METHODS = alignment.ALTERNATING, alignment.PAPER


@pytest.fixture(scope="module")
def found():
    table = alignment.study(SMALL, methods=METHODS, kinds=(alignment.REALISABLE,))
    return table | alignment.study(SMALL, methods=(alignment.ALTERNATING,), kinds=(alignment.MISSPECIFIED,))


def test_alternating_ends_at_the_optimal_policy_where_the_class_holds_the_true_reward(found):
    ends = found[alignment.REALISABLE, alignment.ALTERNATING]
    assert (alignment.relative(ends) > 0.97).all()
    assert np.median(alignment.relative(ends)) > 0.99
    assert (alignment.relative(ends) <= 1 + 1e-9).all()


def test_the_papers_objective_ends_below_it(found):
    paper, other = (found[alignment.REALISABLE, x] for x in (alignment.PAPER, alignment.ALTERNATING))
    assert (alignment.relative(paper) < alignment.relative(other) - 0.01).all()
    assert (alignment.relative(paper) < 0.9).sum() >= len(paper.plain[0]) / 2
    # Where it ended at a higher Φ than the true reward's, that was no better policy.
    assert ((paper.upper > paper.upper_truth + 0.01) & (alignment.relative(paper) < 0.97)).any()


def test_a_class_without_the_true_reward_costs_return(found):
    ends = found[alignment.MISSPECIFIED, alignment.ALTERNATING]
    assert (alignment.relative(ends) < 0.99).all()


def test_a_large_w_is_not_overshot():
    # Of the 64 MDPs the one where J curves most at w = 3: with τ = 0.2 every method ended far below the reference there.
    lane = jax.random.split(jax.random.key(0), 64)[31], 3.0
    sizes = SMALL._replace(num_steps=200)
    with jax.enable_x64(True):
        ends = jax.jit(lambda key, w: alignment.climb(key, w, alignment.ALTERNATING, alignment.REALISABLE, sizes))(
            *lane
        )
    assert alignment.converged(ends) and alignment.relative(ends) == pytest.approx(1)


def test_relative_returns_and_convergence_by_hand():
    one = np.ones((1, 1))
    ends = alignment.Ends(3 * one, 6 * one, one, np.array([[[5.0, 11.0]]]), *[0 * one] * 6, np.zeros((1, 1), bool))
    assert alignment.relative(ends) == 0.5
    assert alignment.relative(ends, plain=True) == 0.5
    assert alignment.converged(ends)
    for changed in ({"upper_gradient": 0.1 * one}, {"lower_gradient": 0.1 * one}, {"diverged": one > 0}):
        assert not alignment.converged(ends._replace(**changed))


def test_numbers_and_figure_are_written_and_the_claim_names_them(found, tmp_path, monkeypatch):
    lines = []
    alignment.report(found, SMALL, tmp_path, lines.append)
    rows = json.loads((tmp_path / "alignment.json").read_text())
    assert len(rows) == len(found) == len(lines) - 2
    assert (tmp_path / "alignment.png").stat().st_size > 10_000
    monkeypatch.setattr(alignment, "study", lambda *args: found)
    numbers = p1_alignment.measure(Budget(True, tmp_path), SMALL).numbers
    share = alignment.relative(found[alignment.REALISABLE, alignment.PAPER])[0]
    for label, key, center in (
        ("mean share of the gain", "relative_regularised_return_mean", share.mean()),
        ("interquartile mean share of the gain", "relative_regularised_return_interquartile_mean", None),
        ("share of runs below the reference", "below_reference", (share < 0).mean()),
        ("share of runs converged", "converged", None),
    ):
        ours = numbers[f"{label}, table, {alignment.PAPER}, w = 0.5"]
        assert [ours.center, ours.low, ours.high] == rows[1][key] and ours.low <= ours.center <= ours.high
        assert center is None or ours.center == pytest.approx(center)


# The claim: planted runs ----------------------------------------------------------------------------------------------


def ends_of(share, above):
    """Runs [w, seed] with those shares of the gain, which is 2 over a reference of 1, and that Φ(φ) − Φ(r*)."""
    share, above = np.broadcast_arrays(share, above)
    zero = np.zeros(share.shape)
    best = 3 * np.ones((*share.shape, 2))
    return alignment.Ends(
        1 + 2 * share, zero, 1 + zero, best, above - 0.5, zero - 0.5, zero, zero, zero, zero, zero > 0
    )


def verdicts(monkeypatch, tmp_path, num_seeds=64, alternating=1.0, failing=0.0, paper=-0.4, above=0.02, key=0):
    """Verdicts on the claim where those are the means, and a share of alternating's runs ends at −1 instead."""
    rng, sizes = np.random.default_rng(key), alignment.Sizes(num_seeds=num_seeds)
    shape = len(sizes.kl_weights), num_seeds
    fails = rng.random(shape) < failing
    planted = {
        alignment.ALTERNATING: ends_of(np.where(fails, -1.0, alternating - 0.002 * rng.random(shape)), 0.0),
        alignment.PAPER: ends_of(rng.normal(paper, 0.5, shape), rng.normal(above, 0.03, shape)),
    }
    found = {(alignment.REALISABLE, method): ends for method, ends in planted.items()}
    monkeypatch.setattr(alignment, "study", lambda *args: found)
    return describe(p1_alignment.CLAIM, p1_alignment.measure(Budget(False, tmp_path), sizes))


GAINS = [name for name in p1_alignment.MARGINS if alignment.ALTERNATING in name]
PAPERS, ABOVE = (name for name in p1_alignment.MARGINS if alignment.PAPER in name)


def test_a_planted_violation_of_each_statement_fails_and_what_is_predicted_holds(tmp_path, monkeypatch):
    assert len(GAINS) == len(alignment.Sizes().kl_weights) and "w = 0.5" in PAPERS and "w = 0.5" in ABOVE
    assert verdicts(monkeypatch, tmp_path)["verdict"] == "holds"
    for planted, wrong in (
        ({"alternating": 0.98}, GAINS),
        ({"failing": 0.25}, GAINS),  # of which an interquartile mean hardly knows
        ({"paper": 0.8}, [PAPERS]),
        ({"above": -0.02}, [ABOVE]),
    ):
        found = verdicts(monkeypatch, tmp_path, **planted)["numbers"]
        assert {name: found[name]["verdict"] for name in p1_alignment.MARGINS} == {
            name: "fails" if name in wrong else "holds" for name in p1_alignment.MARGINS
        }


def test_failures_that_an_interquartile_mean_hides_keep_the_mean_from_holding(tmp_path, monkeypatch):
    numbers = verdicts(monkeypatch, tmp_path, failing=0.04)["numbers"]
    for name in GAINS:
        assert numbers[name]["verdict"] != "holds"
        assert numbers[name.replace("mean share", "interquartile mean share")]["center"] > 0.99
        assert 0 < numbers[name.replace("mean share of the gain", "share of runs below the reference")]["center"] < 0.2


@pytest.mark.parametrize("key", range(5))
def test_a_quarter_of_the_mdps_decides_nothing_and_all_but_a_few_nothing_wrongly(key, tmp_path, monkeypatch):
    wrong = {"alternating": 0.985, "paper": 0.6, "above": -0.005}
    for planted in (wrong, {}):  # also where no run shows a failure, and the interval has no length
        few = verdicts(monkeypatch, tmp_path, num_seeds=16, key=key, **planted)["numbers"]
        assert {few[name]["verdict"] for name in p1_alignment.MARGINS} == {"not decided"}
        assert "16 MDPs are too few" in few[PAPERS]["undecided"]
    for planted, bad in ((wrong, "holds"), ({"failing": 0.25, "paper": 0.6}, "holds"), ({}, "fails")):
        names = GAINS if "failing" in planted else p1_alignment.MARGINS
        found = verdicts(monkeypatch, tmp_path, num_seeds=60, key=key, **planted)["numbers"]
        assert bad not in {found[name]["verdict"] for name in names}


def test_runs_without_a_return_are_counted_and_decide_nothing(tmp_path, monkeypatch):
    sizes = alignment.Sizes(num_seeds=80)
    share = np.ones((5, 80))
    share[1, 3:7] = np.nan
    planted = {(alignment.REALISABLE, alignment.ALTERNATING): ends_of(share, 0.0)}
    monkeypatch.setattr(alignment, "study", lambda *args: planted)
    measured = p1_alignment.measure(Budget(False, tmp_path), sizes)
    numbers = describe(p1_alignment.CLAIM, measured)["numbers"]
    assert [numbers[name]["verdict"] for name in GAINS] == ["holds", "not decided", "holds", "holds", "holds"]
    assert numbers[GAINS[1]]["undecided"] == "4 of 80 runs ended without a return and are left out"
    below = GAINS[1].replace("mean share of the gain", "share of runs below the reference")
    assert numbers[below]["center"] == 0.05


def test_the_claim_says_which_failures_its_intervals_cannot_know_of(tmp_path, monkeypatch):
    at_most = p1_alignment.unseen(64)
    assert (1 - at_most) ** 64 == pytest.approx(0.025)
    monkeypatch.setattr(
        alignment, "study", lambda *args: {(alignment.REALISABLE, alignment.PAPER): ends_of(np.ones((5, 64)), 0.0)}
    )
    notes = p1_alignment.measure(Budget(False, tmp_path), alignment.Sizes()).notes
    assert any("64 MDPs may all miss one that 5.6% of MDPs would show" in note for note in notes)


@pytest.mark.parametrize("num_classes", [1, 2])
def test_the_figure_names_every_method_inside_its_edges_and_cuts_no_run_off(num_classes, found):
    ends = ends_of(np.array([[0.5, 1.0, -40.0, 1.0]]), np.array([[0.2, 0.0, -7000.0, 0.01]]))
    sizes = SMALL._replace(num_seeds=4)
    drawn = {(k, m): ends for k in list(alignment.CLASSES)[:num_classes] for m in alignment.METHODS}
    figure = alignment.draw(drawn, sizes)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert {*alignment.METHODS, "one MDP"} < {text.get_text() for text in legend.get_texts()}
    whole = figure.bbox
    for box in (legend.get_window_extent(), figure._suptitle.get_window_extent()):
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1
    drawn = alignment.relative(ends), ends.upper - ends.upper_truth
    for panel, values in zip(figure.axes[: 2 * num_classes : num_classes], drawn, strict=True):
        low, high = panel.get_ylim()
        assert low < values.min() and values.max() < high
    assert "better" not in figure.get_suptitle()


def test_an_interrupted_claim_goes_on_from_the_pairs_that_are_kept(tmp_path, found, monkeypatch):
    calls, planted = [], found[alignment.REALISABLE, alignment.ALTERNATING]

    def climb_all(kind, method, sizes, say):
        calls.append(method)
        if calls == [*p1_alignment.QUICK_METHODS]:
            raise KeyboardInterrupt
        return planted

    monkeypatch.setattr(alignment, "ThreadPoolExecutor", lambda _: ThreadPoolExecutor(1))  # one after the other
    monkeypatch.setattr(alignment, "climb_all", climb_all)
    with pytest.raises(KeyboardInterrupt):
        p1_alignment.measure(Budget(True, tmp_path), SMALL)
    both = [p1_alignment.measure(Budget(True, tmp_path), SMALL) for _ in range(2)]
    assert calls == [*p1_alignment.QUICK_METHODS, alignment.EXCESS] and both[0].numbers == both[1].numbers
    names = {f"{alignment.REALISABLE}, {method}" for method in p1_alignment.QUICK_METHODS}
    assert {path.stem for path in tmp_path.iterdir()} == names
    again = alignment.study(SMALL, methods=METHODS, kinds=(alignment.REALISABLE,), keep=tmp_path)
    for ends in again.values():
        jax.tree.map(np.testing.assert_array_equal, ends, planted)
    assert len(calls) == 4


@pytest.mark.parametrize("method", sorted({*alignment.METHODS} - {*METHODS}))
def test_the_other_methods_run_on_a_class_without_the_true_reward(method):
    tiny = alignment.Sizes(num_seeds=2, kl_weights=(1.0,), num_steps=2, num_reward_steps=2)
    (ends,) = alignment.study(tiny, methods=(method,), kinds=(alignment.MISSPECIFIED,)).values()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(ends))
    assert (alignment.relative(ends) <= 1).all()
