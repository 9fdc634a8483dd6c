"""Figures and the report: what is drawn is what was measured, and what looks wrong is told."""

import json
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from experiments.report.figures import centred_rewards, draw, save_pngs
from experiments.report.page import headline, sign_items, to_svg, write_report
from experiments.report.summary import COUNTS, format_table, summarise

BASELINES = {"true_return": {"optimal policy": 7.1, "reference policy": 0.9}}
GRID = np.array([[0, 1, 2], [3, -1, 4]], np.int32)
SVG = "{http://www.w3.org/2000/svg}"
RIGHT = np.array([0.0, 1.0, 0.0, 0.0])


def dataset(num_seeds=4, num_steps=30, sweep=None, **changes):
    """A healthy run, with `changes` (arrays that broadcast to [hyper, seed, step]) in the place of some variables."""
    sweep = sweep or {}
    num_hyper = len(next(iter(sweep.values()), [0]))
    rng, rise = np.random.default_rng(0), 1 - np.exp(-np.arange(num_steps) / 10)
    shape = (num_hyper, num_seeds, num_steps)
    variables = {
        "true_return": 0.9 + 5 * rise + 0.05 * rng.normal(size=shape),
        "upper_objective": -0.69 + 0.2 * rise + 0.01 * rng.normal(size=shape),
        "kl_to_reference": 1.5 * rise,
        "policy_entropy": 1.4 - rise,
        "gradient_norm": np.exp(-4 * rise + 0.2 * rng.normal(size=shape)),
        "critic_loss": np.exp(-rise + 0.2 * rng.normal(size=shape)),
        **{name: np.full(shape, 100, np.int32) for name in COUNTS},
        "status": np.zeros(shape, np.int32),
    }
    variables = {n: (("hyper", "seed", "step"), np.broadcast_to(x, shape)) for n, x in (variables | changes).items()}
    coords = {name: ("hyper", values) for name, values in sweep.items()}
    return xr.Dataset(variables, {"seed": np.arange(num_seeds), "step": np.arange(num_steps), **coords})


def grid_tables(num_hyper=1):
    """Two seeds on a map of five cells, where the policy always goes right."""
    true = np.repeat(np.array([0.0, 0, 0, 0, 1])[:, None], 4, axis=1)
    learned = np.stack([0.5 * true + 3, 0.7 * true - 1])
    policy = np.broadcast_to(RIGHT, (num_hyper, 2, 5, 4))
    return {
        "learned_reward": np.broadcast_to(learned, (num_hyper, *learned.shape)),
        "policy": policy,
        "true_reward": true,
        "grid": GRID,
    }


def labels(figure):
    """Of the only legend of a figure."""
    assert not any(axes.get_legend() for axes in figure.axes)
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


# Figures --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def single():
    return draw(dataset(), BASELINES, grid_tables())


@pytest.fixture(scope="module")
def swept():
    tables = {name: x for name, x in grid_tables(2).items() if name != "grid"}
    return draw(dataset(sweep={"sigma": [0.01, 1.0], "kind": ["a", "b"]}), BASELINES, tables)


def test_a_run_has_the_figures_that_it_has_data_for(single, swept):
    assert set(single) == {"outcomes", "optimisation", "cost", "seeds", "rewards"}
    assert set(swept) == {"outcomes", "optimisation", "cost", "seeds", "sweep", "rewards_0", "rewards_1"}
    free = dataset().drop_vars([*COUNTS, "gradient_norm", "critic_loss"])
    assert set(draw(free)) == {"outcomes", "seeds"}


def test_each_metric_has_a_panel_with_its_unit(single):
    panels = {axes.get_title(): axes.get_ylabel() for axes in single["outcomes"].axes}
    assert panels == {
        "true return": "true reward",
        "upper objective": "nats",
        "KL to the reference": "nats",
        "policy entropy": "nats",
    }
    assert [axes.get_title() for axes in single["optimisation"].axes] == ["gradient norm", "critic loss"]


