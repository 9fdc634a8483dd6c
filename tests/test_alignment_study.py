"""The alignment study on a few MDPs: its ordering at w = 0.5, and its measures by hand."""

import json
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from experiments.studies import alignment
from experiments.verify import p1_alignment
from experiments.verify.claims import Budget

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
    ours = numbers["return, 0 reference, 1 KL-optimal, table, alternating, w = 0.5"]
    assert [ours.center, ours.low, ours.high] == rows[0]["relative_regularised_return"]


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
