"""Figures and the report: what is drawn is what was measured, and what looks wrong is told."""

import json
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray as xr

from experiments.figures import centred_rewards, draw, save_pngs
from experiments.report import failure_signs, headline, to_svg, write_report
from experiments.summary import COUNTS, summarise

BASELINES = {"true_return": {"optimal policy": 7.1, "reference policy": 0.9}}
GRID = np.array([[0, 1, 2], [3, -1, 4]], np.int32)
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


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


# Figures --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def single():
    return draw(dataset(), BASELINES, grid_tables())


@pytest.fixture(scope="module")
def swept():
    tables = {name: x for name, x in grid_tables(2).items() if name != "grid"}
    return draw(dataset(sweep={"sigma": [0.01, 1.0], "kind": ["a", "b"]}), BASELINES, tables)


def test_a_run_has_the_figures_that_it_has_data_for(single, swept):
    assert set(single) == {"outcomes", "optimisation", "cost", "rewards"}
    assert set(swept) == {"outcomes", "optimisation", "cost", "sweep", "rewards_0", "rewards_1"}
    free = dataset().drop_vars([*COUNTS, "gradient_norm", "critic_loss"])
    assert set(draw(free)) == {"outcomes"}


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
    assert labels(single["outcomes"].axes[0]) == ["optimal policy: 7.1", "reference policy: 0.9"]
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
    text = [text.get_text() for text in swept["outcomes"].legends[0].get_texts()]
    assert text == ["sigma = 0.01, kind = a", "sigma = 1, kind = b", "95 % bootstrap interval"]


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


def test_long_runs_and_wide_sweeps_stay_below_the_size_limit():
    run = dataset(num_steps=400, sweep={"sigma": np.geomspace(0.1, 1, 14)}).drop_vars(COUNTS)
    assert len(to_svg(draw(run)["outcomes"], "outcomes")) < 150_000


# Signs of failure -----------------------------------------------------------------------------------------------------


def one_sign(run):
    (sign,) = failure_signs(run)
    return sign


def test_a_healthy_run_has_no_sign_and_says_what_was_looked_for():
    assert one_sign(dataset()).startswith("None found. Looked for")


def test_diverged_seeds_are_counted():
    status = np.zeros((4, 30), np.int32)
    status[1, 12:] = status[3, 20:] = 2
    assert one_sign(dataset(status=status)) == "2 of 4 seeds diverged, the first at outer step 12."


def test_a_seed_that_died_at_once_is_told_once():
    values = np.ones((4, 30))
    values[0] = np.nan
    run = dataset(true_return=values, status=2 * np.isnan(values).astype(np.int32))
    assert one_sign(run) == "1 of 4 seeds diverged, the first at outer step 0."


def test_a_metric_that_a_living_seed_never_has_is_told():
    values = np.ones((4, 30))
    values[0] = np.nan
    assert "true score was never finite in 1 of the 4" in one_sign(dataset(true_score=values))


@pytest.mark.parametrize("name", ["gradient_norm", "critic_loss"])
def test_growth_by_more_than_ten_is_told_but_not_a_rise_at_the_start(name):
    growth = np.geomspace(1, 100, 30)
    assert f"The {name.replace('_', ' ')} grew" in one_sign(dataset(**{name: growth}))
    assert one_sign(dataset(**{name: growth**0.5})).startswith("None found")
    assert one_sign(dataset(**{name: np.minimum(growth**4, 100)})).startswith("None found")


def test_a_spread_that_explodes_around_the_same_median_is_told():
    sides = np.array([-1, -1, 0, 1, 1])[:, None] * np.geomspace(0.01, 5, 30)
    assert "The gradient norm spread out" in one_sign(dataset(num_seeds=5, gradient_norm=np.exp(sides)))


def test_a_deterministic_policy_far_from_its_reference_is_told():
    entropy = np.geomspace(1, 1e-4, 30)
    assert "The policy became deterministic in 100%" in one_sign(dataset(policy_entropy=entropy))
    assert one_sign(dataset(policy_entropy=entropy, kl_to_reference=0.0)).startswith("None found")


def test_negative_entropy_of_a_density_is_no_sign():
    assert one_sign(dataset(policy_entropy=-2.0)).startswith("None found")


def test_a_reward_that_does_not_move_is_told():
    assert "The reward does not move: the gradient norm" in one_sign(dataset(gradient_norm=1e-9))
    assert "The reward does not move: the reward change" in one_sign(dataset(reward_change=0.0))


def test_a_falling_true_return_is_told():
    assert "The true return fell" in one_sign(dataset(true_return=np.linspace(2, 1, 30)))


def test_signs_of_a_sweep_name_their_point():
    norm = np.stack([np.ones(30), np.geomspace(1, 100, 30)])[:, None]
    assert one_sign(dataset(sweep={"sigma": [0.1, 1.0]}, gradient_norm=norm)).startswith("At sigma = 1: The gradient")


# The report -----------------------------------------------------------------------------------------------------------


def test_the_headline_tells_from_where_to_where_and_between_what():
    values = np.linspace(1, 6, 30)
    text = headline(summarise(dataset(true_return=values)), BASELINES)
    assert text.startswith("True return from 1 to 6 [6, 6] in 30 outer steps")
    assert "optimal policy 7.1, reference policy 0.9. 4 of 4 seeds alive" in text


def test_the_headline_of_a_sweep_says_that_it_is_the_best_point():
    values = np.array([2.0, 5.0, 3.0])[:, None, None]
    text = headline(summarise(dataset(sweep={"sigma": [1.0, 2.0, 3.0]}, true_return=values)), {})
    assert text.startswith("At sigma = 2, the best of 3 points by this number: true return from 5 to 5")


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
    assert page.count("<svg ") == 4 == len(list((tmp_path / "figures").glob("*.png")))
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
    code = "import sys, experiments.report; sys.exit('jax' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