def test_baselines_are_labelled_horizontal_lines(single):
    assert labels(single["outcomes"])[-2:] == ["optimal policy: 7.1", "reference policy: 0.9"]
    assert list(single["outcomes"].axes[0].lines[1].get_ydata()) == [7.1, 7.1]


def test_norms_that_span_decades_get_a_logarithmic_axis(single):
    assert [axes.get_yscale() for axes in single["optimisation"].axes] == ["log", "linear"]


def test_the_curve_against_cost_ends_at_the_mean_total_cost_of_a_seed():
    alive = np.array([1, 1, 1, 0])[:, None]
    run = dataset(labels=100 * alive)
    figure = draw(run[["true_return", *COUNTS, "status"]])["cost"]
    assert [axes.get_xlabel().split()[0] for axes in figure.axes] == ["transitions", "labels", "gradient"]
    assert figure.axes[1].lines[0].get_xdata()[-1] == 30 * 75


def test_a_sweep_is_drawn_on_a_logarithmic_axis_if_it_spans_decades(swept):
    panels = swept["sweep"].axes
    assert [axes.get_xlabel() for axes in panels] == ["sigma"] * 3 + ["kind"] * 3
    assert {axes.get_xscale() for axes in panels[:3]} == {"log"}
    assert [text.get_text() for text in panels[0].get_xticklabels()] == ["0.01", "1"]


def test_the_legend_names_every_point_of_a_sweep(swept):
    points = ["sigma = 0.01, kind = a", "sigma = 1, kind = b", "95 % bootstrap interval"]
    assert labels(swept["outcomes"]) == [*points, "optimal policy: 7.1", "reference policy: 0.9"]


def test_lines_of_a_sweep_join_points_that_differ_in_one_hyperparameter_alone_in_a_colour_of_its_own():
    grid = {"sigma": [0.1, 0.1, 1.0, 1.0, 10.0, 10.0], "kl_weight": [0.2, 0.5] * 3}
    level = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])[:, None, None]
    figure = draw(dataset(sweep=grid, true_return=level), BASELINES)["sweep"]
    by_sigma, by_weight = (figure.axes[i].lines for i in (0, 3))
    drawn = {tuple(line.get_ydata()): line.get_color() for line in (*by_sigma, *by_weight) if line.get_marker() == "o"}
    assert set(drawn) == {(1.0, 3.0, 5.0), (2.0, 4.0, 6.0), (1.0, 2.0), (3.0, 4.0), (5.0, 6.0)}
    assert len(set(drawn.values())) == 5
    first = ["kl_weight = 0.2", "kl_weight = 0.5", "sigma = 0.1", "sigma = 1", "sigma = 10"]
    assert labels(figure)[:5] == first and labels(figure).count("optimal policy: 7.1") == 1


@pytest.mark.parametrize("num_seeds", [4, 1000])
def test_every_seed_is_a_dot_beside_the_interval(num_seeds):
    run = dataset(num_seeds=num_seeds, sweep={"sigma": [0.1, 1.0]})
    figure = draw(run, BASELINES)["seeds"]
    for i in range(2):
        dots = next(
            line
            for line in figure.axes[0].lines
            if len(line.get_ydata()) == num_seeds and line.get_xdata()[0] > i - 0.5
        )
        np.testing.assert_array_equal(dots.get_ydata(), np.sort(run.true_return.values[i, :, -1]))
        assert i - 0.5 < dots.get_xdata().min() and dots.get_xdata().max() < i + 0.25
    assert len(to_svg(figure, "seeds")) < 150_000


def test_curves_of_the_same_numbers_are_drawn_once():
    norm = dataset().gradient_norm.values
    figure = draw(dataset(policy_gradient_norm=norm))["optimisation"]
    assert [axes.get_title() for axes in figure.axes] == ["policy gradient norm", "critic loss"]


