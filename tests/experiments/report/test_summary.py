"""The numbers of a summary, against runs small enough to check by hand."""

import json

import numpy as np
import pytest
import xarray as xr

from experiments.report.summary import (
    COUNTS,
    counts,
    describe,
    format_table,
    headline_metric,
    hyper_points,
    last_finite,
    metric_names,
    point_label,
    summarise,
)

TIMING = {"compile_seconds": 4.25, "run_seconds": 33.0, "steps_per_second": float("inf")}


def dataset(variables, **coords):
    """A run from arrays [hyper, seed, step], with zero costs where none are given, and swept values in `coords`."""
    shape = np.shape(next(iter(variables.values())))
    variables = {name: np.zeros(shape, np.int32) for name in (*COUNTS, "status")} | variables
    coords = {name: ("hyper", values) for name, values in coords.items()}
    return xr.Dataset(
        {name: (("hyper", "seed", "step"), np.asarray(x)) for name, x in variables.items()},
        {"seed": np.arange(shape[1]), "step": np.arange(shape[2]), **coords},
    )


def noisy(num_hyper=1, num_seeds=5, num_steps=20, names=("true_return", "kl_to_reference", "critic_loss")):
    """Made-up metrics that rise with the step."""
    rng = np.random.default_rng(1)
    return {n: np.arange(num_steps) + rng.normal(size=(num_hyper, num_seeds, num_steps)) for n in names}


def one_dead():
    """Three seeds of two steps; the last one diverged in its second step."""
    values = [[[1.0, 5.0], [2.0, 7.0], [3.0, 3.0]]]
    return dataset(
        {
            "true_return": np.array(values),
            "status": np.array([[[0, 0], [0, 1], [0, 2]]]),
            "labels": np.array([[[4, 5], [4, 4], [4, 0]]]),
        }
    )


def test_the_last_finite_value_is_found_from_the_end():
    values = np.array([[1.0, 2.0, np.nan], [np.nan, np.nan, np.nan], [np.nan, 5.0, 6.0]])
    np.testing.assert_array_equal(last_finite(values), [2.0, np.nan, 6.0])


def test_costs_are_summed_exactly_where_32_bits_would_wrap():
    run = dataset({"transitions": np.full((1, 2, 3), 2**31 - 1, np.int32)})
    assert counts(run, "transitions").sum() == 6 * (2**31 - 1)
    cost = summarise(run)["points"][0]["cost"]["transitions"]
    assert cost == {"total": 6 * (2**31 - 1), "per_seed": [3 * (2**31 - 1)] * 2}


def test_a_dead_seed_counts_with_its_last_values_and_is_left_out_among_survivors():
    point = summarise(one_dead())["points"][0]
    last = point["metrics"]["true_return"]["last"]
    assert last["all"]["mean"] == pytest.approx(5.0) and last["all"]["seeds"] == 3
    assert last["survivors"]["mean"] == pytest.approx(6.0) and last["survivors"]["seeds"] == 2
    assert point["metrics"]["true_return"]["first"]["survivors"]["mean"] == pytest.approx(1.5)


def test_who_lives_and_when_the_others_died_is_told():
    assert summarise(one_dead())["points"][0]["seeds"] == {
        "total": 3,
        "alive": 2,
        "converged": 1,
        "diverged": 1,
        "deaths": [{"seed": 2, "step": 1}],
    }


def test_costs_are_told_per_seed_and_in_all():
    summary = summarise(one_dead())
    assert summary["points"][0]["cost"]["labels"] == {"total": 21, "per_seed": [9, 8, 4]}
    assert summary["cost"]["labels"] == 21


def test_a_summary_is_json_without_nan_or_infinity():
    values = np.full((2, 3, 4), np.nan)
    values[0, 0] = np.inf
    run = dataset({"true_return": values, "status": np.full((2, 3, 4), 2)}, sigma=np.float32([0.5, 1.0]))
    text = json.dumps(summarise(run, TIMING), allow_nan=False)
    read = json.loads(text)
    assert read["points"][1]["metrics"]["true_return"]["last"]["all"]["mean"] is None
    assert read["points"][1]["metrics"]["true_return"]["last"]["survivors"]["mean_interval"] is None
    assert read["points"][0]["hyper"] == {"sigma": 0.5}
    assert read["seconds"]["steps_per_second"] == "inf"
    assert format_table(read)


def test_the_order_of_dimensions_does_not_matter():
    run = dataset(noisy(num_hyper=2), sigma=[0.1, 1.0])
    assert summarise(run.transpose("step", "hyper", "seed")) == summarise(run)


def test_a_run_without_status_has_no_dead():
    assert summarise(one_dead().drop_vars("status"))["points"][0]["seeds"]["alive"] == 3


def test_unknown_metrics_follow_the_known_ones_and_get_a_label():
    run = dataset(noisy(names=("odd_score", "critic_loss", "true_return")))
    assert metric_names(run) == ["true_return", "critic_loss", "odd_score"]
    assert describe("odd_score") == ("odd score", "")


