"""P1.cartpole: its runs are what it says, they resume, and 500 labels are enough for the goal."""

import numpy as np
import pytest

from experiments.claims.claim import Budget
from experiments.claims.p1 import cartpole
from experiments.claims.p1.cartpole import ALTERNATING, BILEVEL, NETWORKS, SMALL_SIGMA, TABLES, TWO_STAGE, VARIED
from experiments.settings.config import as_dict, configure
from experiments.settings.worlds import CartPoleOptions

QUICK = {"batch_size": 4, "rollout_length": 20, "segment_length": 12, "num_reward_steps": 3, "num_pairs": 4, "steps": 2}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(folder, data, lines) of two tiny runs with tables."""
    folder, lines = tmp_path_factory.mktemp("cartpole"), []
    some = {name: VARIED[name] for name in ((TWO_STAGE, TABLES), (ALTERNATING, TABLES))}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUICK.items():
            patch.setitem(CartPoleOptions.defaults, name, value)
            for defaults in CartPoleOptions.defaults_of.values():
                patch.delitem(defaults, name, raising=False)
        sizes = cartpole.Sizes(seeds=2, batches=(2,))
        return folder, cartpole.measure(Budget(True, folder, lines.append), sizes, some), lines


def test_no_run_has_more_than_500_labels_or_other_segments():
    runs = cartpole.plan(cartpole.FULL)
    expected = {(method, model) for method in cartpole.COLORS for model in (TABLES, NETWORKS)}
    assert {run[:2] for run in runs} == expected - {(SMALL_SIGMA, NETWORKS)}
    for _, model, config in runs:
        options = config.options
        batches = options["num_batches"] if config.algorithm_name == "two_stage" else options["steps"]
        assert batches * options["num_pairs"] == cartpole.labels(config) <= 500
        assert (options["seeds"], options["segment_length"], options["rationality"]) == (16, 50, (1.0,))
        assert (options["policy"] == "table") == (model == TABLES)


def test_a_quick_budget_has_tables_alone():
    assert {(method, model) for method, model, _ in cartpole.plan(cartpole.QUICK)} == {
        (x, TABLES) for x in cartpole.COLORS
    }


def test_with_networks_the_claim_runs_what_the_command_runs_by_default():
    most = {(method, model): config for method, model, config in cartpole.plan(cartpole.FULL)}
    for method in (TWO_STAGE, ALTERNATING, BILEVEL):
        run = as_dict(most[method, NETWORKS])
        assert run == as_dict(configure("cartpole", run["algorithm"], seed=cartpole.SEED, seeds=16))


def test_a_small_measurement_counts_what_it_takes(found):
    _, data, lines = found
    two_stage, alternating = data.curves
    assert [(x.method, x.models, x.labels[-1]) for x in data.curves] == [
        (TWO_STAGE, TABLES, 8),
        (ALTERNATING, TABLES, 8),
    ]
    assert lines == ["run 1 of 2: two-stage, tables, 8 labels", "run 2 of 2: alternating, tables, 8 labels"]
    for curve in data.curves:
        assert curve.score.shape == (2, 2)
        assert np.all((curve.score > 5) & (curve.score <= 500))
    # Two-stage: five gradients of 4 rollouts of 20 steps an outer step, and the pairs.
    np.testing.assert_array_equal(two_stage.labels, [8, 8])
    np.testing.assert_array_equal(two_stage.transitions, np.array([400, 800]) + 8 * 2 * 12)
    np.testing.assert_array_equal(alternating.labels, [4, 8])
    np.testing.assert_array_equal(alternating.transitions, np.array([1, 2]) * (2 * 4 * 20 + 4 * 2 * 12))


def test_every_run_has_its_score_and_its_folder_and_the_figure_is_drawn(found, tmp_path):
    folder, data, _ = found
    measured = cartpole.judge(data)
    for score, row in zip(measured.numbers.values(), measured.tables[0].rows, strict=True):
        assert 0 <= score.low <= score.center <= score.high <= 500
        assert row["reaches 475"] == ("yes" if score.center >= 475 else "no")
        assert len(row["scores of the seeds"].split(", ")) == 2
    assert measured.cost["labels"] == 2 * 2 * 8
    cartpole.draw(data).savefig(tmp_path / "cartpole.png", dpi=40)
    assert (tmp_path / "cartpole.png").stat().st_size > 10_000
    assert sorted(x.name for x in folder.iterdir()) == ["alternating-tables-8", "two-stage-tables-8"]
    assert all((x / "checkpoints").is_dir() for x in folder.iterdir())


@pytest.mark.slow
def test_two_stage_with_networks_balances_the_pole_after_500_labels(tmp_path):
    only = {(TWO_STAGE, NETWORKS): VARIED[TWO_STAGE, NETWORKS]}
    data = cartpole.measure(Budget(False, tmp_path), cartpole.Sizes(batches=(50,)), only)
    (score,) = cartpole.judge(data).numbers.values()
    (curve,) = data.curves
    assert curve.labels[-1] <= 500
    assert len(curve.score) == 16
    assert score.center >= cartpole.GOAL