def test_where_the_reward_rests_the_gradient_norm_is_told_once_with_the_unit_of_the_policys():
    norm = dataset().gradient_norm.values
    table = format_table(summarise(dataset(policy_gradient_norm=norm)))
    assert sum("gradient norm" in line for line in table.splitlines()) == 2  # its row, and its unit
    assert "learned reward / unit of λ for policy gradient norm" in table and "unit of φ" not in table


def test_a_loss_that_is_0_throughout_has_no_panel_and_no_row_for_nothing_is_fitted():
    run = dataset(critic_loss=0.0)
    assert [axes.get_title() for axes in draw(run)["optimisation"].axes] == ["gradient norm"]
    assert "critic loss" not in format_table(summarise(run))
    for fitted in (only(0, np.eye(30)[3], np.zeros(30)), np.full(30, np.nan)):
        assert "critic loss" in format_table(summarise(dataset(critic_loss=fitted)))


def test_a_thousand_is_written_out_on_the_axis_of_a_sweep():
    panels = draw(dataset(sweep={"sigma": [0.001, 1000.0, 100_000.0]}))["sweep"].axes
    assert [text.get_text() for text in panels[0].get_xticklabels()] == ["0.001", "1000", "100000"]


def test_what_was_spent_before_the_first_step_explains_no_curve():
    labels_first = np.where(np.arange(30) == 0, 320, 0)
    figure = draw(dataset(labels=labels_first))["cost"]
    assert [axes.get_xlabel().split()[0] for axes in figure.axes] == ["transitions", "gradient"]


def test_no_label_is_cut_at_the_edge_or_runs_into_its_neighbour(tmp_path):
    run = dataset(true_score=np.linspace(20, 480, 30), kl_to_reference=np.linspace(0, 0.13, 30))
    run.true_score.attrs.update(long_name="steps survived", units="steps", valid_max=500)
    for figure in draw(run, BASELINES).values():
        figure.savefig(tmp_path / "figure.png")
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        for axes in figure.axes:
            box = axes.get_tightbbox(canvas.get_renderer())
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_a_policy_that_goes_right_has_arrows_to_the_right(single):
    path = single["rewards"].axes[2].lines[0].get_xydata().reshape(5, -1, 2)  # one arrow a cell
    cells = np.argwhere(GRID >= 0)[:, ::-1]
    np.testing.assert_allclose(path[:, 0], cells)
    assert np.all(path[:, 1, 0] > cells[:, 0] + 0.4)
    np.testing.assert_allclose(path[:, 1, 1], cells[:, 1])


def test_walls_are_masked_and_both_rewards_share_one_scale(single):
    learned, true, _ = (axes.images[0] for axes in single["rewards"].axes[:3])
    np.testing.assert_array_equal(learned.get_array().mask, GRID < 0)
    assert learned.get_clim() == true.get_clim() == (-0.8, 0.8)


def test_a_constant_added_to_a_seeds_reward_changes_nothing():
    tables = grid_tables()
    learned, true = centred_rewards(tables, 0)
    np.testing.assert_allclose(learned, 0.6 * true, atol=1e-12)
    shifted = tables | {"learned_reward": tables["learned_reward"] + np.array([5.0, -2.0])[:, None, None]}
    np.testing.assert_allclose(centred_rewards(shifted, 0)[0], learned, atol=1e-12)


def test_a_seed_without_a_finite_reward_is_left_out():
    tables = grid_tables()
    learned = np.array(tables["learned_reward"])
    learned[0, 1] = np.nan
    np.testing.assert_allclose(centred_rewards(tables | {"learned_reward": learned}, 0)[0].max(), 0.4)


def test_one_seed_of_one_step_can_be_drawn(tmp_path):
    run = dataset(num_seeds=1, num_steps=1, unknown_thing=np.nan)[["true_return", "unknown_thing"]]
    paths = save_pngs({"outcomes": draw(run)["outcomes"]}, tmp_path)
    assert [path.name for path in paths] == ["outcomes.png"] and paths[0].stat().st_size > 1000


