"""The CartPole study: its runs are what it says, they resume, and 500 labels are enough for the goal."""

import json

import numpy as np
import pytest

from experiments.settings.config import as_dict, configure
from experiments.settings.worlds import CartPoleOptions
from experiments.studies import cartpole

SMALL = cartpole.Sizes(seeds=2, batches=(2,))
QUICK = {"batch_size": 4, "rollout_length": 20, "segment_length": 12, "num_reward_steps": 3, "num_pairs": 4, "steps": 2}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(folder, curves, lines) of a tiny study with tables."""
    folder, lines = tmp_path_factory.mktemp("study"), []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUICK.items():
            patch.setitem(CartPoleOptions.defaults, name, value)
            for ours in CartPoleOptions.defaults_of.values():
                patch.delitem(ours, name, raising=False)
        return folder, cartpole.study(folder, SMALL, lines.append, cartpole.METHODS[:2], ("tables",)), lines


def test_no_run_of_the_study_has_more_than_500_labels_or_other_segments():
    runs = cartpole.plan(cartpole.Sizes())
    expected = {(method, model) for method in cartpole.METHODS for model in cartpole.MODELS}
    assert {run[:2] for run in runs} == expected - {(cartpole.SMALL_SIGMA, "networks")}
    for (_, model, labels), config in runs.items():
        batches = config.num_batches if config.algorithm_name == "two_stage" else config.steps
        assert batches * config.num_pairs == labels <= 500
        assert (config.seeds, config.segment_length, config.rationality) == (16, 50, (1.0,))
        assert (config.policy == "table") == (model == "tables")


def test_with_networks_the_study_runs_what_the_command_runs_by_default():
    runs = cartpole.plan(cartpole.Sizes())
    for method in ("two-stage", "alternating", "bilevel"):
        ours = as_dict(runs[method, "networks", 500])
        assert ours == as_dict(configure("cartpole", ours["algorithm"], seed=cartpole.SEED, seeds=16))


def test_a_small_study_counts_what_it_takes(found):
    _, curves, lines = found
    assert list(curves) == [(method, "tables", 8) for method in cartpole.METHODS[:2]]
    assert "2 runs of 2 seeds" in lines[0]
    assert "minutes" in lines[0]
    for (method, _, labels), curve in curves.items():
        assert curve.score.shape == (2, 2)
        assert np.all((curve.score > 5) & (curve.score <= 500))
        assert curve.labels[-1] == labels
        if method == "two-stage":  # five gradients of 4 rollouts of 20 steps an outer step, and the pairs
            np.testing.assert_array_equal(curve.labels, [labels, labels])
            np.testing.assert_array_equal(curve.transitions, np.array([400, 800]) + labels * 2 * 12)
        else:
            np.testing.assert_array_equal(curve.labels, [4, 8])
    alternating = curves["alternating", "tables", 8]
    np.testing.assert_array_equal(alternating.transitions, np.array([1, 2]) * (2 * 4 * 20 + 4 * 2 * 12))


def test_numbers_and_figure_are_written(found, tmp_path):
    folder, curves, _ = found
    rows = json.loads(json.dumps(cartpole.summarise(curves)))
    assert len(rows) == len(curves)
    for row in rows:
        low, high = row["interval"]
        assert 0 <= low <= row["score"] <= high <= 500
        assert row["reached"] == (row["score"] >= 475)
        assert len(row["seeds"]) == 2
    cartpole.draw(curves).savefig(tmp_path / "cartpole.png", dpi=40)
    assert (tmp_path / "cartpole.png").stat().st_size > 10_000
    assert sorted(x.name for x in folder.iterdir()) == [
        "alternating-tables-8",
        "two-stage-tables-8",
    ]
    assert all((x / "checkpoints").is_dir() for x in folder.iterdir())


@pytest.mark.slow
def test_two_stage_with_networks_balances_the_pole_after_500_labels(tmp_path):
    sizes = cartpole.Sizes(batches=(50,))
    curves = cartpole.study(tmp_path, sizes, methods=("two-stage",), models=("networks",))
    (row,) = cartpole.summarise(curves)
    assert row["labels"] <= 500
    assert len(row["seeds"]) == 16
    assert row["score"] >= cartpole.GOAL
