"""Signs of failure, which a seed shows: each is told of the seeds that have it, and of no healthy one."""

import numpy as np
import pytest
from made_runs import BASELINES, dataset, healthy, one_sign, only

from experiments.report.page import sign_items
from experiments.report.signs import Goal, find_signs
from experiments.report.summary import summarise


def test_a_healthy_run_has_no_sign_and_says_what_was_looked_for():
    assert one_sign(dataset()).startswith("None found in any seed. Looked for")
    assert one_sign(dataset(), BASELINES).startswith("None found in any seed. Looked for")


def test_what_was_looked_for_is_what_the_metrics_could_show():
    assert "weights" not in one_sign(dataset()) and "weights" in one_sign(dataset(weight_ess=1.0))
    short = "None found in any seed. Looked for: a seed that diverged or measured nothing."
    assert one_sign(dataset()[["upper_objective"]]) == short


def test_a_thousand_healthy_seeds_have_no_sign():
    noise = np.random.default_rng(1).normal(size=(1000, 30))
    run = dataset(num_seeds=1000, true_return=1 + 0.3 * noise, critic_loss=np.exp(noise), gradient_norm=np.exp(noise))
    assert one_sign(run).startswith("None found in any seed")


def test_diverged_seeds_are_counted_and_named():
    status = np.zeros((4, 30), np.int32)
    status[1, 12:] = status[3, 20:] = 2
    assert one_sign(dataset(status=status)).startswith(
        "Diverged: 2 of 4 seeds (seeds 1, 3). What usually helps: smaller step"
    )


def test_a_seed_that_died_at_once_is_told_once():
    values = np.ones((4, 30))
    values[0] = np.nan
    run = dataset(true_return=values, status=2 * np.isnan(values).astype(np.int32))
    assert one_sign(run).startswith("Diverged: 1 of 4 seeds (seed 0).")


def test_of_a_diverged_seed_nothing_else_is_told():
    ends = np.where(np.arange(30) < 12, 0.0, np.nan)
    still = {name: only(1, ends, healthy(name)) for name in ("gradient_norm", "kl_to_reference", "critic_loss")}
    falls = only(1, np.linspace(2, 1, 30), healthy("true_return"))
    run = dataset(**still, true_return=falls, status=only(1, np.where(np.arange(30) < 12, 0, 2), np.zeros(30, int)))
    assert one_sign(run).startswith("Diverged: 1 of 4 seeds (seed 1).")


def test_a_metric_that_a_living_seed_never_has_is_told():
    values = np.ones((4, 30))
    values[0] = np.nan
    assert one_sign(dataset(true_score=values)).startswith("Never measured: true score: 1 of 4 seeds (seed 0).")


@pytest.mark.parametrize(("name", "most"), [("gradient_norm", 10), ("critic_loss", 100)])
def test_growth_in_one_seed_is_told_but_not_a_rise_at_the_start(name, most):
    growth = np.geomspace(1, most**2, 30)
    sign = one_sign(dataset(**{name: only(2, growth, np.ones(30))}))
    assert sign.startswith(f"The {name.replace('_', ' ')} grew more than {most} times")
    assert "1 of 4 seeds (seed 2)" in sign
    assert one_sign(dataset(**{name: only(2, growth**0.5, np.ones(30))})).startswith("None found")
    assert one_sign(dataset(**{name: np.minimum(growth**4, most**2)})).startswith("None found")


def test_growth_is_not_looked_for_in_fewer_steps_than_two_ends_have():
    for norms, found in (([1.0, 50, 50, 50, 50], False), ([1.0, 1, 1, 50, 50, 50], True)):
        sign = one_sign(dataset(num_steps=len(norms), gradient_norm=np.array(norms)))
        text = "The gradient norm grew more than 10 times from the first half of the steps to the end: 4 of 4 seeds"
        assert sign.startswith(text if found else "None found")


def test_a_seed_that_collapsed_onto_one_action_a_state_is_told_unless_that_is_what_is_best():
    entropy = only(1, np.geomspace(1, 1e-3, 30), healthy("policy_entropy"))
    poor = {"true_return": only(1, np.full(30, 2.0), healthy("true_return")), "policy_entropy": entropy}
    assert "1 of 4 seeds (seed 1)" in one_sign(dataset(**poor), BASELINES)
    assert one_sign(dataset(**poor), BASELINES).startswith("Collapsed onto nearly one action a state")
    assert one_sign(dataset(policy_entropy=entropy), BASELINES).startswith("None found")
    assert one_sign(dataset(**poor, kl_to_reference=0.01), BASELINES).startswith("None found")


def test_negative_entropy_of_a_density_is_no_sign():
    assert one_sign(dataset(policy_entropy=-2.0, true_return=np.full(30, 2.0)), BASELINES).startswith("None found")


def density(dimensions, last):
    """The entropy of a Gaussian policy that starts as the standard normal; its last value is that of seed 1."""
    start = 1.42 * dimensions
    return only(1, np.linspace(start, last, 30), np.linspace(start, start - 1, 30))