def test_an_svg_is_small_well_formed_and_holds_no_id_twice(swept):
    svgs = [to_svg(figure, f"<{name}>") for name, figure in swept.items()]
    assert all(ElementTree.fromstring(svg).tag.endswith("svg") for svg in svgs)
    assert max(map(len, svgs)) < 150_000
    ids = [i for svg in svgs for i in re.findall(r'\bid="([^"]+)"', svg)]
    assert ids and len(ids) == len(set(ids))


def test_the_texts_of_an_svg_are_those_of_the_figure():
    small = {"sigma": [0.001, 0.0025, 0.0075], "odd": ["1.2345 d", "b", "c"]}
    level = 1 + 0.001 * np.arange(12).reshape(3, 4, 1)
    for name, figure in draw(dataset(sweep=small, true_return=level), {"true_return": {"best": 1.0125}}).items():
        drawn = {text.get_text().strip() for text in figure.findobj(Text)}
        shown = [text.text.strip() for text in ElementTree.fromstring(to_svg(figure, name)).iter(f"{SVG}text")]
        assert shown and set(shown) <= drawn
        assert {text.get_text() for text in figure.legends[0].get_texts()} <= {*shown}


def test_long_runs_and_wide_sweeps_stay_below_the_size_limit():
    run = dataset(num_steps=400, sweep={"sigma": np.geomspace(0.1, 1, 14)}).drop_vars(COUNTS)
    assert len(to_svg(draw(run)["outcomes"], "outcomes")) < 150_000


# Signs of failure -----------------------------------------------------------------------------------------------------


def one_sign(run, baselines=None):
    (sign,) = sign_items(summarise(run, baselines=baselines))
    return sign


def only(seed, strange, usual, num_seeds=4):
    """[seed, step]: one seed is strange, the others are as usual."""
    return np.stack([strange if i == seed else usual for i in range(num_seeds)])


def healthy(name):
    return dataset()[name].values[0, 0]


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


def test_a_sweep_that_ends_in_infinity_is_drawn_and_named():
    run = dataset(sweep={"critic_radius": [0.5, 2.0, np.inf]})
    for figure in draw(run).values():
        figure.draw_without_rendering()
    summary = summarise(run)
    assert [point["hyper"]["critic_radius"] for point in summary["points"]] == [0.5, 2.0, "inf"]
    assert "critic_radius = inf" in format_table(summary)


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


def test_the_table_and_the_headline_count_the_seeds_with_signs():
    run = dataset(true_return=only(1, np.linspace(2, 1, 30), healthy("true_return")))
    table, text = format_table(summarise(run)), headline(summarise(run), {})
    row = next(line for line in table.splitlines() if line.startswith("true return"))
    assert row.split()[-2:] == ["4/4", "1/4"] and "Sign of failure. Ended below where it began" in table
    assert "Signs of failure: in 1 of 4 seeds." in text
    assert "signs" not in format_table(summarise(dataset()))


# The report -----------------------------------------------------------------------------------------------------------


def test_the_headline_tells_from_where_to_where_and_between_what():
    values = np.linspace(1, 6, 30)
    text = headline(summarise(dataset(true_return=values)), BASELINES)
    assert text.startswith("True return from 1 after the first step to 6 [6, 6] in 30 outer steps")
    assert "optimal policy 7.1, reference policy 0.9. 4 of 4 seeds alive" in text


def test_the_headline_counts_the_seeds_of_the_mean_and_those_that_never_had_a_finite_value():
    dead = np.isin(np.arange(8), (2, 5))[:, None]
    run = dataset(num_seeds=8, true_return=np.where(dead, np.nan, 3.0), status=2 * dead)
    text = headline(summarise(run), {})
    assert "(interquartile mean and 95 % interval over 6 seeds; 2 never had a finite value)" in text
    assert "6 of 8 seeds alive" in text
    assert "2 of 8 seeds never had a finite value and count in no mean." in format_table(summarise(run))