def test_a_run_is_judged_by_its_score_where_it_has_one_and_by_its_return_elsewhere():
    assert headline_metric(["true_return", "critic_loss", "true_score"]) == "true_score"
    assert headline_metric(["critic_loss", "true_return"]) == "true_return"
    assert headline_metric(["critic_loss"]) == "critic_loss" and headline_metric([]) is None


def test_nothing_swept_is_one_point_without_values():
    assert hyper_points(dataset(noisy())) == [{}]


def test_the_table_has_a_row_a_metric_and_leads_with_all_seeds():
    table = format_table(summarise(one_dead(), TIMING))
    row = next(line for line in table.splitlines() if line.startswith("true return"))
    assert row.split() == ["true", "return", "2", "5", "[3,", "7]", "2/3", "1/3", "6", "[5,", "7]"]
    assert "seed 2 at step 1" in table and "21 labels" in table and "compile 4.25 s" in table


def test_survivors_stand_beside_only_if_a_seed_died():
    assert "survivors" in format_table(summarise(one_dead()))
    assert "survivors" not in format_table(summarise(dataset(noisy())))


def test_a_sweep_has_a_row_a_point_for_each_key_metric():
    lines = format_table(summarise(dataset(noisy(num_hyper=3), sigma=[0.01, 0.1, 1.0]))).splitlines()
    assert sum(line.startswith("sigma = 0.1 ") for line in lines) == 2
    assert not any(line.startswith("critic loss") for line in lines)


@pytest.mark.parametrize("num_seeds", [1, 3])
@pytest.mark.parametrize("scale", [1.0, -1.2345e-12, 9.8765e15])
def test_the_table_is_at_most_100_columns_wide_and_aligned(num_seeds, scale):
    values = {name: scale * x for name, x in noisy(2, num_seeds).items()}
    status = np.zeros((2, num_seeds, 20), np.int32)
    status[0, 0, 7:] = 2
    name = "a_very_long_hyperparameter_name_that_leaves_no_room"
    table = format_table(summarise(dataset(values | {"status": status}, **{name: [0.123456, 1.0]}), TIMING))
    lines = table.splitlines()
    assert max(map(len, lines)) <= 100
    beside_labels = [line for line in lines[: lines.index("")] if "  " in line or line.startswith("─")]
    assert len(beside_labels) == 4 and len({*map(len, beside_labels)}) == 1


def test_rows_of_a_sweep_of_three_hyperparameters_can_be_told_apart():
    sweep = {"policy_step_size": [0.001, 0.01], "reward_step_size": [0.001, 0.001], "proxy_step_ratio": [1.5, 1.25]}
    status = np.zeros((2, 5, 20), np.int32)
    status[0, 0, 7:] = 2
    lines = format_table(summarise(dataset(noisy(2) | {"status": status}, **sweep))).splitlines()
    for label in (
        "policy_step_size = 0.001, reward_step_size = 0.001, proxy_step_ratio = 1.5",
        "policy_step_size = 0.01, reward_step_size = 0.001, proxy_step_ratio = 1.25",
    ):
        assert sum(line.startswith(label) for line in lines) == 2


FEW = "An interval over {} seeds covers less than 95 %; 5 or more are needed"
ALIKE = "Seeds do not differ"


@pytest.mark.parametrize("num_seeds", [1, 2, 4, 5])
def test_an_interval_over_too_few_seeds_is_said_to_cover_less(num_seeds):
    table = format_table(summarise(dataset(noisy(num_seeds=num_seeds))))
    assert (FEW.format(num_seeds) in table) == (1 < num_seeds < 5) and ALIKE not in table


def test_a_sweep_names_the_points_whose_interval_is_over_too_few_seeds():
    values = noisy(2, num_seeds=6)
    for x in values.values():
        x[1, :3] = np.nan
    table = " ".join(format_table(summarise(dataset(values, sigma=[0.1, 1.0]))).split())
    assert f"{FEW.format(3)}: at sigma = 1." in table
    assert "3 of 6 seeds never had a finite value and count in no mean: at sigma = 1." in table


@pytest.mark.parametrize("num_seeds", [2, 8])
def test_seeds_that_are_equal_throughout_are_said_not_to_differ(num_seeds):
    equal = {name: np.repeat(x, num_seeds, axis=1) for name, x in noisy(num_seeds=1).items()}
    table = format_table(summarise(dataset(equal)))
    assert ALIKE in table and "covers less" not in table
    equal["critic_loss"][0, 0, 3] += 1e-6
    assert ALIKE not in format_table(summarise(dataset(equal)))
    assert ALIKE not in format_table(summarise(dataset(noisy(num_seeds=1))))


def test_points_that_differ_in_their_sixth_digit_have_labels_that_differ():
    assert point_label({"sigma": 0.100001}) != point_label({"sigma": 0.100002})