@pytest.mark.parametrize(("dimensions", "last", "fell"), [(1, -26.8, 4.61), (1, -4.0, 4.61), (17, -60.0, 78.3)])
def test_a_gaussian_policy_that_collapsed_far_from_what_is_possible_is_told(dimensions, last, fell):
    poor = {
        "policy_entropy": density(dimensions, last),
        "true_return": only(1, np.full(30, 2.0), healthy("true_return")),
    }
    sign = one_sign(dataset(**poor), BASELINES)
    assert sign.startswith(f"Collapsed onto nearly one action a state (entropy fell by more than {fell} nats")
    assert "1 of 4 seeds (seed 1)" in sign
    assert one_sign(dataset(policy_entropy=poor["policy_entropy"]), BASELINES).startswith("None found")
    assert one_sign(dataset(**poor, kl_to_reference=0.01), BASELINES).startswith("None found")


@pytest.mark.parametrize(("dimensions", "last"), [(1, -3.0), (1, 0.02), (17, -20.0)])
def test_a_gaussian_policy_that_narrowed_and_explores_still_is_no_sign(dimensions, last):
    narrow = {"policy_entropy": density(dimensions, last), "true_return": np.full(30, 2.0)}
    narrow["policy_entropy"][2, 15] = -0.1  # a density, as some seed shows
    assert one_sign(dataset(**narrow), BASELINES).startswith("None found")


def test_a_seed_that_never_moves_is_told():
    assert one_sign(dataset(gradient_norm=only(3, np.full(30, 1e-9), np.ones(30)))).startswith(
        "Never moved: the gradient norm stayed below 1e-06: 1 of 4 seeds (seed 3)."
    )
    assert "Never moved: the reward change" in one_sign(dataset(reward_change=0.0))
    assert "a smaller --kl-weight where it is above 0" in one_sign(dataset(kl_to_reference=1e-9))


def test_a_seed_that_ends_below_the_reference_policy_is_told_and_one_just_around_it_is_not():
    values = only(1, np.linspace(1, 0.5, 30), healthy("true_return"))
    sign = one_sign(dataset(true_return=values), BASELINES)
    assert sign.startswith("Ended below the reference policy, 0.9 (by the true return): 1 of 4 seeds (seed 1).")
    assert "larger --kl-weight" in sign
    around = 0.9 + 0.01 * np.random.default_rng(0).normal(size=(4, 30))
    assert one_sign(dataset(true_return=around), BASELINES).startswith("None found")


def test_where_no_reference_is_known_a_seed_is_compared_with_its_start_and_by_the_score_if_there_is_one():
    falls = only(0, np.linspace(2, 1, 30), healthy("true_return"))
    assert one_sign(dataset(true_return=falls)).startswith("Ended below where it began (by the true return): 1 of 4")
    assert one_sign(dataset(true_return=falls, true_score=healthy("true_return"))).startswith("None found")


def test_importance_weights_that_leave_few_rollouts_are_told():
    share = only(2, np.linspace(1, 0.02, 30), np.full(30, 0.9))
    assert "1 of 4 seeds (seed 2). What usually helps: a shorter --rollout-length" in one_sign(
        dataset(weight_ess=share)
    )


def test_signs_of_a_sweep_are_told_once_with_the_points_where_they_are_seen():
    norm = np.stack([np.ones((4, 30)), *(only(i, np.geomspace(1, 100, 30), np.ones(30)) for i in (1, 3))])
    sign = one_sign(dataset(sweep={"sigma": [0.1, 1.0, 2.0]}, gradient_norm=norm))
    assert "the end: 1 of 4 seeds (seed 1) at sigma = 1; 1 of 4 seeds (seed 3) at sigma = 2. What usually helps" in sign


def test_of_many_seeds_the_first_are_named_and_all_are_kept():
    run = dataset(num_seeds=40, true_return=np.linspace(2, 1, 30))
    summary = summarise(run)
    assert "40 of 40 seeds (seeds 0, 1, 2, 3, 4, 5, 6, 7 and 32 more)" in sign_items(summary)[0]
    assert summary["points"][0]["signs"][0]["seeds"] == list(range(40))
    assert summary["points"][0]["seeds_with_signs"] == 40


@pytest.mark.parametrize("step", [50, 80, 94])
def test_a_seed_that_learns_and_then_collapses_at_once_ended_below_the_reference(step):
    rng = np.random.default_rng(0)
    score = 500 + rng.normal(size=(3, 100))
    score[1, step:] = 9 + rng.normal(size=100 - step)
    goal = Goal("true_score", "true score", reference=20.0, best=500.0)
    (sign,) = find_signs({"true_score": score}, np.zeros(3, bool), goal)
    assert sign.what.startswith("Ended below the reference policy") and sign.seeds.tolist() == [False, True, False]
