"""Figures of runs: what is drawn is what was measured."""

import numpy as np
import pytest
from made_runs import BASELINES, GRID, dataset, grid_tables, labels, only
from matplotlib.backends.backend_agg import FigureCanvasAgg

from experiments.report.figures import centred_rewards, draw, save_pngs
from experiments.report.html import svg
from experiments.report.summary import COUNTS, format_table, summarise


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
    assert len(svg(figure, "seeds")) < 150_000


def test_curves_of_the_same_numbers_are_drawn_once():
    norm = dataset().gradient_norm.values
    figure = draw(dataset(policy_gradient_norm=norm))["optimisation"]
    assert [axes.get_title() for axes in figure.axes] == ["policy gradient norm", "critic loss"]


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


def test_where_the_reward_rests_the_gradient_norm_is_told_once_with_the_unit_of_the_policys():
    norm = dataset().gradient_norm.values
    table = format_table(summarise(dataset(policy_gradient_norm=norm)))
    assert sum("gradient norm" in line for line in table.splitlines()) == 2  # its row, and its unit
    assert "learned reward / unit of λ for policy gradient norm" in table and "unit of φ" not in table


def test_a_sweep_that_ends_in_infinity_is_drawn_and_named():
    run = dataset(sweep={"critic_radius": [0.5, 2.0, np.inf]})
    for figure in draw(run).values():
        figure.draw_without_rendering()
    summary = summarise(run)
    assert [point["hyper"]["critic_radius"] for point in summary["points"]] == [0.5, 2.0, "inf"]
    assert "critic_radius = inf" in format_table(summary)