def test_a_run_of_one_seed_and_one_step_has_no_interval_and_no_plural():
    text = headline(summarise(dataset(num_seeds=1, num_steps=1, true_return=3.0, kl_to_reference=1.0)), {})
    assert text.startswith(
        "True return from 3 after the first step to 3 in 1 outer step (interquartile mean over 1 seed)."
    )
    assert "1 of 1 seed alive" in text and "in none of 1 seed." in text
    dead = dataset(num_seeds=1, num_steps=1, status=2)
    assert one_sign(dead).startswith("Diverged: 1 of 1 seed (seed 0).")
    assert "of 1 outer step, 95 %" in format_table(summarise(dead))


def test_an_unfinished_run_says_so_in_its_headline_and_its_table():
    run = dataset(num_steps=30)
    for steps, said in ((200_000, True), (30, False)):
        summary = summarise(run.assign_attrs(config=json.dumps({"steps": steps})))
        for text in (headline(summary, {}), format_table(summary)):
            assert ("Unfinished: 30 of 200,000 outer steps are done." in text) == said


def test_the_headline_of_a_world_with_a_score_is_in_its_unit_and_range():
    run = dataset(true_score=np.linspace(20, 173, 30))
    assert headline(summarise(run), {}).startswith("True score from 20 after the first step to 173 [173, 173] in 30")
    run.true_score.attrs.update(long_name="steps survived", units="steps", valid_min=0, valid_max=500)
    text = headline(summarise(run), {})
    assert text.startswith("Steps survived from 20 after the first step to 173 [173, 173] of 500 in 30 outer steps")
    assert "steps for steps survived" in format_table(summarise(run))
    figure = draw(run)["outcomes"]
    assert (figure.axes[0].get_title(), figure.axes[0].get_ylabel()) == ("steps survived", "steps")
    assert labels(figure)[-1] == "most possible: 500"


def test_the_headline_of_a_sweep_says_that_it_is_the_best_point():
    values = np.array([2.0, 5.0, 3.0])[:, None, None]
    text = headline(summarise(dataset(sweep={"sigma": [1.0, 2.0, 3.0]}, true_return=values)), {})
    assert text.startswith("At sigma = 2, the best of 3 points by this number: true return from 5 after the first")


def test_a_report_is_one_page_complete_in_itself(tmp_path):
    config = {"world": "gridworld", "sigma": [0.1, 1.0], "note": "<script>alert(1)</script>"}
    manifest = {"config": config, "versions": {"jax": "0.10.2"}, "layout": {"num_devices": 2}}
    told = {"notes": ["resumed at step 20"], "command": "run --x"}
    for name, value in {"config": config, "manifest": manifest, "notes": told, "baselines": BASELINES}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    np.savez(tmp_path / "tables.npz", **grid_tables())
    run = dataset()
    path = write_report(tmp_path, run, summarise(run, {"run_seconds": 2.5}), ["bits may differ & so on"])
    page = path.read_text(encoding="utf-8")
    assert path == tmp_path / "report.html"
    assert page.count("<svg ") == 5 == len(list((tmp_path / "figures").glob("*.png")))
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page) and "url(http" not in page
    for text in (
        "bits may differ &amp; so on",
        "resumed at step 20",
        "versions.jax",
        "run --x",
        "0.1, 1",
        "12,000",
        "run 2.5 s",
    ):
        assert text in page


def test_a_folder_with_nothing_else_in_it_gets_a_report(tmp_path):
    run = dataset(num_seeds=1, num_steps=2)[["critic_loss"]]
    assert "not recorded" in write_report(tmp_path, run, summarise(run)).read_text(encoding="utf-8")


def test_reading_a_run_needs_no_accelerator_library():
    code = "import sys, experiments.report.page; sys.exit('jax' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
